//! `.rdp` files that lead through the gateway.
//!
//! A file is lines of `name:type:value`, where the type is `i` (number), `s` (text) or `b` (hexadecimal). mstsc writes
//! UTF-16LE with a byte order mark and CR LF, which is the default here; FreeRDP reads that and UTF-8.
//!
//! The token or ticket travels in one of two settings, or both:
//!
//! | setting | on the wire | room |
//! |---|---|---|
//! | `pcb:s:` | preconnection PDU, before anything else | the gateway takes [`limits::TOKEN_BYTES`] |
//! | `loadbalanceinfo:s:` | routing token of the X.224 Connection Request | [`ROUTING_TOKEN_BYTES`] |
//!
//! Nothing that is put into a file can add a line to it: control characters are refused everywhere. The file holds a
//! secret, so it is zeroised in memory and not printed by `Debug`; whoever stores it keeps it from other users.
//! Signing is not done here.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

use jetway_base::limits;
use jetway_token::target::TargetAddr;

/// The contents of a `.rdp` file.
#[derive(Clone)]
pub struct RdpFile {
    settings: Vec<Setting>,
}

/// One line of a `.rdp` file.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    name: String,
    value: Value,
}

#[derive(Clone, PartialEq, Eq)]
enum Value {
    Integer(i64),
    Text(Zeroizing<String>),
    Binary(Zeroizing<String>),
}

/// Why something cannot be put into a `.rdp` file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RdpFileError {
    /// A line is `name:type:value`.
    #[error("setting is not of the form name:type:value with a type of i, s or b")]
    Form,
    /// The value is not what its type says.
    #[error("setting `{0}` has a value that does not fit its type")]
    Value(String),
    /// A line break would start a setting of somebody else's choice.
    #[error("{0} has a line break or another control character")]
    ControlCharacter(&'static str),
    /// Set by an argument of its own, which says more or keeps it out of the process list.
    #[error("setting `{name}` is set with {instead}")]
    Reserved {
        /// The setting.
        name: &'static str,
        /// What to use.
        instead: &'static str,
    },
    /// It would lead the client past the gateway.
    #[error("setting `{name}` contradicts what the file is for: {why}")]
    Contradiction {
        /// The setting.
        name: &'static str,
        /// What it would do.
        why: &'static str,
    },
    /// A secret would be in the process list.
    #[error("setting `{0}` is a secret, which {SECRET_INSTEAD}")]
    Secret(String),
    /// Nothing, or what no token or ticket has in it.
    #[error("{0} is empty or has characters other than visible ASCII")]
    NotVisible(&'static str),
    /// The gateway would refuse it.
    #[error("token of {0} bytes is above the {limit} bytes that the gateway accepts", limit = limits::TOKEN_BYTES)]
    TokenTooLong(usize),
    /// FreeRDP would send a malformed request or crash.
    #[error(
        "ticket of {0} bytes is above the {ROUTING_TOKEN_BYTES} bytes of a routing token, whose length X.224 counts \
         in one byte; put a token into the preconnection PDU, or exchange it for a ticket"
    )]
    TicketTooLong(usize),
}

/// What may go wrong with a file that is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RdpFileWarning {
    /// A line longer than those known to work in mstsc.
    LongToken {
        /// Bytes of the token.
        bytes: usize,
    },
    /// The gateway is named by a literal IPv6 address.
    Ipv6Literal,
}

impl fmt::Display for RdpFileWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LongToken { bytes } => write!(
                f,
                "the token has {bytes} bytes; it is not established that mstsc reads lines above \
                 {LONG_TOKEN_BYTES} bytes, so test it or use a ticket"
            ),
            Self::Ipv6Literal => f.write_str(
                "FreeRDP does not open a .rdp file with a literal IPv6 address; give the gateway a name for its users",
            ),
        }
    }
}

impl RdpFile {
    /// A file for the gateway at `full_address`, with the settings that a way through it needs.
    #[must_use]
    pub fn new(full_address: &TargetAddr) -> Self {
        let mut file = Self {
            settings: Vec::new(),
        };
        let address = full_address.to_string();
        // The name is what the client checks the certificate against.
        file.put_text(FULL_ADDRESS, &address);
        // Where both are given this one wins, and a signature demands that they are equal.
        file.put_text(ALTERNATE_FULL_ADDRESS, &address);
        for (name, value) in DEFAULTS {
            file.put(Setting {
                name: name.to_owned(),
                value: Value::Integer(value),
            });
        }
        file
    }

    /// Puts the token into the preconnection PDU (`pcb:s:`).
    ///
    /// # Errors
    /// Where the gateway would not take it.
    pub fn set_token(&mut self, token: &str) -> Result<(), RdpFileError> {
        visible("token", token)?;
        if token.len() > limits::TOKEN_BYTES {
            return Err(RdpFileError::TokenTooLong(token.len()));
        }
        self.put_text(PCB, token);
        Ok(())
    }

    /// Puts the ticket into the routing token (`loadbalanceinfo:s:`).
    ///
    /// # Errors
    /// Where it has no room there.
    pub fn set_ticket(&mut self, ticket: &str) -> Result<(), RdpFileError> {
        visible("ticket", ticket)?;
        if ticket.len() > ROUTING_TOKEN_BYTES {
            return Err(RdpFileError::TicketTooLong(ticket.len()));
        }
        self.put_text(LOAD_BALANCE_INFO, ticket);
        Ok(())
    }

    /// For a token by which the gateway logs on to the target: the client asks its user for nothing. It offers no NLA then, by which
    /// alone it would have to know a password, so this is not for tokens with `prx_usr`.
    pub fn ask_nothing(&mut self) {
        for (name, value) in ASK_NOTHING {
            self.put(Setting {
                name: name.to_owned(),
                value: Value::Integer(value),
            });
        }
        // FreeRDP 3 asks for a password where it has none; mstsc does not know this setting.
        self.put_text("password", "");
    }

    /// Fills in the user name.
    ///
    /// # Errors
    /// Where it has control characters.
    pub fn set_username(&mut self, username: &str) -> Result<(), RdpFileError> {
        if username.chars().any(char::is_control) {
            return Err(RdpFileError::ControlCharacter("user name"));
        }
        self.put_text("username", username);
        Ok(())
    }

    /// Adds a setting, in place of one of the same name.
    ///
    /// # Errors
    /// Where the setting has a method of its own here, is a secret, or would lead the client past the gateway.
    pub fn set(&mut self, setting: Setting) -> Result<(), RdpFileError> {
        let reserved = RESERVED
            .iter()
            .find(|(name, _)| setting.name.eq_ignore_ascii_case(name));
        if let Some((name, instead)) = reserved {
            return Err(RdpFileError::Reserved { name, instead });
        }
        let name = setting.name.to_ascii_lowercase();
        if SECRETS.iter().any(|secret| name.contains(secret)) {
            return Err(RdpFileError::Secret(setting.name));
        }
        let contradicted = CONTRADICTIONS.iter().find(|known| known.0 == name);
        if let Some((name, harmless, why)) = contradicted
            && !harmless.iter().any(|value| setting.value.is(value))
        {
            return Err(RdpFileError::Contradiction { name, why });
        }
        self.put(setting);
        Ok(())
    }

    /// What may go wrong with this file.
    #[must_use]
    pub fn warnings(&self) -> Vec<RdpFileWarning> {
        self.settings
            .iter()
            .filter_map(|setting| match (setting.name.as_str(), &setting.value) {
                (PCB, Value::Text(text)) if text.len() > LONG_TOKEN_BYTES => {
                    Some(RdpFileWarning::LongToken { bytes: text.len() })
                }
                (FULL_ADDRESS, Value::Text(text)) if text.starts_with('[') => {
                    Some(RdpFileWarning::Ipv6Literal)
                }
                (_, Value::Integer(_) | Value::Text(_) | Value::Binary(_)) => None,
            })
            .collect()
    }

    /// The file as mstsc writes it: UTF-16LE with a byte order mark.
    #[must_use]
    pub fn to_utf16(&self) -> Zeroizing<Vec<u8>> {
        let text = self.text();
        // The whole size at once, so that no copy is left behind by a buffer that grew.
        let units = text.encode_utf16().count().saturating_add(1);
        let mut bytes = Zeroizing::new(Vec::with_capacity(units.saturating_mul(2)));
        bytes.extend(BYTE_ORDER_MARK.to_le_bytes());
        bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
        bytes
    }

    /// The file in UTF-8 without a byte order mark.
    #[must_use]
    pub fn to_utf8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.text().as_bytes().to_vec())
    }

    fn text(&self) -> Zeroizing<String> {
        let room = |setting: &Setting| {
            let value = match &setting.value {
                Value::Integer(_) => INTEGER_CHARS,
                Value::Text(text) | Value::Binary(text) => text.len(),
            };
            // Two colons, the type, CR LF.
            setting.name.len().saturating_add(value).saturating_add(5)
        };
        let room = self.settings.iter().map(room).sum();
        let mut text = Zeroizing::new(String::with_capacity(room));
        for Setting { name, value } in &self.settings {
            text.push_str(name);
            match value {
                Value::Integer(number) => {
                    text.push_str(":i:");
                    text.push_str(&number.to_string());
                }
                Value::Text(value) => {
                    text.push_str(":s:");
                    text.push_str(value);
                }
                Value::Binary(value) => {
                    text.push_str(":b:");
                    text.push_str(value);
                }
            }
            text.push_str("\r\n");
        }
        text
    }

    fn put_text(&mut self, name: &str, value: &str) {
        self.put(Setting {
            name: name.to_owned(),
            value: Value::Text(Zeroizing::new(value.to_owned())),
        });
    }

    fn put(&mut self, setting: Setting) {
        let same = self
            .settings
            .iter_mut()
            .find(|known| known.name.eq_ignore_ascii_case(&setting.name));
        match same {
            Some(known) => known.value = setting.value,
            None => self.settings.push(setting),
        }
    }
}

impl Value {
    /// Whether it is written so in a file.
    fn is(&self, written: &str) -> bool {
        match self {
            Self::Integer(number) => number.to_string() == written,
            Self::Text(text) | Self::Binary(text) => text.trim() == written,
        }
    }
}

impl fmt::Debug for RdpFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.settings).finish()
    }
}

impl FromStr for Setting {
    type Err = RdpFileError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        if line.chars().any(char::is_control) {
            return Err(RdpFileError::ControlCharacter("setting"));
        }
        let mut fields = line.splitn(3, ':');
        let (Some(name), Some(kind), Some(value)) = (fields.next(), fields.next(), fields.next())
        else {
            return Err(RdpFileError::Form);
        };
        let name = name.trim();
        if name.is_empty() {
            return Err(RdpFileError::Form);
        }
        let bad_value = || RdpFileError::Value(name.to_owned());
        let value = match kind {
            "i" => Value::Integer(value.parse::<i32>().map_err(|_| bad_value())?.into()),
            "s" => Value::Text(Zeroizing::new(value.to_owned())),
            "b" => {
                let digits = value.bytes().all(|byte| byte.is_ascii_hexdigit());
                if !digits || value.len() % 2 != 0 {
                    return Err(bad_value());
                }
                Value::Binary(Zeroizing::new(value.to_owned()))
            }
            _ => return Err(RdpFileError::Form),
        };
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Any text may be a secret: a token, a ticket, a password.
        match &self.value {
            Value::Integer(number) => write!(f, "{}:i:{number}", self.name),
            Value::Text(text) => write!(f, "{}:s:<{} bytes, not shown>", self.name, text.len()),
            Value::Binary(text) => write!(f, "{}:b:<{} digits, not shown>", self.name, text.len()),
        }
    }
}

fn visible(what: &'static str, text: &str) -> Result<(), RdpFileError> {
    if text.chars().any(char::is_control) {
        return Err(RdpFileError::ControlCharacter(what));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(RdpFileError::NotVisible(what));
    }
    Ok(())
}

/// Longest routing token, bytes: 254 of the length indicator, less 6 of X.224, 8 of the negotiation request, CR LF.
pub const ROUTING_TOKEN_BYTES: usize = 238;

/// Length above which a token is warned of, bytes. Lines of that length are in use; longer ones were not tried with
/// mstsc. FreeRDP reads 30,000.
pub const LONG_TOKEN_BYTES: usize = 4096;

const FULL_ADDRESS: &str = "full address";
const ALTERNATE_FULL_ADDRESS: &str = "alternate full address";
const PCB: &str = "pcb";
const LOAD_BALANCE_INFO: &str = "loadbalanceinfo";

/// What a way through the gateway needs, whatever the client's own defaults are.
const DEFAULTS: [(&str, i64); 8] = [
    // X.224 first, then security: the routing token and the refusal of a session are X.224. With 0 the client starts
    // TLS at once, and nothing but the preconnection PDU is seen before it.
    ("negotiate security layer", 1),
    // The session is end to end, so it is the target that may demand network level authentication.
    ("enablecredsspsupport", 1),
    // One gateway name stands for many targets. Credentials that were saved for it belong to one of them, and sending
    // them to another may lock an account: ask each time.
    ("prompt for credentials", 1),
    // Warn and let the user decide where the certificate cannot be verified: opaque sessions show the certificate of
    // the target under the name of the gateway; with `session.inspect = "always"` it is the gateway's own.
    ("authentication level", 2),
    // A redirection names another host, and following it leaves the gateway.
    ("use redirection server name", 0),
    // A short interruption of the network is mended without the user.
    ("autoreconnection enabled", 1),
    // Not an RD Gateway: never go through one on the way, as explicit settings and not those of the administrator.
    ("gatewayusagemethod", 0),
    ("gatewayprofileusagemethod", 1),
];

/// What a client asks for nothing by.
const ASK_NOTHING: [(&str, i64); 2] = [
    // A password is asked for because NLA needs one before the session.
    ("enablecredsspsupport", 0),
    ("prompt for credentials", 0),
];

/// Settings that [`RdpFile::set`] refuses, and what to use. Secrets among them would be in the process list.
const RESERVED: [(&str, &str); 4] = [
    (FULL_ADDRESS, "the gateway's address"),
    (ALTERNATE_FULL_ADDRESS, "the gateway's address"),
    (PCB, "the token, read from a file"),
    (LOAD_BALANCE_INFO, "the ticket, read from a file"),
];

/// Parts of the names of secrets: `password 51`, `clear password`, `gatewaypassword`, `gatewayaccesstoken` and the like.
const SECRETS: [&str; 2] = ["password", "accesstoken"];

const SECRET_INSTEAD: &str = "would be in the list of processes and in the file; let the client ask for it, or put it into an encrypted token";

/// Settings that would lead the client past the gateway, their values that do not, and what the others would do.
const CONTRADICTIONS: [(&str, &[&str], &str); 5] = [
    (
        "server port",
        &[],
        "clients take this port in place of the gateway's, which stands in its address",
    ),
    (
        "gatewayhostname",
        &[""],
        "the client would go through an RD Gateway, which this gateway is not",
    ),
    (
        "gatewayusagemethod",
        &["0", "4"],
        "the client would go through an RD Gateway, which this gateway is not",
    ),
    (
        "gatewayprofileusagemethod",
        &["1"],
        "the administrator's settings could lead the client through an RD Gateway",
    ),
    (
        "use redirection server name",
        &["0"],
        "a redirection would lead the client to the target itself",
    ),
];

/// Longest decimal of an i64 with its sign.
const INTEGER_CHARS: usize = 20;

const BYTE_ORDER_MARK: u16 = 0xfeff;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_has_both_carriers_and_what_a_way_through_needs() {
        let mut file = file();
        file.set_token("eyJ0.e30.c2ln").unwrap();
        file.set_ticket("b7Yw0aJrV2kqf5hTz8Xn1A").unwrap();
        file.set_username("EXAMPLE\\bob").unwrap();
        file.set("redirectclipboard:i:0".parse().unwrap()).unwrap();
        let expected = "full address:s:gw.example:3389\r\n\
            alternate full address:s:gw.example:3389\r\n\
            negotiate security layer:i:1\r\n\
            enablecredsspsupport:i:1\r\n\
            prompt for credentials:i:1\r\n\
            authentication level:i:2\r\n\
            use redirection server name:i:0\r\n\
            autoreconnection enabled:i:1\r\n\
            gatewayusagemethod:i:0\r\n\
            gatewayprofileusagemethod:i:1\r\n\
            pcb:s:eyJ0.e30.c2ln\r\n\
            loadbalanceinfo:s:b7Yw0aJrV2kqf5hTz8Xn1A\r\n\
            username:s:EXAMPLE\\bob\r\n\
            redirectclipboard:i:0\r\n";
        assert_eq!(file.to_utf8().as_slice(), expected.as_bytes());
        assert_eq!(file.warnings(), []);
    }

    #[test]
    fn utf16_has_a_byte_order_mark_and_is_little_endian() {
        let mut file = file();
        file.set_username("bö😀").unwrap();
        let bytes = file.to_utf16();
        assert_eq!(bytes[..6], [0xff, 0xfe, b'f', 0, b'u', 0]);
        let units: Vec<u16> = bytes[2..]
            .chunks(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
            .collect();
        assert_eq!(
            String::from_utf16(&units).unwrap().as_bytes(),
            file.to_utf8().as_slice()
        );
        assert_eq!(bytes.capacity(), bytes.len());
    }

    #[test]
    fn no_value_can_add_a_line() {
        for end in ["\r\n", "\n", "\r", "\0", "\u{85}", "\u{1b}"] {
            let text = format!("x{end}alternate full address:s:evil.example");
            let mut file = file();
            assert_eq!(
                file.set_token(&text),
                Err(RdpFileError::ControlCharacter("token"))
            );
            assert_eq!(
                file.set_ticket(&text),
                Err(RdpFileError::ControlCharacter("ticket"))
            );
            assert_eq!(
                file.set_username(&text),
                Err(RdpFileError::ControlCharacter("user name"))
            );
            assert_eq!(
                format!("a:s:{text}").parse::<Setting>(),
                Err(RdpFileError::ControlCharacter("setting"))
            );
            assert!(
                format!("gw.example{end}:3389")
                    .parse::<TargetAddr>()
                    .is_err()
            );
        }
    }

    #[test]
    fn ticket_of_238_bytes_is_the_longest() {
        let mut file = file();
        assert_eq!(file.set_ticket(&"x".repeat(238)), Ok(()));
        let error = file.set_ticket(&"x".repeat(239)).unwrap_err();
        assert_eq!(error, RdpFileError::TicketTooLong(239));
        assert!(error.to_string().contains("in one byte"));
    }

    #[test]
    fn long_token_is_warned_of_and_one_the_gateway_refuses_is_refused() {
        let mut file = file();
        file.set_token(&"x".repeat(LONG_TOKEN_BYTES)).unwrap();
        assert_eq!(file.warnings(), []);
        file.set_token(&"x".repeat(LONG_TOKEN_BYTES + 1)).unwrap();
        assert_eq!(file.warnings(), [RdpFileWarning::LongToken { bytes: 4097 }]);
        let too_long = limits::TOKEN_BYTES + 1;
        assert_eq!(
            file.set_token(&"x".repeat(too_long)),
            Err(RdpFileError::TokenTooLong(too_long))
        );
    }

    #[test]
    fn what_no_token_has_in_it_is_refused() {
        for text in ["", "a b", "ä", "\u{2028}"] {
            assert_eq!(
                file().set_token(text),
                Err(RdpFileError::NotVisible("token"))
            );
        }
    }

    #[test]
    fn setting_replaces_the_default_of_its_name() {
        let mut file = file();
        file.set("Authentication Level:i:1".parse().unwrap())
            .unwrap();
        let text = String::from_utf8(file.to_utf8().to_vec()).unwrap();
        assert!(text.contains("\r\nauthentication level:i:1\r\n"));
        assert_eq!(
            text.to_lowercase().matches("authentication level").count(),
            1
        );
    }

    #[test]
    fn secrets_and_addresses_are_no_settings() {
        for line in [
            "pcb:s:eyJ0",
            "LoadBalanceInfo:s:x",
            "full address:s:evil.example",
            "alternate full address :s:evil.example",
        ] {
            let setting = line.parse::<Setting>().unwrap();
            assert!(
                matches!(file().set(setting), Err(RdpFileError::Reserved { .. })),
                "{line}"
            );
        }
    }

    #[test]
    fn secrets_are_refused_by_every_name_and_not_shown() {
        for line in [
            "password 51:b:00c0ffee",
            "Clear Password:s:00c0ffee",
            "password:s:00c0ffee",
            "gatewaypassword:s:00c0ffee",
            "GatewayAccessToken:s:00c0ffee",
        ] {
            let error = file().set(line.parse().unwrap()).unwrap_err();
            assert!(matches!(error, RdpFileError::Secret(_)), "{line}");
            assert!(!error.to_string().contains("c0ffee"), "{error}");
        }
    }

    #[test]
    fn settings_that_lead_past_the_gateway_are_refused_and_their_harmless_values_are_not() {
        for line in [
            "server port:i:3390",
            "Server Port:i:3389",
            "gatewayhostname:s:rdg.example",
            "gatewayusagemethod:i:1",
            "gatewayusagemethod:i:2",
            "gatewayprofileusagemethod:i:0",
            "use redirection server name:i:1",
        ] {
            let error = file().set(line.parse().unwrap()).unwrap_err();
            let contradicts = matches!(error, RdpFileError::Contradiction { .. });
            assert!(contradicts, "{line}: {error}");
        }
        for line in [
            "gatewayhostname:s:",
            "gatewayusagemethod:i:0",
            "gatewayusagemethod:i:4",
            "gatewayprofileusagemethod:i:1",
            "use redirection server name:i:0",
            "audiomode:i:0",
        ] {
            assert!(file().set(line.parse().unwrap()).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_literal_ipv6_address_is_warned_of() {
        let of = |address: &str| RdpFile::new(&address.parse().unwrap()).warnings();
        assert_eq!(of("[2001:db8::1]:3389"), [RdpFileWarning::Ipv6Literal]);
        assert_eq!(of("gw.example:3389"), []);
        assert_eq!(of("192.0.2.1:3389"), []);
    }

    #[test]
    fn settings_off_the_form_are_refused() {
        for line in ["", "a", "a:i", ":i:1", " :i:1", "a:x:1", "a:I:1"] {
            assert_eq!(line.parse::<Setting>(), Err(RdpFileError::Form), "{line}");
        }
        for line in ["a:i:", "a:i:x", "a:i:2147483648", "a:b:0", "a:b:0g"] {
            let error = RdpFileError::Value("a".to_owned());
            assert_eq!(line.parse::<Setting>(), Err(error), "{line}");
        }
        assert!("drivestoredirect:s:C:\\;D:\\".parse::<Setting>().is_ok());
    }

    #[test]
    fn debug_does_not_print_values() {
        let mut file = file();
        file.set_token("eyJsecret").unwrap();
        let printed = format!("{file:?}");
        assert!(printed.contains("pcb:s:<9 bytes, not shown>"), "{printed}");
        assert!(!printed.contains("secret"));
    }

    fn file() -> RdpFile {
        RdpFile::new(&"gw.example:3389".parse().unwrap())
    }
}
