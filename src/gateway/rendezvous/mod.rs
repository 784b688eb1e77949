//! A peer of a rendezvous: from its request to the session with the other one.

pub mod pair;
