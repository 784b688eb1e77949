//! The claims of a token ([JET-PROTO] 2.2.3.4 to 2.2.3.11, and what other JET gateways add).
//!
//! A claim that is there must have the right type and one of its known values: a misspelt policy is refused and never
//! read as "no policy". Secrets go from the decrypted text into [`SecretString`] and nowhere else.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::json::Checked;
use super::target::TargetAddr;
use super::validity::Validity;
use super::{TokenError, TokenRules};
use crate::application_protocol::ApplicationProtocol;
use crate::limits;
use crate::time::UnixTime;

/// Claims that only an encrypted token may have ([JET-PROTO] 2.2.3.3).
pub const SECRET_CLAIMS: [&str; 4] = ["dst_usr", "dst_pwd", "prx_usr", "prx_pwd"];

/// Longest `jti`, characters: it is stored for each token.
const JTI_CHARS: usize = 256;

/// Longest `sub`, characters.
const SUB_CHARS: usize = 1024;

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

/// `jet_rec` ([JET-PROTO] 2.2.3.7), a boolean there and a text with other gateways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RecordingPolicy {
    /// `false` or `"none"`.
    #[default]
    None,
    /// `true` or `"proxy"`: the gateway records.
    Proxy,
    /// `"stream"`: the client would record itself.
    Stream,
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
            secrets,
            duplicate,
        } = RawClaims::parse(payload)?;
        if duplicate {
            return Err(TokenError::DuplicateClaim);
        }
        if !encrypted && let Some(claim) = secrets.first() {
            return Err(TokenError::SecretUnencrypted { claim: claim.name });
        }
        let reader = Reader(&public);
        let validity = Validity::establish(
            reader.date("nbf")?,
            reader.date("iat")?,
            reader.date("exp")?,
            rules,
            now,
        )?;
        reader.check_issuer(rules)?;
        reader.check_audience(rules)?;
        if public.contains_key("jet_agent_id") {
            return Err(invalid(
                "jet_agent_id",
                "this gateway reaches targets itself, not through agents",
            ));
        }
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
            cert_thumb256: reader.thumbprint()?,
            sub: reader.name("sub", SUB_CHARS)?,
            jti: reader.name("jti", JTI_CHARS)?,
            validity,
            extra: Map::new(),
        };
        if claims.jet_cm == ConnectionMode::Rdv && claims.target_credentials.is_some() {
            return Err(invalid("dst_usr", "only with jet_cm fwd"));
        }
        Ok(Self {
            extra: public,
            ..claims
        })
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

/// The payload as JSON, secrets apart.
struct RawClaims {
    public: Map<String, Value>,
    secrets: Vec<SecretClaim>,
    duplicate: bool,
}

struct SecretClaim {
    name: &'static str,
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
    fn text(&self, claim: &'static str) -> Result<Option<&'a str>, TokenError> {
        match self.0.get(claim) {
            None => Ok(None),
            Some(value) => value
                .as_str()
                .map(Some)
                .ok_or_else(|| invalid(claim, "not a text")),
        }
    }

    fn boolean(&self, claim: &'static str) -> Result<Option<bool>, TokenError> {
        match self.0.get(claim) {
            None => Ok(None),
            Some(value) => value
                .as_bool()
                .map(Some)
                .ok_or_else(|| invalid(claim, "not true or false")),
        }
    }

    fn whole(&self, claim: &'static str) -> Result<Option<u64>, TokenError> {
        match self.0.get(claim) {
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
        let Some(value) = self.0.get(claim) else {
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
            .map(|text| Uuid::parse_str(text).map_err(|_| invalid(claim, "not a UUID")))
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
        match self.0.get("jet_rec") {
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
            for claim in ["dst_hst", "dst_alt"] {
                if self.0.contains_key(claim) {
                    return Err(invalid(claim, "only with jet_cm fwd"));
                }
            }
            return Ok(Vec::new());
        }
        let first = self
            .text("dst_hst")?
            .ok_or_else(|| invalid("dst_hst", "missing with jet_cm fwd"))?;
        let mut targets = vec![target("dst_hst", first)?];
        match self.0.get("dst_alt") {
            None => {}
            Some(Value::Array(others)) => {
                if others.len() >= limits::TARGETS {
                    return Err(invalid("dst_alt", "too many destinations"));
                }
                for other in others {
                    let other = other
                        .as_str()
                        .ok_or_else(|| invalid("dst_alt", "not a list of texts"))?;
                    targets.push(target("dst_alt", other)?);
                }
            }
            Some(
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Object(_),
            ) => return Err(invalid("dst_alt", "not a list of texts")),
        }
        Ok(targets)
    }

    fn thumbprint(&self) -> Result<Option<Thumbprint>, TokenError> {
        self.text("cert_thumb256")?
            .map(|text| {
                text.parse()
                    .map_err(|NotAThumbprint| invalid("cert_thumb256", "not a SHA-256 in hex"))
            })
            .transpose()
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
        let is_ours = |name: &str| rules.audiences.iter().any(|ours| ours == name);
        let audience = match self.0.get("aud") {
            None => None,
            Some(Value::String(name)) => Some(is_ours(name)),
            Some(Value::Array(names)) => {
                let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
                let names =
                    names.ok_or_else(|| invalid("aud", "neither a text nor a list of texts"))?;
                Some(names.into_iter().any(is_ours))
            }
            Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                return Err(invalid("aud", "neither a text nor a list of texts"));
            }
        };
        let gateway = self.text("jet_gw_id")?.map(is_ours);
        match (audience, gateway) {
            (Some(false), _) | (_, Some(false)) => Err(TokenError::Audience),
            (None, None) if !rules.audiences.is_empty() => Err(TokenError::Audience),
            (Some(true) | None, Some(true) | None) => Ok(()),
        }
    }
}

fn target(claim: &'static str, text: &str) -> Result<TargetAddr, TokenError> {
    text.parse()
        .map_err(|_| invalid(claim, "not <host>:<port>, IPv6 in brackets"))
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
