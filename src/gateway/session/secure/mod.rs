//! Step 5 of an inspected session: TLS, and CredSSP where it was negotiated, on both legs.
//!
//! 1. The target is asked which security it wants.
//! 2. The client is answered: NLA where the token has a proxy credential, else TLS. A client that is to prove itself and
//!    does not offer NLA was refused before there was a target ([`policy::can_prove`](jetway_policy::can_prove)), and is
//!    refused here once more.
//! 3. The client leg is completed: TLS with the listener's certificate, and the client's proof.
//! 4. Only then the target leg: TLS, the certificate judged, the logon with the credentials of the token.
//!
//! A target that selects TLS alone where credentials wait and nothing vouches for it is left at step 1
//! ([`TargetCertificate::demands_proof`]).
//!
//! So nobody reaches the target's logon who has not completed their own. Every wait ends at the deadline. What a peer
//! sent behind its last message of a step (clients pipeline MCS Connect Initial) is handed on.
//!
//! A failure says what the log needs ([`SecureError`]) and in which state it leaves the client ([`Remaining`]): still
//! without an answer, so that an RDP Negotiation Failure can be sent, or in TLS, where [`say_farewell`] tells the
//! reason.

mod client_leg;
pub mod error;
pub mod request;
mod target_leg;
mod transfer;

use std::future::Future;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use self::client_leg::{ClientSelection, client_leg};
use self::target_leg::{negotiate, target_leg};
use self::transfer::{READ_BYTES, drain};
use crate::connection::departed;
use crate::live::legs::{LegAuthentication, Legs, TlsFacts};
use crate::session::secure::error::SecureError;
use crate::session::secure::request::{ClientTls, RdpOpening, SecureRequest, TargetTls};
use crate::trust::target_certificate::{Remembered, Stakes, TargetCertificate};
use jetway_io::over_tcp::OverTcp;
use jetway_io::stream::Stream;
use jetway_rdp::farewell::{Farewell, FarewellError, Reason};
use jetway_token::claims::Thumbprint;
use jetway_token::target_name::TargetName;

/// TLS to a target that is to show one certificate, and nothing of RDP before it.
///
/// # Errors
/// It does not speak TLS, or shows another certificate.
pub async fn target_tls_pinned(
    target: Stream,
    name: &TargetName,
    pin: Thumbprint,
    deadline: Instant,
) -> Result<TargetTls, SecureError> {
    let policy = TargetCertificate::Pin(pin);
    target_leg::target_tls(target, &policy, Stakes::Nothing, name, deadline).await
}

/// Both legs, complete.
#[derive(Debug)]
pub struct Secured<C> {
    /// The client.
    pub client: Box<ClientTls<C>>,
    /// What it sent behind its last message: the beginning of MCS Connect Initial.
    pub client_read_ahead: Vec<u8>,
    /// The target.
    pub target: Box<TargetTls>,
    /// What it sent behind its last message; empty with targets that keep to the protocol.
    pub target_read_ahead: Vec<u8>,
    /// What was agreed.
    pub legs: Legs,
    /// The certificate of the target, judged.
    pub target_certificate: Thumbprint,
    /// What became of it where trust on first use is the policy.
    pub remembered: Remembered,
}

/// A failure, and what can still be done for the client.
#[derive(Debug)]
pub struct Failed<C> {
    /// Why.
    pub error: SecureError,
    /// In which state the client is.
    pub client: Remaining<C>,
}

/// The client of a session that was not secured.
#[derive(Debug)]
pub enum Remaining<C> {
    /// It waits for the answer to its Connection Request, or has sent none: see [`SecureError::failure_code`].
    Unanswered {
        /// The transport.
        client: C,
        /// What was read from it and not consumed.
        read_ahead: Vec<u8>,
    },
    /// Its leg is complete: see [`say_farewell`] and [`SecureError::farewell`].
    Secured {
        /// The client.
        client: Box<ClientTls<C>>,
        /// What it sent behind its last message.
        read_ahead: Vec<u8>,
        /// `requestedProtocols` of its Connection Request.
        requested: u32,
    },
    /// It was told, or cannot be told.
    Gone,
}

/// Secures both legs.
///
/// `read_ahead` is what was read from the client behind the Connection Request, or the beginning of its TLS.
///
/// # Cancel safety
/// Dropping the future closes both connections.
///
/// # Errors
/// See [`Failed`].
pub async fn secure<C>(
    client: C,
    read_ahead: Vec<u8>,
    opening: RdpOpening,
    target: impl Into<Stream>,
    request: &SecureRequest<'_>,
) -> Result<Secured<C>, Box<Failed<C>>>
where
    C: AsyncRead + AsyncWrite + OverTcp + Unpin,
{
    let mut target = target.into();
    let unanswered = |error, client, read_ahead| {
        let client = Remaining::Unanswered { client, read_ahead };
        Box::new(Failed { error, client })
    };
    let selection = match ClientSelection::of(&opening, request) {
        Ok(selection) => selection,
        Err(error) => return Err(unanswered(error, client, read_ahead)),
    };
    let gone = |error| {
        let client = Remaining::Gone;
        Box::new(Failed { error, client })
    };
    let negotiated = match while_waited_for(&client, negotiate(&mut target, request)).await {
        Ok(negotiated) => negotiated,
        Err(error @ SecureError::ClientLeft) => return Err(gone(error)),
        Err(error) => return Err(unanswered(error, client, read_ahead)),
    };
    let leg = client_leg(client, read_ahead, opening, selection, &negotiated, request)
        .await
        .map_err(gone)?;
    // INVARIANT: a client that is to prove itself has done so when the target hears more than X.224.
    if request.proxy_credentials.is_some() && leg.logon == LegAuthentication::None {
        return Err(gone(SecureError::ClientWithoutNla));
    }
    let to_target = target_leg(target, &negotiated, request);
    match while_waited_for(&leg.stream, to_target).await {
        Ok(leg_to_target) => {
            let legs = Legs {
                client_requested: leg.requested,
                client_selected: leg.selected,
                target_requested: negotiated.requested,
                target_selected: negotiated.selected,
                client_logon: leg.logon,
                target_logon: leg_to_target.logon,
                client_tls: TlsFacts::of(leg.stream.get_ref().1),
                target_tls: TlsFacts::of(leg_to_target.stream.get_ref().1),
            };
            Ok(Secured {
                client: leg.stream,
                client_read_ahead: leg.read_ahead,
                target: leg_to_target.stream,
                target_read_ahead: leg_to_target.read_ahead,
                legs,
                target_certificate: leg_to_target.certificate,
                remembered: leg_to_target.remembered,
            })
        }
        Err(error @ SecureError::ClientLeft) => Err(gone(error)),
        Err(error) => Err(Box::new(Failed {
            error,
            client: Remaining::Secured {
                client: leg.stream,
                read_ahead: leg.read_ahead,
                requested: leg.requested,
            },
        })),
    }
}

/// What is done with the target, for as long as the client is there.
async fn while_waited_for<T>(
    client: &impl OverTcp,
    step: impl Future<Output = Result<T, SecureError>>,
) -> Result<T, SecureError> {
    tokio::select! {
        done = step => done,
        _gone = departed(client, true) => Err(SecureError::ClientLeft),
    }
}

// ---- the last word ----

/// Leads a client whose leg is complete to a message that it shows to its user, and waits until it goes.
///
/// # Errors
/// The client was not to be led there, or not in time: it was not told.
pub async fn say_farewell<S>(
    client: &mut S,
    read_ahead: &[u8],
    client_requested: u32,
    reason: Reason,
    deadline: Instant,
) -> Result<(), SayError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = async {
        let mut farewell = Farewell::new(reason.error_info(), client_requested);
        let mut answer = farewell.feed(read_ahead)?;
        // Holds the client's password for a moment.
        let mut bytes = Zeroizing::new(vec![0; READ_BYTES]);
        loop {
            client.write_all(&answer).await?;
            client.flush().await?;
            if farewell.is_done() {
                break;
            }
            let count = client.read(&mut bytes).await?;
            if count == 0 {
                return Err(SayError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            answer = farewell.feed(bytes.get(..count).unwrap_or_default())?;
        }
        client.shutdown().await?;
        Ok(())
    };
    timeout_at(deadline, said)
        .await
        .unwrap_or_else(|_| Err(SayError::Io(io::ErrorKind::TimedOut.into())))?;
    // Closing with unread bytes would make the client's system throw away what it was told.
    drain(client, deadline).await;
    Ok(())
}

/// The client was not told.
#[derive(Debug, thiserror::Error)]
pub enum SayError {
    /// The connection.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What the client says.
    #[error("{0}")]
    Farewell(#[from] FarewellError),
}

#[cfg(test)]
mod tests;
