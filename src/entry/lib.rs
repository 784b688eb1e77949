//! What a client brings: the first bytes, and what carries its token.
//!
//! | file | what |
//! |---|---|
//! | [`preamble`] | which protocol the first bytes begin |
//! | [`proxy_protocol`] | the header by which a balancer names the client |
//! | [`carrier`] | where an RDP client puts its token |
//! | [`ticket`] | the short stand-in for a token |
//! | [`rdp_file`] | the `.rdp` file that a user opens |

pub mod carrier;
pub mod preamble;
pub mod proxy_protocol;
pub mod rdp_file;
pub mod ticket;
