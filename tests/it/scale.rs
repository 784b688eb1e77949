//! Hundreds of rendezvous at one time: each keeps its own bytes, and none holds up another. `tests/bench` has thousands.

use jetway::jet::exchange::Operation;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::lab::{until, within};
use crate::rendezvous::{OPERATOR, Peer, Place, TRANSPORTS, of, path};

const WAITING: usize = 200;

const PAIRS: usize = 100;

/// An acceptor that waits, and how to meet it.
struct Waiting {
    number: usize,
    association: Uuid,
    candidate: Uuid,
    peer: Peer,
}

async fn wait(place: &Place, number: usize) -> Waiting {
    let association = Uuid::new_v4();
    let transport = TRANSPORTS[number % 4];
    let candidates = place.association(association, OPERATOR).await;
    let candidate = of(&candidates, transport);
    let accept = path(Operation::Accept, association, candidate);
    let peer = place.peer(transport, accept, None).await.ok().unwrap();
    Waiting {
        number,
        association,
        candidate,
        peer,
    }
}

async fn meet(place: &Place, waiting: &Waiting) -> Peer {
    let connect = path(Operation::Connect, waiting.association, waiting.candidate);
    let transport = TRANSPORTS[waiting.number / 4 % 4];
    place.peer(transport, connect, None).await.ok().unwrap()
}

/// Bytes that no other pair has.
fn said_by(who: &str, number: usize) -> Vec<u8> {
    format!("{who} {number:04} ").repeat(500).into_bytes()
}

/// Both speak at the same time, and each hears the other and nobody else.
async fn speak(number: usize, mut acceptor: Peer, mut connector: Peer) -> (Peer, Peer) {
    let (forth, back) = (said_by("connector", number), said_by("acceptor", number));
    connector.send(&forth).await;
    acceptor.send(&back).await;
    assert_eq!(acceptor.receive(forth.len()).await, forth);
    assert_eq!(connector.receive(back.len()).await, back);
    (acceptor, connector)
}

/// All pairs at once; they are still there afterwards.
async fn speak_all(pairs: Vec<(usize, Peer, Peer)>) -> Vec<(usize, Peer, Peer)> {
    let mut speaking = JoinSet::new();
    for (number, acceptor, connector) in pairs {
        speaking.spawn(async move {
            let (acceptor, connector) = speak(number, acceptor, connector).await;
            (number, acceptor, connector)
        });
    }
    within(speaking.join_all()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_wait_while_others_speak_and_all_are_met() {
    let place = Place::start("");
    let mut waiting = Vec::new();
    for number in 0..WAITING {
        waiting.push(wait(&place, number).await);
    }
    let mut pairs = Vec::new();
    for number in WAITING..WAITING + PAIRS {
        let acceptor = wait(&place, number).await;
        let connector = meet(&place, &acceptor).await;
        pairs.push((number, acceptor.peer, connector));
    }
    let pairs = speak_all(pairs).await;
    let registry = &place.lab.running().gateway().sessions.registry;
    assert_eq!(registry.list().len(), PAIRS);

    let mut met = Vec::new();
    for acceptor in waiting {
        let connector = meet(&place, &acceptor).await;
        met.push((acceptor.number, acceptor.peer, connector));
    }
    let met = speak_all(met).await;
    let pairs = speak_all(pairs).await;
    assert_eq!(registry.list().len(), PAIRS + WAITING);
    drop((met, pairs));
    until(|| registry.list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_expire_while_a_session_goes_on() {
    let place = Place::start("[jet]\nunused_timeout_s = 1\n");
    let acceptor = wait(&place, 0).await;
    let connector = meet(&place, &acceptor).await;
    let (mut acceptor, mut connector) = speak(0, acceptor.peer, connector).await;

    let mut expiring = JoinSet::new();
    for number in 0..WAITING {
        let Waiting { peer, .. } = wait(&place, number).await;
        expiring.spawn(async move { assert_eq!(peer.rest().await, b"") });
    }
    within(async {
        while !expiring.is_empty() {
            while expiring.try_join_next().is_some_and(|ended| {
                ended.unwrap();
                true
            }) {}
            (acceptor, connector) = speak(1, acceptor, connector).await;
        }
    })
    .await;
    let (_, associations) = place.http("GET /jet/association", OPERATOR, "").await;
    assert_eq!(associations.as_array().unwrap().len(), 1);
}
