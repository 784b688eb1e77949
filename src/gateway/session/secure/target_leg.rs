//! The target's leg: which security it wants (step 1), and TLS and the logon (step 4).

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::warn;
use zeroize::Zeroizing;

use super::error::{SecureError, SecureStep};
use super::request::{SecureRequest, TargetTls};
use super::transfer::{fill, read_ts_request, within};
use crate::live::legs::LegAuthentication;
use crate::trust::target_certificate::{
    CertificateRefusal, Remembered, Stakes, TargetCertificate, Verifier, thumbprint,
};
use crate::trust::target_logon::TargetKerberos;
use crate::upstream::kdc::Kdcs;
use jetway_io::clock;
use jetway_io::read_ahead::ReadAhead;
use jetway_io::stream::Stream;
use jetway_metrics::{Leg, METRICS};
use jetway_rdp::connection_request::{
    ConnectionRequest, NegotiationRequest, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX, PROTOCOL_SSL,
};
use jetway_rdp::credssp::client::{Exchange, LogonClient, LogonError, Package, Progress};
use jetway_rdp::credssp::krb_error::{
    KDC_ERR_C_PRINCIPAL_UNKNOWN, KDC_ERR_CLIENT_REVOKED, KDC_ERR_KEY_EXPIRED, KDC_ERR_NAME_EXP,
    KDC_ERR_POLICY, KDC_ERR_PREAUTH_FAILED, KRB_AP_ERR_BAD_INTEGRITY, KRB_AP_ERR_SKEW, KrbError,
};
use jetway_rdp::credssp::{EarlyUserAuth, SubjectPublicKeyInfo};
use jetway_rdp::negotiation::{ConnectionConfirm, FailureCode, decode_confirm};
use jetway_rdp::nt_status::NtStatus;
use jetway_token::claims::{Credentials, Thumbprint};
use jetway_token::target_name::TargetName;

/// What was agreed with the target in X.224.
#[derive(Clone, Copy, Debug)]
pub(super) struct Negotiated {
    pub(super) requested: u32,
    pub(super) selected: u32,
    /// The flags that a client may see: what the target says of graphics and of client data.
    pub(super) flags: u8,
}

pub(super) async fn negotiate(
    target: &mut Stream,
    request: &SecureRequest<'_>,
) -> Result<Negotiated, SecureError> {
    let step = SecureStep::TargetNegotiation;
    let requested = if request.target_credentials.is_some() {
        PROTOCOL_SSL | PROTOCOL_HYBRID | PROTOCOL_HYBRID_EX
    } else {
        PROTOCOL_SSL
    };
    let frame = target_request(request.target_credentials, request.routing_token, requested)?;
    let exchange = async {
        target.write_all(&frame).await?;
        target.flush().await?;
        let mut bytes = Vec::with_capacity(CONFIRM_BYTES);
        loop {
            match decode_confirm(&bytes) {
                Ok(Some((confirm, consumed))) if consumed == bytes.len() => return Ok(Ok(confirm)),
                Ok(Some(_)) => return Ok(Err("more than a Connection Confirm".to_owned())),
                Ok(None) => fill(target, &mut bytes).await?,
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    };
    let confirm = within(request.deadline, step, exchange)
        .await?
        .map_err(|problem| SecureError::Protocol { step, problem })?;
    match confirm {
        ConnectionConfirm::Selected { protocol: 0, .. } | ConnectionConfirm::Plain => {
            Err(SecureError::StandardSecurityOnly)
        }
        ConnectionConfirm::Selected { flags, protocol } => {
            let is_one = [PROTOCOL_SSL, PROTOCOL_HYBRID, PROTOCOL_HYBRID_EX].contains(&protocol);
            if !is_one || protocol & requested == 0 {
                let problem = format!("selected protocol {protocol:#x} of {requested:#x}");
                return Err(SecureError::Protocol { step, problem });
            }
            if protocol == PROTOCOL_SSL && request.target_credentials.is_some() {
                // Before it gets a byte of TLS: it would be shown the credentials in Client Info.
                vouched_for(request)?;
            }
            Ok(Negotiated {
                requested,
                selected: protocol,
                flags: flags & (EXTENDED_CLIENT_DATA_SUPPORTED | DYNVC_GFX_PROTOCOL_SUPPORTED),
            })
        }
        ConnectionConfirm::Failure { code } => Err(match code {
            code if code == FailureCode::SslNotAllowed.code() => SecureError::StandardSecurityOnly,
            code if code == FailureCode::HybridRequired.code() => {
                SecureError::NlaWithoutCredentials
            }
            code => SecureError::NegotiationFailure(code),
        }),
    }
}

/// Whether something says who a target is that does not prove itself by CredSSP.
fn vouched_for(request: &SecureRequest<'_>) -> Result<(), SecureError> {
    let pinned = request.certificate_pin.is_some();
    if !pinned
        && request
            .config
            .target_certificate
            .demands_proof(request.target)?
    {
        return Err(CertificateRefusal::Unproven(request.target.clone()).into());
    }
    Ok(())
}

/// The Connection Request of the gateway, with the name of the target's user where it fits a cookie.
fn target_request(
    credentials: Option<&Credentials>,
    routing_token: Option<&[u8]>,
    requested_protocols: u32,
) -> Result<Vec<u8>, SecureError> {
    // One or the other.
    let credentials = credentials.filter(|_| routing_token.is_none());
    let name = credentials.map(|credentials| credentials.username.as_str());
    let cookie = name.filter(|name| {
        name.len() <= COOKIE_BYTES && name.bytes().all(|byte| byte.is_ascii_graphic())
    });
    let mut request = ConnectionRequest {
        routing_token: routing_token.map(|token| token.to_vec().into()),
        mstshash: cookie.map(str::to_owned),
        negotiation: Some(NegotiationRequest {
            flags: 0,
            requested_protocols,
        }),
        ..ConnectionRequest::default()
    };
    let frame = request.encode().or_else(|_| {
        request.mstshash = None;
        request.encode()
    });
    frame.map_err(|error| SecureError::Settings(error.to_string()))
}

pub(super) struct TargetLeg {
    pub(super) stream: Box<TargetTls>,
    pub(super) read_ahead: Vec<u8>,
    pub(super) logon: LegAuthentication,
    pub(super) certificate: Thumbprint,
    pub(super) remembered: Remembered,
}

pub(super) async fn target_leg(
    target: Stream,
    negotiated: &Negotiated,
    request: &SecureRequest<'_>,
) -> Result<TargetLeg, SecureError> {
    let pinned = request.certificate_pin.map(TargetCertificate::Pin);
    let policy = pinned
        .as_ref()
        .unwrap_or(&request.config.target_certificate);
    let stakes = match request.target_credentials {
        Some(_) => Stakes::Credentials,
        None => Stakes::Nothing,
    };
    let (name, deadline) = (request.target, request.deadline);
    let mut stream = Box::new(target_tls(target, policy, stakes, name, deadline).await?);
    let certificate = {
        let certificates = stream.get_ref().1.peer_certificates();
        certificates
            .and_then(<[_]>::first)
            .map(|certificate| certificate.clone().into_owned())
            .ok_or(CertificateRefusal::NoPublicKey)?
    };
    let mut read_ahead = Vec::new();
    let mut name = LegAuthentication::None;
    if negotiated.selected != PROTOCOL_SSL {
        let credentials = request
            .target_credentials
            .ok_or(SecureError::NlaWithoutCredentials)?;
        let info = SubjectPublicKeyInfo::of_certificate(&certificate)
            .map_err(|_| CertificateRefusal::NoPublicKey)?;
        let logon = Box::pin(target_logon(
            &mut stream,
            &mut read_ahead,
            negotiated.selected,
            info.key,
            credentials,
            request,
        ));
        let logon = timeout_at(request.deadline, logon).await;
        name = logon.unwrap_or(Err(SecureError::TimedOut(SecureStep::TargetLogon)))?;
    }
    let remembered = policy.remember(request.target, &certificate, stakes)?;
    Ok(TargetLeg {
        stream,
        read_ahead,
        logon: name,
        certificate: thumbprint(&certificate),
        remembered,
    })
}

pub(super) async fn target_tls(
    target: Stream,
    policy: &TargetCertificate,
    stakes: Stakes,
    target_name: &TargetName,
    deadline: Instant,
) -> Result<TargetTls, SecureError> {
    let verifier = policy.verifier(target_name, stakes)?;
    let mut config = ClientConfig::builder_with_provider(verifier.provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| SecureError::Settings(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Verifier>::clone(&verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    let (name, sni) = server_name(&target_name.address().host);
    config.enable_sni = sni;
    let connect =
        TlsConnector::from(Arc::new(config)).connect(name, ReadAhead::new(Vec::new(), target));
    let began = clock::now();
    let connected = within(deadline, SecureStep::TargetTls, connect).await;
    if connected.is_ok() {
        METRICS.handshake(Leg::Target, clock::seconds_since(began));
    }
    connected.map_err(|error| match verifier.refusal() {
        Some(refusal) => SecureError::Certificate(refusal.clone()),
        None => error,
    })
}

/// The name for SNI and for the certificate; a host that is no DNS name gets none, and fits no certificate.
fn server_name(host: &str) -> (ServerName<'static>, bool) {
    match ServerName::try_from(host.to_owned()) {
        Ok(name) => (name, true),
        Err(_) => (ServerName::from(IpAddr::from([0, 0, 0, 0])), false),
    }
}

async fn target_logon(
    stream: &mut TargetTls,
    read_ahead: &mut Vec<u8>,
    selected: u32,
    public_key: &[u8],
    credentials: &Credentials,
    request: &SecureRequest<'_>,
) -> Result<LegAuthentication, SecureError> {
    let step = SecureStep::TargetLogon;
    let failed = |error| SecureError::Io { step, error };
    let First {
        mut logon,
        mut kdcs,
        mut frame,
        package,
    } = first_message(public_key, credentials, request).await?;
    loop {
        stream.write_all(&frame).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let answer = read_ts_request(stream, read_ahead, step).await;
        let answer = answer.map_err(|error| closed_as_answer(error, &logon))?;
        let exchange = logon.exchange(Some(&answer));
        let next = answer_of(exchange, &mut kdcs, request.deadline).await?;
        if next.last {
            stream.write_all(&next.frame).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
            break;
        }
        frame = next.frame;
    }
    if selected == PROTOCOL_HYBRID_EX {
        while read_ahead.len() < EarlyUserAuth::BYTES {
            fill(stream, read_ahead).await.map_err(failed)?;
        }
        let result = read_ahead
            .first_chunk()
            .and_then(|bytes| EarlyUserAuth::decode(*bytes));
        match result {
            Some(EarlyUserAuth::Success) => {}
            Some(EarlyUserAuth::AccessDenied) => {
                let text = "the Early User Authorization Result is access denied";
                return Err(SecureError::AccountRestricted(text.to_owned()));
            }
            None => {
                let problem = "not an Early User Authorization Result".to_owned();
                return Err(SecureError::Protocol { step, problem });
            }
        }
        read_ahead.drain(..EarlyUserAuth::BYTES);
    }
    Ok(package)
}

/// A logon whose first message is ready.
struct First {
    logon: LogonClient,
    kdcs: Kdcs,
    frame: Zeroizing<Vec<u8>>,
    package: LegAuthentication,
}

/// Begins the logon: by Kerberos where that is configured and there is a ticket, by NTLM else where that is allowed.
async fn first_message(
    public_key: &[u8],
    credentials: &Credentials,
    request: &SecureRequest<'_>,
) -> Result<First, SecureError> {
    if let Some(kerberos) = &request.config.kerberos {
        match first_by_kerberos(kerberos, public_key, credentials, request).await {
            Err(error) if kerberos.ntlm_fallback && error.leaves_ntlm() => {
                warn!(%error, "Using NTLM instead of Kerberos");
            }
            other => return other,
        }
    }
    let package = (Package::Ntlm, LegAuthentication::Ntlm);
    first_by(package, Vec::new(), public_key, credentials, request).await
}

async fn first_by_kerberos(
    kerberos: &TargetKerberos,
    public_key: &[u8],
    credentials: &Credentials,
    request: &SecureRequest<'_>,
) -> Result<First, SecureError> {
    if request.target.address().host.parse::<IpAddr>().is_ok() {
        return Err(SecureError::NoKerberos(
            "there is no ticket for an address: the target needs a name",
        ));
    }
    let realm = kerberos.realm.as_deref();
    let package = (Package::Kerberos { realm }, LegAuthentication::Kerberos);
    let kdcs = kerberos.kdcs.addresses(request.deadline).await?;
    first_by(package, kdcs, public_key, credentials, request).await
}

async fn first_by(
    (package, name): (Package<'_>, LegAuthentication),
    kdcs: Vec<String>,
    public_key: &[u8],
    credentials: &Credentials,
    request: &SecureRequest<'_>,
) -> Result<First, SecureError> {
    let mut kdcs = Kdcs::new(kdcs);
    let mut logon = LogonClient::new(
        public_key,
        &credentials.username,
        &credentials.password,
        &request.target.address().host,
        package,
    )
    .map_err(|error| judge(error, &kdcs))?;
    let exchange = logon.exchange(None);
    let first = answer_of(exchange, &mut kdcs, request.deadline).await?;
    Ok(First {
        logon,
        kdcs,
        frame: first.frame,
        package: name,
    })
}

/// What the target is to be sent.
struct Answer {
    frame: Zeroizing<Vec<u8>>,
    last: bool,
}

/// Works on one message of the target, asking KDCs on the way.
async fn answer_of(
    exchange: Result<Exchange<'_>, LogonError>,
    kdcs: &mut Kdcs,
    deadline: Instant,
) -> Result<Answer, SecureError> {
    let mut exchange = exchange.map_err(|error| judge(error, kdcs))?;
    let mut progress = exchange.start();
    loop {
        match progress.map_err(|error| judge(error, kdcs))? {
            Progress::AskKdc(question) => {
                let answer = kdcs.ask(&question, deadline).await;
                progress = exchange.resume(answer);
            }
            Progress::Send { frame, last } => return Ok(Answer { frame, last }),
        }
    }
}

/// The end of the connection, where an answer to the credentials was due.
fn closed_as_answer(error: SecureError, logon: &LogonClient) -> SecureError {
    let is_end = matches!(&error, SecureError::Io { error, .. } if matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    ));
    if is_end && logon.has_proven() {
        let text = "it closed the connection instead of an answer";
        SecureError::WrongCredentials(text.to_owned())
    } else {
        error
    }
}

/// What a failed logon means.
fn judge(error: LogonError, kdcs: &Kdcs) -> SecureError {
    let text = error.to_string();
    match &error {
        LogonError::Status(status) => by_status(*status, NtStatus(*status).to_string()),
        // What Windows adds is more exact than the code of the KDC.
        LogonError::Kdc(answer) => answer
            .status
            .and_then(|status| by_status(status, text.clone()))
            .or_else(|| by_answer(answer, text)),
        LogonError::NoRealm => Some(SecureError::NoKerberos("the user name belongs to no realm")),
        LogonError::UserName
        | LogonError::TsRequest(_)
        | LogonError::PublicKey
        | LogonError::Ticket(_)
        | LogonError::Package(_) => kdcs
            .failure()
            .map(|failure| SecureError::KdcUnreachable(failure.to_owned())),
    }
    .unwrap_or(SecureError::TargetLogon(error))
}

/// What an NTSTATUS means, where it is about the account.
fn by_status(status: u32, text: String) -> Option<SecureError> {
    Some(match status {
        // With SEC_E_LOGON_DENIED, which security packages say.
        0xc000_006d | 0xc000_006a | 0xc000_0064 | 0x8009_030c => {
            SecureError::WrongCredentials(text)
        }
        0xc000_0234 => SecureError::AccountLocked(text),
        0xc000_006e..=0xc000_0072 | 0xc000_0193 | 0xc000_0224 | 0xc000_015b | 0xc000_0413 => {
            SecureError::AccountRestricted(text)
        }
        0xc000_005e => SecureError::KdcUnreachable(text),
        // FACILITY_NTWIN32: a Win32 error in the clothes of an NTSTATUS ([MS-ERREF] 2.3).
        0xc007_0000..=0xc007_ffff => match status & 0xffff {
            // ERROR_ACCOUNT_LOCKED_OUT.
            1909 => SecureError::AccountLocked(text),
            // From ERROR_ACCOUNT_RESTRICTION to ERROR_ACCOUNT_DISABLED, LOGON_TYPE_NOT_GRANTED, ACCOUNT_EXPIRED,
            // PASSWORD_MUST_CHANGE.
            1327..=1331 | 1385 | 1793 | 1907 => SecureError::AccountRestricted(text),
            // ERROR_NO_LOGON_SERVERS.
            1311 => SecureError::KdcUnreachable(text),
            // FreeRDP's servers put the thread's last error there when they refuse credentials, whatever it was last
            // set to: ERROR_MORE_DATA, say. Before the credentials they have nothing to refuse.
            _ => SecureError::WrongCredentials(text),
        },
        _ => return None,
    })
}

/// What a KRB-ERROR means, where it is about the account or the time.
fn by_answer(answer: &KrbError, text: String) -> Option<SecureError> {
    Some(match answer.code {
        KDC_ERR_C_PRINCIPAL_UNKNOWN | KDC_ERR_PREAUTH_FAILED | KRB_AP_ERR_BAD_INTEGRITY => {
            SecureError::WrongCredentials(text)
        }
        // MIT krb5 tells locked accounts from disabled ones by this word.
        KDC_ERR_CLIENT_REVOKED if answer.text.as_deref() == Some("LOCKED_OUT") => {
            SecureError::AccountLocked(text)
        }
        KDC_ERR_CLIENT_REVOKED | KDC_ERR_NAME_EXP | KDC_ERR_POLICY | KDC_ERR_KEY_EXPIRED => {
            SecureError::AccountRestricted(text)
        }
        KRB_AP_ERR_SKEW => SecureError::ClockSkew(text),
        _ => return None,
    })
}

/// Real Connection Confirms have 11 or 19 bytes.
const CONFIRM_BYTES: usize = 64;
/// Longest user name in a cookie, bytes: what mstsc would put there is cut to fewer.
const COOKIE_BYTES: usize = 64;

/// RDP_NEG_RSP `flags`: the client may send extended client data.
const EXTENDED_CLIENT_DATA_SUPPORTED: u8 = 0x01;
/// RDP_NEG_RSP `flags`: the target supports the graphics pipeline.
const DYNVC_GFX_PROTOCOL_SUPPORTED: u8 = 0x02;
