//! Both legs with clients and targets of this process.

use std::sync::Arc;
use std::time::Duration;

use jetway_lab::certificate::Identity;
use jetway_lab::tls::server_config;
use jetway_lab::wait::PATIENCE;
use secrecy::SecretString;
use tokio::io::{DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::error::{Class, SecureStep};
use super::transfer::{fill, read_ts_request};
use super::*;
use crate::trust::target_certificate::Stakes;
use crate::trust::target_logon::{SecureConfig, TargetKerberos};
use crate::upstream::kdc::KdcSource;
use jetway_rdp::connection_request::{
    self, ConnectionRequest, NegotiationRequest, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX, PROTOCOL_SSL,
    REDIRECTED_AUTHENTICATION_MODE_REQUIRED, RESTRICTED_ADMIN_MODE_REQUIRED,
};
use jetway_rdp::credssp::cause::Cause;
use jetway_rdp::credssp::client::{LogonClient, LogonError, Package, Progress};
use jetway_rdp::credssp::server::{LogonServer, Progress as ServerProgress};
use jetway_rdp::credssp::{EarlyUserAuth, SubjectPublicKeyInfo};
use jetway_rdp::negotiation::{ConnectionConfirm, FailureCode, decode_confirm};
use jetway_token::claims::Credentials;
use jetway_token::target::TargetAddr;

const USER: &str = "alice";
const PASSWORD: &str = "Target-Secret-1";
const PROXY_PASSWORD: &str = "Proxy-Secret-1";

fn credentials(username: &str, password: &str) -> Credentials {
    Credentials {
        username: username.to_owned(),
        password: SecretString::from(password.to_owned()),
    }
}

/// Server settings, and the key that CredSSP binds.
fn identity(name: &str) -> (Arc<ServerConfig>, Vec<u8>) {
    let identity = Identity::self_signed(&[name]);
    let info = SubjectPublicKeyInfo::of_certificate(identity.certificate()).unwrap();
    (server_config(&identity), info.key.to_vec())
}

/// A target of one connection, in this process.
#[derive(Clone)]
struct FakeTarget {
    confirm: ConnectionConfirm,
    behind_confirm: &'static [u8],
    password: &'static str,
    /// Binds another key than its TLS has: somebody is between.
    intercepted: bool,
    /// Sent instead of every `TSRequest`.
    answer: Option<Vec<u8>>,
    early: Option<[u8; 4]>,
    /// Sent behind the last message.
    behind: &'static [u8],
}

impl FakeTarget {
    fn selecting(protocol: u32) -> Self {
        let flags = 0x1f;
        Self {
            confirm: ConnectionConfirm::Selected { flags, protocol },
            behind_confirm: b"",
            password: PASSWORD,
            intercepted: false,
            answer: None,
            early: Some(EarlyUserAuth::Success.encode()),
            behind: b"",
        }
    }

    /// What it heard first: the Connection Request; and whether it heard more.
    async fn serve(self, listener: TcpListener) -> (ConnectionRequest, bool) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let asked = loop {
            match connection_request::decode(&bytes).unwrap() {
                Some((asked, _)) => break asked,
                None => fill(&mut stream, &mut bytes).await.unwrap(),
            }
        };
        let mut answer = self.confirm.encode();
        answer.extend(self.behind_confirm);
        stream.write_all(&answer).await.unwrap();
        let mut first = [0];
        let heard_more = stream.peek(&mut first).await.unwrap_or(0) > 0;
        if heard_more {
            // The other side may rightly give up at any point.
            let _ = self.go_on(stream).await;
        }
        (asked, heard_more)
    }

    async fn go_on(self, stream: TcpStream) -> Result<(), SecureError> {
        let step = SecureStep::TargetLogon;
        let failed = |error| SecureError::Io { step, error };
        let (tls, mut public_key) = identity("target.test");
        let mut stream = TlsAcceptor::from(tls)
            .accept(stream)
            .await
            .map_err(failed)?;
        let ConnectionConfirm::Selected { protocol, .. } = self.confirm else {
            return Ok(());
        };
        if protocol != PROTOCOL_SSL {
            if self.intercepted {
                public_key[10] ^= 1;
            }
            let password = SecretString::from(self.password);
            let mut logon = LogonServer::new(&public_key, USER, &password);
            let mut read_ahead = Vec::new();
            loop {
                let frame = read_ts_request(&mut stream, &mut read_ahead, step).await?;
                let reply = match (&self.answer, logon.process(&frame)) {
                    (Some(answer), _) => answer.clone(),
                    (None, Ok(ServerProgress::Reply(reply))) => reply,
                    (None, Ok(ServerProgress::Finished)) => break,
                    (None, Err(denied)) => denied.reply.unwrap_or_default(),
                };
                stream.write_all(&reply).await.map_err(failed)?;
            }
        }
        let mut last = Vec::new();
        if protocol == PROTOCOL_HYBRID_EX {
            last.extend(self.early.unwrap_or_default());
        }
        last.extend(self.behind);
        stream.write_all(&last).await.map_err(failed)?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.map_err(failed)?;
        Ok(())
    }
}

/// A client of one connection, in this process.
#[derive(Clone)]
struct FakeClient {
    offers: Option<u32>,
    flags: u8,
    direct: bool,
    nla: bool,
    password: &'static str,
    /// Overlooks that the answer lacks the flag it asked for.
    goes_on: bool,
    /// Sent behind its last message, in the same write.
    behind: &'static [u8],
}

impl FakeClient {
    fn offering(offers: u32) -> Self {
        Self {
            offers: Some(offers),
            flags: 0,
            direct: false,
            nla: offers & (PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX) != 0,
            password: PROXY_PASSWORD,
            goes_on: false,
            behind: b"\x03\x00connect initial",
        }
    }

    fn request(&self) -> ConnectionRequest {
        let (flags, offers) = (self.flags, self.offers);
        ConnectionRequest {
            negotiation: offers.map(|requested_protocols| NegotiationRequest {
                flags,
                requested_protocols,
            }),
            ..ConnectionRequest::default()
        }
    }

    async fn go(self, mut stream: DuplexStream) -> Result<Option<ConnectionConfirm>, SecureError> {
        let step = SecureStep::ClientLogon;
        let failed = |error| SecureError::Io { step, error };
        let mut confirm = None;
        if !self.direct {
            let mut bytes = Vec::new();
            confirm = loop {
                match decode_confirm(&bytes).unwrap() {
                    Some((confirm, _)) => break Some(confirm),
                    None => fill(&mut stream, &mut bytes).await.map_err(failed)?,
                }
            };
            if self.flags != 0 && !self.goes_on {
                return Ok(confirm);
            }
        }
        let verifier = TargetCertificate::AcceptAny
            .verifier(&"gateway.test:1".parse().unwrap(), Stakes::Nothing)
            .unwrap();
        let config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let mut stream = TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("gateway.test").unwrap(), stream)
            .await
            .map_err(failed)?;
        let mut read_ahead = Vec::new();
        let selected = match confirm {
            Some(ConnectionConfirm::Selected { protocol, .. }) => protocol,
            _ if self.nla => PROTOCOL_HYBRID,
            _ => PROTOCOL_SSL,
        };
        let mut last_words = Vec::new();
        if selected != PROTOCOL_SSL {
            let certificates = stream.get_ref().1.peer_certificates().unwrap().to_vec();
            let info = SubjectPublicKeyInfo::of_certificate(&certificates[0]).unwrap();
            let password = SecretString::from(self.password);
            let mut logon =
                LogonClient::new(info.key, "proxy", &password, "gateway.test", Package::Ntlm)
                    .unwrap();
            let mut frame: Option<Vec<u8>> = None;
            loop {
                let progress = logon
                    .exchange(frame.as_deref())
                    .and_then(|mut exchange| exchange.start());
                if let (true, Err(LogonError::Status(0xc000_006e))) = (self.goes_on, &progress) {
                    return Ok(confirm);
                }
                let progress = progress.map_err(SecureError::TargetLogon)?;
                let Progress::Send {
                    frame: answer,
                    last,
                } = progress
                else {
                    panic!("NTLM asks nobody");
                };
                if last {
                    last_words = answer.to_vec();
                    break;
                }
                stream.write_all(&answer).await.map_err(failed)?;
                frame = Some(read_ts_request(&mut stream, &mut read_ahead, step).await?);
            }
        }
        if self.direct && self.offers.is_some() {
            last_words.extend(self.request().encode().unwrap());
        }
        last_words.extend(self.behind);
        stream.write_all(&last_words).await.map_err(failed)?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.map_err(failed)?;
        if selected == PROTOCOL_HYBRID_EX {
            assert!(rest.starts_with(&EarlyUserAuth::Success.encode()));
        }
        Ok(confirm)
    }
}

type Ended = Result<Secured<DuplexStream>, Box<Failed<DuplexStream>>>;

struct Lab {
    client: FakeClient,
    target: FakeTarget,
    config: SecureConfig,
    proxy: Option<Credentials>,
    patience: Duration,
    host: &'static str,
}

impl Lab {
    /// A client that offers NLA is to prove itself.
    fn new(client: FakeClient, target: FakeTarget) -> Self {
        let proxy = client.nla.then(|| credentials("proxy", PROXY_PASSWORD));
        Self {
            client,
            target,
            config: SecureConfig {
                target_certificate: TargetCertificate::AcceptAny,
                kerberos: None,
                client_kerberos: None,
            },
            proxy,
            patience: PATIENCE,
            host: "target.test",
        }
    }

    /// What became of it, what the client was answered, and what the target heard.
    async fn run(&self) -> (Ended, Option<ConnectionConfirm>, ConnectionRequest, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = tokio::spawn(self.target.clone().serve(listener));
        let (near, far) = duplex(64 * 1024);
        let client = tokio::spawn(self.client.clone().go(far));
        let opening = if self.client.direct {
            RdpOpening::DirectTls
        } else {
            RdpOpening::X224(self.client.request())
        };
        let (tls, _) = identity("gateway.test");
        let (config, proxy) = (self.config.clone(), self.proxy.clone());
        let (host, deadline) = (self.host, Instant::now() + self.patience);
        // A task, so that it must be able to move between threads.
        let ended = tokio::spawn(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let dst = credentials(USER, PASSWORD);
            let request = SecureRequest {
                config: &config,
                server_tls: &tls,
                target: &TargetName::Dialled(TargetAddr {
                    host: host.to_owned(),
                    port: 3389,
                }),
                target_credentials: Some(&dst),
                proxy_credentials: proxy.as_ref(),
                guesses: None,
                certificate_pin: None,
                routing_token: None,
                deadline,
            };
            secure(near, Vec::new(), opening, stream, &request).await
        });
        let mut ended = ended.await.unwrap();
        let answered = match &mut ended {
            Ok(secured) => {
                secured.client.shutdown().await.unwrap();
                secured.target.shutdown().await.unwrap();
                client.await.unwrap().unwrap()
            }
            Err(failed) => {
                failed.client = Remaining::Gone;
                client.await.unwrap().ok().flatten()
            }
        };
        let (asked, heard_more) = target.await.unwrap();
        (ended, answered, asked, heard_more)
    }

    async fn secured(&self) -> Secured<DuplexStream> {
        self.run().await.0.map_err(|failed| failed.error).unwrap()
    }

    async fn error(&self) -> SecureError {
        self.run().await.0.expect_err("it fails").error
    }
}

#[tokio::test]
async fn all_combinations_of_legs_are_secured() {
    for offers in [
        PROTOCOL_SSL,
        PROTOCOL_SSL | PROTOCOL_HYBRID,
        PROTOCOL_SSL | PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX,
    ] {
        for selected in [PROTOCOL_SSL, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX] {
            let lab = Lab::new(
                FakeClient::offering(offers),
                FakeTarget {
                    behind: b"pipelined",
                    ..FakeTarget::selecting(selected)
                },
            );
            let (secured, answered, asked, _) = lab.run().await;
            let secured = secured.map_err(|failed| failed.error).unwrap();
            let legs = &secured.legs;
            assert_eq!(legs.client_requested, offers);
            // The best that the client offers.
            assert_eq!(legs.client_selected, 1 << offers.ilog2());
            assert_eq!(legs.target_selected, selected);
            assert_eq!(
                legs.target_requested,
                asked.negotiation.unwrap().requested_protocols
            );
            assert_eq!(legs.client_tls.version, "TLSv1_3");
            assert_eq!(asked.mstshash.as_deref(), Some(USER));
            assert_eq!(asked.negotiation.unwrap().flags, 0);
            // Neither Restricted Admin nor Remote Credential Guard, whatever the target says.
            let expected = ConnectionConfirm::Selected {
                flags: 0x03,
                protocol: legs.client_selected,
            };
            assert_eq!(answered, Some(expected));
        }
    }
}

#[tokio::test]
async fn what_was_sent_behind_the_last_message_is_handed_on() {
    let lab = Lab::new(
        FakeClient::offering(PROTOCOL_SSL | PROTOCOL_HYBRID),
        FakeTarget {
            behind: b"pipelined",
            ..FakeTarget::selecting(PROTOCOL_HYBRID_EX)
        },
    );
    let secured = lab.secured().await;
    assert_eq!(secured.client_read_ahead, lab.client.behind);
    assert_eq!(secured.target_read_ahead, lab.target.behind);
}

#[tokio::test]
async fn without_a_proxy_credential_the_client_leg_is_tls() {
    let client = FakeClient::offering(PROTOCOL_SSL | PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX);
    let mut lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
    lab.proxy = None;
    assert_eq!(lab.secured().await.legs.client_selected, PROTOCOL_SSL);

    lab.client = FakeClient::offering(PROTOCOL_HYBRID);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, _far) = duplex(1024);
    let (tls, _) = identity("gateway.test");
    let request = SecureRequest {
        config: &lab.config,
        server_tls: &tls,
        target: &"target.test:3389".parse().unwrap(),
        target_credentials: None,
        proxy_credentials: None,
        guesses: None,
        certificate_pin: None,
        routing_token: None,
        deadline: Instant::now() + PATIENCE,
    };
    let stream = TcpStream::connect(address).await.unwrap();
    let opening = RdpOpening::X224(lab.client.request());
    let failed = secure(near, Vec::new(), opening, stream, &request).await;
    let failed = failed.expect_err("the client offers no TLS");
    assert!(matches!(failed.error, SecureError::ClientWithoutTls));
    assert_eq!(failed.error.failure_code(), FailureCode::SslRequired);
    assert!(matches!(failed.client, Remaining::Unanswered { .. }));
}

/// `requestedProtocols` of a client that wants RDSTLS and TLS.
const RDSTLS: u32 = 0x4;

#[tokio::test]
async fn the_target_hears_nothing_of_a_client_that_cannot_prove_itself() {
    let tls = |offers| {
        RdpOpening::X224(
            FakeClient {
                offers,
                ..FakeClient::offering(0)
            }
            .request(),
        )
    };
    for opening in [
        tls(Some(PROTOCOL_SSL)),
        tls(Some(PROTOCOL_SSL | RDSTLS)),
        tls(Some(RDSTLS)),
        tls(Some(0)),
        tls(None),
        RdpOpening::DirectTls,
    ] {
        let config = Lab::new(FakeClient::offering(0), FakeTarget::selecting(0)).config;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, _far) = duplex(1024);
        let (tls, _) = identity("gateway.test");
        let (dst, proxy) = (
            credentials(USER, PASSWORD),
            credentials("proxy", PROXY_PASSWORD),
        );
        let request = SecureRequest {
            config: &config,
            server_tls: &tls,
            target: &"target.test:3389".parse().unwrap(),
            target_credentials: Some(&dst),
            proxy_credentials: Some(&proxy),
            guesses: None,
            certificate_pin: None,
            routing_token: None,
            deadline: Instant::now() + PATIENCE,
        };
        let stream = TcpStream::connect(address).await.unwrap();
        let text = format!("{opening:?}");
        let failed = secure(near, Vec::new(), opening, stream, &request).await;
        let failed = failed.expect_err(&text);
        assert!(
            matches!(failed.error, SecureError::ClientWithoutNla),
            "{text}"
        );
        assert_eq!(failed.error.failure_code(), FailureCode::HybridRequired);
        assert!(matches!(failed.client, Remaining::Unanswered { .. }));
        let (mut target, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        target.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"", "{text}");
    }
}

#[tokio::test]
async fn the_target_hears_nothing_of_a_client_that_does_not_prove_itself() {
    let client = FakeClient {
        password: "Wrong-1",
        ..FakeClient::offering(PROTOCOL_SSL | PROTOCOL_HYBRID)
    };
    let lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
    let (ended, _, _, heard_more) = lab.run().await;
    let error = ended.expect_err("denied").error;
    assert!(
        matches!(error, SecureError::ClientDenied(Cause::WrongCredentials)),
        "{error}"
    );
    assert_eq!(error.class(), Class::ClientLeg);
    assert!(!heard_more);
}

#[tokio::test]
async fn a_client_that_brings_no_credentials_is_told_and_ends() {
    for (flags, goes_on) in [
        (RESTRICTED_ADMIN_MODE_REQUIRED, false),
        (RESTRICTED_ADMIN_MODE_REQUIRED, true),
        (REDIRECTED_AUTHENTICATION_MODE_REQUIRED, false),
        (REDIRECTED_AUTHENTICATION_MODE_REQUIRED, true),
    ] {
        let client = FakeClient {
            flags,
            goes_on,
            ..FakeClient::offering(PROTOCOL_SSL | PROTOCOL_HYBRID)
        };
        let mut lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
        lab.proxy = None;
        let (ended, answered, _, heard_more) = lab.run().await;
        let error = ended.expect_err("refused").error;
        assert!(matches!(error, SecureError::CredentialLess), "{error}");
        let expected = ConnectionConfirm::Selected {
            flags: 0x03,
            protocol: PROTOCOL_HYBRID,
        };
        assert_eq!(answered, Some(expected));
        assert!(!heard_more);
    }
}

#[tokio::test]
async fn failures_of_the_target_are_told_apart() {
    let hybrid = || FakeTarget::selecting(PROTOCOL_HYBRID);
    let extended = || FakeTarget::selecting(PROTOCOL_HYBRID_EX);
    let failure = |code: FailureCode| FakeTarget {
        confirm: ConnectionConfirm::Failure { code: code.code() },
        ..hybrid()
    };
    let oversized = b"\x30\x82\xff\xff".to_vec();
    let cases = [
        (
            FakeTarget {
                password: "Other-1",
                ..hybrid()
            },
            Class::WrongCredentials,
        ),
        (
            FakeTarget {
                intercepted: true,
                ..hybrid()
            },
            Class::WrongCredentials, // the interceptor, too, says LOGON_FAILURE
        ),
        (
            FakeTarget {
                early: Some([5, 0, 0, 0]),
                ..extended()
            },
            Class::AccountRestricted,
        ),
        (
            FakeTarget {
                early: Some([9, 9, 9, 9]),
                ..extended()
            },
            Class::Target,
        ),
        (
            FakeTarget {
                answer: Some(oversized),
                ..hybrid()
            },
            Class::Target,
        ),
        (
            FakeTarget {
                answer: Some(b"\x16\x03".to_vec()),
                ..hybrid()
            },
            Class::Target,
        ),
        (
            FakeTarget {
                answer: Some(b"\x30\x00".to_vec()),
                ..hybrid()
            },
            Class::Target,
        ),
        (
            FakeTarget {
                confirm: ConnectionConfirm::Plain,
                ..hybrid()
            },
            Class::StandardSecurityOnly,
        ),
        (FakeTarget::selecting(0), Class::StandardSecurityOnly),
        (
            failure(FailureCode::SslNotAllowed),
            Class::StandardSecurityOnly,
        ),
        (
            failure(FailureCode::SslCertNotOnServer),
            Class::StandardSecurityOnly,
        ),
        (
            failure(FailureCode::HybridRequired),
            Class::StandardSecurityOnly,
        ),
        (FakeTarget::selecting(4), Class::Target),
        (FakeTarget::selecting(3), Class::Target),
        (
            FakeTarget {
                behind_confirm: b"\x03",
                ..hybrid()
            },
            Class::Target,
        ),
    ];
    for (number, (target, class)) in cases.into_iter().enumerate() {
        let lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
        let error = lab.error().await;
        assert_eq!(error.class(), class, "{number}: {error}");
        assert!(!error.to_string().contains(PASSWORD));
    }
}

/// [MS-ERREF] 2.3.1: what a target says in `errorCode` of its `TSRequest`.
#[tokio::test]
async fn the_status_of_the_target_is_understood() {
    use Class::{AccountLocked, AccountRestricted, KdcUnreachable, Target, WrongCredentials};
    for (status, class, name) in [
        (
            0xc000_006d_u32,
            WrongCredentials,
            "STATUS_LOGON_FAILURE (0xC000006D)",
        ),
        (
            0xc000_006a,
            WrongCredentials,
            "STATUS_WRONG_PASSWORD (0xC000006A)",
        ),
        (
            0x8009_030c,
            WrongCredentials,
            "SEC_E_LOGON_DENIED (0x8009030C)",
        ),
        (
            0xc000_0234,
            AccountLocked,
            "STATUS_ACCOUNT_LOCKED_OUT (0xC0000234)",
        ),
        (
            0xc000_0072,
            AccountRestricted,
            "STATUS_ACCOUNT_DISABLED (0xC0000072)",
        ),
        (
            0xc000_0193,
            AccountRestricted,
            "STATUS_ACCOUNT_EXPIRED (0xC0000193)",
        ),
        (
            0xc000_0071,
            AccountRestricted,
            "STATUS_PASSWORD_EXPIRED (0xC0000071)",
        ),
        (
            0xc000_0224,
            AccountRestricted,
            "STATUS_PASSWORD_MUST_CHANGE (0xC0000224)",
        ),
        (
            0xc000_005e,
            KdcUnreachable,
            "STATUS_NO_LOGON_SERVERS (0xC000005E)",
        ),
        (0xc000_0001, Target, "STATUS_UNSUCCESSFUL (0xC0000001)"),
        (0xc000_1234, Target, "status 0xC0001234"),
        // Of FreeRDP 3 where the password is wrong.
        (0xc007_00ea, WrongCredentials, "ERROR_MORE_DATA"),
        (0xc007_0775, AccountLocked, "ERROR_ACCOUNT_LOCKED_OUT"),
        (0xc007_0533, AccountRestricted, "ERROR_ACCOUNT_DISABLED"),
        (0xc007_051f, KdcUnreachable, "ERROR_NO_LOGON_SERVERS"),
    ] {
        let mut answer = b"\x30\x0d\xa0\x03\x02\x01\x06\xa4\x06\x02\x04".to_vec();
        answer.extend(status.to_be_bytes());
        let target = FakeTarget {
            answer: Some(answer),
            ..FakeTarget::selecting(PROTOCOL_HYBRID)
        };
        let lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
        let error = lab.error().await;
        assert_eq!(error.class(), class, "{status:#x}: {error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_client_may_begin_with_tls() {
    for offers in [Some(PROTOCOL_SSL), Some(PROTOCOL_HYBRID), None] {
        let client = FakeClient {
            direct: true,
            offers,
            behind: b"\x03\x00\x00\x0a\x02\xf0\x80connect initial",
            ..FakeClient::offering(PROTOCOL_SSL)
        };
        let lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
        let secured = lab.secured().await;
        let legs = &secured.legs;
        assert_eq!(legs.client_selected, PROTOCOL_SSL);
        assert_eq!(legs.client_requested, offers.unwrap_or(PROTOCOL_SSL));
        assert_eq!(secured.client_read_ahead, lab.client.behind);
    }
    let client = FakeClient {
        direct: true,
        nla: true,
        ..FakeClient::offering(PROTOCOL_SSL)
    };
    let mut lab = Lab::new(client, FakeTarget::selecting(PROTOCOL_HYBRID));
    lab.proxy = None;
    let error = lab.error().await;
    assert!(matches!(error, SecureError::UnexpectedNla), "{error}");
}

#[tokio::test]
async fn every_wait_ends_at_the_deadline() {
    let patience = Duration::from_millis(300);
    let config = SecureConfig {
        target_certificate: TargetCertificate::AcceptAny,
        kerberos: None,
        client_kerberos: None,
    };
    let (tls, _) = identity("gateway.test");
    let dst = credentials(USER, PASSWORD);
    // A target that says nothing; a client that says nothing.
    for (silent_target, step) in [
        (true, SecureStep::TargetNegotiation),
        (false, SecureStep::ClientTls),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let silent = if silent_target {
            Some(listener)
        } else {
            tokio::spawn(FakeTarget::selecting(PROTOCOL_SSL).serve(listener));
            None
        };
        let request = SecureRequest {
            config: &config,
            server_tls: &tls,
            target: &"target.test:3389".parse().unwrap(),
            target_credentials: Some(&dst),
            proxy_credentials: None,
            guesses: None,
            certificate_pin: None,
            routing_token: None,
            deadline: Instant::now() + patience,
        };
        let (near, _far) = duplex(1024);
        let opening = RdpOpening::X224(FakeClient::offering(PROTOCOL_SSL).request());
        let failed = secure(near, Vec::new(), opening, stream, &request).await;
        let error = failed.expect_err("somebody is silent").error;
        assert!(
            matches!(&error, SecureError::TimedOut(at) if *at == step),
            "{error}"
        );
        drop(silent);
    }
}

/// A KDC that knows one answer.
async fn kdc(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut header = [0; 4];
            stream.read_exact(&mut header).await.unwrap();
            let length = u32::from_be_bytes(header).try_into().unwrap();
            let mut question = vec![0; length];
            stream.read_exact(&mut question).await.unwrap();
            assert_eq!(question[0], 0x6a, "AS-REQ");
            stream.write_all(answer).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn what_the_kdc_says_is_understood() {
    // KRB-ERROR: pvno, msg-type, stime, susec, error-code, realm, sname.
    const UNKNOWN: &[u8] =
        b"\x00\x00\x00\x44\x7e\x42\x30\x40\xa0\x03\x02\x01\x05\xa1\x03\x02\x01\x1e\
\xa4\x11\x18\x0f20261121120000Z\xa5\x03\x02\x01\x00\xa6\x03\x02\x01\x06\
\xa9\x06\x1b\x04CORP\xaa\x0f\x30\x0d\xa0\x03\x02\x01\x01\xa1\x06\x30\x04\x1b\x02kd";
    const HUGE: &[u8] = b"\xff\xff\xff\xff";
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let cases = [
        (vec![closed.clone()], Class::KdcUnreachable),
        (vec![kdc(HUGE).await], Class::KdcUnreachable),
        (vec![kdc(b"").await], Class::KdcUnreachable),
        (vec![closed, kdc(UNKNOWN).await], Class::WrongCredentials),
    ];
    for (kdcs, class) in cases {
        let target = FakeTarget::selecting(PROTOCOL_HYBRID);
        let mut lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
        lab.config.kerberos = Some(TargetKerberos {
            kdcs: KdcSource::Listed(kdcs),
            realm: Some("CORP".to_owned()),
            ntlm_fallback: false,
        });
        let error = lab.error().await;
        assert_eq!(error.class(), class, "{error}");
    }
}

#[tokio::test]
async fn ntlm_is_used_where_there_is_no_ticket_and_that_is_allowed() {
    let target = FakeTarget::selecting(PROTOCOL_HYBRID);
    let mut lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
    for (realm, class) in [
        (Some("CORP"), Class::KdcUnreachable),
        // A user name without a realm.
        (None, Class::Gateway),
    ] {
        let kerberos = |ntlm_fallback| {
            Some(TargetKerberos {
                kdcs: KdcSource::Listed(vec!["127.0.0.1:1".to_owned()]),
                realm: realm.map(str::to_owned),
                ntlm_fallback,
            })
        };
        lab.config.kerberos = kerberos(false);
        assert_eq!(lab.error().await.class(), class);
        lab.config.kerberos = kerberos(true);
        let legs = lab.secured().await.legs;
        assert_eq!(legs.target_logon, LegAuthentication::Ntlm);
    }
}

#[tokio::test]
async fn an_address_has_no_ticket() {
    let target = FakeTarget::selecting(PROTOCOL_HYBRID);
    let mut lab = Lab::new(FakeClient::offering(PROTOCOL_SSL), target);
    lab.host = "192.0.2.1";
    let kerberos = |ntlm_fallback| {
        Some(TargetKerberos {
            kdcs: KdcSource::Listed(vec!["127.0.0.1:1".to_owned()]),
            realm: None,
            ntlm_fallback,
        })
    };
    lab.config.kerberos = kerberos(false);
    assert_eq!(lab.error().await.class(), Class::Gateway);
    lab.config.kerberos = kerberos(true);
    lab.secured().await;
}
