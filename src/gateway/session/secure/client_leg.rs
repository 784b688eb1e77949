//! The client's leg: the answer to its Connection Request (step 2), TLS and its proof (step 3).

use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::error::{SecureError, SecureStep};
use super::request::{ClientTls, RdpOpening, SecureRequest};
use super::target_leg::Negotiated;
use super::transfer::{drain, fill, read_ts_request, within};
use crate::live::legs::LegAuthentication;
use jetway_io::clock;
use jetway_io::read_ahead::ReadAhead;
use jetway_metrics::{Leg, METRICS};
use jetway_rdp::connection_request::{
    self, NegotiationRequest, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX, PROTOCOL_SSL,
    REDIRECTED_AUTHENTICATION_MODE_REQUIRED, RESTRICTED_ADMIN_MODE_REQUIRED,
};
use jetway_rdp::credssp::server::{LogonServer, Progress as ServerProgress, account_restriction};
use jetway_rdp::credssp::{EarlyUserAuth, SubjectPublicKeyInfo};
use jetway_rdp::negotiation::ConnectionConfirm;

/// What the client will be told.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientSelection {
    requested: u32,
    selected: u32,
    /// Told no: it is answered and the connection ends.
    credential_less: bool,
}

impl ClientSelection {
    pub(super) fn of(
        opening: &RdpOpening,
        request: &SecureRequest<'_>,
    ) -> Result<Self, SecureError> {
        let to_prove = request.proxy_credentials.is_some();
        let RdpOpening::X224(connection_request) = opening else {
            if to_prove {
                return Err(SecureError::ClientWithoutNla);
            }
            return Ok(Self {
                requested: 0,
                selected: PROTOCOL_SSL,
                credential_less: false,
            });
        };
        let negotiation = connection_request.negotiation.unwrap_or_default();
        let credential_less = is_credential_less(negotiation);
        let nla = to_prove || credential_less;
        let selected = if nla && negotiation.offers(PROTOCOL_HYBRID_EX) {
            PROTOCOL_HYBRID_EX
        } else if nla && negotiation.offers(PROTOCOL_HYBRID) {
            PROTOCOL_HYBRID
        } else if to_prove {
            return Err(SecureError::ClientWithoutNla);
        } else if negotiation.offers(PROTOCOL_SSL) {
            PROTOCOL_SSL
        } else {
            return Err(SecureError::ClientWithoutTls);
        };
        Ok(Self {
            requested: negotiation.requested_protocols,
            selected,
            credential_less,
        })
    }
}

fn is_credential_less(negotiation: NegotiationRequest) -> bool {
    negotiation.has(RESTRICTED_ADMIN_MODE_REQUIRED)
        || negotiation.has(REDIRECTED_AUTHENTICATION_MODE_REQUIRED)
}

pub(super) struct ClientLeg<C> {
    pub(super) stream: Box<ClientTls<C>>,
    pub(super) read_ahead: Vec<u8>,
    pub(super) logon: LegAuthentication,
    pub(super) requested: u32,
    pub(super) selected: u32,
}

pub(super) async fn client_leg<C>(
    mut client: C,
    read_ahead: Vec<u8>,
    opening: RdpOpening,
    selection: ClientSelection,
    negotiated: &Negotiated,
    request: &SecureRequest<'_>,
) -> Result<ClientLeg<C>, SecureError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let deadline = request.deadline;
    let direct = matches!(opening, RdpOpening::DirectTls);
    if !direct {
        let confirm = ConnectionConfirm::Selected {
            flags: negotiated.flags,
            protocol: selection.selected,
        };
        let answer = confirm.encode();
        let answer = async {
            client.write_all(&answer).await?;
            client.flush().await
        };
        within(deadline, SecureStep::ClientNegotiation, answer).await?;
    }
    if selection.credential_less {
        // The answer lacks the flag that such a client asks for. Some say so and close; FreeRDP goes on, and says what
        // CredSSP answers.
        let stream = ReadAhead::new(read_ahead, client);
        let told = tell_credential_less(stream, request.server_tls, deadline);
        // Whether it listens or not, it ends here.
        let _ = timeout_at(deadline, told).await;
        return Err(SecureError::CredentialLess);
    }
    let (tls, chosen) = recording(request.server_tls);
    let accept = TlsAcceptor::from(tls).accept(ReadAhead::new(read_ahead, client));
    let began = clock::now();
    let mut stream = Box::new(within(deadline, SecureStep::ClientTls, accept).await?);
    METRICS.handshake(Leg::Client, clock::seconds_since(began));
    let mut read_ahead = Vec::new();
    let mut leg = selection;
    let mut logon = LegAuthentication::None;
    if direct {
        let begins = within(deadline, SecureStep::ClientNegotiation, async {
            fill(&mut *stream, &mut read_ahead).await?;
            Ok(read_ahead.first().copied())
        });
        if begins.await? == Some(DER_SEQUENCE) {
            return Err(SecureError::UnexpectedNla);
        }
    }
    if leg.selected != PROTOCOL_SSL {
        let proof = client_logon(
            &mut *stream,
            &mut read_ahead,
            leg.selected,
            &chosen,
            request,
        );
        let proof = timeout_at(deadline, proof).await;
        logon = proof.unwrap_or(Err(SecureError::TimedOut(SecureStep::ClientLogon)))?;
    }
    if direct {
        let negotiation = direct_negotiation(&mut *stream, &mut read_ahead, leg, negotiated);
        let negotiation = timeout_at(deadline, negotiation).await;
        leg.requested =
            negotiation.unwrap_or(Err(SecureError::TimedOut(SecureStep::ClientNegotiation)))?;
    }
    Ok(ClientLeg {
        stream,
        read_ahead,
        logon,
        requested: leg.requested,
        selected: leg.selected,
    })
}

/// X.224 inside TLS. Clients that leave it out begin with MCS at once, and are let.
async fn direct_negotiation<S>(
    stream: &mut S,
    read_ahead: &mut Vec<u8>,
    leg: ClientSelection,
    negotiated: &Negotiated,
) -> Result<u32, SecureError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = SecureStep::ClientNegotiation;
    let failed = |error| SecureError::Io { step, error };
    while read_ahead.len() < X224_CODE_AT.saturating_add(1) {
        fill(stream, read_ahead).await.map_err(failed)?;
    }
    if read_ahead.get(X224_CODE_AT) != Some(&X224_CONNECTION_REQUEST) {
        return Ok(leg.selected);
    }
    let (asked, consumed) = loop {
        match connection_request::decode(read_ahead) {
            Ok(Some(decoded)) => break decoded,
            Ok(None) => fill(stream, read_ahead).await.map_err(failed)?,
            Err(error) => {
                let problem = error.to_string();
                return Err(SecureError::Protocol { step, problem });
            }
        }
    };
    read_ahead.drain(..consumed);
    let confirm = match asked.negotiation {
        Some(_) => ConnectionConfirm::Selected {
            flags: negotiated.flags,
            protocol: leg.selected,
        },
        None => ConnectionConfirm::Plain,
    };
    stream.write_all(&confirm.encode()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let negotiation = asked.negotiation.unwrap_or_default();
    if is_credential_less(negotiation) {
        return Err(SecureError::CredentialLess);
    }
    Ok(negotiation.requested_protocols)
}

/// Goes on with a client that wants Restricted Admin or Remote Credential Guard until it can be told no in CredSSP.
async fn tell_credential_less<S>(
    stream: S,
    tls: &Arc<ServerConfig>,
    deadline: Instant,
) -> Result<(), SecureError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = SecureStep::ClientLogon;
    let failed = |error| SecureError::Io { step, error };
    let mut stream = TlsAcceptor::from(Arc::clone(tls))
        .accept(stream)
        .await
        .map_err(failed)?;
    let frame = read_ts_request(&mut stream, &mut Vec::new(), step).await?;
    let answer = account_restriction(&frame).map_err(SecureError::ClientDenied)?;
    stream.write_all(&answer).await.map_err(failed)?;
    stream.shutdown().await.map_err(failed)?;
    drain(&mut stream, deadline).await;
    Ok(())
}

async fn client_logon<S>(
    stream: &mut S,
    read_ahead: &mut Vec<u8>,
    selected: u32,
    chosen: &Recorded,
    request: &SecureRequest<'_>,
) -> Result<LegAuthentication, SecureError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let step = SecureStep::ClientLogon;
    let failed = |error| SecureError::Io { step, error };
    let credentials = request
        .proxy_credentials
        .ok_or(SecureError::UnexpectedNla)?;
    let certificate = chosen
        .end_entity()
        .ok_or_else(|| SecureError::Settings("the listener has no certificate".to_owned()))?;
    let info = SubjectPublicKeyInfo::of_certificate(&certificate)
        .map_err(|error| SecureError::Settings(error.to_string()))?;
    let mut logon = LogonServer::new(info.key, &credentials.username, &credentials.password)
        .with_kerberos(request.config.client_kerberos.as_ref());
    loop {
        let frame = read_ts_request(stream, read_ahead, step).await?;
        match logon.process(&frame) {
            Ok(ServerProgress::Reply(reply)) => {
                stream.write_all(&reply).await.map_err(failed)?;
                stream.flush().await.map_err(failed)?;
            }
            Ok(ServerProgress::Finished) => break,
            Err(denied) => {
                // Counted and delayed before anybody hears whether it was right.
                let error = match request.guesses {
                    Some(guesses) if denied.cause.is_guess() && !logon.uses_kerberos() => {
                        let guess = guesses.wrong_guess().await;
                        sleep(guess.delay).await;
                        if guess.is_last {
                            SecureError::Guessed(denied.cause)
                        } else {
                            SecureError::ClientDenied(denied.cause)
                        }
                    }
                    _ => SecureError::ClientDenied(denied.cause),
                };
                if let Some(reply) = denied.reply {
                    // It may be gone already; the cause matters, not this.
                    let _ = stream.write_all(&reply).await;
                    let _ = stream.shutdown().await;
                    drain(stream, request.deadline).await;
                }
                return Err(error);
            }
        }
    }
    if selected == PROTOCOL_HYBRID_EX {
        let result = EarlyUserAuth::Success.encode();
        stream.write_all(&result).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
    }
    Ok(if logon.uses_kerberos() {
        LegAuthentication::Kerberos
    } else {
        LegAuthentication::Ntlm
    })
}

/// The listener's TLS settings, with a note of the certificate they choose: CredSSP binds its key. Without resumption,
/// where the client would bind the key of an earlier certificate.
fn recording(tls: &Arc<ServerConfig>) -> (Arc<ServerConfig>, Arc<Recorded>) {
    let recorded = Arc::new(Recorded {
        inner: Arc::clone(&tls.cert_resolver),
        chosen: OnceLock::new(),
    });
    let mut config = ServerConfig::clone(tls);
    config.cert_resolver = Arc::<Recorded>::clone(&recorded);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    (Arc::new(config), recorded)
}

#[derive(Debug)]
struct Recorded {
    inner: Arc<dyn ResolvesServerCert>,
    chosen: OnceLock<Arc<CertifiedKey>>,
}

impl Recorded {
    fn end_entity(&self) -> Option<CertificateDer<'_>> {
        self.chosen.get()?.end_entity_cert().ok().cloned()
    }
}

impl ResolvesServerCert for Recorded {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let key = self.inner.resolve(client_hello)?;
        Some(Arc::clone(self.chosen.get_or_init(|| key)))
    }
}

/// Where X.224 says which TPDU it is, behind TPKT and LI.
const X224_CODE_AT: usize = 5;
const X224_CONNECTION_REQUEST: u8 = 0xe0;
/// How a `TSRequest` begins.
const DER_SEQUENCE: u8 = 0x30;
