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

#[cfg(feature = "credssp")]
use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(feature = "credssp")]
use tracing_core::dispatcher::{self, Dispatch};

#[cfg(feature = "credssp")]
mod acceptor;
#[cfg(feature = "credssp")]
pub mod cause;
#[cfg(feature = "credssp")]
pub mod client;
#[cfg(feature = "credssp")]
mod kerberos;
pub mod keytab;
#[cfg(feature = "credssp")]
pub mod krb_error;
#[cfg(feature = "credssp")]
pub mod server;
#[cfg(feature = "credssp")]
mod spnego;
#[cfg(feature = "credssp")]
mod ticket;
#[cfg(feature = "credssp")]
mod ts_request;
#[cfg(feature = "credssp")]
mod user_name;
#[cfg(feature = "credssp")]
mod wrap;

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

/// Runs `work` of sspi with every log line suppressed, and keeps a panic inside.
///
/// sspi writes the delegated credentials to its spans at debug level (`write_password_credentials` is instrumented with
/// its return value): whatever filter the operator sets, they must not reach a log.
///
/// Its parsers panic on some of what a peer can send (a NegotiationToken with one field). The panic goes no further than
/// here; what it leaves behind must not be used again.
#[cfg(feature = "credssp")]
fn contained<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    let unlogged = || dispatcher::with_default(&Dispatch::none(), work);
    catch_unwind(AssertUnwindSafe(unlogged)).map_err(|_| Panicked)
}

/// The security package panicked.
#[cfg(feature = "credssp")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the security package cannot read it")]
struct Panicked;

/// The name by which the gateway calls itself in NTLM and Kerberos messages.
#[cfg(feature = "credssp")]
const COMPUTER_NAME: &str = "JETWAY";

#[cfg(test)]
mod tests {
    use jetway_lab::certificate::Identity;

    use super::*;

    #[test]
    fn a_frame_is_as_long_as_its_header_says() {
        for (bytes, length) in [
            (b"\x30\x00".as_slice(), Some(2)),
            (b"\x30\x7f", Some(0x81)),
            (b"\x30\x81\x80", Some(0x83)),
            (b"\x30\x82\x01\x00", Some(0x104)),
            (b"\x30\x82\x3f\xfc", Some(TS_REQUEST_BYTES)),
            (b"", None),
            (b"\x30", None),
            (b"\x30\x81", None),
            (b"\x30\x82\x3f", None),
        ] {
            assert_eq!(frame_length(bytes), Ok(length), "{bytes:02x?}");
        }
    }

    #[test]
    fn an_oversized_or_foreign_frame_is_refused_by_its_first_bytes() {
        let length = TS_REQUEST_BYTES + 1;
        assert_eq!(
            frame_length(b"\x30\x82\x3f\xfd"),
            Err(TsRequestError::TooLong { length })
        );
        let length = 0xffff + 4;
        assert_eq!(
            frame_length(b"\x30\x82\xff\xff"),
            Err(TsRequestError::TooLong { length })
        );
        for header in [b"\x30\x80", b"\x30\x83", b"\x30\x84", b"\x30\xff"] {
            assert_eq!(frame_length(header), Err(TsRequestError::LengthForm));
        }
        for first in [0x03, 0x16, 0x31] {
            assert_eq!(
                frame_length(&[first]),
                Err(TsRequestError::NotASequence(first))
            );
        }
    }

    #[test]
    fn the_first_token_tells_the_mechanism() {
        assert_eq!(Mechanism::of(b"NTLMSSP\0\x01\0\0\0"), Some(Mechanism::Ntlm));
        assert_eq!(Mechanism::of(b"\x60\x82\x02\x00"), Some(Mechanism::Spnego));
        assert_eq!(Mechanism::of(b"\xa0\x82"), Some(Mechanism::Spnego));
        for other in [b"".as_slice(), b"NTLM", b"\x30\x00"] {
            assert_eq!(Mechanism::of(other), None);
        }
    }

    #[test]
    fn the_early_user_authorization_result_is_four_bytes() {
        assert_eq!(EarlyUserAuth::Success.encode(), [0, 0, 0, 0]);
        assert_eq!(EarlyUserAuth::AccessDenied.encode(), [5, 0, 0, 0]);
        for result in [EarlyUserAuth::Success, EarlyUserAuth::AccessDenied] {
            assert_eq!(EarlyUserAuth::decode(result.encode()), Some(result));
        }
        assert_eq!(EarlyUserAuth::decode([1, 0, 0, 0]), None);
    }

    #[test]
    fn the_key_of_a_certificate_is_what_openssl_finds() {
        for algorithm in [
            &jetway_lab::rcgen::PKCS_ECDSA_P256_SHA256,
            &jetway_lab::rcgen::PKCS_ED25519,
            &jetway_lab::rcgen::PKCS_RSA_SHA256,
        ] {
            let key = jetway_lab::rcgen::KeyPair::generate_for(algorithm).unwrap();
            let identity = Identity::self_signed_with(key, &["target.test"]);
            let certificate = identity.certificate();
            let info = SubjectPublicKeyInfo::of_certificate(certificate).unwrap();
            let whole = openssl::x509::X509::from_der(certificate)
                .and_then(|certificate| certificate.public_key())
                .and_then(|key| key.public_key_to_der())
                .unwrap();
            assert!(whole.ends_with(info.key));
            assert!(
                whole
                    .windows(info.algorithm.len())
                    .any(|part| part == info.algorithm)
            );
            for cut in 0..certificate.len() {
                // Never a panic; a key only once all of it is there.
                let part = &certificate[..cut];
                assert_eq!(SubjectPublicKeyInfo::of_certificate(part), Err(NoPublicKey));
            }
        }
    }

    /// Version 1 of X.509 has no version field; old targets show such certificates.
    #[test]
    fn the_key_of_a_version_1_certificate_is_found() {
        use openssl::{hash::MessageDigest, pkey::PKey, rsa::Rsa, x509::X509Builder};
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let mut builder = X509Builder::new().unwrap();
        builder.set_version(0).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let certificate = builder.build().to_der().unwrap();
        let info = SubjectPublicKeyInfo::of_certificate(&certificate).unwrap();
        assert_eq!(
            info.key,
            key.rsa().unwrap().public_key_to_der_pkcs1().unwrap()
        );
    }
}

/// Both halves glued together, without a network.
#[cfg(test)]
#[cfg(feature = "credssp")]
mod glued {
    use secrecy::SecretString;

    use super::cause::Cause;
    use super::client::{LogonClient, LogonError, Package, Progress};
    use super::server::{LogonServer, Progress as Served};
    use super::*;

    const KEY: &[u8] = b"the bits of a public key";

    struct Logon<'a> {
        given: (&'a str, &'a str),
        expected: (&'a str, &'a str),
        client_key: &'a [u8],
        server_key: &'a [u8],
    }

    impl Default for Logon<'_> {
        fn default() -> Self {
            Self {
                given: ("alice", "Secret-1"),
                expected: ("alice", "Secret-1"),
                client_key: KEY,
                server_key: KEY,
            }
        }
    }

    /// How both ended; the server with the last bytes it sent.
    #[derive(Debug)]
    enum End {
        Finished,
        Denied(Cause, LogonError),
    }

    impl Logon<'_> {
        fn run(&self) -> End {
            let secret = |text: &str| SecretString::from(text);
            let mut client = LogonClient::new(
                self.client_key,
                self.given.0,
                &secret(self.given.1),
                "target.test",
                Package::Ntlm,
            )
            .unwrap();
            let mut server =
                LogonServer::new(self.server_key, self.expected.0, &secret(self.expected.1));
            let mut reply: Option<Vec<u8>> = None;
            loop {
                let progress = client
                    .exchange(reply.as_deref())
                    .and_then(|mut exchange| exchange.start());
                let (frame, last) = match progress {
                    Ok(Progress::Send { frame, last }) => (frame, last),
                    Ok(Progress::AskKdc(_)) => panic!("NTLM asks nobody"),
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(frame_length(&frame), Ok(Some(frame.len())));
                match server.process(&frame) {
                    Ok(Served::Reply(frame)) if !last => reply = Some(frame),
                    Ok(Served::Finished) if last => return End::Finished,
                    Ok(other) => panic!("{other:?}"),
                    Err(denied) => {
                        let told = denied.reply.expect("the client is told");
                        let error = client
                            .exchange(Some(&told))
                            .and_then(|mut exchange| exchange.start())
                            .unwrap_err();
                        return End::Denied(denied.cause, error);
                    }
                }
            }
        }
    }

    #[test]
    fn the_right_password_logs_on() {
        for (given, expected) in [
            ("alice", "alice"),
            ("Alice", "alice"),
            ("LAPTOP\\alice", "alice"),
            ("alice@corp.example", "alice@corp.example"),
            ("CORP\\alice", "corp\\alice"),
            ("alice", "CORP\\alice"),
            ("JÖRG", "Jörg"),
            ("jörg", "JÖRG"),
            ("LAPTOP\\JÖRG", "jörg"),
            ("KÖLN\\jörg", "köln\\JÖRG"),
            ("Jörg@köln.example", "JÖRG@KÖLN.example"),
        ] {
            let logon = Logon {
                given: (given, "Secret-1"),
                expected: (expected, "Secret-1"),
                ..Logon::default()
            };
            assert!(
                matches!(logon.run(), End::Finished),
                "{given} as {expected}"
            );
        }
    }

    #[test]
    fn a_password_of_any_characters_logs_on() {
        for password in ["", "pässwörd", "🔑🔑", &"x".repeat(256)] {
            let logon = Logon {
                given: ("alice", password),
                expected: ("alice", password),
                ..Logon::default()
            };
            assert!(matches!(logon.run(), End::Finished), "{password}");
        }
    }

    #[test]
    fn a_wrong_password_or_user_is_denied_with_logon_failure() {
        for (given, expected) in [
            (("alice", "Secret-2"), ("alice", "Secret-1")),
            (("alice", ""), ("alice", "Secret-1")),
            (("mallory", "Secret-1"), ("alice", "Secret-1")),
            (("jorg", "Secret-1"), ("jörg", "Secret-1")),
            (("WEISS", "Secret-1"), ("weiß", "Secret-1")),
            (("OTHER\\alice", "Secret-1"), ("CORP\\alice", "Secret-1")),
            (("alice@other", "Secret-1"), ("alice@corp", "Secret-1")),
        ] {
            let end = Logon {
                given,
                expected,
                ..Logon::default()
            }
            .run();
            let logon_failure = LogonError::Status(0xc000_006d);
            assert!(
                matches!(&end, End::Denied(Cause::WrongCredentials, told) if *told == logon_failure),
                "{given:?}: {end:?}"
            );
        }
    }

    #[test]
    fn who_saw_another_tls_key_is_denied() {
        let end = Logon {
            client_key: b"the key of somebody between",
            ..Logon::default()
        }
        .run();
        assert!(matches!(end, End::Denied(Cause::PublicKey, _)), "{end:?}");
    }

    /// What a target answers that does not know the password but lets everybody pass.
    #[test]
    fn a_target_that_cannot_prove_its_key_gets_no_credentials() {
        let secret = SecretString::from("Secret-1");
        let mut client =
            LogonClient::new(KEY, "alice", &secret, "target.test", Package::Ntlm).unwrap();
        let mut server = LogonServer::new(KEY, "alice", &secret);
        let mut reply = None;
        // Up to the client's proof.
        for _ in 0..2 {
            let mut exchange = client.exchange(reply.as_deref()).unwrap();
            let Progress::Send { frame, .. } = exchange.start().unwrap() else {
                panic!("NTLM asks nobody");
            };
            let Served::Reply(frame) = server.process(&frame).unwrap() else {
                panic!("too early");
            };
            reply = Some(frame);
        }
        let mut forged = reply.unwrap();
        // Behind the proof there is nothing but the nonce, which comes back as it was sent.
        let at = forged.len() - 40;
        forged[at] ^= 1;
        let refused = client.exchange(Some(&forged)).unwrap().start().unwrap_err();
        assert_eq!(refused, LogonError::PublicKey);
    }

    #[test]
    fn malformed_requests_are_denied_and_never_panic() {
        let secret = SecretString::from("Secret-1");
        let mut client =
            LogonClient::new(KEY, "alice", &secret, "target.test", Package::Ntlm).unwrap();
        let Progress::Send { frame, .. } = client.exchange(None).unwrap().start().unwrap() else {
            panic!("NTLM asks nobody");
        };
        for cut in 0..frame.len() {
            let denied = LogonServer::new(KEY, "alice", &secret)
                .process(&frame[..cut])
                .unwrap_err();
            assert!(matches!(denied.cause, Cause::TsRequest(_)), "{cut}");
        }
        let mut longer = frame.to_vec();
        longer.push(0);
        let denied = LogonServer::new(KEY, "alice", &secret).process(&longer);
        assert!(matches!(denied.unwrap_err().cause, Cause::TsRequest(_)));
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut bent = frame.to_vec();
                bent[at] ^= 1 << bit;
                let _ = LogonServer::new(KEY, "alice", &secret).process(&bent);
                let mut client =
                    LogonClient::new(KEY, "alice", &secret, "target.test", Package::Ntlm).unwrap();
                let _ = client.exchange(None).unwrap().start();
                if let Ok(mut exchange) = client.exchange(Some(&bent)) {
                    let _ = exchange.start();
                }
            }
        }
        let denied = LogonServer::new(KEY, "alice", &secret)
            .process(b"\x30\x11\xa0\x03\x02\x01\x06\xa1\x0a\x30\x08\x30\x06\xa0\x04\x04\x02hi");
        assert!(matches!(denied.unwrap_err().cause, Cause::Mechanism));
    }

    /// sspi writes the delegated credentials to its spans, as a list of numbers that no search for the password finds.
    /// Found by fuzzing: an Application Tag 0 that holds a structure with one field.
    #[test]
    fn a_token_that_the_security_package_panics_on_denies_the_client() {
        const FOUND: &[u8] = include_bytes!(
            "../../../tests/fuzz/regressions/credssp/negotiation_token_with_one_field"
        );
        // The server's; a byte, two of length, a TSRequest.
        let [_, _, low, high, rest @ ..] = FOUND else {
            panic!("a short file");
        };
        let request = &rest[..usize::from(u16::from_le_bytes([*low, *high]))];
        let mut server = LogonServer::new(KEY, "alice", &SecretString::from("Secret-1"));
        let denied = server.process(request).unwrap_err();
        assert_eq!(denied.to_string(), Panicked.to_string());
        assert!(server.process(request).is_err());
    }

    #[test]
    fn nothing_of_a_logon_is_logged_at_any_level() {
        use std::io::Write;
        use std::sync::{Arc, Mutex};

        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl Write for Log {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!("Before");
            assert!(matches!(Logon::default().run(), End::Finished));
            tracing::trace!("After");
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn the_password_does_not_count_where_only_a_ticket_does() {
        let keytab = include_bytes!("../../../tests/golden/kerberos/gateway.keytab");
        let keytab = keytab::Keytab::parse(keytab).unwrap();
        let mut kerberos = server::ClientKerberos {
            keytab: std::sync::Arc::new(keytab),
            ntlm_fallback: true,
        };
        let secret = SecretString::from("Secret-1");
        let mut client =
            LogonClient::new(KEY, "alice", &secret, "target.test", Package::Ntlm).unwrap();
        let Progress::Send { frame, .. } = client.exchange(None).unwrap().start().unwrap() else {
            panic!("NTLM asks nobody");
        };
        let mut server = LogonServer::new(KEY, "alice", &secret).with_kerberos(Some(&kerberos));
        assert!(matches!(server.process(&frame), Ok(Served::Reply(_))));
        assert!(!server.uses_kerberos());

        kerberos.ntlm_fallback = false;
        let mut server = LogonServer::new(KEY, "alice", &secret).with_kerberos(Some(&kerberos));
        let denied = server.process(&frame).unwrap_err();
        assert!(matches!(denied.cause, Cause::NoTicket));
        let told = denied.reply.expect("the client is told");
        let error = client
            .exchange(Some(&told))
            .and_then(|mut exchange| exchange.start())
            .unwrap_err();
        assert_eq!(error, LogonError::Status(0xc000_006d));
    }

    #[test]
    fn a_client_that_never_comes_to_the_point_is_denied() {
        let secret = SecretString::from("Secret-1");
        let mut server = LogonServer::new(KEY, "alice", &secret);
        let mut client =
            LogonClient::new(KEY, "alice", &secret, "target.test", Package::Ntlm).unwrap();
        let Progress::Send { frame, .. } = client.exchange(None).unwrap().start().unwrap() else {
            panic!("NTLM asks nobody");
        };
        let causes: Vec<_> = (0..=TS_REQUESTS)
            .map(|_| server.process(&frame).map_err(|denied| denied.cause))
            .collect();
        assert!(matches!(
            causes.last(),
            Some(Err(Cause::TsRequest(TsRequestError::TooMany)))
        ));
    }
}
