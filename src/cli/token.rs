//! `jetway token`: mints tokens and explains them. Secrets come from files or standard input, never from arguments.

use std::cmp::Ordering;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::cli::output::print_line;
use crate::cli::secret_file;
use crate::clock;
use crate::escape;
use crate::keyring::read_key_file;
use crate::limits;
use crate::policy::{self, InspectionMode, Means, SessionLimits};
use crate::time::UnixTime;
use crate::token::agent_name::AgentName;
use crate::token::algorithm::{ContentEncryption, KeyManagement, SignatureAlgorithm};
use crate::token::claims::{self, Claims, SECRET_CLAIMS};
use crate::token::key::Key;
use crate::token::mint::{EncryptionKey, SigningKey, mint};
use crate::token::target::TargetAddr;
use crate::token::{
    KeyDocument, KeySet, KeyUsage, Token, TokenError, TokenInspection, TokenRules, UnsignedJwe,
    Verifier,
};

/// Arguments of `jetway token`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do with tokens
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with tokens.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a token: it goes to standard output or a file, its claims to standard error
    New(Box<NewArgs>),
    /// Show what a token says and whether it is valid
    Inspect(InspectArgs),
}

/// Arguments of `jetway token new`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NewArgs {
    /// Private key, or shared secret, that signs the token (PEM or JWK)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["encrypt_key", "unsecured"])]
    pub sign_key: Option<PathBuf>,
    /// The gateway's public key, or a shared secret, that the token is encrypted to (PEM or JWK)
    #[arg(long, value_name = "FILE")]
    pub encrypt_key: Option<PathBuf>,
    /// Neither sign nor encrypt (alg none); gateways refuse it outside of development
    #[arg(long, conflicts_with_all = ["sign_key", "encrypt_key"])]
    pub unsecured: bool,
    /// Signature algorithm, where the key allows several
    #[arg(long, value_parser = signature_parser())]
    pub alg: Option<SignatureAlgorithm>,
    /// Key id of the signing key
    #[arg(long)]
    pub kid: Option<String>,
    /// Encryption algorithm, where the key allows several
    #[arg(long, value_parser = encryption_parser(), requires = "encrypt_key")]
    pub encrypt_alg: Option<KeyManagement>,
    /// Key id of the encryption key
    #[arg(long, requires = "encrypt_key")]
    pub encrypt_kid: Option<String>,
    /// Content encryption
    #[arg(long, value_parser = content_parser(), requires = "encrypt_key")]
    pub enc: Option<ContentEncryption>,
    /// JSON object with claims; the options below go before it
    #[arg(long, value_name = "FILE")]
    pub claims: Option<PathBuf>,
    /// Destination
    #[arg(long, value_name = "HOST:PORT")]
    pub dst_hst: Option<TargetAddr>,
    /// Further destination, tried after the first; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub dst_alt: Vec<TargetAddr>,
    /// Application protocol: none, wayk, rdp, ssh, vnc
    #[arg(long)]
    pub jet_ap: Option<String>,
    /// Connection mode; without it fwd where there is a destination
    #[arg(long, value_parser = ["rdv", "fwd"])]
    pub jet_cm: Option<String>,
    /// Association id
    #[arg(long, value_name = "UUID")]
    pub jet_aid: Option<Uuid>,
    /// Agent that the target is behind; goes with rdv
    #[arg(
        long,
        value_name = "NAME",
        requires = "jet_agent_dst",
        conflicts_with = "dst_hst"
    )]
    pub jet_agent_id: Option<AgentName>,
    /// Target behind the agent, as the agent knows it
    #[arg(long, value_name = "HOST:PORT", requires = "jet_agent_id")]
    pub jet_agent_dst: Option<TargetAddr>,
    /// Further target behind the agent, where the first does not answer or sends its clients there; may be repeated
    #[arg(long, value_name = "HOST:PORT", requires = "jet_agent_dst")]
    pub jet_agent_alt: Vec<TargetAddr>,
    /// Demand that the session is recorded
    #[arg(long)]
    pub jet_rec: bool,
    /// Demand that the session is filtered
    #[arg(long)]
    pub jet_flt: bool,
    /// Longest session, minutes; 0 for no limit
    #[arg(long, value_name = "MINUTES")]
    pub jet_ttl: Option<u64>,
    /// How long after a disconnection the token opens the session again, seconds
    #[arg(long, value_name = "SECONDS")]
    pub jet_reuse: Option<u64>,
    /// The user
    #[arg(long)]
    pub sub: Option<String>,
    /// Issuer
    #[arg(long)]
    pub iss: Option<String>,
    /// Gateway that the token is for
    #[arg(long)]
    pub aud: Option<String>,
    /// SHA-256 of the only certificate that the target may show
    #[arg(long, value_name = "HEX")]
    pub cert_thumb256: Option<String>,
    /// Life from its start, seconds; the token opens its session within that time (two minutes, if nothing else is said), or never
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub lifetime: u64,
    /// Start of its validity, seconds from now
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub not_before_in: u64,
    /// User name for the target; needs --encrypt-key
    #[arg(long, requires = "dst_pwd_file")]
    pub dst_usr: Option<String>,
    /// File with the password for the target; - reads standard input
    #[arg(long, value_name = "FILE", requires = "dst_usr")]
    pub dst_pwd_file: Option<PathBuf>,
    /// User name that the client must show the gateway; needs --encrypt-key
    #[arg(long, requires = "prx_pwd_file")]
    pub prx_usr: Option<String>,
    /// File with the password that the client must show the gateway; - reads standard input
    #[arg(long, value_name = "FILE", requires = "prx_usr")]
    pub prx_pwd_file: Option<PathBuf>,
    /// File for the token, readable by its owner only; standard output if not given
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `jetway token inspect`.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// Key to verify or decrypt with; may be repeated. sign: or encrypt: before the path says what it is for, where the
    /// file does not
    #[arg(long = "key", value_name = "[USE:]FILE")]
    pub keys: Vec<String>,
    /// Accepted issuer; may be repeated
    #[arg(long)]
    pub issuer: Vec<String>,
    /// Name of the gateway; may be repeated
    #[arg(long)]
    pub audience: Vec<String>,
    /// Accept a token that is encrypted but not signed
    #[arg(long)]
    pub accept_unsigned_jwe: bool,
    /// Judge as of this time, seconds since 1970, instead of now
    #[arg(long, value_name = "SECONDS")]
    pub at: Option<u64>,
    /// File with the token; - reads standard input
    #[arg(default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
}

/// Runs `jetway token`.
///
/// # Errors
/// A file cannot be read, a key does not fit, or keys were given and the token does not verify.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::New(args) => new(args),
        Command::Inspect(args) => inspect(args),
    }
}

fn new(args: &NewArgs) -> anyhow::Result<()> {
    let now = clock::unix_now();
    let made = make(args, now, &mut io::stdin().lock())?;
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "{:#}", Value::Object(masked(&made.claims)))?;
    if let Some(life) = made.life(now) {
        writeln!(stderr, "jetway: {life}; --lifetime says how long")?;
    }
    for doubt in doubts(&made.claims) {
        writeln!(stderr, "jetway: {doubt}")?;
    }
    match Claims::check(&Value::Object(made.claims), args.encrypt_key.is_some(), now) {
        Ok(claims) => {
            for unmet in unmet(&claims) {
                writeln!(stderr, "jetway: {unmet}")?;
            }
        }
        Err(error) => writeln!(
            stderr,
            "jetway: a gateway with default rules would refuse this token now: {error}"
        )?,
    }
    if args.encrypt_key.is_some() && args.sign_key.is_none() {
        writeln!(
            stderr,
            "jetway: encrypted but not signed: gateways refuse that unless configured"
        )?;
    }
    secret_file::give(args.out.as_deref(), &made.token)
}

/// What an issuer may not have meant.
fn doubts(claims: &Map<String, Value>) -> Vec<String> {
    let misspelt = claims::misspelt(claims.keys().map(String::as_str));
    misspelt
        .into_iter()
        .map(|(name, known)| {
            let name = escape::lines(name);
            format!("claim {name} means nothing to a gateway; {known} is one that does")
        })
        .collect()
}

/// What no gateway of this version does, or not every one.
fn unmet(claims: &Claims) -> Vec<String> {
    let limits = SessionLimits::default();
    let with = |inspecting, verifies_targets| {
        let means = Means {
            inspecting,
            verifies_targets,
        };
        policy::decide(claims, limits, means).err()
    };
    if let Some(refusal) = with(InspectionMode::WhenNeeded, true) {
        return vec![format!("a gateway refuses this token: {refusal}")];
    }
    let mut unmet = Vec::new();
    if let Some(refusal) = with(InspectionMode::Unavailable, true) {
        unmet.push(format!(
            "a gateway without [tls] refuses this token: {refusal}"
        ));
    }
    if let Some(refusal) = with(InspectionMode::WhenNeeded, false) {
        let reason =
            format!("a gateway with target.verify = \"accept-any\" refuses this token: {refusal}");
        unmet.push(reason);
    }
    unmet
}

pub(super) struct Made {
    pub(super) token: String,
    claims: Map<String, Value>,
}

impl Made {
    /// When the token is good, for people.
    pub(super) fn life(&self, now: UnixTime) -> Option<String> {
        let date = |name: &str| Some(UnixTime(self.claims.get(name)?.as_u64()?));
        let (from, until) = (date("nbf").or_else(|| date("iat"))?, date("exp")?);
        let begins = if from > now {
            format!("from {from}, in {}, ", from.apart(now))
        } else {
            String::new()
        };
        Some(format!(
            "the token is valid {begins}until {until} ({}), and opens its session by then or never",
            until.apart(from)
        ))
    }
}

pub(super) fn make(
    args: &NewArgs,
    now: UnixTime,
    stdin: &mut dyn io::Read,
) -> anyhow::Result<Made> {
    let sign = args
        .sign_key
        .as_deref()
        .map(|path| signing_key(path, args))
        .transpose()?;
    let encrypt = args
        .encrypt_key
        .as_deref()
        .map(|path| encryption_key(path, args))
        .transpose()?;
    let mut claims = match &args.claims {
        Some(path) => claims_file(path, stdin)?,
        None => Map::new(),
    };
    add_options(&mut claims, args)?;
    add_secrets(&mut claims, args, stdin)?;
    if encrypt.is_none()
        && let Some(secret) = SECRET_CLAIMS
            .into_iter()
            .find(|secret| claims.contains_key(*secret))
    {
        bail!("{secret} is a secret: it goes into an encrypted token only, use --encrypt-key");
    }
    let start = now.plus(args.not_before_in);
    add_default(&mut claims, "jti", json!(Uuid::new_v4()));
    add_default(&mut claims, "iat", json!(now.0));
    add_default(&mut claims, "nbf", json!(start.0));
    add_default(&mut claims, "exp", json!(start.plus(args.lifetime).0));
    let claims = Value::Object(claims);
    let token = mint(&claims, sign.as_ref(), encrypt.as_ref())?;
    ensure!(
        token.len() <= limits::TOKEN_BYTES,
        "the token has {} bytes, gateways take {} at most",
        token.len(),
        limits::TOKEN_BYTES
    );
    match claims {
        Value::Object(claims) => Ok(Made { token, claims }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            bail!("claims are not a JSON object")
        }
    }
}

fn signing_key(path: &Path, args: &NewArgs) -> anyhow::Result<SigningKey> {
    let name = path.display().to_string();
    let bytes = read_key_file(path).with_context(|| name.clone())?;
    let usage = Some(KeyUsage::Sign);
    let document = KeyDocument {
        name: &name,
        bytes: &bytes,
        usage,
        kid: args.kid.as_deref(),
    };
    Ok(SigningKey::from_document(&document, args.alg)?)
}

fn encryption_key(path: &Path, args: &NewArgs) -> anyhow::Result<EncryptionKey> {
    let name = path.display().to_string();
    let bytes = read_key_file(path).with_context(|| name.clone())?;
    let usage = Some(KeyUsage::Encrypt);
    let kid = args.encrypt_kid.as_deref();
    let document = KeyDocument {
        name: &name,
        bytes: &bytes,
        usage,
        kid,
    };
    let key = EncryptionKey::from_document(&document, args.encrypt_alg)?;
    Ok(match args.enc {
        Some(enc) => key.with_content_encryption(enc),
        None => key,
    })
}

fn claims_file(path: &Path, stdin: &mut dyn io::Read) -> anyhow::Result<Map<String, Value>> {
    let text = secret_file::read(path, stdin)?;
    let claims: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    match claims {
        Value::Object(claims) => Ok(claims),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            bail!("{} is not a JSON object of claims", path.display())
        }
    }
}

fn add_options(claims: &mut Map<String, Value>, args: &NewArgs) -> anyhow::Result<()> {
    let mut set = |name: &str, value: Value| {
        claims.insert(name.to_owned(), value);
    };
    if let Some(target) = &args.dst_hst {
        set("dst_hst", json!(target.to_string()));
    }
    if !args.dst_alt.is_empty() {
        ensure!(args.dst_hst.is_some(), "--dst-alt comes after --dst-hst");
        let others: Vec<String> = args.dst_alt.iter().map(ToString::to_string).collect();
        set("dst_alt", json!(others));
    }
    if let Some(aid) = args.jet_aid {
        set("jet_aid", json!(aid));
    }
    if let (Some(agent), Some(target)) = (&args.jet_agent_id, &args.jet_agent_dst) {
        set("jet_agent_id", json!(agent));
        set("jet_agent_dst", json!(target));
    }
    if !args.jet_agent_alt.is_empty() {
        set("jet_agent_alt", json!(args.jet_agent_alt));
    }
    if args.jet_rec {
        set("jet_rec", json!(true));
    }
    if args.jet_flt {
        set("jet_flt", json!(true));
    }
    for (name, value) in [("jet_ttl", args.jet_ttl), ("jet_reuse", args.jet_reuse)] {
        if let Some(value) = value {
            set(name, json!(value));
        }
    }
    for (name, value) in [
        ("jet_ap", &args.jet_ap),
        ("jet_cm", &args.jet_cm),
        ("sub", &args.sub),
        ("iss", &args.iss),
        ("aud", &args.aud),
        ("cert_thumb256", &args.cert_thumb256),
    ] {
        if let Some(value) = value {
            set(name, json!(value));
        }
    }
    if claims.contains_key("jet_agent_id") {
        add_default(claims, "jet_cm", json!("rdv"));
    }
    if claims.contains_key("dst_hst") {
        add_default(claims, "jet_cm", json!("fwd"));
    }
    Ok(())
}

fn add_secrets(
    claims: &mut Map<String, Value>,
    args: &NewArgs,
    stdin: &mut dyn io::Read,
) -> anyhow::Result<()> {
    let pairs = [
        ("dst_usr", &args.dst_usr, "dst_pwd", &args.dst_pwd_file),
        ("prx_usr", &args.prx_usr, "prx_pwd", &args.prx_pwd_file),
    ];
    let from_stdin = pairs
        .iter()
        .filter(|(.., file)| file.as_deref().is_some_and(is_stdin))
        .count();
    ensure!(
        from_stdin <= 1,
        "only one of the passwords can come from standard input"
    );
    for (user_claim, user, password_claim, file) in pairs {
        if let (Some(user), Some(file)) = (user, file) {
            let password = secret_file::read(file, stdin)?;
            claims.insert(user_claim.to_owned(), json!(user));
            // An editor ends the file with a line break that is not part of the password.
            let password = password.strip_suffix('\n').unwrap_or(&password);
            let password = password.strip_suffix('\r').unwrap_or(password);
            claims.insert(password_claim.to_owned(), json!(password));
        }
    }
    Ok(())
}

fn add_default(claims: &mut Map<String, Value>, name: &str, value: Value) {
    if !claims.contains_key(name) {
        claims.insert(name.to_owned(), value);
    }
}

fn masked(claims: &Map<String, Value>) -> Map<String, Value> {
    let mut shown = claims.clone();
    for secret in SECRET_CLAIMS {
        if let Some(value) = shown.get_mut(secret) {
            *value = json!("(hidden)");
        }
    }
    shown
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let text = secret_file::read(&args.file, &mut io::stdin().lock())?;
    let now = args.at.map_or_else(clock::unix_now, UnixTime);
    let inspection = look(args, text.trim(), now)?;
    print_line(&report(&inspection, now))?;
    match inspection.verdict {
        Some(Err(error)) => bail!("the token does not verify ({})", error.rule()),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// The public halves of keys as a JWKS; none where one has no such half.
fn public_halves(name: &str, bytes: &[u8]) -> anyhow::Result<Option<Zeroizing<Vec<u8>>>> {
    let keys = Key::parse(&KeyDocument {
        name,
        bytes,
        usage: None,
        kid: None,
    })?;
    let public: Option<Vec<_>> = keys.iter().map(Key::public_jwk).collect();
    Ok(public.map(|keys| Zeroizing::new(json!({ "keys": keys }).to_string().into_bytes())))
}

fn look(args: &InspectArgs, text: &str, now: UnixTime) -> anyhow::Result<TokenInspection> {
    if args.keys.is_empty() {
        return Ok(TokenInspection::without_keys(text));
    }
    let mut files = Vec::new();
    for argument in &args.keys {
        let (usage, path) = match argument.split_once(':') {
            Some(("sign", path)) => (Some(KeyUsage::Sign), path),
            Some(("encrypt", path)) => (Some(KeyUsage::Encrypt), path),
            Some(_) | None => (None, argument.as_str()),
        };
        let mut bytes = read_key_file(Path::new(path)).with_context(|| path.to_owned())?;
        // Whoever makes tokens has the private key at hand; a gateway must not.
        if usage == Some(KeyUsage::Sign)
            && let Some(public) = public_halves(path, &bytes)?
        {
            bytes = public;
        }
        files.push((path, bytes, usage));
    }
    let documents: Vec<KeyDocument<'_>> = files
        .iter()
        .map(|(name, bytes, usage)| KeyDocument {
            name,
            bytes,
            usage: *usage,
            kid: None,
        })
        .collect();
    let rules = TokenRules {
        issuers: args.issuer.clone(),
        audiences: args.audience.clone(),
        unsigned_jwe: if args.accept_unsigned_jwe {
            UnsignedJwe::Accept
        } else {
            UnsignedJwe::Refuse
        },
        ..TokenRules::default()
    };
    Ok(Verifier::new(KeySet::from_documents(&documents)?, rules).inspect(text, now))
}

fn report(inspection: &TokenInspection, now: UnixTime) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: &str| lines.push(format!("{name:<11} {value}"));
    for (layer, header) in inspection.header.iter().enumerate() {
        line(
            if layer == 0 { "header" } else { "inner" },
            &header.to_string(),
        );
    }
    match &inspection.claims {
        Some(claims) => {
            line("claims", &format!("{:#}", Value::Object(claims.clone())));
            for doubt in doubts(claims) {
                line("doubt", &doubt);
            }
        }
        None => line("claims", "not readable without a key that opens the token"),
    }
    if let Some(protection) = &inspection.protection {
        line("protection", &protection.to_string());
    }
    // Of a token that is refused, too, and of one that nobody has verified: what it says of itself.
    for name in ["iat", "nbf", "exp"] {
        let claims = inspection.claims.as_ref();
        if let Some(date) = claims.and_then(|claims| claims.get(name)?.as_u64()) {
            line(name, &dated(UnixTime(date), now));
        }
    }
    match &inspection.verdict {
        None => line("verdict", "not verified: no --key was given"),
        Some(Ok(token)) => {
            line("id", token.id.as_str());
            line("valid", &period(token, now));
            for unmet in unmet(&token.claims) {
                line("demands", &unmet);
            }
            line("verdict", "accepted");
        }
        Some(Err(error)) => line("verdict", &refusal(error)),
    }
    lines.join("\n")
}

fn period(token: &Token, now: UnixTime) -> String {
    let validity = token.claims.validity;
    format!(
        "from {} until {}, {} seconds left",
        validity.not_before,
        validity.not_after,
        validity.not_after.since(now)
    )
}

/// A date with its number, and how far off it is.
fn dated(date: UnixTime, now: UnixTime) -> String {
    let far = date.apart(now);
    let when = match date.cmp(&now) {
        Ordering::Less => format!("{far} ago"),
        Ordering::Equal => "now".to_owned(),
        Ordering::Greater => format!("in {far}"),
    };
    format!("{date} ({}), {when}", date.0)
}

fn refusal(error: &TokenError) -> String {
    format!("refused ({}): {error}", error.rule())
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn signature_parser() -> impl TypedValueParser<Value = SignatureAlgorithm> {
    PossibleValuesParser::new(
        SignatureAlgorithm::ALL
            .iter()
            .map(|algorithm| algorithm.name()),
    )
    .try_map(|name| name.parse::<SignatureAlgorithm>())
}

fn encryption_parser() -> impl TypedValueParser<Value = KeyManagement> {
    PossibleValuesParser::new(KeyManagement::ALL.iter().map(|algorithm| algorithm.name()))
        .try_map(|name| name.parse::<KeyManagement>())
}

fn content_parser() -> impl TypedValueParser<Value = ContentEncryption> {
    PossibleValuesParser::new(
        ContentEncryption::ALL
            .iter()
            .map(|encryption| encryption.name()),
    )
    .try_map(|name| name.parse::<ContentEncryption>())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn make(args: &NewArgs, now: UnixTime) -> anyhow::Result<Made> {
        super::make(args, now, &mut io::empty())
    }

    use crate::token::mint::generate;

    const NOW: UnixTime = UnixTime(1_700_000_000);

    struct Keys {
        folder: tempfile::TempDir,
    }

    impl Keys {
        fn new() -> Self {
            let keys = Self {
                folder: tempfile::tempdir().unwrap(),
            };
            for (alg, name) in [("ES256", "issuer"), ("ECDH-ES", "gateway")] {
                let key = generate(alg.parse().unwrap()).unwrap();
                fs::write(keys.path(name), key.private_pem().unwrap().as_bytes()).unwrap();
                fs::write(keys.path(&format!("{name}.pub")), key.public_pem().unwrap()).unwrap();
            }
            keys
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn signed(&self) -> NewArgs {
            NewArgs {
                sign_key: Some(self.path("issuer")),
                dst_hst: Some("rdp.example:3389".parse().unwrap()),
                lifetime: 120,
                ..NewArgs::default()
            }
        }

        fn encrypted(&self) -> NewArgs {
            NewArgs {
                encrypt_key: Some(self.path("gateway.pub")),
                ..self.signed()
            }
        }

        fn inspect(&self, token: &str, keys: &[&str]) -> TokenInspection {
            let keys = keys.iter().map(|name| match name.split_once(':') {
                Some((usage, name)) => format!("{usage}:{}", self.path(name).display()),
                None => self.path(name).display().to_string(),
            });
            let args = InspectArgs {
                keys: keys.collect(),
                issuer: Vec::new(),
                audience: Vec::new(),
                accept_unsigned_jwe: false,
                at: None,
                file: "-".into(),
            };
            look(&args, token, NOW).unwrap()
        }
    }

    #[test]
    fn a_minted_token_verifies_and_has_the_defaults() {
        let keys = Keys::new();
        let made = make(&keys.signed(), NOW).unwrap();
        let inspection = keys.inspect(&made.token, &["issuer.pub"]);
        let token = inspection.verdict.unwrap().unwrap();
        assert_eq!(token.claims.validity.not_before, NOW);
        assert_eq!(token.claims.validity.not_after, NOW.plus(120));
        assert!(Uuid::parse_str(token.id.as_str()).is_ok());
        assert_eq!(made.claims["jet_cm"], "fwd");
        assert_eq!(made.claims["iat"], NOW.0);
    }

    #[test]
    fn options_go_before_the_claims_file_and_the_file_before_defaults() {
        let keys = Keys::new();
        let file = keys.path("claims.json");
        fs::write(
            &file,
            r#"{"sub":"from-file","jti":"from-file","dst_hst":"a:1","x":[1]}"#,
        )
        .unwrap();
        let args = NewArgs {
            claims: Some(file),
            jet_rec: true,
            ..keys.signed()
        };
        let claims = make(&args, NOW).unwrap().claims;
        assert_eq!(claims["dst_hst"], "rdp.example:3389");
        assert_eq!(claims["sub"], "from-file");
        assert_eq!(claims["jti"], "from-file");
        assert_eq!(claims["x"], json!([1]));
        assert_eq!(claims["jet_rec"], true);
    }

    // J-JWT-5
    #[test]
    fn a_password_is_refused_without_encryption_and_never_shown() {
        let keys = Keys::new();
        let file = keys.path("password");
        fs::write(&file, "hunter2\r\n").unwrap();
        let with_password = |args: NewArgs| NewArgs {
            dst_usr: Some("alice".to_owned()),
            dst_pwd_file: Some(file.clone()),
            ..args
        };
        let error = make(&with_password(keys.signed()), NOW)
            .map(|_| ())
            .unwrap_err();
        assert!(error.to_string().contains("--encrypt-key"), "{error}");

        let made = make(&with_password(keys.encrypted()), NOW).unwrap();
        let shown = Value::Object(masked(&made.claims)).to_string();
        assert!(
            !shown.contains("hunter2") && !shown.contains("alice"),
            "{shown}"
        );

        let inspection = keys.inspect(&made.token, &["issuer.pub", "gateway"]);
        let reported = report(&inspection, NOW);
        assert!(
            !reported.contains("hunter2") && !reported.contains("alice"),
            "{reported}"
        );
        let token = inspection.verdict.unwrap().unwrap();
        let password = token.claims.target_credentials.unwrap().password;
        assert_eq!(secrecy::ExposeSecret::expose_secret(&password), "hunter2");
    }

    // J-JWT-5: not through the claims file either.
    #[test]
    fn a_password_in_the_claims_file_needs_encryption_too() {
        let keys = Keys::new();
        let file = keys.path("claims.json");
        fs::write(&file, r#"{"prx_usr":"a","prx_pwd":"b"}"#).unwrap();
        let args = NewArgs {
            claims: Some(file.clone()),
            ..keys.signed()
        };
        assert!(make(&args, NOW).is_err());
        assert!(
            make(
                &NewArgs {
                    claims: Some(file),
                    ..keys.encrypted()
                },
                NOW
            )
            .is_ok()
        );
    }

    #[test]
    fn a_misspelt_claim_and_an_unmet_demand_are_told_where_a_token_is_made_and_where_it_is_inspected()
     {
        let keys = Keys::new();
        let file = keys.path("claims.json");
        let written = r#"{"dst_hst":"a:1","jet_ap":"rdp","jet_ttls":5,"jet_rec":true,"team":"x"}"#;
        fs::write(&file, written).unwrap();
        let args = NewArgs {
            claims: Some(file),
            ..keys.signed()
        };
        let made = make(&args, NOW).unwrap();
        let told = doubts(&made.claims);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].contains("jet_ttls") && told[0].contains("jet_ttl is"),
            "{told:?}"
        );
        let token = made.token;
        let reported = report(&keys.inspect(&token, &["issuer.pub"]), NOW);
        assert!(
            reported.contains("doubt       claim jet_ttls"),
            "{reported}"
        );
        assert!(
            reported.contains("demands     a gateway refuses this token"),
            "{reported}"
        );
        // Without a key to verify with, too.
        let reported = report(&keys.inspect(&token, &[]), NOW);
        assert!(
            reported.contains("doubt       claim jet_ttls"),
            "{reported}"
        );

        let pinned = NewArgs {
            cert_thumb256: Some("07".repeat(32)),
            ..keys.signed()
        };
        let claims = Value::Object(make(&pinned, NOW).unwrap().claims);
        let told = unmet(&Claims::check(&claims, false, NOW).unwrap());
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("without [tls]"), "{told:?}");
        let plain = Value::Object(make(&keys.signed(), NOW).unwrap().claims);
        assert!(unmet(&Claims::check(&plain, false, NOW).unwrap()).is_empty());
    }

    #[test]
    fn inspection_names_the_rule_that_a_token_breaks() {
        let keys = Keys::new();
        let late = NewArgs {
            not_before_in: 3600,
            ..keys.signed()
        };
        let made = make(&late, NOW).unwrap();
        let life = made.life(NOW).unwrap();
        assert_eq!(
            life,
            "the token is valid from 2023-11-14T23:13:20Z, in 1 h, until 2023-11-14T23:15:20Z (2 min), and opens its session by then or never"
        );
        let token = made.token;
        let reported = report(&keys.inspect(&token, &["sign:issuer"]), NOW);
        assert!(reported.contains("refused (not-yet-valid)"), "{reported}");
        // The dates of a token that is refused are what one looks for, and of one that nobody has verified.
        for shown in [&reported, &report(&keys.inspect(&token, &[]), NOW)] {
            for date in [
                "iat         2023-11-14T22:13:20Z (1700000000), now",
                "nbf         2023-11-14T23:13:20Z (1700003600), in 1 h",
                "exp         2023-11-14T23:15:20Z (1700003720), in 1 h 2 min",
            ] {
                assert!(shown.contains(date), "{date}: {shown}");
            }
        }
        let later = report(&keys.inspect(&token, &[]), NOW.plus(7200));
        assert!(later.contains("(1700003720), 58 min ago"), "{later}");

        let other = Keys::new();
        let reported = report(&other.inspect(&token, &["issuer.pub"]), NOW);
        assert!(reported.contains("refused (signature)"), "{reported}");

        let unread = report(
            &keys.inspect(&make(&keys.encrypted(), NOW).unwrap().token, &[]),
            NOW,
        );
        assert!(
            unread.contains("not readable") && unread.contains("not verified"),
            "{unread}"
        );
    }
}
