//! The claims of a token ([JET-PROTO] 2.2.3.4 to 2.2.3.11, and what other JET gateways add).
//!
//! A claim that is there must have the right type and one of its known values: a misspelt policy is refused and never
//! read as "no policy". Secrets go from the decrypted text into [`SecretString`] and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use openssl::sha::{Sha256, sha256};
use secrecy::SecretString;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::TokenError;
use super::json::{Checked, as_uuid};
use super::rules::TokenRules;
use super::target::{TargetAddr, TargetAddrError};
use super::validity::Validity;
use crate::agent_name::AgentName;
use crate::application_protocol::ApplicationProtocol;
use jetway_base::limits;
use jetway_base::time::UnixTime;

/// Claims that only an encrypted token may have ([JET-PROTO] 2.2.3.3).
pub const SECRET_CLAIMS: [&str; 4] = ["dst_usr", "dst_pwd", "prx_usr", "prx_pwd"];

/// Those of them that no id covers.
const PASSWORDS: [&str; 2] = ["dst_pwd", "prx_pwd"];

/// Every claim that has a meaning here.
const KNOWN_CLAIMS: [&str; 28] = [
    "aud",
    "cert_thumb256",
    "dst_alt",
    "dst_hst",
    "dst_pwd",
    "dst_usr",
    "exp",
    "iat",
    "iss",
    "jet_agent_alt",
    "jet_agent_dst",
    "jet_agent_id",
    "jet_aid",
    "jet_ap",
    "jet_cm",
    "jet_ct",
    "jet_flt",
    "jet_gw_id",
    "jet_rec",
    "jet_reuse",
    "jet_ttl",
    "jetflt",
    "jti",
    "nbf",
    "prx_pwd",
    "prx_usr",
    "sub",
    "type",
];

/// Longest name that is looked at as a misspelling, bytes: comparing costs its square.
const MISSPELT_BYTES: usize = 32;

/// Names of claims that have no meaning here and look like one that has, each with that one: a gateway keeps them, as an issuer
/// may have claims of its own, and does nothing of what they say.
pub fn misspelt<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(&'a str, &'static str)> {
    let unknown = names.filter(|name| !KNOWN_CLAIMS.contains(name) && name.len() <= MISSPELT_BYTES);
    unknown
        .filter_map(|name| {
            let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '_'], "");
            let written = plain(name);
            let known = KNOWN_CLAIMS.into_iter().map(|known| {
                let known_plain = plain(known);
                (
                    distance(written.as_bytes(), known_plain.as_bytes()),
                    known_plain.len(),
                    known,
                )
            });
            let (distance, length, known) = known.min()?;
            // These beginnings belong to the protocol. Otherwise, of a name of three letters, most others of three are one letter away.
            let ours = ["jet_", "dst_", "prx_"]
                .iter()
                .any(|start| name.starts_with(start));
            let allowed = if length < 5 {
                0
            } else {
                length.div_ceil(4).min(2)
            };
            (ours || distance <= allowed).then_some((name, known))
        })
        .collect()
}

/// How many letters have to be changed, put in, left out or swapped with the next to make one name of the other.
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    let mut letter_before = None;
    for (row, letter) in one.iter().enumerate() {
        let mut next = vec![row + 1];
        let mut other_before = None;
        let costs = last.windows(2).zip(other).enumerate();
        for (column, (costs, other_letter)) in costs {
            let &[left_above, above] = costs else {
                continue;
            };
            let left = next.last().copied().unwrap_or_default();
            let changed = left_above + usize::from(letter != other_letter);
            let mut best = changed.min(above + 1).min(left + 1);
            let swapped = letter_before == Some(other_letter) && other_before == Some(letter);
            if swapped && let Some(cost) = column.checked_sub(1).and_then(|at| before.get(at)) {
                best = best.min(cost + 1);
            }
            next.push(best);
            other_before = Some(other_letter);
        }
        letter_before = Some(letter);
        before = std::mem::replace(&mut last, next);
    }
    last.last().copied().unwrap_or_default()
}

/// Longest `jti`, characters: it is stored for each token.
const JTI_CHARS: usize = 256;

/// Longest `sub`, characters.
const SUB_CHARS: usize = 1024;

/// Longest value of a claim in an error, characters.
const SHOWN_CHARS: usize = 256;

/// Longest `jet_ap`, characters.
const JET_AP_CHARS: usize = 64;

/// Last second of the year 9999: a greater date is a mistake (most often milliseconds).
const LAST_DATE: u64 = 253_402_300_799;

/// What a token says. Every value was checked; whether it can be delivered is for policy to decide.
#[derive(Clone, Debug)]
pub struct Claims {
    /// `jet_aid`: the association, or session, it belongs to.
    pub jet_aid: Option<Uuid>,
    /// `jet_cm`: rendezvous or forward.
    pub jet_cm: ConnectionMode,
    /// `jet_ct`: what a candidate test leaves behind.
    pub jet_ct: ConnectionTest,
    /// `jet_ap`: the protocol inside.
    pub jet_ap: Option<ApplicationProtocol>,
    /// `jet_rec`: the recording demanded.
    pub jet_rec: RecordingPolicy,
    /// `jetflt` or `jet_flt`: filtering demanded.
    pub jet_flt: bool,
    /// `jet_ttl`: longest session; none is no limit.
    pub jet_ttl: Option<Duration>,
    /// `jet_reuse`: how long after a disconnection the token opens the session again; none leaves that to the gateway.
    pub jet_reuse: Option<Duration>,
    /// `dst_hst`, then `dst_alt`, in the order to try them.
    pub targets: Vec<TargetAddr>,
    /// `dst_usr` and `dst_pwd`: for the target.
    pub target_credentials: Option<Credentials>,
    /// `prx_usr` and `prx_pwd`: what the client must prove to the gateway.
    pub proxy_credentials: Option<Credentials>,
    /// `jet_agent_id`, `jet_agent_dst` and `jet_agent_alt`: who is to be met, and what lies behind.
    pub agent: Option<AgentTarget>,
    /// `cert_thumb256`: the only certificate the target may show.
    pub cert_thumb256: Option<Thumbprint>,
    /// `sub`: the user, as the issuer names them.
    pub sub: Option<String>,
    /// `jti`: the token's own name.
    pub jti: Option<String>,
    /// When it is valid.
    pub validity: Validity,
    /// Every claim that is not a secret, as it stands in the token.
    pub extra: Map<String, Value>,
}

/// `jet_cm` ([JET-PROTO] 2.2.3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConnectionMode {
    /// `rdv`: both peers connect to the gateway.
    #[default]
    Rdv,
    /// `fwd`: the gateway connects to the target.
    Fwd,
}

/// `jet_ct` ([JET-PROTO] 2.2.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ConnectionTest {
    /// `keep`: the connection stays open after the test.
    #[default]
    Keep,
    /// `close`: it is closed.
    Close,
}

/// `jet_rec` ([JET-PROTO] 2.2.3.7), a boolean there and a text with other gateways. What demands more is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordingPolicy {
    /// `false` or `"none"`.
    #[default]
    None,
    /// `true` or `"proxy"`: the gateway records.
    Proxy,
    /// `"stream"`: the client would record itself.
    Stream,
}

/// Targets behind an agent. `dst_hst` cannot say it: that is a target which the gateway dials, and refused with `rdv`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentTarget {
    /// `jet_agent_id`: the agent, by the name it was enrolled with.
    pub agent: AgentName,
    /// `jet_agent_dst`: what the agent connects to, as it knows it; then `jet_agent_alt`, in the order to try them. Never empty.
    pub targets: Vec<TargetAddr>,
}

impl AgentTarget {
    /// `jet_agent_dst`.
    #[must_use]
    pub fn target(&self) -> Option<&TargetAddr> {
        self.targets.first()
    }
}

/// A name and its password.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: SecretString,
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thumbprint(pub [u8; 32]);

impl Claims {
    /// Reads the payload of a token whose protection held.
    pub(super) fn parse(
        payload: &[u8],
        encrypted: bool,
        rules: &TokenRules,
        now: UnixTime,
    ) -> Result<Self, TokenError> {
        let RawClaims {
            public,
            mut secrets,
            duplicate,
        } = RawClaims::parse(payload)?;
        if duplicate {
            return Err(TokenError::DuplicateClaim);
        }
        // As every null: absent.
        secrets.retain(|secret| !secret.is_null);
        if !encrypted && let Some(claim) = secrets.first() {
            return Err(TokenError::SecretUnencrypted { claim: claim.name });
        }
        let reader = Reader(&public);
        reader.check_type()?;
        let validity = Validity::establish(
            reader.date("nbf")?,
            reader.date("iat")?,
            reader.date("exp")?,
            rules,
            now,
        )?;
        reader.check_issuer(rules)?;
        reader.check_audience(rules)?;
        let jet_cm = reader.connection_mode()?;
        let mut secrets = Secrets(secrets);
        let claims = Self {
            jet_aid: reader.uuid("jet_aid")?,
            jet_cm,
            jet_ct: reader.connection_test()?,
            jet_ap: reader.application_protocol()?,
            jet_rec: reader.recording_policy()?,
            jet_flt: reader.filtering()?,
            jet_ttl: reader.time_to_live()?,
            jet_reuse: reader.whole("jet_reuse")?.map(Duration::from_secs),
            targets: reader.targets(jet_cm)?,
            target_credentials: secrets.credentials("dst_usr", "dst_pwd")?,
            proxy_credentials: secrets.credentials("prx_usr", "prx_pwd")?,
            agent: reader.agent(jet_cm)?,
            cert_thumb256: reader.thumbprint()?,
            sub: reader.name("sub", SUB_CHARS)?,
            jti: reader.name("jti", JTI_CHARS)?,
            validity,
            extra: Map::new(),
        };
        Ok(Self {
            extra: public,
            ..claims
        })
    }
}

impl Claims {
    /// Whether they hold a credential, for the target or of the client.
    #[must_use]
    pub fn has_credentials(&self) -> bool {
        self.target_credentials.is_some() || self.proxy_credentials.is_some()
    }

    /// Whether they ask for what only a gateway inside the session can do.
    #[must_use]
    pub fn wants_inside(&self) -> bool {
        self.has_credentials() || self.cert_thumb256.is_some()
    }

    /// What a gateway with default rules would make of `claims`, were they protected.
    ///
    /// # Errors
    /// The rule that they break.
    pub fn check(claims: &Value, encrypted: bool, now: UnixTime) -> Result<Self, TokenError> {
        let payload = Zeroizing::new(claims.to_string());
        Self::parse(payload.as_bytes(), encrypted, &TokenRules::default(), now)
    }
}

/// The claims of `payload` for display, secrets replaced; none where it is not a JSON object.
pub(super) fn masked(payload: &[u8]) -> Option<Map<String, Value>> {
    let RawClaims {
        mut public,
        secrets,
        ..
    } = RawClaims::parse(payload).ok()?;
    for secret in secrets {
        public.insert(secret.name.to_owned(), Value::from("(hidden)"));
    }
    Some(public)
}

/// What identifies a token without `jti`; none where the payload is no JSON object, which makes it no token.
///
/// It covers what the signature does (`signed`), not the signature, and nothing of what a token is wrapped in: a holder can
/// change both. Where there is no signature it covers the claims. An id is logged and stored, and a password must not be found
/// by hashing candidates: where a token has one, its claims are covered without it.
pub(super) fn digest(payload: &[u8], signed: Option<&str>) -> Option<[u8; 32]> {
    let RawClaims {
        public, secrets, ..
    } = RawClaims::parse(payload).ok()?;
    if let Some(signed) = signed
        && secrets.is_empty()
    {
        return Some(sha256(signed.as_bytes()));
    }
    let header = signed.and_then(|signed| signed.split_once('.'));
    let public = sorted(Value::Object(public)).to_string();
    let mut named: Vec<_> = secrets.iter().map(|secret| (secret.name, secret)).collect();
    named.sort_by_key(|(name, _)| *name);
    let mut hash = Sha256::new();
    // Each part with its length: no two tokens are the same bytes.
    let mut cover = |part: &[u8]| {
        hash.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    };
    cover(header.map_or("", |(header, _)| header).as_bytes());
    cover(public.as_bytes());
    for (name, secret) in named {
        cover(name.as_bytes());
        if !PASSWORDS.contains(&name)
            && let Some(value) = &secret.value
        {
            cover(value.as_bytes());
        }
    }
    Some(hash.finish())
}

/// The same value, the names of its objects in order: the order in a text says nothing.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let ordered: BTreeMap<String, Value> = object.into_iter().collect();
            let values = ordered.into_iter();
            Value::Object(values.map(|(name, value)| (name, sorted(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// The payload as JSON, secrets apart.
struct RawClaims {
    public: Map<String, Value>,
    secrets: Vec<SecretClaim>,
    duplicate: bool,
}

struct SecretClaim {
    name: &'static str,
    is_null: bool,
    /// None where it was not a text.
    value: Option<Zeroizing<String>>,
}

impl RawClaims {
    fn parse(payload: &[u8]) -> Result<Self, TokenError> {
        let text = std::str::from_utf8(payload).map_err(|_| TokenError::NotClaims)?;
        serde_json::from_str(text).map_err(|_| TokenError::NotClaims)
    }
}

impl<'de> Deserialize<'de> for RawClaims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawClaimsVisitor)
    }
}

struct RawClaimsVisitor;

impl<'de> Visitor<'de> for RawClaimsVisitor {
    type Value = RawClaims;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawClaims, A::Error> {
        let mut claims = RawClaims {
            public: Map::new(),
            secrets: Vec::new(),
            duplicate: false,
        };
        while let Some(name) = entries.next_key::<String>()? {
            if let Some(secret) = SECRET_CLAIMS.into_iter().find(|secret| *secret == name) {
                // Raw, because the parser would unescape it in a buffer that nobody wipes.
                let raw = entries.next_value::<&RawValue>()?;
                claims.duplicate |= claims.secrets.iter().any(|other| other.name == secret);
                claims.secrets.push(SecretClaim {
                    name: secret,
                    is_null: raw.get() == "null",
                    value: unescape(raw.get()),
                });
            } else {
                let Checked { value, duplicate } = entries.next_value()?;
                claims.duplicate |= duplicate;
                claims.duplicate |= claims.public.insert(name, value).is_some();
            }
        }
        Ok(claims)
    }
}

/// The text of a JSON string literal; none where it is another value or half of a surrogate pair.
fn unescape(literal: &str) -> Option<Zeroizing<String>> {
    let body = literal.strip_prefix('"')?.strip_suffix('"')?;
    // An unescaped text is never longer than its literal, so nothing is moved and left behind.
    let mut text = Zeroizing::new(String::with_capacity(body.len()));
    let mut rest = body.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        text.push(match rest.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let high = hex4(&mut rest)?;
                if (0xD800..0xDC00).contains(&high) {
                    if (rest.next()?, rest.next()?) != ('\\', 'u') {
                        return None;
                    }
                    let low = hex4(&mut rest)?;
                    if !(0xDC00..0xE000).contains(&low) {
                        return None;
                    }
                    char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))?
                } else {
                    char::from_u32(high)?
                }
            }
            other @ ('"' | '\\' | '/') => other,
            _ => return None,
        });
    }
    Some(text)
}

fn hex4(digits: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |value, _| {
        Some(value * 16 + digits.next()?.to_digit(16)?)
    })
}

/// Secrets on their way into [`Credentials`].
struct Secrets(Vec<SecretClaim>);

impl Secrets {
    fn take(&mut self, name: &'static str) -> Result<Option<Zeroizing<String>>, TokenError> {
        let Some(index) = self.0.iter().position(|secret| secret.name == name) else {
            return Ok(None);
        };
        self.0
            .swap_remove(index)
            .value
            .map(Some)
            .ok_or_else(|| invalid(name, "not a text"))
    }

    fn credentials(
        &mut self,
        username: &'static str,
        password: &'static str,
    ) -> Result<Option<Credentials>, TokenError> {
        match (self.take(username)?, self.take(password)?) {
            (None, None) => Ok(None),
            (Some(_), None) => Err(invalid(password, "missing beside the user name")),
            (None, Some(_)) => Err(invalid(username, "missing beside the password")),
            (Some(name), Some(_)) if name.is_empty() => Err(invalid(username, "empty")),
            (Some(name), Some(password)) => Ok(Some(Credentials {
                username: name.as_str().to_owned(),
                // A text of exact capacity: turning it into a secret does not copy it.
                password: SecretString::from(password.as_str().to_owned()),
            })),
        }
    }
}

/// Typed access to the public claims.
struct Reader<'a>(&'a Map<String, Value>);

impl<'a> Reader<'a> {
    /// A claim's value. Null counts as absent, since many issuers write it where they have nothing to say.
    fn get(&self, claim: &str) -> Option<&'a Value> {
        self.0.get(claim).filter(|value| !value.is_null())
    }

    fn text(&self, claim: &'static str) -> Result<Option<&'a str>, TokenError> {
        match self.get(claim) {
            None => Ok(None),
            Some(value) => value
                .as_str()
                .map(Some)
                .ok_or_else(|| invalid(claim, "not a text")),
        }
    }

    fn boolean(&self, claim: &'static str) -> Result<Option<bool>, TokenError> {
        match self.get(claim) {
            None => Ok(None),
            Some(value) => value
                .as_bool()
                .map(Some)
                .ok_or_else(|| invalid(claim, "not true or false")),
        }
    }

    fn whole(&self, claim: &'static str) -> Result<Option<u64>, TokenError> {
        match self.get(claim) {
            None => Ok(None),
            Some(value) => value
                .as_u64()
                .map(Some)
                .ok_or_else(|| invalid(claim, "not a whole number of 0 or more")),
        }
    }

    /// A NumericDate: seconds, perhaps with a fraction ([RFC 7519] 2).
    ///
    /// [RFC 7519]: https://www.rfc-editor.org/rfc/rfc7519#section-2
    fn date(&self, claim: &'static str) -> Result<Option<UnixTime>, TokenError> {
        let Some(value) = self.get(claim) else {
            return Ok(None);
        };
        let seconds = match (value.as_u64(), value.as_f64()) {
            (Some(seconds), _) => seconds,
            (None, Some(seconds)) => floor(seconds).ok_or_else(|| invalid(claim, "not a date"))?,
            (None, None) => return Err(invalid(claim, "not a number")),
        };
        if seconds > LAST_DATE {
            return Err(invalid(
                claim,
                "after the year 9999 (milliseconds where seconds belong?)",
            ));
        }
        Ok(Some(UnixTime(seconds)))
    }

    fn uuid(&self, claim: &'static str) -> Result<Option<Uuid>, TokenError> {
        self.text(claim)?
            .map(|text| as_uuid(text).ok_or_else(|| invalid(claim, "not a UUID")))
            .transpose()
    }

    /// A text that goes into logs.
    fn name(&self, claim: &'static str, chars: usize) -> Result<Option<String>, TokenError> {
        let Some(text) = self.text(claim)? else {
            return Ok(None);
        };
        if text.is_empty() {
            return Err(invalid(claim, "empty"));
        }
        if text.chars().nth(chars).is_some() {
            return Err(invalid(claim, "too long"));
        }
        if text.chars().any(char::is_control) {
            return Err(invalid(claim, "has control characters"));
        }
        Ok(Some(text.to_owned()))
    }

    fn connection_mode(&self) -> Result<ConnectionMode, TokenError> {
        match self.text("jet_cm")? {
            None | Some("rdv") => Ok(ConnectionMode::Rdv),
            Some("fwd") => Ok(ConnectionMode::Fwd),
            Some(_) => Err(invalid("jet_cm", "neither rdv nor fwd")),
        }
    }

    fn connection_test(&self) -> Result<ConnectionTest, TokenError> {
        match self.text("jet_ct")? {
            None | Some("keep") => Ok(ConnectionTest::Keep),
            Some("close") => Ok(ConnectionTest::Close),
            Some(_) => Err(invalid("jet_ct", "neither keep nor close")),
        }
    }

    fn application_protocol(&self) -> Result<Option<ApplicationProtocol>, TokenError> {
        let Some(name) = self.name("jet_ap", JET_AP_CHARS)? else {
            return Ok(None);
        };
        name.parse()
            .map(Some)
            .map_err(|_| invalid("jet_ap", "not a protocol"))
    }

    fn recording_policy(&self) -> Result<RecordingPolicy, TokenError> {
        match self.get("jet_rec") {
            None | Some(Value::Bool(false)) => Ok(RecordingPolicy::None),
            Some(Value::Bool(true)) => Ok(RecordingPolicy::Proxy),
            Some(Value::String(policy)) => match policy.as_str() {
                "none" => Ok(RecordingPolicy::None),
                "proxy" => Ok(RecordingPolicy::Proxy),
                "stream" => Ok(RecordingPolicy::Stream),
                _ => Err(invalid("jet_rec", "none of none, proxy and stream")),
            },
            Some(Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                Err(invalid("jet_rec", "neither true nor false nor a text"))
            }
        }
    }

    /// The specification's heading says `jetflt`; everyone writes `jet_flt`.
    fn filtering(&self) -> Result<bool, TokenError> {
        match (self.boolean("jetflt")?, self.boolean("jet_flt")?) {
            (Some(one), Some(other)) if one != other => {
                Err(invalid("jet_flt", "contradicts jetflt"))
            }
            (one, other) => Ok(one.or(other).unwrap_or(false)),
        }
    }

    fn time_to_live(&self) -> Result<Option<Duration>, TokenError> {
        Ok(self
            .whole("jet_ttl")?
            .filter(|minutes| *minutes != 0)
            .map(|minutes| Duration::from_secs(minutes.saturating_mul(60))))
    }

    fn targets(&self, jet_cm: ConnectionMode) -> Result<Vec<TargetAddr>, TokenError> {
        if jet_cm == ConnectionMode::Rdv {
            let behind = self.get("jet_agent_id").is_some();
            for claim in ["dst_hst", "dst_alt"] {
                if self.get(claim).is_some() {
                    return Err(invalid(
                        claim,
                        if behind {
                            "only with jet_cm fwd; a target behind an agent is jet_agent_dst (and jet_agent_alt)"
                        } else {
                            "only with jet_cm fwd"
                        },
                    ));
                }
            }
            return Ok(Vec::new());
        }
        let first = self
            .text("dst_hst")?
            .ok_or_else(|| invalid("dst_hst", "missing with jet_cm fwd"))?;
        let port = self.default_port()?;
        let mut targets = vec![target("dst_hst", first, port)?];
        self.alternatives("dst_alt", port, &mut targets)?;
        Ok(targets)
    }

    /// The port of destinations that name none.
    fn default_port(&self) -> Result<Option<u16>, TokenError> {
        let protocol = self.application_protocol()?;
        Ok(protocol.and_then(|protocol| protocol.default_port()))
    }

    /// Adds the further destinations in `claim`.
    fn alternatives(
        &self,
        claim: &'static str,
        default_port: Option<u16>,
        targets: &mut Vec<TargetAddr>,
    ) -> Result<(), TokenError> {
        match self.get(claim) {
            None => {}
            Some(Value::Array(others)) => {
                if others.len() >= limits::TARGETS {
                    return Err(invalid(claim, "too many destinations"));
                }
                for other in others {
                    let other = other
                        .as_str()
                        .ok_or_else(|| invalid(claim, "not a list of texts"))?;
                    targets.push(target(claim, other, default_port)?);
                }
            }
            Some(
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Object(_),
            ) => return Err(invalid(claim, "not a list of texts")),
        }
        Ok(())
    }

    fn agent(&self, jet_cm: ConnectionMode) -> Result<Option<AgentTarget>, TokenError> {
        let agent = self.text("jet_agent_id")?;
        let behind = self.text("jet_agent_dst")?;
        if jet_cm == ConnectionMode::Fwd && agent.is_some() && behind.is_none() {
            return Err(invalid(
                "jet_agent_id",
                "with jet_cm fwd other gateways let the agent dial dst_hst; here dst_hst is what the gateway dials, and a target behind \
                 an agent is jet_agent_dst, with jet_cm rdv and without dst_hst",
            ));
        }
        let (agent, behind) = match (agent, behind) {
            (None, None) if self.get("jet_agent_alt").is_some() => {
                return Err(invalid("jet_agent_id", "missing beside jet_agent_alt"));
            }
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(invalid("jet_agent_dst", "missing beside jet_agent_id")),
            (None, Some(_)) => return Err(invalid("jet_agent_id", "missing beside jet_agent_dst")),
            (Some(agent), Some(behind)) => (agent, behind),
        };
        if jet_cm == ConnectionMode::Fwd {
            return Err(invalid(
                "jet_agent_id",
                "only with jet_cm rdv and without dst_hst, which is what the gateway itself dials",
            ));
        }
        let agent = agent
            .parse()
            .map_err(|_| invalid("jet_agent_id", "not an agent's name"))?;
        let port = self.default_port()?;
        let mut targets = vec![target("jet_agent_dst", behind, port)?];
        self.alternatives("jet_agent_alt", port, &mut targets)?;
        Ok(Some(AgentTarget { agent, targets }))
    }

    fn thumbprint(&self) -> Result<Option<Thumbprint>, TokenError> {
        // A pin that got lost on its way into the token must not become no pin.
        if self.0.get("cert_thumb256").is_some_and(Value::is_null) {
            return Err(invalid("cert_thumb256", "null"));
        }
        self.text("cert_thumb256")?
            .map(|text| {
                text.parse()
                    .map_err(|NotAThumbprint| invalid("cert_thumb256", "not a SHA-256 in hex"))
            })
            .transpose()
    }

    /// Other kinds of token, signed with the same key, may name their kind in a claim and not in `cty`: `scope`, `jmux`,
    /// `kdc` and more. `association` is what other JET gateways call this kind.
    fn check_type(&self) -> Result<(), TokenError> {
        match self.get("type") {
            None => Ok(()),
            Some(Value::String(kind)) if kind.eq_ignore_ascii_case("association") => Ok(()),
            Some(_) => Err(TokenError::WrongType("claim type")),
        }
    }

    fn check_issuer(&self, rules: &TokenRules) -> Result<(), TokenError> {
        let issuer = self.text("iss")?;
        if rules.issuers.is_empty() {
            return Ok(());
        }
        match issuer {
            Some(issuer) if rules.issuers.iter().any(|known| known == issuer) => Ok(()),
            Some(_) | None => Err(TokenError::Issuer),
        }
    }

    /// `aud` ([RFC 7519] 4.1.3), and `jet_gw_id`, in which other gateways name the one gateway meant.
    ///
    /// [RFC 7519]: https://www.rfc-editor.org/rfc/rfc7519#section-4.1.3
    fn check_audience(&self, rules: &TokenRules) -> Result<(), TokenError> {
        let audience = match self.get("aud") {
            None => None,
            Some(Value::String(name)) => Some(vec![name.as_str()]),
            Some(Value::Array(names)) => {
                let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
                Some(names.ok_or_else(|| invalid("aud", "neither a text nor a list of texts"))?)
            }
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                return Err(invalid("aud", "neither a text nor a list of texts"));
            }
        };
        let gateway = self.text("jet_gw_id")?.map(|name| vec![name]);
        if audience.is_none() && gateway.is_none() && !rules.audiences.is_empty() {
            return Err(TokenError::NoAudience);
        }
        for (claim, named) in [("aud", audience), ("jet_gw_id", gateway)] {
            let Some(named) = named else {
                continue;
            };
            let is_ours = |name: &&str| rules.audiences.iter().any(|ours| same_name(ours, name));
            if !named.iter().any(is_ours) {
                let value = format!("{named:?}").chars().take(SHOWN_CHARS).collect();
                return Err(TokenError::Audience { claim, value });
            }
        }
        Ok(())
    }
}

/// Whether two names are of one gateway: UUIDs are the same in each of their forms, other names are texts.
fn same_name(one: &str, other: &str) -> bool {
    one == other || as_uuid(one).is_some_and(|one| as_uuid(other) == Some(one))
}

fn target(
    claim: &'static str,
    text: &str,
    default_port: Option<u16>,
) -> Result<TargetAddr, TokenError> {
    TargetAddr::of_claim(text, default_port).map_err(|error| match error {
        TargetAddrError::Scheme(scheme) => TokenError::Scheme { claim, scheme },
        TargetAddrError::NoPort => {
            invalid(claim, "no port, and jet_ap names no protocol that has one")
        }
        TargetAddrError::BadPort | TargetAddrError::BadHost | TargetAddrError::BareIpv6 => {
            invalid(claim, "not <host>:<port>, IPv6 in brackets")
        }
    })
}

const fn invalid(claim: &'static str, problem: &'static str) -> TokenError {
    TokenError::Claim { claim, problem }
}

/// Whole seconds of a number that is not negative and not beyond every date.
fn floor(seconds: f64) -> Option<u64> {
    // Below 2^53 a float is exact, so the comparison below is, too.
    if !(0.0..=9_007_199_254_740_992.0).contains(&seconds) {
        return None;
    }
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was checked above, and there is no other conversion"
    )]
    let whole = seconds.floor() as u64;
    Some(whole)
}

impl ConnectionMode {
    /// The value as it stands in a token.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rdv => "rdv",
            Self::Fwd => "fwd",
        }
    }
}

impl fmt::Display for ConnectionMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 in hexadecimal digits")]
pub struct NotAThumbprint;

impl FromStr for Thumbprint {
    type Err = NotAThumbprint;

    /// Hexadecimal digits, with or without colons between the bytes.
    fn from_str(text: &str) -> Result<Self, NotAThumbprint> {
        let digits = text.replace(':', "");
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| NotAThumbprint)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::*;

    const NOW: UnixTime = UnixTime(1_700_000_000);

    fn parse_text(text: &str, rules: &TokenRules) -> Result<Claims, TokenError> {
        Claims::parse(text.as_bytes(), true, rules, NOW)
    }

    /// Reads a forward token with these claims added, or taken away by null.
    fn forward(changes: Value) -> Result<Claims, TokenError> {
        let mut claims = json!({ "iat": NOW.0, "jet_cm": "fwd", "dst_hst": "rdp.example:3389" });
        for (name, value) in changes.as_object().unwrap() {
            if value.is_null() {
                claims.as_object_mut().unwrap().remove(name);
            } else {
                claims[name] = value.clone();
            }
        }
        parse_text(&claims.to_string(), &TokenRules::default())
    }

    /// The claim that is at fault.
    fn fault(changes: Value) -> &'static str {
        match forward(changes.clone()) {
            Err(TokenError::Claim { claim, .. }) => claim,
            other => panic!("{changes}: {other:?}"),
        }
    }

    // J-CM-1
    #[test]
    fn jet_cm_is_rdv_when_absent_and_nothing_but_rdv_or_fwd() {
        let none = forward(json!({ "jet_cm": null, "dst_hst": null })).unwrap();
        assert_eq!(none.jet_cm, ConnectionMode::Rdv);
        assert_eq!(forward(json!({})).unwrap().jet_cm, ConnectionMode::Fwd);
        for bad in [
            json!("FWD"),
            json!("forward"),
            json!(""),
            json!(1),
            json!(["fwd"]),
        ] {
            assert_eq!(fault(json!({ "jet_cm": bad })), "jet_cm");
        }
    }

    // J-CT-1
    #[test]
    fn jet_ct_is_keep_when_absent_and_nothing_but_keep_or_close() {
        assert_eq!(forward(json!({})).unwrap().jet_ct, ConnectionTest::Keep);
        let close = forward(json!({ "jet_ct": "close" })).unwrap();
        assert_eq!(close.jet_ct, ConnectionTest::Close);
        assert_eq!(fault(json!({ "jet_ct": "open" })), "jet_ct");
    }

    // J-AP-1
    #[test]
    fn jet_ap_keeps_known_and_foreign_names() {
        let protocol = |name: &str| forward(json!({ "jet_ap": name })).unwrap().jet_ap.unwrap();
        assert_eq!(protocol("rdp"), ApplicationProtocol::Rdp);
        assert_eq!(protocol("none"), ApplicationProtocol::None);
        assert_eq!(protocol("telnet").to_string(), "telnet");
        assert_eq!(forward(json!({})).unwrap().jet_ap, None);
        for bad in [json!(""), json!(7), json!("a\nb"), json!("x".repeat(65))] {
            assert_eq!(fault(json!({ "jet_ap": bad })), "jet_ap");
        }
    }

    // J-REC-1
    #[test]
    fn jet_rec_is_a_boolean_or_the_text_of_other_gateways() {
        let policy = |value: Value| forward(json!({ "jet_rec": value })).unwrap().jet_rec;
        assert_eq!(forward(json!({})).unwrap().jet_rec, RecordingPolicy::None);
        assert_eq!(policy(json!(false)), RecordingPolicy::None);
        assert_eq!(policy(json!("none")), RecordingPolicy::None);
        assert_eq!(policy(json!(true)), RecordingPolicy::Proxy);
        assert_eq!(policy(json!("proxy")), RecordingPolicy::Proxy);
        assert_eq!(policy(json!("stream")), RecordingPolicy::Stream);
        for bad in [
            json!("false"),
            json!("True"),
            json!(""),
            json!(0),
            json!([]),
        ] {
            assert_eq!(fault(json!({ "jet_rec": bad })), "jet_rec");
        }
    }

    // J-FLT-1
    #[test]
    fn filtering_is_demanded_in_either_spelling_but_not_both_ways() {
        assert!(!forward(json!({})).unwrap().jet_flt);
        assert!(forward(json!({ "jetflt": true })).unwrap().jet_flt);
        assert!(forward(json!({ "jet_flt": true })).unwrap().jet_flt);
        assert!(
            forward(json!({ "jet_flt": true, "jetflt": true }))
                .unwrap()
                .jet_flt
        );
        assert_eq!(
            fault(json!({ "jet_flt": false, "jetflt": true })),
            "jet_flt"
        );
        assert_eq!(fault(json!({ "jet_flt": "true" })), "jet_flt");
        assert_eq!(fault(json!({ "jetflt": 1 })), "jetflt");
    }

    // J-DST-1
    #[test]
    fn a_destination_is_required_with_fwd_and_refused_with_rdv() {
        let targets = forward(json!({ "dst_alt": ["b:1", "[::1]:2"] }))
            .unwrap()
            .targets;
        let texts: Vec<String> = targets.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["rdp.example:3389", "b:1", "[::1]:2"]);
        assert_eq!(fault(json!({ "dst_hst": null })), "dst_hst");
        assert_eq!(fault(json!({ "dst_hst": "rdp.example" })), "dst_hst");
        assert_eq!(fault(json!({ "dst_hst": ["rdp.example:3389"] })), "dst_hst");
        assert_eq!(fault(json!({ "dst_alt": "b:1" })), "dst_alt");
        assert_eq!(fault(json!({ "dst_alt": [1] })), "dst_alt");
        assert_eq!(
            fault(json!({ "dst_alt": vec!["b:1"; limits::TARGETS] })),
            "dst_alt"
        );
        assert_eq!(fault(json!({ "jet_cm": "rdv" })), "dst_hst");
        assert_eq!(
            fault(json!({ "jet_cm": "rdv", "dst_hst": null, "dst_alt": [] })),
            "dst_alt"
        );
    }

    #[test]
    fn credentials_may_go_with_a_rendezvous() {
        let secrets = json!({ "jet_cm": null, "dst_hst": null, "dst_usr": "a", "dst_pwd": "b" });
        assert!(forward(secrets).unwrap().target_credentials.is_some());
    }

    // J-JWT-1
    #[test]
    fn dates_may_have_fractions_and_nothing_else() {
        let exact = forward(json!({ "iat": 1_700_000_000.9, "exp": 1_700_000_050.1 })).unwrap();
        assert_eq!(exact.validity.not_before, NOW);
        assert_eq!(exact.validity.not_after, NOW.plus(50));
        for claim in ["iat", "nbf", "exp"] {
            for bad in [
                json!(-1),
                json!(-0.5),
                json!(1e300),
                json!(u64::MAX),
                json!("1700000000"),
                json!(true),
                json!([1]),
                json!(1_700_000_000_000_u64),
            ] {
                assert_eq!(fault(json!({ claim: bad })), claim, "{bad}");
            }
        }
        assert_eq!(
            forward(json!({ "iat": null })).unwrap_err(),
            TokenError::NoValidity
        );
    }

    #[test]
    fn json_that_is_no_set_of_claims_is_refused() {
        let rules = TokenRules::default();
        for text in [
            "",
            "[]",
            "null",
            "\"x\"",
            "{",
            "{\"iat\":NaN}",
            "{\"iat\":1e999}",
            "{}x",
        ] {
            assert_eq!(
                parse_text(text, &rules).unwrap_err(),
                TokenError::NotClaims,
                "{text}"
            );
        }
        assert_eq!(
            Claims::parse(b"{\"a\":\"\xff\"}", true, &rules, NOW).unwrap_err(),
            TokenError::NotClaims
        );
    }

    #[test]
    fn a_claim_twice_is_refused_even_if_it_is_a_secret_or_nested() {
        let rules = TokenRules::default();
        for text in [
            r#"{"iat":1700000000,"iat":1700000000}"#,
            r#"{"iat":1700000000,"jet_cm":"rdv","jet\u005fcm":"fwd"}"#,
            r#"{"iat":1700000000,"dst_pwd":"a","dst_pwd":"a"}"#,
            r#"{"iat":1700000000,"x":{"a":1,"a":2}}"#,
        ] {
            assert_eq!(
                parse_text(text, &rules).unwrap_err(),
                TokenError::DuplicateClaim,
                "{text}"
            );
        }
    }

    // J-JWT-5: no spelling of the name escapes.
    #[test]
    fn an_escaped_name_is_still_a_secret() {
        let text = r#"{"iat":1700000000,"dst\u005fpwd":"x"}"#;
        let error = Claims::parse(text.as_bytes(), false, &TokenRules::default(), NOW).unwrap_err();
        assert_eq!(error, TokenError::SecretUnencrypted { claim: "dst_pwd" });
    }

    // J-DST-2
    #[test]
    fn a_password_arrives_whatever_characters_it_has() {
        for password in [
            "",
            "plain",
            "qu\"ote\\slash/",
            "tab\tnewline\n\u{8}\u{c}\r",
            "päß🔑",
            "\u{1}\u{7f}",
        ] {
            let claims = forward(json!({ "dst_usr": "DOM\\alice", "dst_pwd": password })).unwrap();
            let credentials = claims.target_credentials.unwrap();
            assert_eq!(credentials.username, "DOM\\alice");
            assert_eq!(credentials.password.expose_secret(), password);
        }
        let escaped = r#"{"iat":1700000000,"jet_cm":"fwd","dst_hst":"h:1","dst_usr":"\u0061\/","dst_pwd":"\ud83d\udd11\u00E4"}"#;
        let claims = parse_text(escaped, &TokenRules::default()).unwrap();
        let credentials = claims.target_credentials.unwrap();
        assert_eq!(credentials.username, "a/");
        assert_eq!(credentials.password.expose_secret(), "🔑ä");
        for half in ["\\ud83d", "\\ud83dx", "\\ud83d\\u0041", "\\udd11"] {
            let text = escaped.replace("\\ud83d\\udd11\\u00E4", half);
            let error = parse_text(&text, &TokenRules::default()).unwrap_err();
            assert_eq!(error, invalid("dst_pwd", "not a text"), "{half}");
        }
    }

    #[test]
    fn credentials_come_in_pairs_of_texts() {
        assert_eq!(fault(json!({ "dst_usr": "a" })), "dst_pwd");
        assert_eq!(fault(json!({ "dst_pwd": "a" })), "dst_usr");
        assert_eq!(fault(json!({ "prx_usr": "a" })), "prx_pwd");
        assert_eq!(fault(json!({ "prx_usr": "", "prx_pwd": "b" })), "prx_usr");
        assert_eq!(fault(json!({ "dst_usr": 1, "dst_pwd": "b" })), "dst_usr");
        assert_eq!(
            fault(json!({ "dst_usr": "a", "dst_pwd": ["b"] })),
            "dst_pwd"
        );
        assert!(
            forward(json!({ "prx_usr": "a", "prx_pwd": "b" }))
                .unwrap()
                .proxy_credentials
                .is_some()
        );
    }

    #[test]
    fn session_limits_have_their_units() {
        let claims = forward(json!({ "jet_ttl": 90, "jet_reuse": 45 })).unwrap();
        assert_eq!(claims.jet_ttl, Some(Duration::from_secs(5400)));
        assert_eq!(claims.jet_reuse, Some(Duration::from_secs(45)));
        assert_eq!(forward(json!({ "jet_ttl": 0 })).unwrap().jet_ttl, None);
        assert_eq!(
            forward(json!({ "jet_reuse": 0 })).unwrap().jet_reuse,
            Some(Duration::ZERO)
        );
        assert!(forward(json!({ "jet_ttl": u64::MAX })).is_ok());
        for bad in [json!(-1), json!(1.5), json!("90"), json!(false)] {
            assert_eq!(fault(json!({ "jet_ttl": bad })), "jet_ttl");
            assert_eq!(fault(json!({ "jet_reuse": bad })), "jet_reuse");
        }
    }

    #[test]
    fn names_are_texts_fit_for_a_log() {
        for claim in ["jti", "sub"] {
            for bad in [
                json!(""),
                json!(7),
                json!("a\r\nb"),
                json!("x".repeat(2000)),
                json!(["a"]),
            ] {
                assert_eq!(fault(json!({ claim: bad })), claim);
            }
        }
        for bad in [json!("not-a-uuid"), json!(7)] {
            assert_eq!(fault(json!({ "jet_aid": bad })), "jet_aid");
        }
        for bad in [
            json!("ab"),
            json!("zz".repeat(32)),
            json!("ab".repeat(33)),
            json!(7),
        ] {
            assert_eq!(fault(json!({ "cert_thumb256": bad })), "cert_thumb256");
        }
        let colons = vec!["ab"; 32].join(":");
        assert!(
            forward(json!({ "cert_thumb256": colons }))
                .unwrap()
                .cert_thumb256
                .is_some()
        );
    }

    #[test]
    fn a_token_for_another_audience_or_from_another_issuer_is_refused() {
        let verdict = |claims: Value, rules: &TokenRules| {
            let mut all = json!({ "iat": NOW.0 });
            all.as_object_mut()
                .unwrap()
                .extend(claims.as_object().unwrap().clone());
            parse_text(&all.to_string(), rules).map_or_else(|error| error.rule(), |_| "accepted")
        };
        let open = TokenRules::default();
        assert_eq!(verdict(json!({ "iss": "anyone" }), &open), "accepted");
        assert_eq!(verdict(json!({ "aud": "anyone" }), &open), "audience");
        assert_eq!(verdict(json!({ "aud": [] }), &open), "audience");
        assert_eq!(verdict(json!({ "jet_gw_id": "anyone" }), &open), "audience");
        let named = TokenRules {
            issuers: vec!["https://issuer.example".to_owned()],
            audiences: vec!["gw-1".to_owned(), "gw-2".to_owned()],
            ..TokenRules::default()
        };
        let iss = "https://issuer.example";
        for (claims, expected) in [
            (json!({ "iss": iss, "aud": "gw-1" }), "accepted"),
            (json!({ "iss": iss, "aud": ["other", "gw-2"] }), "accepted"),
            (json!({ "iss": iss, "jet_gw_id": "gw-2" }), "accepted"),
            (
                json!({ "iss": iss, "aud": "gw-1", "jet_gw_id": "other" }),
                "audience",
            ),
            (json!({ "iss": iss, "aud": "other" }), "audience"),
            (json!({ "iss": iss }), "audience"),
            (json!({ "iss": iss, "aud": 7 }), "claim"),
            (json!({ "aud": "gw-1" }), "issuer"),
            (
                json!({ "iss": "https://evil.example", "aud": "gw-1" }),
                "issuer",
            ),
            (json!({ "iss": 7, "aud": "gw-1" }), "claim"),
        ] {
            assert_eq!(verdict(claims.clone(), &named), expected, "{claims}");
        }
    }

    #[test]
    fn a_gateway_that_is_named_by_a_uuid_is_named_in_each_of_its_forms() {
        let forms = [
            "4daeb814-cdb6-4779-a16b-6479064e8107",
            "4DAEB814-CDB6-4779-A16B-6479064E8107",
            "{4daeb814-cdb6-4779-a16b-6479064e8107}",
            "{4DAEB814-CDB6-4779-A16B-6479064E8107}",
            "urn:uuid:4daeb814-cdb6-4779-a16b-6479064e8107",
            "URN:UUID:4DAEB814-CDB6-4779-A16B-6479064E8107",
            "4daeb814cdb64779a16b6479064e8107",
        ];
        for ours in forms {
            let rules = TokenRules {
                audiences: vec!["gw-1".to_owned(), ours.to_owned()],
                ..TokenRules::default()
            };
            let verdict = |claim: &str, name: &str| {
                parse_text(&json!({ "iat": NOW.0, claim: name }).to_string(), &rules)
            };
            for claim in ["jet_gw_id", "aud"] {
                for named in forms {
                    assert!(verdict(claim, named).is_ok(), "{ours} {claim} {named}");
                }
                // Other names are texts, and other UUIDs are others.
                for other in ["GW-1", "5daeb814-cdb6-4779-a16b-6479064e8107", "{gw-1}"] {
                    let error = verdict(claim, other).unwrap_err();
                    assert_eq!(error.rule(), "audience", "{claim} {other}");
                    let told = error.to_string();
                    assert!(told.contains(claim) && told.contains(other), "{told}");
                }
            }
            let error = parse_text(&json!({ "iat": NOW.0 }).to_string(), &rules).unwrap_err();
            let told = error.to_string();
            assert!(told.contains("names no gateway"), "{told}");
            assert!(!told.contains("another"), "{told}");
        }
    }

    #[test]
    fn what_other_gateways_mean_by_an_agent_is_told_from_what_is_meant_here() {
        let id = "4daeb814-cdb6-4779-a16b-6479064e8107";
        let told = forward(json!({ "jet_agent_id": id }))
            .unwrap_err()
            .to_string();
        for words in [
            "other gateways let the agent dial dst_hst",
            "jet_agent_dst",
            "jet_cm rdv",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        let claims = json!({ "iat": NOW.0, "jet_cm": "rdv", "dst_hst": "a:1", "jet_agent_id": id });
        let told = parse_text(&claims.to_string(), &TokenRules::default());
        let told = told.unwrap_err().to_string();
        assert!(
            told.contains("a target behind an agent is jet_agent_dst"),
            "{told}"
        );
    }

    #[test]
    fn a_demand_for_another_route_is_refused() {
        let id = "4daeb814-cdb6-4779-a16b-6479064e8107";
        assert_eq!(fault(json!({ "jet_agent_id": id })), "jet_agent_id");
        let both = json!({ "jet_agent_id": id, "jet_agent_dst": "pc:3389" });
        assert_eq!(fault(both), "jet_agent_id");
    }

    #[test]
    fn an_agent_and_what_lies_behind_it_go_together_and_with_rdv_only() {
        let rendezvous = |changes: Value| {
            let mut claims = json!({ "jet_cm": "rdv", "nbf": 0, "exp": 100 });
            let object = claims.as_object_mut().unwrap();
            object.extend(changes.as_object().unwrap().clone());
            Claims::check(&claims, false, UnixTime(1))
        };
        let both = json!({ "jet_agent_id": "branch-7", "jet_agent_dst": "[::1]:3389" });
        let agent = rendezvous(both).unwrap().agent.unwrap();
        assert_eq!(agent.agent.as_str(), "branch-7");
        assert_eq!(agent.target().unwrap().to_string(), "[::1]:3389");
        let farm = json!({
            "jet_agent_id": "branch-7",
            "jet_agent_dst": "broker:3389",
            "jet_agent_alt": ["desk1:3389", "desk2:3390"],
        });
        let targets = rendezvous(farm).unwrap().agent.unwrap().targets;
        let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
        assert_eq!(targets, ["broker:3389", "desk1:3389", "desk2:3390"]);
        assert_eq!(rendezvous(json!({})).unwrap().agent, None);
        for (changes, claim) in [
            (json!({ "jet_agent_id": "branch-7" }), "jet_agent_dst"),
            (json!({ "jet_agent_dst": "pc:3389" }), "jet_agent_id"),
            (
                json!({ "jet_agent_id": "A", "jet_agent_dst": "pc:3389" }),
                "jet_agent_id",
            ),
            (
                json!({ "jet_agent_id": "a", "jet_agent_dst": "pc" }),
                "jet_agent_dst",
            ),
            (
                json!({ "jet_agent_id": 7, "jet_agent_dst": "pc:1" }),
                "jet_agent_id",
            ),
            (json!({ "jet_agent_alt": ["pc:1"] }), "jet_agent_id"),
            (
                json!({ "jet_agent_id": "a", "jet_agent_dst": "pc:1", "jet_agent_alt": "pc:2" }),
                "jet_agent_alt",
            ),
            (
                json!({ "jet_agent_id": "a", "jet_agent_dst": "pc:1", "jet_agent_alt": ["pc"] }),
                "jet_agent_alt",
            ),
            (
                json!({ "jet_agent_id": "a", "jet_agent_dst": "pc:1", "jet_agent_alt": vec!["pc:1"; 64] }),
                "jet_agent_alt",
            ),
        ] {
            match rendezvous(changes) {
                Err(TokenError::Claim { claim: found, .. }) => assert_eq!(found, claim),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_port_may_be_left_out_where_jet_ap_has_one() {
        let target = |claims: Value| {
            let targets = forward(claims).unwrap().targets;
            let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
            targets.join(" ")
        };
        for (protocol, port) in [
            ("rdp", 3389),
            ("vnc", 5900),
            ("ard", 5900),
            ("ssh", 22),
            ("sftp", 22),
            ("scp", 22),
            ("telnet", 23),
            ("winrm-http-pwsh", 5985),
            ("winrm-https-pwsh", 5986),
            ("http", 80),
            ("https", 443),
            ("ldap", 389),
            ("ldaps", 636),
            ("wayk", 12876),
        ] {
            let claims =
                json!({ "jet_ap": protocol, "dst_hst": "tcp://a", "dst_alt": ["b", "c:1"] });
            assert_eq!(
                target(claims),
                format!("a:{port} b:{port} c:1"),
                "{protocol}"
            );
        }
        for protocol in [json!(null), json!("none"), json!("dns")] {
            let claims = json!({ "jet_ap": protocol, "dst_hst": "a" });
            let words = "claim dst_hst: no port, and jet_ap names no protocol that has one";
            assert_eq!(forward(claims).unwrap_err().to_string(), words);
            let claims = json!({ "jet_ap": protocol, "dst_alt": ["a"] });
            assert_eq!(fault(claims), "dst_alt");
        }
        let udp = forward(json!({ "dst_alt": ["UDP://a:1"] })).unwrap_err();
        let words = "claim dst_alt: only tcp:// is dialled, and not udp://";
        assert_eq!((udp.rule(), udp.to_string().as_str()), ("claim", words));
    }

    #[test]
    fn another_kind_of_token_by_its_claim_type_is_refused() {
        for kind in ["association", "ASSOCIATION"] {
            assert!(forward(json!({ "type": kind })).is_ok());
        }
        for kind in [
            "scope", "bridge", "jmux", "jrec", "kdc", "jrl", "webapp", "netscan", "",
        ] {
            let error = forward(json!({ "type": kind })).unwrap_err();
            assert_eq!(error, TokenError::WrongType("claim type"), "{kind}");
        }
        let error = forward(json!({ "type": ["association"] })).unwrap_err();
        assert_eq!(error.rule(), "type");
    }

    #[test]
    fn an_optional_claim_of_null_is_absent_and_a_null_pin_is_an_error() {
        let text = format!(
            r#"{{ "iat": {}, "nbf": null, "exp": null, "iss": null, "aud": null, "jet_gw_id": null, "type": null,
                "jet_cm": "fwd", "dst_hst": "a:1", "dst_alt": null, "dst_usr": null, "dst_pwd": null, "prx_usr": null,
                "prx_pwd": null, "jet_aid": null, "jet_ct": null, "jet_ap": null, "jet_rec": null, "jetflt": null,
                "jet_flt": null, "jet_ttl": null, "jet_reuse": null, "jet_agent_id": null, "jet_agent_dst": null,
                "jet_agent_alt": null, "sub": null, "jti": null }}"#,
            NOW.0
        );
        let rules = TokenRules::default();
        // Unencrypted: a secret that is not there is none.
        let claims = Claims::parse(text.as_bytes(), false, &rules, NOW).unwrap();
        let absent = forward(json!({ "dst_hst": "a:1" })).unwrap();
        assert!(claims.target_credentials.is_none() && claims.proxy_credentials.is_none());
        let told = |claims: &Claims| {
            let claims = Claims {
                extra: Map::new(),
                ..claims.clone()
            };
            format!("{claims:?}")
        };
        assert_eq!(told(&claims), told(&absent));

        let rendezvous =
            r#"{ "iat": 1700000000, "jet_cm": null, "dst_hst": null, "dst_alt": null }"#;
        assert_eq!(
            parse_text(rendezvous, &rules).unwrap().jet_cm,
            ConnectionMode::Rdv
        );
        let half = text.replace(r#""dst_pwd": null"#, r#""dst_pwd": "x""#);
        assert!(parse_text(&half, &rules).is_err());
        let pinned = text.replace(r#""jti": null"#, r#""cert_thumb256": null"#);
        let problem = TokenError::Claim {
            claim: "cert_thumb256",
            problem: "null",
        };
        assert_eq!(parse_text(&pinned, &rules).unwrap_err(), problem);
        // Named, and it has no name of this gateway.
        let named = TokenRules {
            audiences: vec!["gw-1".to_owned()],
            ..TokenRules::default()
        };
        assert_eq!(parse_text(&text, &named).unwrap_err().rule(), "audience");
    }

    #[test]
    fn a_misspelt_claim_is_noticed_and_a_foreign_one_is_not() {
        let look_at = |name| misspelt(std::iter::once(name)).pop();
        for (name, meant) in [
            ("jet_ttls", "jet_ttl"),
            ("jet_tll", "jet_ttl"),
            ("jetttl", "jet_ttl"),
            ("JET_REC", "jet_rec"),
            ("jet_record", "jet_rec"),
            ("dst_hosts", "dst_hst"),
            ("jet-flt", "jet_flt"),
            ("dst_host", "dst_hst"),
            ("dst_usre", "dst_usr"),
            ("dst_user", "dst_usr"),
            ("cert_thumb_256", "cert_thumb256"),
            ("cert_thumb265", "cert_thumb256"),
            ("jet_agent", "jet_agent_id"),
            ("Exp", "exp"),
        ] {
            assert_eq!(look_at(name), Some((name, meant)));
        }
        for known in KNOWN_CLAIMS {
            assert_eq!(look_at(known), None);
        }
        for name in [
            "department",
            "name",
            "ext",
            "subject",
            "azp",
            "nonce",
            "groups",
            "x",
        ] {
            assert_eq!(look_at(name), None, "{name}");
        }
        assert_eq!(distance(b"jetttl", b"jettlt"), 1);
    }

    #[test]
    fn unknown_claims_are_kept_for_revocation() {
        let claims =
            forward(json!({ "department": ["red", "blue"], "dst_usr": "a", "dst_pwd": "b" }))
                .unwrap();
        assert_eq!(claims.extra["department"], json!(["red", "blue"]));
        assert!(!claims.extra.contains_key("dst_usr") && !claims.extra.contains_key("dst_pwd"));
    }
}
