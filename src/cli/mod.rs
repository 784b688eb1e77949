//! The commands: one file each.

pub mod agent;
pub mod agents;
pub mod audit;
pub mod config;
pub mod connect;
#[cfg(feature = "demo")]
pub mod demo;
pub mod keys;
pub mod operator;
mod output;
pub mod rdp;
pub mod revoke;
mod secret_file;
pub mod serve;
pub mod sessions;
pub mod ticket;
pub mod token;

/// An RDP gateway: one port, a token that says where to and what is allowed
#[derive(Debug, clap::Parser)]
#[command(name = "jetway", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the gateway
    Serve(serve::Args),
    /// Create keys, and show or publish their public halves
    Keys(keys::Args),
    /// Make tokens and explain them
    Token(token::Args),
    /// Run a target, a gateway and a client on this machine, and save a picture of the session
    #[cfg(feature = "demo")]
    Demo(demo::Args),
    /// Exchange a token for a ticket, short enough for loadbalanceinfo
    Ticket(ticket::Args),
    /// Write a .rdp file that leads through the gateway
    Rdp(Box<rdp::Args>),
    /// Run an agent next to targets that cannot be reached from outside
    Agent(agent::Args),
    /// Connect a local port, or standard input and output, to a target through the gateway
    Connect(connect::Args),
    /// List the live sessions of a gateway, show or end one
    Sessions(sessions::Args),
    /// List the agents of a gateway, or revoke one
    Agents(agents::Args),
    /// Revoke tokens by any claim of theirs
    Revoke(revoke::Args),
    /// Verify the audit
    Audit(audit::Args),
    /// Check the configuration
    Config(config::Args),
}

/// Runs a command.
///
/// # Errors
/// The command's.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Token(args) => token::run(&args),
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args),
        Command::Ticket(args) => ticket::run(&args),
        Command::Rdp(args) => rdp::run(*args),
        Command::Agent(args) => agent::run(&args),
        Command::Connect(args) => connect::run(&args),
        Command::Sessions(args) => sessions::run(&args),
        Command::Agents(args) => agents::run(&args),
        Command::Revoke(args) => revoke::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Config(args) => config::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn the_units_of_the_samples_start_what_there_is() {
        let agent = include_str!("../../samples/jetway-agent.service");
        let Command::Agent(agent::Args {
            command: agent::Command::Run(run),
        }) = command_of(agent)
        else {
            panic!("the agent");
        };
        // The key is where the unit has systemd put it.
        let (directory, name) = ("${CREDENTIALS_DIRECTORY}", "agent.private.pem");
        assert_eq!(run.key, std::path::Path::new(directory).join(name));
        assert!(agent.contains(&format!(
            "\nLoadCredential={name}:/etc/jetway-agent/{name}\n"
        )));
        let gateway = command_of(include_str!("../../samples/jetway.service"));
        assert!(matches!(gateway, Command::Serve(_)));
    }

    fn command_of(unit: &str) -> Command {
        let unit = unit.replace("\\\n", " ");
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="));
        Cli::try_parse_from(line.unwrap().split_whitespace())
            .unwrap()
            .command
    }
}
