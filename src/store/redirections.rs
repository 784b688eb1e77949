//! Where targets have sent the clients of sessions: each comes back with its token, and is connected there.
//!
//! Only to a target that its token names, and only for as long as a client needs to come back. In memory: behind a restart the
//! client is connected to the first target of its token, which sends it on again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use jetway_base::limits;
use jetway_io::clock;
use jetway_io::reached::Reached;
use jetway_policy::shares::{Owner, Shares};
use jetway_rdp::redirection::{Redirection, Redirections};
use jetway_token::TokenId;
use jetway_token::target::TargetAddr;

/// How long a client may take to come back.
pub const RETURN_WINDOW: Duration = Duration::from_secs(60);

/// Where a client goes when it comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// One of its token's targets.
    pub target: TargetAddr,
    /// The routing token for it, as the other target gave it.
    pub routing_token: Option<Zeroizing<Vec<u8>>>,
}

/// The redirections of all tokens.
#[derive(Debug)]
pub struct Returning {
    table: Mutex<RedirectionTable>,
    reached: Reached,
}

/// Each token is in it once.
#[derive(Debug)]
struct RedirectionTable {
    entries: HashMap<TokenId, Entry>,
    shares: Shares,
}

#[derive(Debug)]
struct Entry {
    redirected: Redirected,
    at: Instant,
    owner: Owner,
}

impl Default for Returning {
    fn default() -> Self {
        Self {
            table: Mutex::new(RedirectionTable {
                entries: HashMap::new(),
                shares: Shares::new(1, limits::REDIRECTIONS_PER_ADDRESS),
            }),
            reached: Reached::new("redirections, in total or of one address"),
        }
    }
}

impl Returning {
    /// Where the client with this token is to go, if it was sent somewhere a moment ago.
    #[must_use]
    pub fn of(&self, token: &TokenId) -> Option<Redirected> {
        let table = self.lock();
        let entry = table.entries.get(token)?;
        is_fresh(entry.at, clock::now()).then(|| entry.redirected.clone())
    }

    /// The client with this token cannot go where it was sent.
    pub fn forget(&self, token: &TokenId) {
        let mut table = self.lock();
        if let Some(entry) = table.entries.remove(token) {
            table.shares.leave(&entry.owner);
        }
    }

    /// What one session of a client at `address` decides with.
    #[must_use]
    pub fn follower(
        self: &Arc<Self>,
        token: TokenId,
        address: IpAddr,
        targets: &[TargetAddr],
        current: TargetAddr,
    ) -> Follower {
        Follower {
            returning: Arc::clone(self),
            token,
            address,
            targets: targets.to_vec(),
            current,
        }
    }

    fn insert(&self, token: TokenId, address: IpAddr, redirected: Redirected) -> bool {
        let now = clock::now();
        let owner = Owner::new(Some(token.clone()), Some(address));
        let mut table = self.lock();
        let RedirectionTable { entries, shares } = &mut *table;
        // The newest word of the target holds.
        if let Some(before) = entries.remove(&token) {
            shares.leave(&before.owner);
        }
        if entries.len() >= limits::REDIRECTIONS || shares.check(&owner).is_err() {
            entries.retain(|_, entry| {
                let fresh = is_fresh(entry.at, now);
                if !fresh {
                    shares.leave(&entry.owner);
                }
                fresh
            });
        }
        if entries.len() >= limits::REDIRECTIONS {
            drop(table);
            self.reached.by(&"all clients");
            return false;
        }
        if let Err(crowded) = shares.enter(&owner) {
            drop(table);
            self.reached.by(&crowded);
            return false;
        }
        let entry = Entry {
            redirected,
            at: now,
            owner,
        };
        entries.insert(token, entry);
        true
    }

    /// How many tokens are remembered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, RedirectionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_fresh(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < RETURN_WINDOW
}

/// Decides for one session: it may go to the targets of its token.
#[derive(Debug)]
pub struct Follower {
    returning: Arc<Returning>,
    token: TokenId,
    address: IpAddr,
    targets: Vec<TargetAddr>,
    current: TargetAddr,
}

impl Redirections for Follower {
    fn follow(&mut self, redirection: &Redirection) -> bool {
        let named = |target: &&TargetAddr| {
            let mut hosts = redirection.hosts();
            hosts.any(|host| host.eq_ignore_ascii_case(&target.host))
        };
        let target = if redirection.hosts().next().is_none() {
            // The same one once more, by another routing token.
            Some(&self.current)
        } else {
            self.targets.iter().find(named)
        };
        let Some(target) = target.cloned() else {
            return false;
        };
        let routing_token = redirection.load_balance_info.as_ref().map(|info| {
            // Brokers end it as it is ended on the wire, which our Connection Request does, too.
            let token = info.strip_suffix(b"\r\n").unwrap_or(info);
            Zeroizing::new(token.to_vec())
        });
        let redirected = Redirected {
            target,
            routing_token,
        };
        self.returning
            .insert(self.token.clone(), self.address, redirected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn one_address_has_its_share_of_the_redirections() {
        let returning = Returning::default();
        let redirected = Redirected {
            target: "desk.example:3390".parse().unwrap(),
            routing_token: None,
        };
        let note = |number: usize, address| {
            let token = TokenId::new(number.to_string());
            returning.insert(token, address, redirected.clone())
        };
        for number in 0..limits::REDIRECTIONS_PER_ADDRESS {
            assert!(note(number, HERE) && note(number, HERE), "{number}");
        }
        let next = limits::REDIRECTIONS_PER_ADDRESS;
        assert!(!note(next, HERE));
        assert!(note(next, [192, 0, 2, 2].into()));
    }

    fn redirection(host: Option<&str>, token: Option<&[u8]>) -> Redirection {
        Redirection {
            target_fqdn: host.map(str::to_owned),
            load_balance_info: token.map(|token| token.to_vec().into()),
            ..Redirection::default()
        }
    }

    #[test]
    fn a_client_may_be_sent_to_the_targets_of_its_token_and_nowhere_else() {
        let returning = Arc::new(Returning::default());
        let targets: Vec<TargetAddr> = ["broker.example:3389", "desk.example:3390"]
            .map(|target| target.parse().unwrap())
            .to_vec();
        let token = TokenId::new("one");
        let mut follower = returning.follower(token.clone(), HERE, &targets, targets[0].clone());
        assert!(!follower.follow(&redirection(Some("other.example"), None)));
        assert_eq!(returning.of(&token), None);
        assert!(follower.follow(&redirection(Some("DESK.example"), Some(b"msts\r\n"))));
        let redirected = returning.of(&token).unwrap();
        assert_eq!(redirected.target, targets[1]);
        assert_eq!(redirected.routing_token.unwrap().as_slice(), b"msts");
        assert!(follower.follow(&redirection(None, Some(b"again"))));
        assert_eq!(returning.of(&token).unwrap().target, targets[0]);
        assert_eq!(returning.of(&TokenId::new("two")), None);
    }
}
