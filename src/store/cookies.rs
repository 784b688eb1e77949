//! Which auto-reconnect cookies of targets belong to which association ([`jetway_rdp::reconnect`]).
//!
//! Of a cookie only a digest is kept, keyed by a secret of this process, over all that it is bound to: the association
//! (or the token, without one), the target and the account there. The table cannot be turned back into cookies, and a
//! cookie that comes with anything else is not found.
//!
//! In memory only: behind a restart, or on another node, no cookie is known. The client is then logged on as at first,
//! which takes its user to the same desktop; nothing is lost but the shortcut.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use zeroize::Zeroizing;

use jetway_base::limits;
use jetway_base::time::UnixTime;
use jetway_io::clock;
use jetway_policy::shares::{Owner, Shares};
use jetway_rdp::reconnect::{ClientCookie, Cookies};
use jetway_token::target_name::TargetName;
use jetway_token::{Token, TokenId};

type Digest = [u8; 32];

/// The cookies of all sessions.
#[derive(Debug)]
pub struct KnownCookies {
    key: PKey<Private>,
    table: Mutex<CookieTable>,
}

#[derive(Debug)]
struct CookieTable {
    entries: HashMap<Digest, Entry>,
    /// Oldest first, each once.
    order: BTreeMap<u64, Digest>,
    shares: Shares,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    until: UnixTime,
    number: u64,
    owner: Owner,
}

impl CookieTable {
    fn forget(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.remove(digest) {
            self.order.remove(&entry.number);
            self.shares.leave(&entry.owner);
        }
    }

    /// The oldest cookie of those owners.
    fn oldest(&self, whose: impl Fn(&Entry) -> bool) -> Option<Digest> {
        let mut digests = self.order.values();
        let found = digests.find(|digest| self.entries.get(*digest).is_some_and(&whose));
        found.copied()
    }
}

/// The cookies that one session may use, and those that it is given.
#[derive(Debug)]
pub struct SessionCookies {
    known: Arc<KnownCookies>,
    scope: Vec<u8>,
    owner: Owner,
    /// Of this session, oldest first.
    issued: VecDeque<Digest>,
}

/// What a cookie is bound to: all tokens with one `jet_aid` are one association, a token without it is one of its own.
#[must_use]
pub fn association(token: &Token) -> String {
    match token.claims.jet_aid {
        Some(id) => format!("jet_aid {id}"),
        None => format!("token {}", token.id),
    }
}

impl KnownCookies {
    /// No cookies, and a new secret.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new() -> Result<Self, openssl::error::ErrorStack> {
        let mut secret = Zeroizing::new([0_u8; 32]);
        openssl::rand::rand_bytes(secret.as_mut_slice())?;
        Ok(Self {
            key: PKey::hmac(secret.as_slice())?,
            table: Mutex::new(CookieTable {
                entries: HashMap::new(),
                order: BTreeMap::new(),
                shares: Shares::new(
                    limits::RECONNECT_COOKIES_PER_ASSOCIATION,
                    limits::RECONNECT_COOKIES_PER_ADDRESS,
                ),
                next: 0,
            }),
        })
    }

    /// The cookies of a session of this [`association`] with `target`, where `account` is logged on; without one the
    /// client logs on by itself. `address` is where the client is.
    #[must_use]
    pub fn of(
        self: &Arc<Self>,
        association: &str,
        address: IpAddr,
        target: &TargetName,
        account: Option<&str>,
    ) -> SessionCookies {
        let target = target.to_string();
        // Each part with its length: no two scopes are the same bytes.
        let mut scope = vec![u8::from(account.is_some())];
        for part in [association, &target, account.unwrap_or_default()] {
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            scope.extend(length.to_be_bytes());
            scope.extend(part.as_bytes());
        }
        SessionCookies {
            known: Arc::clone(self),
            scope,
            // What has one share here is the association, by whichever of its tokens.
            owner: Owner::new(Some(TokenId::new(association)), Some(address)),
            issued: VecDeque::new(),
        }
    }

    fn digest(&self, scope: &[u8], cookie: &ClientCookie) -> Option<Digest> {
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key).ok()?;
        let mut digest = Digest::default();
        signer.update(scope).ok()?;
        signer.update(&cookie.logon_id.to_be_bytes()).ok()?;
        signer.update(cookie.security_verifier.as_slice()).ok()?;
        (signer.sign(&mut digest).ok()? == digest.len()).then_some(digest)
    }

    /// Remembers a cookie. The oldest of its association, or of its address, make room for it, and of others only where there is no
    /// place at all.
    fn remember(&self, digest: Digest, owner: &Owner, now: UnixTime) {
        let mut table = self.lock();
        table.forget(&digest);
        while let Some(oldest) = table.oldest(|_| true) {
            let entry = table.entries.get(&oldest);
            let good = entry.is_some_and(|entry| entry.until > now);
            if good && table.order.len() < limits::RECONNECT_COOKIES {
                break;
            }
            table.forget(&oldest);
        }
        while let Err(crowded) = table.shares.check(owner) {
            match table.oldest(|entry| entry.owner.is(&crowded)) {
                Some(oldest) => table.forget(&oldest),
                None => return,
            }
        }
        table.shares.count(owner);
        let number = table.next;
        table.next = table.next.wrapping_add(1);
        let entry = Entry {
            until: now.plus(limits::RECONNECT_COOKIE_S),
            number,
            owner: owner.clone(),
        };
        table.entries.insert(digest, entry);
        table.order.insert(number, digest);
    }

    fn forget(&self, digest: &Digest) {
        self.lock().forget(digest);
    }

    fn is_known(&self, digest: &Digest, now: UnixTime) -> bool {
        // By digest: how long the search takes says nothing about a cookie.
        self.lock()
            .entries
            .get(digest)
            .is_some_and(|entry| entry.until > now)
    }

    fn lock(&self) -> MutexGuard<'_, CookieTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cookies for SessionCookies {
    fn issued(&mut self, cookie: &ClientCookie) {
        let Some(digest) = self.known.digest(&self.scope, cookie) else {
            return;
        };
        // A target gives a new one every hour, and one alone is good. So none can push out those of others.
        while self.issued.len() >= limits::RECONNECT_COOKIES_PER_SESSION {
            if let Some(oldest) = self.issued.pop_front() {
                self.known.forget(&oldest);
            }
        }
        self.issued.push_back(digest);
        self.known.remember(digest, &self.owner, clock::unix_now());
    }

    fn know(&self, cookie: &ClientCookie) -> bool {
        self.known
            .digest(&self.scope, cookie)
            .is_some_and(|digest| self.known.is_known(&digest, clock::unix_now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn a_target_and_an_association_push_out_the_cookies_of_no_others() {
        let known = Arc::new(KnownCookies::new().unwrap());
        let host = target("a.example:3389");
        let mut quiet = known.of("quiet", HERE, &host, None);
        quiet.issued(&cookie(1, 1));
        // One session that never stops, and one association with ever new sessions.
        let mut loud = known.of("loud", HERE, &host, None);
        for number in 0..u32::try_from(limits::RECONNECT_COOKIES).unwrap() + 10 {
            loud.issued(&cookie(number, 2));
        }
        for number in 0..1000 {
            let mut again = known.of("again", HERE, &host, None);
            again.issued(&cookie(number, 3));
        }
        assert!(quiet.know(&cookie(1, 1)));
        let again = known.of("again", HERE, &host, None);
        let kept: Vec<u32> = (0..1000)
            .filter(|&number| again.know(&cookie(number, 3)))
            .collect();
        assert_eq!(kept, (992..1000).collect::<Vec<_>>());
        let table = known.lock();
        assert_eq!((table.entries.len(), table.order.len()), (13, 13));
    }

    #[test]
    fn an_address_pushes_out_its_own_cookies_and_none_of_another() {
        let known = KnownCookies::new().unwrap();
        let digest = |number: usize| {
            let mut digest = Digest::default();
            digest[..8].copy_from_slice(&number.to_be_bytes());
            digest
        };
        // Each of an association of its own.
        let remember = |number: usize, address| {
            let owner = Owner::new(Some(TokenId::new(number.to_string())), Some(address));
            known.remember(digest(number), &owner, UnixTime(0));
        };
        remember(0, [192, 0, 2, 2].into());
        for number in 1..=limits::RECONNECT_COOKIES_PER_ADDRESS + 1 {
            remember(number, HERE);
        }
        let kept = [0, 1, 2].map(|number| known.is_known(&digest(number), UnixTime(1)));
        assert_eq!(kept, [true, false, true]);
    }

    fn cookie(logon_id: u32, verifier: u8) -> ClientCookie {
        ClientCookie {
            logon_id,
            security_verifier: Zeroizing::new([verifier; 16]),
        }
    }

    fn target(text: &str) -> TargetName {
        text.parse().unwrap()
    }

    #[test]
    fn a_cookie_is_good_for_its_association_target_and_account_alone() {
        let known = Arc::new(KnownCookies::new().unwrap());
        let host = target("a.example:3389");
        let mut issuer = known.of("jet_aid 1", HERE, &host, Some("alice"));
        issuer.issued(&cookie(5, 1));
        let of =
            |association, host: &TargetName, account| known.of(association, HERE, host, account);
        // A later session, when the first is gone.
        drop(issuer);
        assert!(of("jet_aid 1", &host, Some("alice")).know(&cookie(5, 1)));
        assert!(!of("jet_aid 1", &host, Some("alice")).know(&cookie(6, 1)));
        assert!(!of("jet_aid 1", &host, Some("alice")).know(&cookie(5, 2)));
        for other in [
            of("jet_aid 2", &host, Some("alice")),
            of("token 1", &host, Some("alice")),
            of("jet_aid 1", &target("b.example:3389"), Some("alice")),
            of("jet_aid 1", &target("a.example:3390"), Some("alice")),
            of("jet_aid 1", &host, Some("bob")),
            of("jet_aid 1", &host, None),
        ] {
            assert!(!other.know(&cookie(5, 1)), "{:?}", other.scope);
        }
        // Another process has another secret.
        let restarted = Arc::new(KnownCookies::new().unwrap());
        let again = restarted.of("jet_aid 1", HERE, &host, Some("alice"));
        assert!(!again.know(&cookie(5, 1)));
    }

    #[test]
    fn a_session_keeps_its_last_cookies_and_pushes_out_no_others() {
        let known = Arc::new(KnownCookies::new().unwrap());
        let host = target("a.example:3389");
        let (mut quiet, mut loud) = (
            known.of("1", HERE, &host, None),
            known.of("2", HERE, &host, None),
        );
        quiet.issued(&cookie(1, 1));
        for number in 0..100 {
            loud.issued(&cookie(number, 2));
        }
        assert!(quiet.know(&cookie(1, 1)));
        let kept: Vec<_> = (0..100)
            .filter(|&number| loud.know(&cookie(number, 2)))
            .collect();
        assert_eq!(kept, [96, 97, 98, 99]);
    }

    #[test]
    fn cookies_are_forgotten_after_their_time_and_beyond_their_number() {
        let known = KnownCookies::new().unwrap();
        let digest = |number: usize| {
            let mut digest = Digest::default();
            digest[..8].copy_from_slice(&number.to_be_bytes());
            digest
        };
        // Each of an association and an address of its own.
        let remember = |number: usize, now| {
            let address = IpAddr::from(u32::try_from(number / 4).unwrap().to_be_bytes());
            let owner = Owner::new(Some(TokenId::new(number.to_string())), Some(address));
            known.remember(digest(number), &owner, now);
        };
        remember(0, UnixTime(0));
        assert!(known.is_known(&digest(0), UnixTime(limits::RECONNECT_COOKIE_S - 1)));
        assert!(!known.is_known(&digest(0), UnixTime(limits::RECONNECT_COOKIE_S)));
        // Given once more, it lives on.
        remember(0, UnixTime(9));
        remember(1, UnixTime(limits::RECONNECT_COOKIE_S));
        assert!(known.is_known(&digest(0), UnixTime(limits::RECONNECT_COOKIE_S)));
        for number in 2..limits::RECONNECT_COOKIES + 2 {
            remember(number, UnixTime(10));
        }
        assert!(!known.is_known(&digest(1), UnixTime(10)));
        let table = known.lock();
        assert!(table.entries.len() <= limits::RECONNECT_COOKIES);
        assert!(table.order.len() <= limits::RECONNECT_COOKIES);
    }
}
