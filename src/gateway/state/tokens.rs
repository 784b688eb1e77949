//! What judges tokens, and the work that this takes.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use crate::refusal::{Denied, Refusal};
use crate::trust::keyring::Keyring;
use jetway_io::clock;
use jetway_io::reached::Reached;
use jetway_metrics::{METRICS, Outcome};
use jetway_policy::work::WorkLimiter;
use jetway_store::revoked::Revoked;
use jetway_store::tickets::Tickets;
use jetway_token::{Protection, Token};

/// What judges tokens: the keys, the revocations and the tickets in force.
#[derive(Debug)]
pub struct Tokens {
    /// The keys in force.
    pub keyring: Keyring,
    /// The revocations in force.
    pub revoked: Revoked,
    /// What stands for tokens.
    pub tickets: Tickets,
    /// How long a ticket is good, unless less is asked for, seconds.
    pub ticket_lifetime_s: u64,
    work: Mutex<WorkLimiter>,
    work_reached: Reached,
}

impl Tokens {
    /// Judges with these, within the limits of `work`.
    #[must_use]
    pub fn new(
        keyring: Keyring,
        revoked: Revoked,
        (tickets, ticket_lifetime_s): (Tickets, u64),
        work: WorkLimiter,
    ) -> Self {
        Self {
            keyring,
            revoked,
            tickets,
            ticket_lifetime_s,
            work: Mutex::new(work),
            work_reached: Reached::new("limits.token_work_us_per_s"),
        }
    }

    /// Verifies a token that `client` has shown, after booking the work that takes. Whether it was revoked is not asked: a session
    /// asks when it is registered, so that a rule that arrives meanwhile is not missed.
    ///
    /// # Errors
    /// The address has shown too many tokens, or this one does not hold.
    pub fn verify(&self, text: &str, client: IpAddr) -> Result<Token, Refusal> {
        let verifier = self.keyring.verifier();
        let cost = verifier.cost_us(text);
        self.book(client, cost)?;
        let began = clock::now();
        let judged = verifier.judge(text, clock::unix_now());
        METRICS.token_verified(Outcome::of(&judged), clock::seconds_since(began));
        let token = judged?;
        if token.protection == Protection::None {
            // Anybody can make it, so it is no `token` that speaks for its bearer.
            warn!(unsigned = %token.id, peer = %client, "Accepted an unsigned token (development.accept_unsigned_tokens)");
        }
        Ok(token)
    }

    /// Verifies a token, and that it was not revoked.
    ///
    /// # Errors
    /// As [`verify`](Self::verify) and [`check_revoked`](Self::check_revoked).
    pub fn verify_in_force(&self, text: &str, client: IpAddr) -> Result<Token, Denied> {
        let token = self.verify(text, client)?;
        match self.check_revoked(&token) {
            Ok(()) => Ok(token),
            Err(refusal) => Err(Denied::of(&token, refusal)),
        }
    }

    /// Looks whether a token was revoked.
    ///
    /// # Errors
    /// It was.
    pub fn check_revoked(&self, token: &Token) -> Result<(), Refusal> {
        match self.revoked.rules().revokes(&token.id, &token.claims) {
            None => Ok(()),
            Some(claim) => Err(Refusal::Revoked(claim)),
        }
    }

    /// Books work that `client` causes.
    ///
    /// # Errors
    /// The address has caused too much.
    pub fn book(&self, client: IpAddr, cost_us: u32) -> Result<(), Refusal> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let booked = work.book(client, cost_us, clock::now());
        drop(work);
        booked.map_err(|_| {
            self.work_reached.by(&client);
            Refusal::TooMuchWork
        })
    }
}
