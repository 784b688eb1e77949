//! From verified claims and the facts of a connection to a decision with its reason.

pub mod egress;
pub mod permit;
