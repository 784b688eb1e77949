//! KRB-ERROR ([RFC 4120] 5.9.1): what a KDC answers where it gives no ticket, and a target that does not take one.
//!
//! [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120

use std::fmt;

use super::{INTEGER, SEQUENCE, element};
use crate::nt_status::NtStatus;

/// Why there is no ticket, or why one is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KrbError {
    /// `error-code` ([RFC 4120] 7.5.9).
    ///
    /// [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120
    pub code: i32,
    /// `e-text`, where it is a short line of printable ASCII.
    pub text: Option<String>,
    /// The NTSTATUS of [MS-KILE] 2.2.2 KERB-EXT-ERROR: Windows says there what the code leaves open.
    ///
    /// [MS-KILE]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-kile/2a32282e-dd48-4ad9-a542-609804b02cc9
    pub status: Option<u32>,
}

impl KrbError {
    /// Reads a message that begins with one.
    #[must_use]
    pub fn decode(message: &[u8]) -> Option<Self> {
        let (content, _) = element(message, KRB_ERROR)?;
        let (mut fields, _) = element(content, SEQUENCE)?;
        let (mut code, mut text, mut status) = (None, None, None);
        while let Some(&tag) = fields.first() {
            let (field, rest) = element(fields, tag)?;
            match tag {
                ERROR_CODE => code = Some(integer(field)?),
                E_TEXT => text = printable(element(field, GENERAL_STRING)?.0),
                E_DATA => status = extended(element(field, OCTET_STRING)?.0),
                _ => {}
            }
            fields = rest;
        }
        let code = code?;
        Some(Self { code, text, status })
    }

    /// Reads a GSS-API token of Kerberos ([RFC 4121] 4.1) that holds one.
    ///
    /// [RFC 4121]: https://www.rfc-editor.org/rfc/rfc4121
    #[must_use]
    pub fn of_token(token: &[u8]) -> Option<Self> {
        let (content, _) = element(token, INITIAL_TOKEN)?;
        let (_mechanism, message) = element(content, OID)?;
        Self::decode(message.strip_prefix(TOK_ID_ERROR)?)
    }

    /// Whether it only asks for what the next message will bring.
    #[must_use]
    pub fn is_preauth_required(&self) -> bool {
        self.code == KDC_ERR_PREAUTH_REQUIRED
    }
}

impl fmt::Display for KrbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(code, _)| *code == self.code) {
            Some((code, name)) => write!(f, "{name} ({code})")?,
            None => write!(f, "error {}", self.code)?,
        }
        if let Some(status) = self.status {
            write!(f, ", {}", NtStatus(status))?;
        }
        if let Some(text) = &self.text {
            write!(f, ", \"{text}\"")?;
        }
        Ok(())
    }
}

fn integer(field: &[u8]) -> Option<i32> {
    let (digits, _) = element(field, INTEGER)?;
    let negative = digits.first()? & 0x80 != 0;
    let start = if negative { -1_i32 } else { 0 };
    (digits.len() <= 4).then(|| {
        digits
            .iter()
            .fold(start, |code, &digit| (code << 8) | i32::from(digit))
    })
}

fn printable(text: &[u8]) -> Option<String> {
    let is_line = text.iter().all(|&byte| matches!(byte, b' '..=b'~'));
    (is_line && !text.is_empty() && text.len() <= TEXT_BYTES)
        .then(|| String::from_utf8_lossy(text).into_owned())
}

/// KERB-ERROR-DATA with KERB_ERR_TYPE_EXTENDED.
fn extended(data: &[u8]) -> Option<u32> {
    let (fields, _) = element(data, SEQUENCE)?;
    let (kind, fields) = element(fields, DATA_TYPE)?;
    let (value, _) = element(fields, DATA_VALUE)?;
    let (value, _) = element(value, OCTET_STRING)?;
    let status = value
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))?;
    (integer(kind)? == KERB_ERR_TYPE_EXTENDED && status != 0).then_some(status)
}

// [RFC 4120] 7.5.9.
/// Unknown client.
pub const KDC_ERR_C_PRINCIPAL_UNKNOWN: i32 = 6;
/// Unknown service.
pub const KDC_ERR_S_PRINCIPAL_UNKNOWN: i32 = 7;
/// The account has expired.
pub const KDC_ERR_NAME_EXP: i32 = 1;
/// A rule of the KDC.
pub const KDC_ERR_POLICY: i32 = 12;
/// No cipher in common.
pub const KDC_ERR_ETYPE_NOSUPP: i32 = 14;
/// The account is locked or disabled.
pub const KDC_ERR_CLIENT_REVOKED: i32 = 18;
/// The password has expired.
pub const KDC_ERR_KEY_EXPIRED: i32 = 23;
/// The password is wrong.
pub const KDC_ERR_PREAUTH_FAILED: i32 = 24;
/// The password is to be shown.
pub const KDC_ERR_PREAUTH_REQUIRED: i32 = 25;
/// The password is wrong, as some KDCs put it.
pub const KRB_AP_ERR_BAD_INTEGRITY: i32 = 31;
/// The clocks differ.
pub const KRB_AP_ERR_SKEW: i32 = 37;
/// Another KDC knows.
pub const KDC_ERR_WRONG_REALM: i32 = 68;

const NAMES: &[(i32, &str)] = &[
    (KDC_ERR_NAME_EXP, "KDC_ERR_NAME_EXP"),
    (KDC_ERR_C_PRINCIPAL_UNKNOWN, "KDC_ERR_C_PRINCIPAL_UNKNOWN"),
    (KDC_ERR_S_PRINCIPAL_UNKNOWN, "KDC_ERR_S_PRINCIPAL_UNKNOWN"),
    (KDC_ERR_POLICY, "KDC_ERR_POLICY"),
    (KDC_ERR_ETYPE_NOSUPP, "KDC_ERR_ETYPE_NOSUPP"),
    (KDC_ERR_CLIENT_REVOKED, "KDC_ERR_CLIENT_REVOKED"),
    (KDC_ERR_KEY_EXPIRED, "KDC_ERR_KEY_EXPIRED"),
    (KDC_ERR_PREAUTH_FAILED, "KDC_ERR_PREAUTH_FAILED"),
    (KDC_ERR_PREAUTH_REQUIRED, "KDC_ERR_PREAUTH_REQUIRED"),
    (KRB_AP_ERR_BAD_INTEGRITY, "KRB_AP_ERR_BAD_INTEGRITY"),
    (KRB_AP_ERR_SKEW, "KRB_AP_ERR_SKEW"),
    (41, "KRB_AP_ERR_MODIFIED"),
    (52, "KRB_ERR_RESPONSE_TOO_BIG"),
    (60, "KRB_ERR_GENERIC"),
    (KDC_ERR_WRONG_REALM, "KDC_ERR_WRONG_REALM"),
];

/// Longest `e-text` that is repeated.
const TEXT_BYTES: usize = 128;
const KERB_ERR_TYPE_EXTENDED: i32 = 3;
/// TOK_ID of KRB_ERROR.
const TOK_ID_ERROR: &[u8] = &[0x03, 0x00];
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const GENERAL_STRING: u8 = 0x1b;
/// APPLICATION 0 of GSS-API.
const INITIAL_TOKEN: u8 = 0x60;
/// APPLICATION 30.
const KRB_ERROR: u8 = 0x7e;
/// Context tags 6, 11 and 12.
const ERROR_CODE: u8 = 0xa6;
const E_TEXT: u8 = 0xab;
const E_DATA: u8 = 0xac;
/// Context tags 1 and 2.
const DATA_TYPE: u8 = 0xa1;
const DATA_VALUE: u8 = 0xa2;

#[cfg(test)]
mod tests {
    use super::*;

    /// pvno, msg-type, stime, susec, error-code 18, realm, sname, e-text, e-data with STATUS_ACCOUNT_LOCKED_OUT.
    const LOCKED: &[u8] = b"\x7e\x6e\x30\x6c\xa0\x03\x02\x01\x05\xa1\x03\x02\x01\x1e\
\xa4\x11\x18\x0f20261121120000Z\xa5\x03\x02\x01\x00\xa6\x03\x02\x01\x12\
\xa9\x06\x1b\x04CORP\xaa\x0f\x30\x0d\xa0\x03\x02\x01\x01\xa1\x06\x30\x04\x1b\x02kd\
\xab\x0c\x1b\x0aLOCKED_OUT\
\xac\x1c\x04\x1a\x30\x18\xa1\x03\x02\x01\x03\xa2\x11\x04\x0f\
\x34\x02\x00\xc0\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00";

    #[test]
    fn an_error_is_read_with_what_windows_adds() {
        let error = KrbError::decode(LOCKED).expect("it is one");
        assert_eq!(error.code, KDC_ERR_CLIENT_REVOKED);
        assert_eq!(error.text.as_deref(), Some("LOCKED_OUT"));
        assert_eq!(error.status, Some(0xc000_0234));
        let text = error.to_string();
        assert!(text.starts_with("KDC_ERR_CLIENT_REVOKED (18), "), "{text}");
        assert!(text.ends_with(", \"LOCKED_OUT\""), "{text}");
        for cut in 0..LOCKED.len() {
            assert_eq!(KrbError::decode(&LOCKED[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn an_error_is_found_in_the_token_of_a_target() {
        let mut token = b"\x60\x7d\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x03\x00".to_vec();
        token.extend_from_slice(LOCKED);
        assert_eq!(KrbError::of_token(&token), KrbError::decode(LOCKED));
        // AP-REP is none.
        assert_eq!(KrbError::of_token(b"\x60\x02\x06\x00"), None);
        token[13] = 2;
        assert_eq!(KrbError::of_token(&token), None);
    }

    #[test]
    fn a_text_that_is_no_line_is_left_out() {
        for (text, shown) in [
            (b"a line".as_slice(), Some("a line")),
            (b"two\nlines", None),
            (b"", None),
            (b"\xff", None),
            (&[b'x'; TEXT_BYTES + 1], None),
        ] {
            assert_eq!(printable(text).as_deref(), shown);
        }
    }
}
