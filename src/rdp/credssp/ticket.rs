//! A ticket that a client shows, read before sspi sees it: which key it is sealed with, and whose it is.
//!
//! sspi tells of the client no more than the first component of its name, and knows one key for each service. Here the
//! key is chosen by service, type and version, and the name is read in full. That the client is who the ticket is for
//! (the authenticator), and that the ticket is good now, is sspi's to check.
//!
//! AP-REQ: [RFC 4120] 5.5.1; Ticket: 5.3.
//!
//! [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120

use picky_krb::crypto::CipherSuite;
use zeroize::Zeroizing;

use super::keytab::{Keytab, SERVICE, ServiceKey};
use super::{INTEGER, SEQUENCE, element};

/// What stands on the outside of a ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Envelope<'a> {
    realm: &'a str,
    /// The components of the service's name.
    pub(super) service: Vec<&'a str>,
    encryption_type: u16,
    version: Option<u32>,
    sealed: &'a [u8],
}

/// Who a ticket is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) realm: String,
    /// The components of the name.
    pub(super) name: Vec<String>,
}

impl<'a> Envelope<'a> {
    /// The ticket in a GSS-API token of Kerberos ([RFC 4121] 4.1) that holds an AP-REQ.
    ///
    /// [RFC 4121]: https://www.rfc-editor.org/rfc/rfc4121
    pub(super) fn of_token(token: &'a [u8]) -> Option<Self> {
        let (content, _) = element(token, INITIAL_TOKEN)?;
        let (_mechanism, message) = element(content, OID)?;
        let (content, _) = element(message.strip_prefix(TOK_ID_AP_REQ)?, AP_REQ)?;
        let (fields, _) = element(content, SEQUENCE)?;
        let (content, _) = element(field(fields, 3)?, TICKET)?;
        let (fields, _) = element(content, SEQUENCE)?;
        let (sealed, _) = element(field(fields, 3)?, SEQUENCE)?;
        let version = match field(sealed, 1) {
            Some(version) => Some(unsigned(version)?),
            None => None,
        };
        Some(Self {
            realm: text(field(fields, 1)?)?,
            service: name(field(fields, 2)?)?,
            encryption_type: unsigned(field(sealed, 0)?)?.try_into().ok()?,
            version,
            sealed: element(field(sealed, 2)?, OCTET_STRING)?.0,
        })
    }

    /// The key that opens it; an error that says which there is none of.
    pub(super) fn key<'k>(&self, keytab: &'k Keytab) -> Result<&'k ServiceKey, String> {
        let found = match self.service.as_slice() {
            [service, host] if service.eq_ignore_ascii_case(SERVICE) => {
                keytab.find(self.realm, host, self.encryption_type, self.version)
            }
            _ => None,
        };
        found.ok_or_else(|| {
            let Self {
                realm,
                encryption_type,
                version,
                ..
            } = self;
            let service = self.service.join("/");
            let version = version.map_or_else(|| "any".to_owned(), |version| version.to_string());
            format!(
                "no key for {service:?} of {realm:?}, encryption type {encryption_type}, version {version}"
            )
        })
    }

    /// Opens it.
    pub(super) fn holder(&self, key: &ServiceKey) -> Option<Holder> {
        let cipher = CipherSuite::try_from(usize::from(self.encryption_type)).ok()?;
        let opened = cipher.cipher().decrypt(&key.key, TICKET_USAGE, self.sealed);
        let opened = Zeroizing::new(opened.ok()?);
        let (content, _) = element(&opened, ENC_TICKET_PART)?;
        let (fields, _) = element(content, SEQUENCE)?;
        let name = name(field(fields, 3)?)?;
        Some(Holder {
            realm: text(field(fields, 2)?)?.to_owned(),
            name: name.into_iter().map(str::to_owned).collect(),
        })
    }
}

/// The content of the field `[number]` of a SEQUENCE.
fn field(mut fields: &[u8], number: u8) -> Option<&[u8]> {
    loop {
        let tag = *fields.first()?;
        let (field, rest) = element(fields, tag)?;
        if tag == CONTEXT | number {
            return Some(field);
        }
        fields = rest;
    }
}

fn unsigned(field: &[u8]) -> Option<u32> {
    let (digits, _) = element(field, INTEGER)?;
    let digits = digits.strip_prefix(&[0]).unwrap_or(digits);
    (digits.len() <= 4).then(|| {
        digits
            .iter()
            .fold(0, |value, &digit| (value << 8) | u32::from(digit))
    })
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(element(field, GENERAL_STRING)?.0).ok()
}

/// The components of a PrincipalName.
fn name(field_of_name: &[u8]) -> Option<Vec<&str>> {
    let (fields, _) = element(field_of_name, SEQUENCE)?;
    let (mut strings, _) = element(field(fields, 1)?, SEQUENCE)?;
    let mut components = Vec::new();
    while !strings.is_empty() {
        let (component, rest) = element(strings, GENERAL_STRING)?;
        components.push(std::str::from_utf8(component).ok()?);
        strings = rest;
        if components.len() > COMPONENTS {
            return None;
        }
    }
    Some(components)
}

/// More than any name has.
const COMPONENTS: usize = 8;
/// TOK_ID of AP-REQ.
const TOK_ID_AP_REQ: &[u8] = &[0x01, 0x00];
/// Key usage of a ticket ([RFC 4120] 7.5.1).
///
/// [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120
const TICKET_USAGE: i32 = 2;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const GENERAL_STRING: u8 = 0x1b;
/// Constructed, context-specific.
const CONTEXT: u8 = 0xa0;
/// APPLICATION 0 of GSS-API.
const INITIAL_TOKEN: u8 = 0x60;
/// APPLICATION 1, 3 and 14.
const TICKET: u8 = 0x61;
const ENC_TICKET_PART: u8 = 0x63;
const AP_REQ: u8 = 0x6e;

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &[u8] = include_bytes!("../../../tests/golden/kerberos/ap-req.bin");
    const KEYTAB: &[u8] = include_bytes!("../../../tests/golden/kerberos/gateway.keytab");

    fn holder(token: &[u8]) -> Option<Holder> {
        let keytab = Keytab::parse(KEYTAB).unwrap();
        let envelope = Envelope::of_token(token)?;
        let key = envelope.key(&keytab).ok()?;
        envelope.holder(key)
    }

    #[test]
    fn a_ticket_says_whose_it_is() {
        let envelope = Envelope::of_token(TOKEN).unwrap();
        assert_eq!(envelope.service, ["TERMSRV", "localhost"]);
        assert_eq!(envelope.encryption_type, 18);
        assert_eq!(envelope.version, Some(2));
        let visitor = Holder {
            realm: "CORP.EXAMPLE".to_owned(),
            name: vec!["visitor".to_owned()],
        };
        assert_eq!(holder(TOKEN), Some(visitor));
    }

    #[test]
    fn a_ticket_for_another_service_has_no_key() {
        let keytab = Keytab::parse(KEYTAB).unwrap();
        let envelope = Envelope::of_token(TOKEN).unwrap();
        for service in [vec!["HTTP", "localhost"], vec!["TERMSRV"], vec![]] {
            let envelope = Envelope {
                service,
                ..envelope.clone()
            };
            assert!(envelope.key(&keytab).is_err());
        }
    }

    #[test]
    fn a_ticket_that_was_changed_is_nobodys() {
        for cut in 0..TOKEN.len() {
            assert_eq!(holder(&TOKEN[..cut]), None, "{cut}");
        }
        let whole = holder(TOKEN);
        for at in 0..TOKEN.len() {
            for bit in 0..8 {
                let mut bent = TOKEN.to_vec();
                bent[at] ^= 1 << bit;
                // What is not sealed may be changed, and changes nothing of whom it is for.
                let read = holder(&bent);
                assert!(read.is_none() || read == whole, "{at}");
            }
        }
    }
}
