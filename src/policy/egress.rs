//! Where the gateway may connect to: rules over the name in the token and the address really dialled.
//!
//! [`EgressRules::check`] is asked once for every address, after name resolution and right before the connection
//! attempt to that very address, so a name that changes its answer between two look-ups gains nothing.
//!
//! In order: a matching `deny` rule refuses. An address that no target should have (loopback, link-local with the
//! metadata services of clouds, multicast, ...) is refused unless an `allow` rule names that kind of address by a
//! CIDR of its own. So is an address of this very machine, whatever its kind, unless an `allow` rule has a CIDR of this one address.
//! Where there are `allow` rules, one of them has to match; where there are none, all else is allowed.
//!
//! An IPv6 address that carries an IPv4 address (mapped, compatible, translated, NAT64, 6to4) ends up at the latter,
//! so it is judged as that.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, de};

/// The `[egress]` section of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressConfig {
    /// If there are any, a destination has to match one of them.
    pub allow: Vec<RuleConfig>,
    /// A destination that matches one of these is refused, whatever `allow` says.
    pub deny: Vec<RuleConfig>,
}

/// One rule; it matches where everything that it names matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuleConfig {
    /// Addresses: `10.0.0.0/8`, `2001:db8::/32`, or one address.
    pub cidr: Option<String>,
    /// The name as the token has it: `rdp.corp.example`, or `*.corp.example` for every name below it.
    pub host: Option<String>,
    /// Ports: `3389`, `"3389"`, `"5900-5999"`, or a list of these.
    #[serde(deserialize_with = "deserialize_ports")]
    pub ports: Option<Ports>,
}

/// A set of port ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

/// Why a rule of the configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("egress.{list}[{index}]: {problem}")]
pub struct EgressConfigError {
    /// `allow` or `deny`.
    pub list: &'static str,
    /// Which rule of the list, from zero.
    pub index: usize,
    /// What is wrong with it.
    pub problem: RuleProblem,
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleProblem {
    /// It names nothing.
    #[error(
        "the rule is empty; name a cidr, a host or ports (0.0.0.0/0 and ::/0 are all addresses)"
    )]
    Empty,
    /// Not an address with a prefix length.
    #[error("cidr {0:?} is neither an address nor a network such as 10.0.0.0/8")]
    Cidr(String),
    /// Bits beyond the prefix are set, so what was meant is unclear.
    #[error("cidr {0:?} has bits set beyond its prefix; the network is {1}")]
    HostBits(String, IpNet),
    /// Such addresses are judged as IPv4, so the rule would never match.
    #[error("cidr {0:?} is IPv4 inside IPv6; such addresses are judged as IPv4, write the rule so")]
    MappedCidr(String),
    /// Not a name and not `*.` and a name.
    #[error("host {0:?} is neither a name nor a pattern such as *.corp.example")]
    Host(String),
    /// A text comparison would miss the other spellings of an address.
    #[error("host {0:?} is an address; write it as cidr")]
    HostIsAddress(String),
}

/// A destination that may not be dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is refused by {}", .by.of(address))]
pub struct EgressDenied {
    /// The address that was about to be dialled.
    pub address: SocketAddr,
    /// The rule that refused it.
    pub by: DeniedBy,
}

/// The rule that refused a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeniedBy {
    /// A `deny` rule of the configuration: its index and its text.
    Deny(usize, String),
    /// A kind of address that has to be allowed by name.
    Builtin(&'static str),
    /// An address of the gateway's own machine, which has to be allowed by itself.
    ThisMachine,
    /// There are `allow` rules, and none matches.
    NoAllow,
}

impl DeniedBy {
    /// The words for it: what refuses `address`, and what would let it through.
    fn of(&self, address: &SocketAddr) -> String {
        let address = address.ip().to_canonical();
        match self {
            Self::Deny(index, rule) => format!("egress.deny[{index}] ({rule})"),
            Self::Builtin(kind) => format!(
                "the built-in rule {kind}, which an egress.allow rule opens whose cidr is of that kind (cidr = \"{address}\")"
            ),
            Self::ThisMachine => format!(
                "the built-in rule this-machine, which an egress.allow rule opens whose cidr is this one address (cidr = \"{address}\")"
            ),
            Self::NoAllow => "default: no egress.allow rule matches".to_owned(),
        }
    }
}

/// The rules, ready to judge.
///
/// The default has no rules of its own: everything but the built-in kinds of addresses is allowed.
#[derive(Clone, Debug, Default)]
pub struct EgressRules {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

impl EgressRules {
    /// Judges one address that `host` (the name or address in the token) resolved to, on a machine whose addresses are `own`.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn check(
        &self,
        host: &str,
        address: SocketAddr,
        own: &[IpAddr],
    ) -> Result<(), EgressDenied> {
        let denied = |by| Err(EgressDenied { address, by });
        let host = normalise(host);
        let forms = forms(address.ip());
        let port = address.port();
        for (index, rule) in self.deny.iter().enumerate() {
            if rule.matches(&host, &forms, port) {
                return denied(DeniedBy::Deny(index, rule.to_string()));
            }
        }
        for (kind, block) in builtin_blocks() {
            let Some(form) = forms.iter().find(|form| block.contains(*form)) else {
                continue;
            };
            let named = |rule: &Rule| {
                rule.matches(&host, &forms, port)
                    && rule
                        .cidr
                        .is_some_and(|cidr| block.contains(&cidr) && cidr.contains(form))
            };
            if !self.allow.iter().any(named) {
                return denied(DeniedBy::Builtin(kind));
            }
        }
        // Loopback is a kind of its own, and was judged as that.
        let is_own = |form: &&IpAddr| {
            !form.is_loopback() && own.iter().any(|own| own.to_canonical() == **form)
        };
        for form in forms.iter().filter(is_own) {
            let named = |rule: &Rule| {
                rule.matches(&host, &forms, port) && rule.cidr == Some(IpNet::from(*form))
            };
            if !self.allow.iter().any(named) {
                return denied(DeniedBy::ThisMachine);
            }
        }
        if self.allow.is_empty() || self.allow.iter().any(|r| r.matches(&host, &forms, port)) {
            Ok(())
        } else {
            denied(DeniedBy::NoAllow)
        }
    }
}

impl TryFrom<EgressConfig> for EgressRules {
    type Error = EgressConfigError;

    fn try_from(config: EgressConfig) -> Result<Self, Self::Error> {
        let parse = |list: &'static str, rules: Vec<RuleConfig>| {
            rules
                .into_iter()
                .enumerate()
                .map(|(index, rule)| {
                    Rule::try_from(rule).map_err(|problem| EgressConfigError {
                        list,
                        index,
                        problem,
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            allow: parse("allow", config.allow)?,
            deny: parse("deny", config.deny)?,
        })
    }
}

#[derive(Clone, Debug)]
struct Rule {
    cidr: Option<IpNet>,
    host: Option<HostPattern>,
    ports: Option<Ports>,
}

#[derive(Clone, Debug)]
enum HostPattern {
    Exact(String),
    /// `*.corp.example`, kept as `.corp.example`.
    Below(String),
}

impl Rule {
    fn matches(&self, host: &str, forms: &[IpAddr], port: u16) -> bool {
        self.cidr
            .is_none_or(|cidr| forms.iter().any(|form| cidr.contains(form)))
            && self.host.as_ref().is_none_or(|p| p.matches(host))
            && self.ports.as_ref().is_none_or(|p| p.contains(port))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(cidr) = &self.cidr {
            write!(f, "cidr {cidr}")?;
            separator = ", ";
        }
        if let Some(host) = &self.host {
            write!(f, "{separator}host {host}")?;
            separator = ", ";
        }
        if let Some(ports) = &self.ports {
            write!(f, "{separator}ports {ports}")?;
        }
        Ok(())
    }
}

impl TryFrom<RuleConfig> for Rule {
    type Error = RuleProblem;

    fn try_from(config: RuleConfig) -> Result<Self, Self::Error> {
        let RuleConfig { cidr, host, ports } = config;
        if cidr.is_none() && host.is_none() && ports.is_none() {
            return Err(RuleProblem::Empty);
        }
        Ok(Self {
            cidr: cidr.as_deref().map(parse_cidr).transpose()?,
            host: host.as_deref().map(HostPattern::parse).transpose()?,
            ports,
        })
    }
}

impl HostPattern {
    fn parse(text: &str) -> Result<Self, RuleProblem> {
        let name = normalise(text);
        if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Err(RuleProblem::HostIsAddress(text.to_owned()));
        }
        let (name, below) = match name.strip_prefix("*.") {
            Some(rest) => (rest.to_owned(), true),
            None => (name, false),
        };
        let is_label =
            |l: &str| !l.is_empty() && l.chars().all(|c| c.is_alphanumeric() || "-_".contains(c));
        if !name.split('.').all(is_label) {
            return Err(RuleProblem::Host(text.to_owned()));
        }
        Ok(if below {
            Self::Below(format!(".{name}"))
        } else {
            Self::Exact(name)
        })
    }

    /// `host` is normalised already.
    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => host == name,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

impl Ports {
    fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// `3389` or `5900-5999`.
    fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
        // `parse` alone would take "+3389".
        let number = |text: &str| -> Option<u16> {
            let text = text.trim();
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|port| digits && *port != 0)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then_some(first..=last)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for range in &self.0 {
            if range.start() == range.end() {
                write!(f, "{separator}{}", range.start())?;
            } else {
                write!(f, "{separator}{}-{}", range.start(), range.end())?;
            }
            separator = " ";
        }
        Ok(())
    }
}

fn deserialize_ports<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Ports>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum One {
        Number(u16),
        Text(String),
    }
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a port, a range such as \"5900-5999\", or a list of these"
    )]
    enum OneOrMany {
        One(One),
        Many(Vec<One>),
    }
    let items = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    };
    if items.is_empty() {
        return Err(de::Error::custom("ports is an empty list"));
    }
    let parse = |one| {
        let text = match one {
            One::Number(port) => port.to_string(),
            One::Text(text) => text,
        };
        Ports::parse_range(&text).ok_or_else(|| {
            de::Error::custom(format_args!(
                "{text:?} is neither a port from 1 to 65535 nor a range such as 5900-5999"
            ))
        })
    };
    Ok(Some(Ports(
        items.into_iter().map(parse).collect::<Result<_, _>>()?,
    )))
}

fn parse_cidr(text: &str) -> Result<IpNet, RuleProblem> {
    let cidr = match text.parse::<IpNet>() {
        Ok(cidr) => cidr,
        Err(_) => text
            .parse::<IpAddr>()
            .map(IpNet::from)
            .map_err(|_| RuleProblem::Cidr(text.to_owned()))?,
    };
    if cidr.trunc() != cidr {
        return Err(RuleProblem::HostBits(text.to_owned(), cidr.trunc()));
    }
    if let IpNet::V6(v6) = cidr
        && v6.prefix_len() >= 96
        && v6.network().to_ipv4_mapped().is_some()
    {
        return Err(RuleProblem::MappedCidr(text.to_owned()));
    }
    Ok(cidr)
}

/// Lower case and without the dot that ends an absolute name.
fn normalise(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_lowercase()
}

/// What to judge in place of `address`: the IPv4 address inside, where there is one, and the address itself unless
/// that is only another spelling of the same.
fn forms(address: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(v6) = address else {
        return vec![address];
    };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return vec![v4.into()];
    }
    let mut forms = vec![address];
    forms.extend(embedded_ipv4(v6).map(IpAddr::from));
    forms
}

/// The IPv4 address that a translator or tunnel would send the packets to.
fn embedded_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let ipv4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match [a, b, c, d, e, f] {
        // `::` and `::1` are IPv6's own.
        [0, 0, 0, 0, 0, 0] if g == 0 && h <= 1 => None,
        // IPv4-compatible (RFC 4291 2.5.5.1), IPv4-translated (RFC 2765 2.1), NAT64's well-known prefix (RFC 6052).
        [0, 0, 0, 0, 0, 0] | [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => {
            Some(ipv4(g, h))
        }
        // NAT64's prefix for local use (RFC 8215), of which the /96 form is the one in use.
        [0x64, 0xff9b, 1, _, _, _] => Some(ipv4(g, h)),
        // 6to4 (RFC 3056).
        [0x2002, high, low, _, _, _] => Some(ipv4(high, low)),
        _ => None,
    }
}

/// Addresses that are no targets unless the configuration says so, and what they are called in the log.
fn builtin_blocks() -> impl Iterator<Item = (&'static str, IpNet)> {
    const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix))
    }
    const fn v6(segments: [u16; 8], prefix: u8) -> IpNet {
        let [a, b, c, d, e, f, g, h] = segments;
        IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(a, b, c, d, e, f, g, h),
            prefix,
        ))
    }
    const BLOCKS: [(&str, IpNet); 13] = [
        // Linux connects to itself for all of 0.0.0.0/8's first address and for `::`.
        ("unspecified", v4(0, 0, 0, 0, 8)),
        ("unspecified", v6([0, 0, 0, 0, 0, 0, 0, 0], 128)),
        ("loopback", v4(127, 0, 0, 0, 8)),
        ("loopback", v6([0, 0, 0, 0, 0, 0, 0, 1], 128)),
        // With 169.254.169.254, where most clouds hand out the credentials of the machine.
        ("link-local", v4(169, 254, 0, 0, 16)),
        ("link-local", v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10)),
        // Metadata services with addresses elsewhere: Alibaba, Azure, Amazon and Google over IPv6.
        ("cloud-metadata", v4(100, 100, 100, 200, 32)),
        ("cloud-metadata", v4(168, 63, 129, 16, 32)),
        ("cloud-metadata", v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32)),
        ("cloud-metadata", v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0], 32)),
        ("multicast", v4(224, 0, 0, 0, 4)),
        ("multicast", v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8)),
        ("broadcast", v4(255, 255, 255, 255, 32)),
    ];
    BLOCKS.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_rules_ordinary_addresses_are_allowed() {
        let rules = EgressRules::default();
        for text in [
            "192.0.2.7:3389",
            "10.1.2.3:22",
            "[2001:db8::1]:3389",
            "[fd12::1]:3389",
        ] {
            assert_eq!(
                rules.check("any.example", address(text), &[]),
                Ok(()),
                "{text}"
            );
        }
    }

    #[test]
    fn addresses_no_target_has_are_denied_in_every_spelling() {
        let cases = [
            ("127.0.0.1:3389", "loopback"),
            ("127.255.0.9:3389", "loopback"),
            ("[::1]:3389", "loopback"),
            ("[::ffff:127.0.0.1]:3389", "loopback"),
            ("[::127.0.0.1]:3389", "loopback"),
            ("[::ffff:0:127.0.0.1]:3389", "loopback"),
            ("[64:ff9b::127.0.0.1]:3389", "loopback"),
            ("[64:ff9b:1::127.0.0.1]:3389", "loopback"),
            ("[2002:7f00:1::]:3389", "loopback"),
            ("0.0.0.0:3389", "unspecified"),
            ("0.1.2.3:3389", "unspecified"),
            ("[::]:3389", "unspecified"),
            ("[::ffff:0.0.0.0]:3389", "unspecified"),
            ("169.254.169.254:80", "link-local"),
            ("[::ffff:169.254.169.254]:80", "link-local"),
            ("[64:ff9b::a9fe:a9fe]:80", "link-local"),
            ("[2002:a9fe:a9fe::1]:80", "link-local"),
            ("[fe80::1]:3389", "link-local"),
            ("[febf::1]:3389", "link-local"),
            ("100.100.100.200:80", "cloud-metadata"),
            ("168.63.129.16:80", "cloud-metadata"),
            ("[fd00:ec2::254]:80", "cloud-metadata"),
            ("[fd20:ce::254]:80", "cloud-metadata"),
            ("224.0.0.1:3389", "multicast"),
            ("239.255.255.255:3389", "multicast"),
            ("[ff02::1]:3389", "multicast"),
            ("255.255.255.255:3389", "broadcast"),
            ("[::ffff:255.255.255.255]:3389", "broadcast"),
        ];
        let everything = rules(r#"{"allow": [{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]}"#);
        let ports = rules(r#"{"allow": [{"ports": [3389, 80]}]}"#);
        for (text, kind) in cases {
            for rules in [&EgressRules::default(), &everything, &ports] {
                let denied = rules.check("any.example", address(text), &[]).unwrap_err();
                assert_eq!(denied.by, DeniedBy::Builtin(kind), "{text}");
            }
        }
    }

    #[test]
    fn an_allow_rule_opens_a_built_in_denial_only_with_a_cidr_of_that_kind() {
        let rules =
            rules(r#"{"allow": [{"cidr": "127.0.0.0/30", "ports": 3389}, {"cidr": "::1"}]}"#);
        for text in [
            "127.0.0.1:3389",
            "[::1]:9",
            "[::ffff:127.0.0.1]:3389",
            "[64:ff9b::127.0.0.1]:3389",
        ] {
            assert_eq!(rules.check("x", address(text), &[]), Ok(()), "{text}");
        }
        for text in ["127.0.0.4:3389", "127.0.0.1:22", "[::ffff:127.0.0.1]:22"] {
            let denied = rules.check("x", address(text), &[]).unwrap_err();
            assert_eq!(denied.by, DeniedBy::Builtin("loopback"), "{text}");
        }
        let denied = rules
            .check("x", address("169.254.169.254:80"), &[])
            .unwrap_err();
        assert_eq!(denied.by, DeniedBy::Builtin("link-local"));
    }

    #[test]
    fn naming_a_translator_does_not_open_what_lies_behind_it() {
        let rules = rules(r#"{"allow": [{"cidr": "64:ff9b::/96"}]}"#);
        assert_eq!(
            rules.check("x", address("[64:ff9b::10.0.0.1]:3389"), &[]),
            Ok(())
        );
        let denied = rules
            .check("x", address("[64:ff9b::169.254.169.254]:80"), &[])
            .unwrap_err();
        assert_eq!(denied.by, DeniedBy::Builtin("link-local"));
    }

    #[test]
    fn deny_wins_and_is_named() {
        let rules = rules(
            r#"{"allow": [{"cidr": "10.0.0.0/8"}],
                "deny": [{"ports": "1-1023"}, {"cidr": "10.9.0.0/16", "ports": ["3389", 5900]}]}"#,
        );
        assert_eq!(rules.check("x", address("10.1.0.1:3389"), &[]), Ok(()));
        let denied = rules.check("x", address("10.9.0.1:3389"), &[]).unwrap_err();
        assert_eq!(
            denied.to_string(),
            "10.9.0.1:3389 is refused by egress.deny[1] (cidr 10.9.0.0/16, ports 3389 5900)"
        );
        let denied = rules
            .check("x", address("[::ffff:10.9.0.1]:5900"), &[])
            .unwrap_err();
        assert!(matches!(denied.by, DeniedBy::Deny(1, _)));
        let denied = rules.check("x", address("10.1.0.1:22"), &[]).unwrap_err();
        assert!(matches!(denied.by, DeniedBy::Deny(0, _)));
    }

    #[test]
    fn with_allow_rules_what_matches_none_is_denied() {
        let rules = rules(r#"{"allow": [{"cidr": "10.0.0.0/8", "ports": "3389-3390"}]}"#);
        assert_eq!(rules.check("x", address("10.1.0.1:3390"), &[]), Ok(()));
        for text in ["11.0.0.1:3389", "10.0.0.1:3391", "[2001:db8::1]:3389"] {
            let denied = rules.check("x", address(text), &[]).unwrap_err();
            assert_eq!(denied.by, DeniedBy::NoAllow, "{text}");
        }
    }

    #[test]
    fn host_patterns_ignore_case_and_a_trailing_dot() {
        let rules = rules(r#"{"allow": [{"host": "*.Corp.Example."}, {"host": "JUMP.example"}]}"#);
        let allowed = [
            "a.corp.example",
            "a.b.corp.example.",
            "A.CORP.EXAMPLE",
            "jump.example.",
            "Jump.Example",
        ];
        for host in allowed {
            assert_eq!(
                rules.check(host, address("192.0.2.1:3389"), &[]),
                Ok(()),
                "{host}"
            );
        }
        let denied = [
            "corp.example",
            ".corp.example",
            "acorp.example",
            "a.corp.example.evil.test",
            "x.jump.example",
            "192.0.2.1",
        ];
        for host in denied {
            assert!(
                rules.check(host, address("192.0.2.1:3389"), &[]).is_err(),
                "{host}"
            );
        }
    }

    #[test]
    fn an_allowed_name_does_not_open_a_built_in_denial() {
        let rules = rules(r#"{"allow": [{"host": "*.corp.example"}]}"#);
        let denied = rules
            .check("a.corp.example", address("169.254.169.254:80"), &[])
            .unwrap_err();
        assert_eq!(denied.by, DeniedBy::Builtin("link-local"));
    }

    #[test]
    fn an_address_of_this_machine_is_no_target_in_any_spelling() {
        let own = ["10.1.2.3", "2001:db8::7", "fe80::9"].map(|ip| ip.parse().unwrap());
        let wide = r#"{"allow": [{"cidr": "10.0.0.0/8"}, {"cidr": "10.1.2.2/31"}, {"cidr": "2001:db8::/127"},
            {"cidr": "fe80::/10"}, {"ports": "1-65535"}, {"host": "x"}]}"#;
        for rules in [&EgressRules::default(), &rules(wide)] {
            for text in [
                "10.1.2.3:3389",
                "[::ffff:10.1.2.3]:3389",
                "[::10.1.2.3]:3389",
                "[64:ff9b::10.1.2.3]:22",
                "[2002:a01:203::]:22",
                "[2001:db8::7]:3389",
            ] {
                let denied = rules.check("x", address(text), &own).unwrap_err();
                assert_eq!(denied.by, DeniedBy::ThisMachine, "{text}");
                assert!(denied.to_string().contains("egress.allow"), "{denied}");
            }
            for text in ["10.1.2.2:3389", "[2001:db8::1]:3389"] {
                assert_eq!(rules.check("x", address(text), &own), Ok(()), "{text}");
            }
        }
        let denied = rules(wide).check("x", address("[fe80::9]:22"), &own);
        assert_eq!(denied.unwrap_err().by, DeniedBy::ThisMachine);
    }

    #[test]
    fn an_allow_rule_of_the_one_address_opens_this_machine() {
        let own = ["10.1.2.3", "2001:db8::7"].map(|ip| ip.parse().unwrap());
        let rules = rules(
            r#"{"allow": [{"cidr": "10.1.2.3", "ports": 3389}, {"cidr": "2001:db8::7/128"}]}"#,
        );
        for text in ["10.1.2.3:3389", "[::ffff:10.1.2.3]:3389", "[2001:db8::7]:9"] {
            assert_eq!(rules.check("x", address(text), &own), Ok(()), "{text}");
        }
        let denied = rules.check("x", address("10.1.2.3:22"), &own).unwrap_err();
        assert_eq!(denied.by, DeniedBy::ThisMachine);
    }

    #[test]
    fn loopback_is_opened_as_a_kind_although_it_is_the_machines_own() {
        let own = ["127.0.0.1", "::1"].map(|ip| ip.parse().unwrap());
        let rules = rules(r#"{"allow": [{"cidr": "127.0.0.0/8"}, {"cidr": "::1"}]}"#);
        for text in ["127.0.0.1:3389", "[::1]:3389", "[::ffff:127.0.0.1]:3389"] {
            assert_eq!(rules.check("x", address(text), &own), Ok(()), "{text}");
        }
    }

    #[test]
    fn bad_rules_are_refused_by_name() {
        let cases = [
            (r#"{"allow": [{}]}"#, RuleProblem::Empty),
            (
                r#"{"allow": [{"cidr": "10.0.0"}]}"#,
                RuleProblem::Cidr("10.0.0".into()),
            ),
            (
                r#"{"allow": [{"cidr": "10.1.0.0/8"}]}"#,
                RuleProblem::HostBits("10.1.0.0/8".into(), "10.0.0.0/8".parse().unwrap()),
            ),
            (
                r#"{"allow": [{"cidr": "::ffff:10.0.0.0/104"}]}"#,
                RuleProblem::MappedCidr("::ffff:10.0.0.0/104".into()),
            ),
            (
                r#"{"allow": [{"host": "a.*.example"}]}"#,
                RuleProblem::Host("a.*.example".into()),
            ),
            (
                r#"{"allow": [{"host": "*."}]}"#,
                RuleProblem::Host("*.".into()),
            ),
            (
                r#"{"allow": [{"host": ""}]}"#,
                RuleProblem::Host(String::new()),
            ),
            (
                r#"{"allow": [{"host": "192.0.2.1"}]}"#,
                RuleProblem::HostIsAddress("192.0.2.1".into()),
            ),
            (
                r#"{"allow": [{"host": "[::1]"}]}"#,
                RuleProblem::HostIsAddress("[::1]".into()),
            ),
        ];
        for (text, problem) in cases {
            let config: EgressConfig = serde_json::from_str(text).unwrap();
            let error = EgressRules::try_from(config).unwrap_err();
            assert_eq!((error.list, error.index), ("allow", 0), "{text}");
            assert_eq!(error.problem, problem, "{text}");
        }
    }

    #[test]
    fn bad_ports_and_unknown_fields_are_refused() {
        for text in [
            r#"{"allow": [{"ports": 0}]}"#,
            r#"{"allow": [{"ports": 65536}]}"#,
            r#"{"allow": [{"ports": "20-10"}]}"#,
            r#"{"allow": [{"ports": "+22"}]}"#,
            r#"{"allow": [{"ports": []}]}"#,
            r#"{"allow": [{"ports": "rdp"}]}"#,
            r#"{"allow": [{"port": 22}]}"#,
            r#"{"permit": []}"#,
        ] {
            assert!(
                serde_json::from_str::<EgressConfig>(text).is_err(),
                "{text}"
            );
        }
    }

    fn rules(json: &str) -> EgressRules {
        let config: EgressConfig = serde_json::from_str(json).unwrap();
        config.try_into().unwrap()
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
