//! `jetway rdp`: writes a `.rdp` file that leads through the gateway.
//!
//! With `--via`, the token is made here: it leads to a target behind an agent. With `--dst-usr`, the gateway logs on there, and the
//! user needs no password. With `--gateway`, a token is exchanged for a ticket.
//!
//! Token, ticket and password are read from files or standard input, never from arguments, which other users can see. The file
//! holds a secret: it is readable by its owner only, and replaces an older one as a whole.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hyper::{Method, Uri};

use crate::api::tickets::Created;
use crate::cli::{secret_file, token};
use crate::clock;
use crate::peer::Site;
use crate::rdp_file::{RdpFile, Setting};
use crate::token::agent_name::AgentName;
use crate::token::target::TargetAddr;

/// Write a .rdp file that leads through the gateway
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("carrier").required(true).multiple(true).args(["token_file", "ticket_file", "via"]))]
pub struct Args {
    /// Address of the gateway; its name is what the client checks certificates against
    #[arg(long, value_name = "HOST:PORT")]
    full_address: TargetAddr,
    /// File with the token, for the preconnection PDU (`pcb:s:`); `-` is standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// File with the ticket, for the routing token (`loadbalanceinfo:s:`); `-` is standard input
    #[arg(long, value_name = "FILE", visible_alias = "ticket")]
    ticket_file: Option<PathBuf>,
    /// Make a token that leads to --target behind this agent
    #[arg(long, value_name = "AGENT", requires_all = ["target", "sign_key"], conflicts_with_all = ["token_file", "ticket_file"])]
    via: Option<AgentName>,
    /// Target behind the agent, as the agent knows it
    #[arg(long, value_name = "HOST:PORT", requires = "via")]
    target: Option<TargetAddr>,
    /// Private key, or shared secret, that signs the token (PEM or JWK)
    #[arg(long, value_name = "FILE", requires = "via")]
    sign_key: Option<PathBuf>,
    /// Further target behind the agent, where the first does not answer or sends its clients there; may be repeated
    #[arg(long, value_name = "HOST:PORT", requires = "via")]
    alternative: Vec<TargetAddr>,
    /// The user that the token is for
    #[arg(long, requires = "via")]
    sub: Option<String>,
    /// The gateway's public key, or a shared secret, that the token is encrypted to (PEM or JWK)
    #[arg(long, value_name = "FILE", requires = "via")]
    encrypt_key: Option<PathBuf>,
    /// User name by which the gateway logs on to the target; the user of the file needs no password for it
    #[arg(long, value_name = "NAME", requires_all = ["dst_pwd_file", "encrypt_key"])]
    dst_usr: Option<String>,
    /// File with the password for it; `-` is standard input
    #[arg(long, value_name = "FILE", requires = "dst_usr")]
    dst_pwd_file: Option<PathBuf>,
    /// SHA-256 of the only certificate that the target may show
    #[arg(long, value_name = "HEX", requires = "via")]
    cert_thumb256: Option<String>,
    /// Life of the token, seconds; the file opens its session within that time (two minutes, if nothing else is said), or never
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    lifetime: u64,
    /// Exchange the token for a ticket at this gateway, for clients that take no preconnection PDU: https://HOST:PORT, or
    /// http://127.0.0.1:PORT on its own machine
    #[arg(long, value_name = "URL", conflicts_with = "ticket_file")]
    gateway: Option<Uri>,
    /// Trust the certificates in this PEM file instead of the system's: authorities, or the gateway's own, with --gateway
    #[arg(long, value_name = "FILE", requires = "gateway")]
    ca: Option<PathBuf>,
    /// File to write, readable by its owner only; standard output if not given
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// User name to fill in
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// The gateway logs on to the target (dst_usr in the token, which has no prx_usr): the client asks for no user and no password.
    /// This is so with --dst-usr
    #[arg(long)]
    gateway_logs_on: bool,
    /// Another setting, or another value for one; may be repeated
    #[arg(long = "setting", value_name = "NAME:TYPE:VALUE")]
    settings: Vec<Setting>,
    /// Write UTF-8 instead of UTF-16, which mstsc writes
    #[arg(long)]
    utf8: bool,
}

/// Runs the command.
///
/// # Errors
/// Where an argument has no place in the file, or a file cannot be read or written.
pub fn run(args: Args) -> anyhow::Result<()> {
    write(
        args,
        &mut io::stdin().lock(),
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    )
}

fn write(
    args: Args,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> anyhow::Result<()> {
    let is_stdin = |file: &Option<PathBuf>| file.as_deref() == Some(Path::new("-"));
    if is_stdin(&args.token_file) && is_stdin(&args.ticket_file) {
        bail!("standard input can give the token or the ticket, not both");
    }
    let mut file = RdpFile::new(&args.full_address);
    if let Some(path) = &args.token_file {
        let token = secret_file::read(path, stdin).context("reading the token")?;
        carry(&mut file, token.trim(), &args)?;
    }
    if let Some(agent) = &args.via {
        let new = token::NewArgs {
            sign_key: args.sign_key.clone(),
            jet_agent_id: Some(agent.clone()),
            jet_agent_dst: args.target.clone(),
            jet_agent_alt: args.alternative.clone(),
            encrypt_key: args.encrypt_key.clone(),
            dst_usr: args.dst_usr.clone(),
            dst_pwd_file: args.dst_pwd_file.clone(),
            cert_thumb256: args.cert_thumb256.clone(),
            jet_ap: Some("rdp".to_owned()),
            sub: args.sub.clone(),
            lifetime: args.lifetime,
            ..token::NewArgs::default()
        };
        let now = clock::unix_now();
        let made = token::make(&new, now, stdin)?;
        carry(&mut file, &made.token, &args)?;
        if let Some(note) = made.life(now) {
            writeln!(stderr, "note: {note}").context("writing a note")?;
        }
    }
    if let Some(path) = &args.ticket_file {
        let ticket = secret_file::read(path, stdin).context("reading the ticket")?;
        file.set_ticket(ticket.trim())?;
    }
    if let Some(username) = &args.username {
        file.set_username(username)?;
    }
    for setting in &args.settings {
        file.set(setting.clone())?;
    }
    if args.gateway_logs_on || args.dst_usr.is_some() {
        file.ask_nothing();
    } else {
        for note in [OPAQUE, LOGS_ON] {
            writeln!(stderr, "note: {note}").context("writing a note")?;
        }
    }
    for warning in file.warnings() {
        writeln!(stderr, "warning: {warning}").context("writing a warning")?;
    }
    let bytes = if args.utf8 {
        file.to_utf8()
    } else {
        file.to_utf16()
    };
    match &args.out {
        Some(path) => secret_file::write(path, &bytes),
        None => stdout
            .write_all(&bytes)
            .and_then(|()| stdout.flush())
            .context("writing to standard output"),
    }
}

/// What the user of the file sees that its author should know.
const OPAQUE: &str = "where the gateway does not look into the session, the client shows the target's certificate under the gateway's name, \
                      and its user is asked about it; with [tls] and session.inspect = \"always\" the gateway shows its own";

const LOGS_ON: &str = "the client asks for a user and a password, which are the target's; where the gateway logs on (dst_usr in the token), \
                       anything will do, and --gateway-logs-on writes a file that does not ask";

/// Puts the token into the file, or a ticket for it.
fn carry(file: &mut RdpFile, token: &str, args: &Args) -> anyhow::Result<()> {
    let Some(gateway) = &args.gateway else {
        return Ok(file.set_token(token)?);
    };
    let site = Site::new(gateway, args.ca.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let created = site.request(Method::POST, "/jet/tickets", token, String::new());
    let created: Created = runtime.block_on(created).context("asking for a ticket")?;
    Ok(file.set_ticket(&created.ticket)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn token_from_standard_input_goes_into_a_file_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("session.rdp");
        fs::write(&out, "older, readable by all").unwrap();

        let arguments = [
            "--token-file",
            "-",
            "--utf8",
            "--out",
            out.to_str().unwrap(),
        ];
        let (stdout, stderr) = jetway_rdp(&arguments, "eyJ0.e30.c2ln\n").unwrap();

        assert_eq!(stdout, "");
        for words in [
            "target's certificate",
            "session.inspect",
            "--gateway-logs-on",
        ] {
            assert!(stderr.contains(words), "{words}: {stderr}");
        }
        let text = fs::read_to_string(&out).unwrap();
        assert!(text.starts_with("full address:s:gw.example:3389\r\n"));
        assert!(text.contains("\r\npcb:s:eyJ0.e30.c2ln\r\n"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&out).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn token_and_ticket_may_both_be_given() {
        let folder = tempfile::tempdir().unwrap();
        let ticket = folder.path().join("ticket");
        fs::write(&ticket, "b7Yw0aJrV2kqf5hTz8Xn1A\r\n").unwrap();
        let arguments = [
            "--token-file",
            "-",
            "--ticket",
            ticket.to_str().unwrap(),
            "--username",
            "bob",
            "--setting",
            "redirectclipboard:i:0",
            "--utf8",
        ];
        let (stdout, _) = jetway_rdp(&arguments, "eyJ0").unwrap();
        assert!(stdout.contains("\r\npcb:s:eyJ0\r\n"));
        assert!(stdout.contains("\r\nloadbalanceinfo:s:b7Yw0aJrV2kqf5hTz8Xn1A\r\n"));
        assert!(stdout.contains("\r\nusername:s:bob\r\nredirectclipboard:i:0\r\n"));
    }

    #[test]
    fn a_file_by_which_the_gateway_logs_on_asks_nothing_and_no_note_is_needed() {
        let arguments = ["--ticket", "-", "--utf8", "--gateway-logs-on"];
        let (stdout, stderr) = jetway_rdp(&arguments, "t").unwrap();
        assert!(
            stdout.contains("\r\nenablecredsspsupport:i:0\r\n"),
            "{stdout}"
        );
        assert!(
            stdout.contains("\r\nprompt for credentials:i:0\r\n"),
            "{stdout}"
        );
        assert_eq!(stderr, "");
        let (stdout, _) = jetway_rdp(&["--ticket", "-", "--utf8"], "t").unwrap();
        assert!(
            stdout.contains("\r\nenablecredsspsupport:i:1\r\n"),
            "{stdout}"
        );
        assert!(
            stdout.contains("\r\nprompt for credentials:i:1\r\n"),
            "{stdout}"
        );
    }

    #[test]
    fn what_is_written_by_default_is_utf16() {
        let args = parse(&["--ticket", "-"]).unwrap();
        let mut stdout = Vec::new();
        write(args, &mut &b"t"[..], &mut stdout, &mut Vec::new()).unwrap();
        assert!(stdout.starts_with(&[0xff, 0xfe, b'f', 0]));
    }

    #[test]
    fn long_token_is_warned_of() {
        let (_, stderr) = jetway_rdp(&["--token-file", "-", "--utf8"], &"x".repeat(5000)).unwrap();
        assert!(
            stderr.contains("\nwarning: the token has 5000 bytes"),
            "{stderr}"
        );
    }

    #[test]
    fn what_has_no_place_in_the_file_is_refused_with_the_reason() {
        let long = "x".repeat(239);
        let huge = "x".repeat(crate::limits::TOKEN_BYTES * 4 + 1);
        let cases: [(&[&str], &str, &str); 6] = [
            (&["--ticket", "-"], &long, "in one byte"),
            (&["--token-file", "-"], &huge, "which no token has"),
            (
                &["--token-file", "-"],
                "a\nfull address:s:evil",
                "line break",
            ),
            (&["--token-file", "-", "--ticket", "-"], "a", "not both"),
            (
                &["--token-file", "-", "--setting", "pcb:s:x"],
                "a",
                "from a file",
            ),
            (
                &["--token-file", "/nonexistent/token"],
                "",
                "/nonexistent/token",
            ),
        ];
        for (arguments, stdin, reason) in cases {
            let error = jetway_rdp(arguments, stdin).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(reason), "{arguments:?}: {error}");
            assert!(!error.contains("xxxx"), "{error}");
        }
    }

    #[test]
    fn arguments_are_checked_before_anything_is_read() {
        for (arguments, reason) in [
            (&[][..], "required"),
            (&["--ticket", "-", "--setting", "a"], "name:type:value"),
            (
                &["--ticket", "-", "--setting", "a:s:b\r\nc:s:d"],
                "line break",
            ),
        ] {
            let error = parse(arguments).unwrap_err().to_string();
            assert!(error.contains(reason), "{arguments:?}: {error}");
        }
        let error = Command::try_parse_from(["rdp", "--full-address", "gw", "--ticket", "-"]);
        assert!(error.err().unwrap().to_string().contains("<host>:<port>"));
    }

    fn jetway_rdp(arguments: &[&str], stdin: &str) -> anyhow::Result<(String, String)> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let args = parse(arguments)?;
        write(args, &mut stdin.as_bytes(), &mut stdout, &mut stderr)?;
        Ok((String::from_utf8(stdout)?, String::from_utf8(stderr)?))
    }

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        let command = ["rdp", "--full-address", "gw.example:3389"];
        Command::try_parse_from(command.iter().chain(arguments)).map(|command| command.args)
    }

    #[test]
    fn via_an_agent_the_token_is_made_and_leads_there() {
        use crate::token::algorithm::{Algorithm, SignatureAlgorithm};
        use crate::token::{KeyDocument, KeySet, KeyUsage, TokenRules, Verifier, mint};

        let folder = tempfile::tempdir().unwrap();
        let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
        let path = folder.path().join("sign.pem");
        fs::write(&path, key.private_pem().unwrap().as_bytes()).unwrap();
        let sign_key = ["--sign-key", path.to_str().unwrap()];
        let via = ["--utf8", "--via", "branch-7", "--target", "pc42:3389"];
        let arguments: Vec<&str> = via.into_iter().chain(sign_key).collect();
        let (stdout, _) = jetway_rdp(&arguments, "").unwrap();
        let token = stdout.split("\r\npcb:s:").nth(1).unwrap();
        let token = token.split("\r\n").next().unwrap();
        let pem = key.public_pem().unwrap();
        let document = KeyDocument {
            name: "key",
            bytes: pem.as_bytes(),
            usage: Some(KeyUsage::Sign),
            kid: None,
        };
        let keys = KeySet::from_documents(&[document]).unwrap();
        let verifier = Verifier::new(keys, TokenRules::default());
        let token = verifier.verify(token, clock::unix_now()).unwrap();
        let agent = token.claims.agent.unwrap();
        assert_eq!(agent.agent.as_str(), "branch-7");
        assert_eq!(agent.targets, ["pc42:3389".parse().unwrap()]);
        for incomplete in [&via[..], &["--utf8", "--via", "a", "--sign-key", "k"]] {
            assert!(parse(incomplete).is_err(), "{incomplete:?}");
        }
    }

    #[test]
    fn the_password_of_a_target_goes_into_an_encrypted_token_and_nowhere_else() {
        use secrecy::ExposeSecret as _;

        use crate::token::algorithm::{Algorithm, KeyManagement, SignatureAlgorithm};
        use crate::token::{KeyDocument, KeySet, TokenRules, Verifier, mint};

        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let signing = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
        let sealing = mint::generate(Algorithm::KeyManagement(KeyManagement::EcdhEs)).unwrap();
        fs::write(path("sign"), signing.private_pem().unwrap().as_bytes()).unwrap();
        fs::write(path("seal"), sealing.public_pem().unwrap()).unwrap();
        let (sign, seal) = (path("sign"), path("seal"));
        let via = ["--utf8", "--via", "branch-7", "--target", "pc42:3389"];
        let logon = ["--dst-usr", "BRANCH\\alice", "--dst-pwd-file", "-"];
        let keys = ["--sign-key", &sign, "--encrypt-key", &seal];
        let further = ["--alternative", "pc43:3389", "--cert-thumb256"];
        let pin = "07".repeat(32);
        let arguments = [&via[..], &logon, &keys, &further, &[pin.as_str()]].concat();
        let (stdout, stderr) = jetway_rdp(&arguments, "correct horse\n").unwrap();
        assert!(
            stdout.contains("\r\nenablecredsspsupport:i:0\r\n"),
            "{stdout}"
        );
        assert!(stderr.contains("(2 min)"), "{stderr}");
        assert!(!stdout.contains("correct") && !stderr.contains("correct"));
        let token = stdout.split("\r\npcb:s:").nth(1).unwrap();
        let token = token.split("\r\n").next().unwrap();
        let (public, private) = (signing.public_pem(), sealing.private_pem());
        let (public, private) = (public.unwrap(), private.unwrap());
        let documents = [public.as_bytes(), private.as_bytes()].map(|bytes| KeyDocument {
            name: "key",
            bytes,
            usage: None,
            kid: None,
        });
        let keys = KeySet::from_documents(&documents).unwrap();
        let verifier = Verifier::new(keys, TokenRules::default());
        let claims = verifier.verify(token, clock::unix_now()).unwrap().claims;
        let credentials = claims.target_credentials.unwrap();
        assert_eq!(credentials.username, "BRANCH\\alice");
        assert_eq!(credentials.password.expose_secret(), "correct horse");
        assert_eq!(claims.agent.unwrap().targets.len(), 2);
        assert!(claims.cert_thumb256.is_some());
        // In a token that anybody can read it has no place.
        let signed = [&via[..], &logon, &["--sign-key", &sign]].concat();
        assert!(
            parse(&signed)
                .unwrap_err()
                .to_string()
                .contains("--encrypt-key")
        );
    }
}
