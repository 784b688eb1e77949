//! Peers that have their responses: an acceptor waits, and two that have met become a session.
//!
//! - An acceptor waits until it is asked for its connection; an end of it in the meantime is noticed at once.
//! - Two peers that have met select their candidate by the first byte of either. Until then a connector may leave, and the
//!   acceptor waits on.
//! - Existing clients read their response by one call and lose what comes with it. So the first bytes for a peer of the
//!   binary protocol wait until it has spoken since its response, or a quarter of a second has.
//! - Then the session is one like any other: decided, registered, its protocol enforced, opaque or inspected.

use std::future::pending;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, info};
use uuid::Uuid;

use crate::connection::{Client, Opening};
use crate::meeting::party::Shown;
use crate::meeting::{Handover, MeetingPlace, PairedPeers, Party, Waiting};
use crate::rendezvous::admit::Admitted;
use crate::rendezvous::closing::close_gracefully;
use crate::session::authenticate::{Authenticated, ToTarget, check_protocol, check_routing};
use crate::session::authorize;
use crate::session::identify::Expected;
use crate::session::meet_acceptor::{leads_to, reach_acceptor, tighten};
use crate::session::refuse::{self, Refused};
use crate::session::{Ready, run, secure_or_open};
use crate::state::{Gateway, Tokens};
use jetway_base::limits;
use jetway_entry::preamble::{Behind, recognise_behind};
use jetway_io::clock;
use jetway_io::stream::Stream;
use jetway_io::websocket::Farewell;
use jetway_jet::rendezvous::RendezvousError;
use jetway_token::Token;

/// Goes on with a peer that has its response: it waits, or speaks with whom it has met.
pub async fn proceed(
    gateway: &Arc<Gateway>,
    mut client: Client,
    shown: Shown,
    association: Uuid,
    admitted: Admitted,
) {
    // It named an association that exists, and showed what that demands.
    client.admission.proven();
    let answered = clock::now();
    let meetings = &gateway.peers.meetings;
    let place = match &admitted {
        Admitted::Tested => None,
        Admitted::Accepted(waiting) => Some(&waiting.place),
        Admitted::Connected(met) => Some(&met.place),
    };
    if let (Some(place), Some(token)) = (place, shown.token()) {
        meetings.vouch(place, association, token);
        let revocations = gateway.tokens.revoked.rules();
        if let Some(claim) = revocations.revokes(&token.id, &token.claims) {
            info!(session = %client.id, peer = %client.peer, jet_aid = %association, rule = claim.as_str(), "Closing a peer whose token was revoked");
            close_gracefully(client.stream, None).await;
            return;
        }
    }
    match admitted {
        Admitted::Tested => close_gracefully(client.stream, None).await,
        Admitted::Accepted(Waiting { place, claimed }) => {
            debug!(session = %client.id, peer = %client.peer, jet_aid = %association, "Waiting for a peer");
            let party = Party {
                client,
                shown,
                place,
                answered,
            };
            wait(meetings, &gateway.stopping, party, claimed).await;
        }
        Admitted::Connected(PairedPeers {
            place,
            candidate,
            acceptor,
        }) => {
            let connector = Party {
                client,
                shown,
                place,
                answered,
            };
            pair(gateway, connector, *acceptor, (association, candidate)).await;
        }
    }
}

/// Watches an acceptor until somebody asks for it, it leaves, or it is to go.
async fn wait(
    meetings: &MeetingPlace,
    stopping: &CancellationToken,
    mut party: Party,
    mut claimed: oneshot::Receiver<Handover>,
) {
    let close = party.place.close.clone();
    loop {
        let handover = tokio::select! {
            biased;
            () = either_cancelled(&close, stopping) => {
                if !close.is_cancelled() {
                    party.client.stream.io_mut().end_with(Farewell::GoingAway);
                }
                close_gracefully(party.client.stream, None).await;
                return;
            }
            () = read_early_bytes(&mut party.client.stream) => return,
            handover = &mut claimed => handover,
        };
        let Ok(handover) = handover else {
            return;
        };
        match handover.send(party) {
            Ok(()) => return,
            // Whoever asked has left in the meantime.
            Err(back) => {
                party = back;
                claimed = meetings.wait_again(&party.place);
            }
        }
    }
}

/// Reads what a peer says before it was met; ready when it has left.
async fn read_early_bytes(stream: &mut Stream) {
    while stream.buffered().len() < limits::RENDEZVOUS_EARLY_BYTES {
        match stream.fill(limits::RENDEZVOUS_EARLY_BYTES).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    // Nothing more is read, and so its end cannot be seen; keep-alive and expiry remain.
    pending().await
}

/// What happens to two peers before either has spoken.
enum BeforeFirstByte {
    /// Bytes can pass.
    Speak,
    /// The candidate is closed.
    Closed,
    ConnectorLeft,
    AcceptorLeft,
}

/// Two peers have met: waits for the first byte, selects the candidate, and makes the session.
async fn pair(
    gateway: &Arc<Gateway>,
    mut connector: Party,
    mut acceptor: Party,
    (association, candidate): (Uuid, Uuid),
) {
    let meetings = &gateway.peers.meetings;
    match wait_for_first_byte(&mut connector, &mut acceptor).await {
        BeforeFirstByte::Speak => {}
        BeforeFirstByte::Closed => {
            tokio::join!(
                close_gracefully(connector.client.stream, None),
                close_gracefully(acceptor.client.stream, None)
            );
            return;
        }
        BeforeFirstByte::ConnectorLeft => {
            let claimed = meetings.let_wait_again(connector.place, &acceptor.place);
            drop(connector.client);
            wait(meetings, &gateway.stopping, acceptor, claimed).await;
            return;
        }
        BeforeFirstByte::AcceptorLeft => {
            drop(acceptor);
            close_gracefully(connector.client.stream, None).await;
            return;
        }
    }
    if meetings.select(association, candidate).is_err() {
        // Another one was selected at the same moment.
        tokio::join!(
            close_gracefully(connector.client.stream, None),
            close_gracefully(acceptor.client.stream, None)
        );
        return;
    }
    // Making the session needs far more memory than having it.
    let ready = Box::pin(establish(gateway, connector, acceptor, association)).await;
    if let Some(ready) = ready {
        run(gateway, ready).await;
    }
}

async fn wait_for_first_byte(connector: &mut Party, acceptor: &mut Party) -> BeforeFirstByte {
    // What came with the request says nothing of whether the response was read.
    let mut spoke = (false, false);
    let closing = (connector.place.close.clone(), acceptor.place.close.clone());
    loop {
        let now = clock::now();
        let until = (
            connector.readable_at(spoke.0),
            acceptor.readable_at(spoke.1),
        );
        let to_acceptor = !connector.client.stream.buffered().is_empty();
        let to_connector = !acceptor.client.stream.buffered().is_empty();
        if (to_acceptor && until.1 <= now) || (to_connector && until.0 <= now) {
            return BeforeFirstByte::Speak;
        }
        // The next moment at which what has arrived may go on.
        let next = match (to_acceptor, to_connector) {
            (true, true) => Some(until.0.min(until.1)),
            (true, false) => Some(until.1),
            (false, true) => Some(until.0),
            (false, false) => None,
        };
        tokio::select! {
            biased;
            () = either_cancelled(&closing.0, &closing.1) => return BeforeFirstByte::Closed,
            more = read_more(&mut connector.client.stream) => {
                if !more {
                    return BeforeFirstByte::ConnectorLeft;
                }
                spoke.0 = true;
            }
            more = read_more(&mut acceptor.client.stream) => {
                if !more {
                    return BeforeFirstByte::AcceptorLeft;
                }
                spoke.1 = true;
            }
            () = wait_until(next) => {}
        }
    }
}

/// Reads more of what a peer says; false where it has left. A peer that has spoken and ended may wait for an answer.
async fn read_more(stream: &mut Stream) -> bool {
    if stream.buffered().len() < limits::RENDEZVOUS_EARLY_BYTES {
        match stream.fill(limits::RENDEZVOUS_EARLY_BYTES).await {
            Ok(1..) => return true,
            Ok(0) if !stream.buffered().is_empty() => {}
            Ok(0) | Err(_) => return false,
        }
    }
    pending().await
}

async fn either_cancelled(one: &CancellationToken, other: &CancellationToken) {
    tokio::select! {
        () = one.cancelled() => {}
        () = other.cancelled() => {}
    }
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => pending().await,
    }
}

/// The session of two peers: decided, registered, opened.
async fn establish(
    gateway: &Arc<Gateway>,
    connector: Party,
    acceptor: Party,
    association: Uuid,
) -> Option<Ready> {
    let Party {
        mut client,
        shown,
        place,
        ..
    } = connector;
    let meetings = &gateway.peers.meetings;
    let shown = shown.into_token();
    let anonymous = shown.is_none();
    // The client of a peer without a token has what the association was created with.
    let mut token = shown.or_else(|| meetings.token_of(association))?;
    let now = clock::now();
    client.identify_by = now.checked_add(limits::IDENTIFY_TIMEOUT).unwrap_or(now);
    client.establish_by = now.checked_add(limits::ESTABLISH_TIMEOUT).unwrap_or(now);
    Span::current().record("jet_aid", tracing::field::display(association));
    let agreed = if anonymous && token.claims.has_credentials() {
        // They are for the bearer of that token.
        Err(RendezvousError::NoToken.into())
    } else {
        let created = meetings.token_of(association);
        let others = created.iter().chain(acceptor.shown.token());
        tighten(&mut token, others).and_then(|()| leads_to(&token.claims, &acceptor.shown))
    };
    let ready = async {
        if let Err(refusal) = agreed {
            return Err(client.refused(refusal, Opening::Unread).with_token(&token));
        }
        let (sessions, tokens, audit) = (&gateway.sessions, &gateway.tokens, &gateway.audit);
        let authenticated = authenticated(tokens, client, token).await?;
        let authorized = authorize::authorize(sessions, tokens, audit, authenticated).await?;
        let met = (association, (place, acceptor));
        match reach_acceptor(
            meetings,
            sessions,
            &tokens.revoked,
            met,
            &authorized.session,
        ) {
            Ok(reached) => secure_or_open(gateway, authorized.with(reached)).await,
            Err(refusal) => Err(authorized.refused(refusal)),
        }
    };
    match ready.await {
        Ok(ready) => Some(ready),
        Err(refused) => {
            refuse::refuse(&gateway.refusals, &gateway.audit, *refused).await;
            None
        }
    }
}

/// The connector as a client with its token: how it begins, and whether that is what the token announces.
async fn authenticated(
    tokens: &Tokens,
    mut client: Client,
    token: Token,
) -> Result<Authenticated, Box<Refused>> {
    let speaks_rdp = match Expected::by(&token.claims) {
        Expected::Rdp => true,
        // Its server may speak first, so nothing is waited for; but what is there tells.
        Expected::Unsaid => recognise_behind(client.stream.buffered()) == Behind::X224,
        Expected::Other(_) => false,
    };
    let mut opening = if speaks_rdp {
        let opening = client.read_opening(Expected::Rdp).await;
        match opening {
            Ok(opening) => opening,
            Err(refusal) => {
                return Err(client.refused(refusal, Opening::Other).with_token(&token));
            }
        }
    } else {
        Opening::Other
    };
    // Its token was shown with its request, and what its text was is not known any more.
    let checked = check_routing(tokens, &mut client, &mut opening, None, &token)
        .and_then(|()| check_protocol(&token.claims, &opening, &client));
    if let Err(refusal) = checked {
        return Err(client.refused(refusal, opening).with_token(&token));
    }
    Ok(Authenticated {
        client,
        opening,
        token,
        to_target: ToTarget::AsIs,
    })
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use jetway_lab::net::tcp_pair;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn nothing_more_is_read_of_a_peer_that_speaks_too_early() {
        let (mut peer, accepted) = tcp_pair().await;
        let sending = tokio::spawn(async move {
            let all = vec![7; 16 * limits::RENDEZVOUS_EARLY_BYTES];
            peer.write_all(&all).await.unwrap();
            peer
        });
        let mut stream = Stream::from(accepted);
        let mut more = 100;
        while more > 0 {
            {
                let mut left = pin!(read_early_bytes(&mut stream));
                let ended = poll_fn(|cx| Poll::Ready(left.as_mut().poll(cx).is_ready())).await;
                assert!(!ended, "the peer is there");
            }
            if stream.buffered().len() >= limits::RENDEZVOUS_EARLY_BYTES {
                more -= 1;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(stream.buffered().len(), limits::RENDEZVOUS_EARLY_BYTES);
        sending.abort();
    }
}
