//! `jetway agent`: the end that runs beside a target.
//!
//! It connects outwards only. The enrolment is read from a file, and the key stays in one that its owner alone can read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hyper::{Method, Uri};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::api::agents::Enrolled;
use crate::cli::keys::write_new;
use crate::cli::output::print_line;
use crate::cli::secret_file;
use crate::jet::agent::{BackOff, Enrolment};
use crate::keyring::read_key_file;
use crate::log;
use crate::log::settings::LogConfig;
use crate::peer::Site;
use crate::peer::agent::{self, Settings};
use crate::peer::host::local_addresses;
use crate::token::agent_name::AgentName;
use crate::token::algorithm::{Algorithm, SignatureAlgorithm};
use crate::token::mint::{SigningKey, generate};
use crate::token::target::TargetAddr;
use crate::token::{KeyDocument, KeyUsage};

/// How an agent comes back: at once after a restart of the gateway, and once a minute to one that stays away.
const BACK_OFF: BackOff = BackOff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(60),
};

/// The private key of an agent, in its folder.
const KEY_FILE: &str = "agent.private.pem";

/// Beside the key: what the gateway called itself at the enrolment.
const GATEWAY_FILE: &str = "agent.gateway";

/// Beside the key: the name that it was enrolled with.
const NAME_FILE: &str = "agent.name";

/// Arguments of `jetway agent`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create a key and register it with the enrolment that the gateway's operator has issued
    Enrol(EnrolArgs),
    /// Stay connected to the gateway, and connect the clients that it sends to their targets
    Run(RunArgs),
}

/// Where the gateway is.
#[derive(Clone, Debug, clap::Args)]
pub struct GatewayArgs {
    /// Where the gateway is: https://HOST:PORT, or http://127.0.0.1:PORT on its own machine
    #[arg(long, value_name = "URL")]
    pub gateway: Uri,
    /// Trust the certificates in this PEM file instead of the system's: authorities, or the gateway's own
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Arguments of `jetway agent enrol`.
#[derive(Debug, clap::Args)]
pub struct EnrolArgs {
    /// The gateway.
    #[command(flatten)]
    pub gateway: GatewayArgs,
    /// File with the enrolment, or with the gateway's whole answer to POST /jet/enrolments; - reads standard input
    #[arg(long, value_name = "FILE")]
    pub enrolment_file: PathBuf,
    /// Folder for the key; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Arguments of `jetway agent run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The gateway.
    #[command(flatten)]
    pub gateway: GatewayArgs,
    /// The agent's private key
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The name that it was enrolled with
    #[arg(long)]
    pub name: AgentName,
    /// Target that the agent may connect to; may be repeated
    #[arg(long = "target", value_name = "HOST:PORT", required = true)]
    pub targets: Vec<TargetAddr>,
    /// Name of the gateway (jet.instance of its configuration), the only one that the agent proves its name to. By default the one that
    /// it was enrolled at, which is in agent.gateway beside the key
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
    /// Tell clients the addresses of this machine, so that those that can reach it come directly
    #[arg(long)]
    pub host_candidates: bool,
    /// Log filter, as in info,jetway_peer=debug
    #[arg(long, default_value = "info")]
    pub log_filter: String,
}

/// Runs `jetway agent`.
///
/// # Errors
/// A file cannot be used, the gateway says no to the enrolment, or it will never have the agent as it is ([`agent::Hopeless`]).
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Enrol(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(enrol(args))
        }
        Command::Run(args) => {
            let _log = log::start(&LogConfig {
                filter: args.log_filter.clone(),
                ..LogConfig::default()
            })?;
            let settings = settings(args)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            runtime.block_on(until_told(settings))
        }
    }
}

/// Makes a key and enrols it.
///
/// # Errors
/// A key is there already, the gateway says no, or a file cannot be written.
pub async fn enrol(args: &EnrolArgs) -> anyhow::Result<()> {
    let file = secret_file::read(&args.enrolment_file, &mut io::stdin().lock())?;
    let enrolment = enrolment(&file).with_context(|| args.enrolment_file.display().to_string())?;
    let site = Site::new(&args.gateway.gateway, args.gateway.ca.as_deref())?;
    let mut key = generate(Algorithm::Signature(SignatureAlgorithm::Es256))?;
    key.set_kid(key.thumbprint());
    let pem = key.private_pem().context("a new key is private")?;
    let jwk = key.public_jwk().context("a new key has a public half")?;
    let mut folder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
    folder
        .recursive(true)
        .create(&args.out)
        .with_context(|| args.out.display().to_string())?;
    let path = args.out.join(KEY_FILE);
    ensure!(!path.exists(), "{} exists already", path.display());
    // Before it is enrolled: a key that cannot be kept must not be known to anybody.
    write_new(&path, &pem, true).with_context(|| path.display().to_string())?;
    let body = json!({ "key": Value::Object(jwk) }).to_string();
    let enrolled = site.request(Method::POST, "/jet/agents", enrolment.as_str(), body);
    let enrolled: Enrolled = match enrolled.await {
        Ok(enrolled) => enrolled,
        Err(error) => {
            // The first error is the one to report.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
    };
    let gateway = args.out.join(GATEWAY_FILE);
    fs::write(&gateway, &enrolled.gateway).with_context(|| gateway.display().to_string())?;
    let name = args.out.join(NAME_FILE);
    fs::write(&name, enrolled.name.as_str()).with_context(|| name.display().to_string())?;
    print_line(&format!("name     {}", enrolled.name))?;
    print_line(&format!("key      {}", path.display()))?;
    print_line(&format!("gateway  {}", enrolled.gateway))?;
    Ok(())
}

/// The enrolment in a file: the text, or the JSON that the gateway has answered to whoever asked for it.
fn enrolment(file: &str) -> anyhow::Result<Enrolment> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        enrolment: Option<&'a str>,
        detail: Option<String>,
    }
    let text = file.trim();
    if !text.starts_with('{') {
        return Ok(Enrolment::parse(text)?);
    }
    let answer: Answer<'_> =
        serde_json::from_str(text).context("JSON, and not an answer of a gateway")?;
    match answer {
        Answer {
            enrolment: Some(text),
            ..
        } => Ok(Enrolment::parse(text)?),
        Answer {
            detail: Some(detail),
            ..
        } => bail!("the gateway has refused to issue an enrolment: {detail}"),
        Answer { .. } => bail!("JSON without \"enrolment\""),
    }
}

fn settings(args: &RunArgs) -> anyhow::Result<Settings> {
    let name = args.key.display().to_string();
    if let Some(enrolled) = beside(&args.key, NAME_FILE)? {
        ensure!(
            enrolled == args.name.as_str(),
            "--name {}: the key {name} was enrolled as {enrolled}",
            args.name
        );
    }
    let bytes = read_key_file(&args.key).with_context(|| name.clone())?;
    let document = KeyDocument {
        name: &name,
        bytes: &bytes,
        usage: Some(KeyUsage::Sign),
        kid: None,
    };
    Ok(Settings {
        site: Site::new(&args.gateway.gateway, args.gateway.ca.as_deref())?,
        gateway: match &args.instance {
            Some(instance) => Some(instance.clone()),
            None => gateway_beside(&args.key)?,
        },
        name: args.name.clone(),
        key: SigningKey::from_document(&document, Some(SignatureAlgorithm::Es256))?,
        targets: args.targets.clone(),
        host_addresses: if args.host_candidates {
            local_addresses()
        } else {
            Vec::new()
        },
        back_off: BACK_OFF,
    })
}

/// What the gateway called itself when the key was enrolled, where the file is still there.
///
/// # Errors
/// The file cannot be read.
pub fn gateway_beside(key: &Path) -> anyhow::Result<Option<String>> {
    beside(key, GATEWAY_FILE)
}

/// What a file in the key's folder says, where it is still there.
fn beside(key: &Path, file: &str) -> anyhow::Result<Option<String>> {
    let file = key.with_file_name(file);
    match fs::read_to_string(&file) {
        Ok(name) => Ok(Some(name.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}

async fn until_told(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let told = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        // It ends by that.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = agent::run(settings, stop.clone()) => Ok(ended?),
        () = told => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enrolment_is_taken_as_text_and_as_the_answer_of_the_gateway() {
        let issued = Enrolment::from_random(&[7; 24]);
        let text = issued.as_str();
        for file in [
            format!("{text}\n"),
            json!({ "enrolment": text, "expires_at": 1, "expires_in_s": 900 }).to_string(),
            format!("\r\n {{\n  \"enrolment\": \"{text}\"\n}}\r\n"),
        ] {
            assert!(enrolment(&file).unwrap() == issued, "{file}");
        }
        for (file, words) in [
            (
                r#"{"title":"Conflict","detail":"an agent of this name is enrolled"}"#,
                "is enrolled",
            ),
            (r#"{"name":"branch-7"}"#, "without \"enrolment\""),
            (r#"{"enrolment":"#, "not an answer"),
            ("<html>", "expected je-"),
        ] {
            let error = format!("{:#}", enrolment(file).unwrap_err());
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("valid"), "{error}");
        }
    }
}
