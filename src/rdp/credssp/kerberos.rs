//! The client half of CredSSP with Kerberos: what [`client`](super::client) does where the operator configured it.
//!
//! Tickets come before the first word to the target, so where there is none the target has heard nothing and NTLM can
//! still be used. The ticket is one for the target's own key (`TERMSRV/host`), never user-to-user: targets that accept
//! user-to-user would first have to log on to the KDC themselves, and sspi then insists on a `mechListMIC` that FreeRDP
//! does not send. So CredSSP and SPNEGO are written out here; the Kerberos messages and their cryptography are sspi's.
//!
//! [MS-CSSP] 3.1.5. Only versions that bind the TLS key by a nonce are spoken (5 and later): before, an answer of the
//! client could be played back to it (CVE-2018-0886).
//!
//! [MS-CSSP]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-cssp/85f57821-40bb-46aa-bfcb-ba9590b8fc30

use sspi::credssp::{ClientState, CredSspMode, TsRequest, write_ts_credentials};
use sspi::generator::{Generator, GeneratorState, NetworkRequest, YieldPoint};
use sspi::{
    AuthIdentity, AuthIdentityBuffers, BufferType, ClientRequestFlags, CredentialsBuffers,
    DataRepresentation, Error, ErrorKind, Kerberos, KerberosConfig, SecurityBuffer, SecurityStatus,
    Sspi, SspiImpl,
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::krb_error::KrbError;
use super::spnego::{self, KERBEROS, MS_KERBEROS, NegState};
use super::wrap::{
    CLIENT_TO_SERVER, NONCE_BYTES, NONCE_VERSION, SERVER_TO_CLIENT, key_hash, open, seal,
};

/// What one step asks its KDC, and how it ends.
pub(super) type Work<'a> =
    Generator<'a, NetworkRequest, sspi::Result<Vec<u8>>, sspi::Result<ClientState>>;
type Network = YieldPoint<NetworkRequest, sspi::Result<Vec<u8>>>;

/// The client of one connection.
pub(super) struct Initiator {
    kerberos: Kerberos,
    /// For the KDC, until there is a ticket.
    credentials: Option<CredentialsBuffers>,
    /// For the target.
    delegated: Option<CredentialsBuffers>,
    service: String,
    public_key: Vec<u8>,
    nonce: [u8; NONCE_BYTES],
    state: InitiatorState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InitiatorState {
    /// Nothing was said.
    Initial,
    /// AP-REQ was sent.
    Ticket,
    /// The client's hash of the key was sent.
    Binding,
    /// The credentials were sent, or something failed.
    Over,
}

impl Initiator {
    /// A client that asks for a ticket for `service` as `principal`, and gives the target `delegated`.
    pub(super) fn new(
        config: KerberosConfig,
        principal: AuthIdentityBuffers,
        delegated: AuthIdentity,
        service: String,
        public_key: &[u8],
    ) -> sspi::Result<Self> {
        let mut nonce = [0; NONCE_BYTES];
        openssl::rand::rand_bytes(&mut nonce)
            .map_err(|error| Error::new(ErrorKind::InternalError, error))?;
        Ok(Self {
            kerberos: Kerberos::new_client_from_config(config)?,
            credentials: Some(CredentialsBuffers::AuthIdentity(principal)),
            delegated: Some(CredentialsBuffers::AuthIdentity(delegated.into())),
            service,
            public_key: public_key.to_vec(),
            nonce,
            state: InitiatorState::Initial,
        })
    }

    /// Begins the work on one `TSRequest` of the target; on an empty one, for the first message.
    pub(super) fn process(&mut self, request: TsRequest) -> Work<'_> {
        Generator::new(move |mut network| async move {
            let state = std::mem::replace(&mut self.state, InitiatorState::Over);
            request.check_error()?;
            if state != InitiatorState::Initial && request.version < NONCE_VERSION {
                let version = request.version;
                return Err(not_taken(format!(
                    "it speaks CredSSP {version}, and {NONCE_VERSION} is the least that is safe"
                )));
            }
            match state {
                InitiatorState::Initial => self.show_ticket(&mut network).await,
                InitiatorState::Ticket => self.bind(&mut network, request).await,
                InitiatorState::Binding => self.delegate(request),
                InitiatorState::Over => Err(out_of_sequence()),
            }
        })
    }

    async fn show_ticket(&mut self, network: &mut Network) -> sspi::Result<ClientState> {
        let (status, ticket) = self.context(network, Vec::new()).await?;
        if status != SecurityStatus::ContinueNeeded {
            return Err(out_of_sequence());
        }
        self.state = InitiatorState::Ticket;
        Ok(ClientState::ReplyNeeded(TsRequest {
            nego_tokens: Some(spnego::encode_init(&[KERBEROS, MS_KERBEROS], &ticket)),
            ..TsRequest::default()
        }))
    }

    /// Takes AP-REP, which proves that the target has the key of the service, and binds the TLS key.
    async fn bind(
        &mut self,
        network: &mut Network,
        request: TsRequest,
    ) -> sspi::Result<ClientState> {
        let answer = request.nego_tokens.unwrap_or_default();
        if answer.is_empty() {
            return Err(not_taken("it does not say why"));
        }
        let answer = spnego::decode_response(&answer)
            .ok_or_else(|| not_taken("its answer is no NegTokenResp"))?;
        let token = answer.token.unwrap_or_default();
        if let Some(error) = KrbError::of_token(token) {
            return Err(not_taken(error));
        }
        let is_other = |mechanism| mechanism != KERBEROS && mechanism != MS_KERBEROS;
        if answer.state == Some(NegState::Reject) || answer.mechanism.is_some_and(is_other) {
            return Err(not_taken("it does not speak Kerberos"));
        }
        if token.is_empty() {
            return Err(not_taken("it proves nothing"));
        }
        let (status, _) = self.context(network, token.to_vec()).await?;
        if status != SecurityStatus::Ok {
            return Err(out_of_sequence());
        }
        if answer.state != Some(NegState::Completed) {
            return Err(not_taken("it wants more"));
        }
        let proof = key_hash(CLIENT_TO_SERVER, &self.nonce, &self.public_key);
        let proof = seal(&mut self.kerberos, &proof)?;
        self.state = InitiatorState::Binding;
        Ok(ClientState::ReplyNeeded(TsRequest {
            pub_key_auth: Some(proof),
            client_nonce: Some(self.nonce),
            ..TsRequest::default()
        }))
    }

    /// Gives the credentials to a target that sees the same TLS key.
    fn delegate(&mut self, request: TsRequest) -> sspi::Result<ClientState> {
        let proof = request.pub_key_auth.unwrap_or_default();
        let proof = open(&mut self.kerberos, &proof)?;
        let expected = key_hash(SERVER_TO_CLIENT, &self.nonce, &self.public_key);
        if !bool::from(proof.ct_eq(&expected)) {
            return Err(Error::new(ErrorKind::MessageAltered, "another TLS key"));
        }
        let credentials = self.delegated.take().ok_or_else(out_of_sequence)?;
        let credentials = write_ts_credentials(&credentials, CredSspMode::WithCredentials)?;
        let credentials = Zeroizing::new(credentials);
        let auth_info = seal(&mut self.kerberos, &credentials)?;
        Ok(ClientState::FinalMessage(TsRequest {
            auth_info: Some(auth_info),
            ..TsRequest::default()
        }))
    }

    /// One step of the security context.
    async fn context(
        &mut self,
        network: &mut Network,
        token: Vec<u8>,
    ) -> sspi::Result<(SecurityStatus, Vec<u8>)> {
        let credentials = &mut self.credentials;
        let mut input = [SecurityBuffer::new(token, BufferType::Token)];
        let mut output = [SecurityBuffer::new(Vec::new(), BufferType::Token)];
        let status = {
            let mut builder = self
                .kerberos
                .initialize_security_context()
                .with_credentials_handle(credentials)
                .with_context_requirements(REQUIREMENTS)
                .with_target_data_representation(DataRepresentation::Native)
                .with_target_name(&self.service)
                .with_input(&mut input)
                .with_output(&mut output);
            let mut step = self
                .kerberos
                .initialize_security_context_impl(&mut builder)?;
            let mut progress = step.start();
            loop {
                match progress {
                    GeneratorState::Suspended(question) => {
                        progress = step.resume(network.suspend(question).await);
                    }
                    GeneratorState::Completed(done) => break done?.status,
                }
            }
        };
        let [output] = output;
        Ok((status, output.buffer))
    }
}

fn out_of_sequence() -> Error {
    Error::new(ErrorKind::OutOfSequence, "no message is due")
}

fn not_taken(why: impl ToString) -> Error {
    Error::new(TICKET_NOT_TAKEN, why)
}

/// The target does not take the ticket; sspi has no use for this kind.
pub(super) const TICKET_NOT_TAKEN: ErrorKind = ErrorKind::MutualAuthFailed;

/// What mstsc demands, less user-to-user.
const REQUIREMENTS: ClientRequestFlags = ClientRequestFlags::MUTUAL_AUTH
    .union(ClientRequestFlags::REPLAY_DETECT)
    .union(ClientRequestFlags::SEQUENCE_DETECT)
    .union(ClientRequestFlags::CONFIDENTIALITY)
    .union(ClientRequestFlags::INTEGRITY);

#[cfg(test)]
mod tests {
    use sspi::Username;

    use super::*;

    fn initiator() -> Initiator {
        let identity = AuthIdentity {
            username: Username::parse("alice").unwrap(),
            password: "Secret-1".to_owned().into(),
        };
        let config = KerberosConfig::new_with_kdc_url("tcp://kdc.test:88", "HERE".to_owned());
        let service = "TERMSRV/target.test".to_owned();
        Initiator::new(config, identity.clone().into(), identity, service, b"key").unwrap()
    }

    #[test]
    fn a_target_that_does_not_take_the_ticket_says_so() {
        let answer = |version: u32, token: &[u8]| TsRequest {
            version,
            nego_tokens: Some(token.to_vec()),
            ..TsRequest::default()
        };
        for (request, expected) in [
            (
                answer(4, b""),
                "it speaks CredSSP 4, and 5 is the least that is safe",
            ),
            (answer(6, b""), "it does not say why"),
            (answer(6, b"NTLMSSP\0"), "its answer is no NegTokenResp"),
            (
                answer(6, b"\xa1\x07\x30\x05\xa0\x03\x0a\x01\x02"),
                "it does not speak Kerberos",
            ),
            (
                answer(
                    6,
                    b"\xa1\x10\x30\x0e\xa1\x0c\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x0a",
                ),
                "it does not speak Kerberos",
            ),
            (
                answer(6, b"\xa1\x07\x30\x05\xa0\x03\x0a\x01\x00"),
                "it proves nothing",
            ),
        ] {
            let mut client = initiator();
            client.state = InitiatorState::Ticket;
            let GeneratorState::Completed(Err(error)) = client.process(request).start() else {
                panic!("it goes on");
            };
            assert_eq!(error.error_type, TICKET_NOT_TAKEN);
            assert_eq!(error.description, expected);
            // It stays failed.
            let GeneratorState::Completed(Err(error)) = client.process(answer(6, b"")).start()
            else {
                panic!("it goes on");
            };
            assert_eq!(error.error_type, ErrorKind::OutOfSequence);
        }
    }
}
