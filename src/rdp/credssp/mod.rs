//! CredSSP, the protocol of Network Level Authentication: what both halves share.
//!
//! [MS-CSSP] 2.2.1: inside TLS, both sides exchange `TSRequest` structures (DER) that carry NTLM or SPNEGO tokens, then
//! prove that they see the same TLS public key, then the client hands over the credentials. With `PROTOCOL_HYBRID_EX`
//! the server adds four bytes, the Early User Authorization Result ([MS-RDPBCGR] 2.2.10.2).
//!
//! This file frames and bounds those messages and finds the public key in a certificate. The cryptography is sspi's:
//! [`client`] and [`server`] hold its state machines, without any I/O of their own.
//!
//! [MS-CSSP]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-cssp/85f57821-40bb-46aa-bfcb-ba9590b8fc30

#[cfg(feature = "shell")]
pub mod client;
#[cfg(feature = "shell")]
pub mod server;

/// Largest `TSRequest` accepted, bytes. NTLM needs less than 2 KiB; a Kerberos ticket with a large PAC about 12 KiB.
pub const TS_REQUEST_BYTES: usize = 16 * 1024;

/// `TSRequest` structures accepted from one peer in one exchange. NTLM needs 3, SPNEGO with Kerberos up to 5.
pub const TS_REQUESTS: usize = 10;

/// Why bytes are not a `TSRequest`, or a certificate shows no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TsRequestError {
    /// The first byte is not that of a DER SEQUENCE.
    #[error("TSRequest begins with {0:#04x} where a SEQUENCE is expected")]
    NotASequence(u8),
    /// A length that needs more bytes than any accepted message has.
    #[error("TSRequest length is in a form that no accepted message needs")]
    LengthForm,
    /// Above the limit.
    #[error("TSRequest of {length} bytes is above the limit of {TS_REQUEST_BYTES}")]
    TooLong {
        /// What the header says.
        length: usize,
    },
    /// Another fault inside.
    #[error("TSRequest is malformed")]
    Malformed,
    /// More messages than any mechanism needs.
    #[error("more than {TS_REQUESTS} TSRequests")]
    TooMany,
}

/// How many bytes the `TSRequest` has that `bytes` begin with; `None` asks for more.
///
/// # Errors
/// As soon as the bytes at hand cannot become an acceptable one any more.
pub fn frame_length(bytes: &[u8]) -> Result<Option<usize>, TsRequestError> {
    let (length, header) = match *bytes {
        [] | [0x30] | [0x30, 0x81] | [0x30, 0x82] | [0x30, 0x82, _] => return Ok(None),
        [0x30, short @ 0..=0x7f, ..] => (usize::from(short), 2_usize),
        [0x30, 0x81, length, ..] => (usize::from(length), 3),
        [0x30, 0x82, high, low, ..] => (usize::from(u16::from_be_bytes([high, low])), 4),
        [0x30, ..] => return Err(TsRequestError::LengthForm),
        [first, ..] => return Err(TsRequestError::NotASequence(first)),
    };
    let length = length.saturating_add(header);
    if length > TS_REQUEST_BYTES {
        return Err(TsRequestError::TooLong { length });
    }
    Ok(Some(length))
}

/// What a first `negoToken` is: the two need different modes of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// NTLM without SPNEGO around it: what FreeRDP sends, and mstsc without Kerberos.
    Ntlm,
    /// SPNEGO: a GSS-API initial token, or a bare NegTokenInit.
    Spnego,
}

impl Mechanism {
    /// Recognises a first token.
    #[must_use]
    pub fn of(nego_token: &[u8]) -> Option<Self> {
        if nego_token.starts_with(b"NTLMSSP\0") {
            return Some(Self::Ntlm);
        }
        matches!(nego_token.first(), Some(0x60 | 0xa0)).then_some(Self::Spnego)
    }
}

/// [MS-RDPBCGR] 2.2.10.2 Early User Authorization Result PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyUserAuth {
    /// AUTHZ_SUCCESS.
    Success,
    /// AUTHZ_ACCESS_DENIED.
    AccessDenied,
}

impl EarlyUserAuth {
    /// Bytes on the wire.
    pub const BYTES: usize = 4;

    /// The PDU to send.
    #[must_use]
    pub const fn encode(self) -> [u8; Self::BYTES] {
        match self {
            Self::Success => 0_u32.to_le_bytes(),
            Self::AccessDenied => 5_u32.to_le_bytes(),
        }
    }

    /// The PDU received; `None` for a value that the specification does not have.
    #[must_use]
    pub const fn decode(bytes: [u8; Self::BYTES]) -> Option<Self> {
        match u32::from_le_bytes(bytes) {
            0 => Some(Self::Success),
            5 => Some(Self::AccessDenied),
            _ => None,
        }
    }
}

/// SubjectPublicKeyInfo of a certificate ([RFC 5280] 4.1), as it stands there.
///
/// [RFC 5280]: https://www.rfc-editor.org/rfc/rfc5280
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubjectPublicKeyInfo<'a> {
    /// The content of AlgorithmIdentifier, without its SEQUENCE header.
    pub algorithm: &'a [u8],
    /// The bits of the key: what CredSSP binds, not the whole SubjectPublicKeyInfo.
    pub key: &'a [u8],
}

/// A certificate in which no public key can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate shows no public key")]
pub struct NoPublicKey;

impl<'a> SubjectPublicKeyInfo<'a> {
    /// Finds the key in a certificate (DER).
    ///
    /// Nothing else of the certificate is judged: targets show self-signed certificates of every age and shape.
    ///
    /// # Errors
    /// The bytes up to the key are no certificate.
    pub fn of_certificate(certificate: &'a [u8]) -> Result<Self, NoPublicKey> {
        Self::find(certificate).ok_or(NoPublicKey)
    }

    fn find(certificate: &'a [u8]) -> Option<Self> {
        let (body, _) = element(certificate, SEQUENCE)?;
        let (mut fields, _) = element(body, SEQUENCE)?;
        if fields.first() == Some(&EXPLICIT_VERSION) {
            (_, fields) = element(fields, EXPLICIT_VERSION)?;
        }
        (_, fields) = element(fields, INTEGER)?;
        // Signature algorithm, issuer, validity, subject.
        for _ in 0..4 {
            (_, fields) = element(fields, SEQUENCE)?;
        }
        let (info, _) = element(fields, SEQUENCE)?;
        let (algorithm, rest) = element(info, SEQUENCE)?;
        let (bits, _) = element(rest, BIT_STRING)?;
        // Keys are whole bytes: no unused bits.
        let key = bits.strip_prefix(&[0])?;
        Some(Self { algorithm, key })
    }
}

/// The content of the DER element with `tag` that `bytes` begin with, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(&[tag])?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x0f))?;
            let mut length = 0_usize;
            for &digit in digits {
                length = length.checked_mul(256)?.checked_add(usize::from(digit))?;
            }
            (length, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const EXPLICIT_VERSION: u8 = 0xa0;

/// Runs `work` with every log line suppressed.
///
/// sspi writes the delegated credentials to its spans at debug level (`write_password_credentials` is instrumented with
/// its return value): whatever filter the operator sets, they must not reach a log.
#[cfg(feature = "shell")]
fn unlogged<T>(work: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), work)
}

/// The name by which the gateway calls itself in NTLM and Kerberos messages.
#[cfg(feature = "shell")]
const COMPUTER_NAME: &str = "JETWAY";
