//! A target, and how it was reached.

use std::time::Duration;

use crate::listener::admission::Admission;
use crate::meeting::Place;
use jetway_io::stream::Stream;
use jetway_store::usage::Companion;
use jetway_token::target_name::TargetName;

/// A target, and how it was reached.
#[derive(Debug)]
pub struct Reached {
    /// Its bytes.
    pub stream: Stream,
    /// What it is called.
    pub name: TargetName,
    /// Of a rendezvous.
    pub met: Option<RendezvousFacts>,
}

/// What a session by rendezvous has besides.
#[derive(Debug)]
pub struct RendezvousFacts {
    /// The places of both peers.
    pub together: Together,
    /// Whether the acceptor has shown more than that it knows two UUIDs.
    pub proven: bool,
}

/// What a session by rendezvous holds until its end, with the other tokens that take part; dropping it leaves the candidate.
#[derive(Debug)]
pub struct Together {
    _connector: Place,
    _acceptor: Place,
    _admission: Admission,
    companions: Vec<Companion>,
}

impl Reached {
    /// Whether it is known who it is: dialled by its name, or an acceptor that has shown who sent it.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.met.as_ref().is_none_or(|met| met.proven)
    }
}

impl Together {
    /// The places of both peers, the acceptor's among the connections, and the tokens that take part besides the client's.
    #[must_use]
    pub fn new(
        connector: Place,
        acceptor: Place,
        admission: Admission,
        companions: Vec<Companion>,
    ) -> Self {
        Self {
            _connector: connector,
            _acceptor: acceptor,
            _admission: admission,
            companions,
        }
    }

    /// What is left of the time limits of the other tokens that take part.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.companions
            .iter()
            .filter_map(Companion::time_left)
            .min()
    }

    /// A limit has ended the session: what it has lasted is on disk when this returns.
    pub async fn settle(&self) {
        for companion in &self.companions {
            companion.settle().await;
        }
    }
}
