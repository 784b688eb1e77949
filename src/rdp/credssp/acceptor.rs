//! The server half of CredSSP with Kerberos: the client shows a Kerberos ticket for this gateway.
//!
//! Which user it is for has to be the one whom the token names (`prx_usr`), in the realm of the gateway's own key; what
//! the client delegates at the end is dropped unread, as with NTLM.
//!
//! Clients that offer Kerberos behind another mechanism (FreeRDP puts user-to-user first, for which a server needs a
//! ticket of its own) are asked for it, and both sides then protect the list of mechanisms ([RFC 4178] 5).
//!
//! No cache of tickets that were seen ([RFC 4120] 3.2.3): who plays one back cannot seal the key of this TLS connection.
//!
//! [RFC 4120]: https://www.rfc-editor.org/rfc/rfc4120
//! [RFC 4178]: https://www.rfc-editor.org/rfc/rfc4178

use std::sync::Arc;
use std::time::Duration;

use picky_krb::crypto::aes::{AesSize, checksum_sha_aes};
use sspi::credssp::TsRequest;
use sspi::kerberos::ServerProperties;
use sspi::{
    BufferType, DataRepresentation, Kerberos, KerberosConfig, SecurityBuffer, SecurityStatus,
    ServerRequestFlags, Sspi, SspiImpl, Username, UsernameParts,
};
use subtle::ConstantTimeEq;

use super::cause::Cause;
use super::client::principal;
use super::keytab::Keytab;
use super::spnego::{self, KERBEROS, MS_KERBEROS, NegState, Response};
use super::ticket::{Envelope, Holder};
use super::wrap::{CLIENT_TO_SERVER, NONCE_VERSION, SERVER_TO_CLIENT, key_hash, open, seal};
use super::{COMPUTER_NAME, client, user_name};

/// What a client's `TSRequest` leads to.
pub(super) enum AcceptorStep {
    /// An answer.
    Reply(TsRequest),
    /// The client has proven itself.
    Finished,
}

/// The server of one connection.
pub(super) struct Acceptor {
    keytab: Arc<Keytab>,
    expected: String,
    public_key: Vec<u8>,
    state: AcceptorState,
}

enum AcceptorState {
    /// Nothing was heard.
    Initial,
    /// The client was asked for Kerberos; its list is to be protected.
    Asked {
        mech_types: Vec<u8>,
    },
    /// The client has the proof of the gateway's key and its protection of the list; its own is due.
    Protected {
        kerberos: Box<Kerberos>,
        mech_types: Vec<u8>,
    },
    /// The client's hash of the TLS key is due.
    Established(Box<Kerberos>),
    /// The client's credentials are due.
    Bound,
    Over,
}

/// Whether a client's first token offers Kerberos.
pub(super) fn is_offered(nego_token: &[u8]) -> bool {
    let is_kerberos = |mechanism| mechanism == KERBEROS || mechanism == MS_KERBEROS;
    spnego::decode_init(nego_token).is_some_and(|init| init.mechanisms().any(is_kerberos))
}

impl Acceptor {
    /// A server that expects the user `expected`.
    pub(super) fn new(keytab: Arc<Keytab>, expected: &str, public_key: &[u8]) -> Self {
        Self {
            keytab,
            expected: expected.to_owned(),
            public_key: public_key.to_vec(),
            state: AcceptorState::Initial,
        }
    }

    pub(super) fn process(&mut self, request: &TsRequest) -> Result<AcceptorStep, Cause> {
        if request.version < NONCE_VERSION {
            return Err(Cause::Version(request.version));
        }
        let token = request.nego_tokens.as_deref().unwrap_or_default();
        match std::mem::replace(&mut self.state, AcceptorState::Over) {
            AcceptorState::Initial => self.begin(token),
            AcceptorState::Asked { mech_types } => {
                let response = spnego::decode_response(token).ok_or(Cause::Sequence)?;
                let ticket = response.token.ok_or(Cause::Sequence)?;
                self.take_ticket(ticket, Some(mech_types), None)
            }
            AcceptorState::Protected {
                mut kerberos,
                mech_types,
            } => {
                let response = spnego::decode_response(token).ok_or(Cause::Sequence)?;
                let mic = response.mic.ok_or(Cause::List)?;
                verify_mic(&mut kerberos, mic, &mech_types)?;
                if request.pub_key_auth.is_some() {
                    return self.bind(kerberos, request);
                }
                self.state = AcceptorState::Established(kerberos);
                Ok(reply(Response {
                    state: Some(NegState::Completed),
                    ..Response::default()
                }))
            }
            AcceptorState::Established(kerberos) => self.bind(kerberos, request),
            AcceptorState::Bound if request.auth_info.is_some() => Ok(AcceptorStep::Finished),
            AcceptorState::Bound | AcceptorState::Over => Err(Cause::Sequence),
        }
    }

    fn begin(&mut self, token: &[u8]) -> Result<AcceptorStep, Cause> {
        let init = spnego::decode_init(token).ok_or(Cause::Mechanism)?;
        let offered = |wanted: &[u8]| init.mechanisms().any(|mechanism| mechanism == wanted);
        let mechanism = if offered(KERBEROS) {
            KERBEROS
        } else {
            MS_KERBEROS
        };
        let first = init.mechanisms().next();
        let is_first = first == Some(KERBEROS) || first == Some(MS_KERBEROS);
        match init.token {
            Some(ticket) if is_first && Envelope::of_token(ticket).is_some() => {
                self.take_ticket(ticket, None, first)
            }
            _ => {
                let mech_types = init.mech_types.to_vec();
                self.state = AcceptorState::Asked { mech_types };
                Ok(reply(Response {
                    state: Some(NegState::RequestMic),
                    mechanism: Some(mechanism),
                    ..Response::default()
                }))
            }
        }
    }

    /// Takes AP-REQ, and answers with AP-REP, which proves that the gateway has the key.
    fn take_ticket(
        &mut self,
        ticket: &[u8],
        mech_types: Option<Vec<u8>>,
        mechanism: Option<&[u8]>,
    ) -> Result<AcceptorStep, Cause> {
        let (mut kerberos, answer) = self.accept(ticket)?;
        // An answer to the first message names the mechanism; later ones do not.
        let response = Response {
            state: Some(NegState::Completed),
            mechanism,
            token: Some(&answer),
            mic: None,
        };
        let Some(mech_types) = mech_types else {
            self.state = AcceptorState::Established(kerberos);
            return Ok(reply(response));
        };
        let mic = make_mic(&mut kerberos, &mech_types)?;
        let step = reply(Response {
            state: Some(NegState::Incomplete),
            mic: Some(&mic),
            ..response
        });
        self.state = AcceptorState::Protected {
            kerberos,
            mech_types,
        };
        Ok(step)
    }

    fn accept(&self, token: &[u8]) -> Result<(Box<Kerberos>, Vec<u8>), Cause> {
        let envelope = Envelope::of_token(token).ok_or(Cause::Sequence)?;
        let key = envelope.key(&self.keytab).map_err(Cause::Ticket)?;
        let holder = envelope
            .holder(key)
            .ok_or_else(|| Cause::Ticket("not sealed with the key that it names".to_owned()))?;
        if !is_for(&holder, &self.expected, &key.realm) {
            return Err(Cause::AnotherUser);
        }
        let failed = |error: sspi::Error| Cause::Ticket(error.to_string());
        let secret = sspi::Secret::new(key.key.to_vec());
        let service = ServerProperties::new(&envelope.service, None, CLOCK_SKEW, Some(secret));
        let config = KerberosConfig::new_with_kdc_url(client::KDC, COMPUTER_NAME.to_owned());
        let mut kerberos =
            Kerberos::new_server_from_config(config, service.map_err(failed)?).map_err(failed)?;
        let mut credentials = None;
        let mut input = [SecurityBuffer::new(token.to_vec(), BufferType::Token)];
        let mut output = [SecurityBuffer::new(Vec::new(), BufferType::Token)];
        let builder = kerberos
            .accept_security_context()
            .with_credentials_handle(&mut credentials)
            .with_context_requirements(ServerRequestFlags::empty())
            .with_target_data_representation(DataRepresentation::Native)
            .with_input(&mut input)
            .with_output(&mut output);
        let accepted = kerberos
            .accept_security_context_impl(builder)
            .and_then(|mut step| step.resolve_to_result())
            .map_err(failed)?;
        let [output] = output;
        // Without an answer the client did not ask for the gateway's proof.
        if accepted.status != SecurityStatus::Ok || output.buffer.is_empty() {
            return Err(Cause::Ticket("not for mutual authentication".to_owned()));
        }
        Ok((Box::new(kerberos), output.buffer))
    }

    fn bind(
        &mut self,
        mut kerberos: Box<Kerberos>,
        request: &TsRequest,
    ) -> Result<AcceptorStep, Cause> {
        let failed = |_: sspi::Error| Cause::PublicKey;
        let (Some(proof), Some(nonce)) = (&request.pub_key_auth, &request.client_nonce) else {
            return Err(Cause::Sequence);
        };
        let proof = open(&mut kerberos, proof).map_err(failed)?;
        let expected = key_hash(CLIENT_TO_SERVER, nonce, &self.public_key);
        if !bool::from(proof.ct_eq(&expected)) {
            return Err(Cause::PublicKey);
        }
        let answer = key_hash(SERVER_TO_CLIENT, nonce, &self.public_key);
        let answer = seal(&mut kerberos, &answer).map_err(failed)?;
        self.state = AcceptorState::Bound;
        Ok(AcceptorStep::Reply(TsRequest {
            pub_key_auth: Some(answer),
            ..TsRequest::default()
        }))
    }
}

fn reply(response: Response<'_>) -> AcceptorStep {
    AcceptorStep::Reply(TsRequest {
        nego_tokens: Some(spnego::encode_response(&response)),
        ..TsRequest::default()
    })
}

/// Whether a ticket is for the user whom a token calls `expected`, in `realm`, that of the gateway's key.
///
/// Not for a user of a realm that `realm` trusts: the path of trust would have to be judged.
fn is_for(holder: &Holder, expected: &str, realm: &str) -> bool {
    let expected = Username::parse(expected)
        .ok()
        .and_then(|expected| principal(&expected, Some(realm)).ok());
    let Some(expected) = expected else {
        return false;
    };
    let UsernameParts::DownLevelLogonName(expected) = expected.parts() else {
        return false;
    };
    let same = |ours: &str, theirs: &str| ours.eq_ignore_ascii_case(theirs);
    let [name] = holder.name.as_slice() else {
        return false;
    };
    user_name::is_same(expected.account_name(), name)
        && same(realm, &holder.realm)
        && expected
            .netbios_domain()
            .is_some_and(|domain| same(domain, realm))
}

/// A MIC token ([RFC 4121] 4.2.6.1) over the client's list.
///
/// [RFC 4121]: https://www.rfc-editor.org/rfc/rfc4121
fn make_mic(kerberos: &mut Kerberos, mech_types: &[u8]) -> Result<Vec<u8>, Cause> {
    let number = u64::from(kerberos.next_seq_number()).to_be_bytes();
    let header = [MIC_OF_ACCEPTOR.as_slice(), &number].concat();
    let checksum = mic_checksum(kerberos, ACCEPTOR_SIGN, mech_types, &header)?;
    Ok([header, checksum].concat())
}

fn verify_mic(kerberos: &mut Kerberos, mic: &[u8], mech_types: &[u8]) -> Result<(), Cause> {
    let (header, checksum) = mic
        .split_at_checked(MIC_HEADER_BYTES)
        .filter(|(header, _)| header.starts_with(&MIC_OF_INITIATOR))
        .ok_or(Cause::List)?;
    let expected = mic_checksum(kerberos, INITIATOR_SIGN, mech_types, header)?;
    if bool::from(expected.ct_eq(checksum)) {
        Ok(())
    } else {
        Err(Cause::List)
    }
}

fn mic_checksum(
    kerberos: &Kerberos,
    usage: i32,
    mech_types: &[u8],
    header: &[u8],
) -> Result<Vec<u8>, Cause> {
    let keys = kerberos
        .query_context_session_key()
        .map_err(|error| Cause::Package(error.to_string()))?;
    let key = keys.session_key.as_ref();
    let size = match key.len() {
        16 => AesSize::Aes128,
        _ => AesSize::Aes256,
    };
    let text = [mech_types, header].concat();
    checksum_sha_aes(key, usage, &text, &size).map_err(|error| Cause::Package(error.to_string()))
}

/// As everywhere with Kerberos.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Key usages of MIC tokens ([RFC 4121] 2).
///
/// [RFC 4121]: https://www.rfc-editor.org/rfc/rfc4121
const ACCEPTOR_SIGN: i32 = 23;
const INITIATOR_SIGN: i32 = 25;
/// TOK_ID, flags and filler: sent by the acceptor and signed with its subkey; sent by the initiator and signed with it.
const MIC_OF_ACCEPTOR: [u8; 8] = [0x04, 0x04, 0x05, 0xff, 0xff, 0xff, 0xff, 0xff];
const MIC_OF_INITIATOR: [u8; 8] = [0x04, 0x04, 0x04, 0xff, 0xff, 0xff, 0xff, 0xff];
const MIC_HEADER_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_counts_for_the_user_whom_the_token_names() {
        let holder = |realm: &str, name: &[&str]| Holder {
            realm: realm.to_owned(),
            name: name.iter().map(|part| (*part).to_owned()).collect(),
        };
        let realm = "CORP.EXAMPLE";
        let alice = holder(realm, &["alice"]);
        for expected in [
            "alice",
            "Alice",
            "alice@corp.example",
            "CORP\\alice",
            "CORP.EXAMPLE\\alice",
        ] {
            assert!(is_for(&alice, expected, realm), "{expected}");
        }
        // Beyond ASCII as by NTLM; and whoever merely looks alike has a ticket of their own.
        for (shown, expected, is_so) in [
            ("jörg", "JÖRG", true),
            ("JÖRG", "Jörg@corp.example", true),
            ("admın", "admin", false),
            ("weiss", "weiß", false),
        ] {
            let shown = holder(realm, &[shown]);
            assert_eq!(
                is_for(&shown, expected, realm),
                is_so,
                "{shown:?} {expected}"
            );
        }
        for expected in [
            "bob",
            "",
            "alice@other.example",
            "OTHER\\alice",
            ".\\alice",
            "alice/admin",
            "CORP\\",
        ] {
            assert!(!is_for(&alice, expected, realm), "{expected}");
        }
        for other in [
            holder("OTHER.EXAMPLE", &["alice"]),
            holder(realm, &["alice", "admin"]),
            holder(realm, &[]),
        ] {
            assert!(!is_for(&other, "alice", realm), "{other:?}");
            assert!(!is_for(&other, "alice@other.example", realm), "{other:?}");
        }
    }

    #[test]
    fn what_is_not_due_ends_it() {
        let keytab = include_bytes!("../../../tests/golden/kerberos/gateway.keytab");
        let keytab = Arc::new(Keytab::parse(keytab).unwrap());
        let ticket = include_bytes!("../../../tests/golden/kerberos/ap-req.bin");
        let ask = |token: &[u8]| TsRequest {
            nego_tokens: Some(token.to_vec()),
            ..TsRequest::default()
        };
        let acceptor = || Acceptor::new(Arc::clone(&keytab), "visitor", b"key");
        let init = spnego::encode_init(&[KERBEROS], ticket);

        // Whose it is comes first, and whether it is good now after that.
        let mut other = Acceptor::new(Arc::clone(&keytab), "alice", b"key");
        let denied = other.process(&ask(&init)).err();
        assert!(matches!(denied, Some(Cause::AnotherUser)), "{denied:?}");
        let denied = other.process(&ask(&init)).err();
        assert!(matches!(denied, Some(Cause::Sequence)), "{denied:?}");

        let old = TsRequest {
            version: 4,
            ..ask(&init)
        };
        let denied = acceptor().process(&old).err();
        assert!(matches!(denied, Some(Cause::Version(4))), "{denied:?}");

        // User-to-user first: it is asked for a ticket, and has none.
        let user_to_user = b"\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x03";
        let init = spnego::encode_init(&[user_to_user, MS_KERBEROS], b"TGT-REQ");
        assert!(is_offered(&init));
        let mut asking = acceptor();
        let Ok(AcceptorStep::Reply(reply)) = asking.process(&ask(&init)) else {
            panic!("it is asked");
        };
        let reply = reply.nego_tokens.unwrap();
        let reply = spnego::decode_response(&reply).unwrap();
        assert_eq!(reply.state, Some(NegState::RequestMic));
        assert_eq!(reply.mechanism, Some(MS_KERBEROS));
        let denied = asking.process(&ask(b"\xa1\x02\x30\x00")).err();
        assert!(matches!(denied, Some(Cause::Sequence)), "{denied:?}");

        assert!(!is_offered(&spnego::encode_init(&[user_to_user], b"")));
        assert!(!is_offered(b"NTLMSSP\0"));
    }

    #[test]
    fn bent_tickets_are_denied_and_never_panic() {
        let keytab = include_bytes!("../../../tests/golden/kerberos/gateway.keytab");
        let keytab = Arc::new(Keytab::parse(keytab).unwrap());
        let ticket = include_bytes!("../../../tests/golden/kerberos/ap-req.bin");
        let init = spnego::encode_init(&[KERBEROS, MS_KERBEROS], ticket);
        for at in 0..init.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut token = init.clone();
                token[at] ^= mask;
                let mut acceptor = Acceptor::new(Arc::clone(&keytab), "visitor", b"key");
                let request = TsRequest {
                    nego_tokens: Some(token),
                    ..TsRequest::default()
                };
                if let Ok(step) = acceptor.process(&request) {
                    let AcceptorStep::Reply(reply) = step else {
                        panic!("let in");
                    };
                    assert!(reply.nego_tokens.is_some());
                }
            }
        }
    }
}
