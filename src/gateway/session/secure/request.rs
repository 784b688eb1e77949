//! What is needed to secure the legs of one session.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::{client, server};

use crate::trust::target_logon::SecureConfig;
use jetway_io::read_ahead::ReadAhead;
use jetway_io::stream::Stream;
use jetway_rdp::connection_request::ConnectionRequest;
use jetway_store::usage::Reservation;
use jetway_token::claims::{Credentials, Thumbprint};
use jetway_token::target_name::TargetName;

/// What one session needs.
#[derive(Clone, Debug)]
pub struct SecureRequest<'a> {
    /// The operator's part.
    pub config: &'a SecureConfig,
    /// The certificate of the listener that the client came in by.
    pub server_tls: &'a Arc<ServerConfig>,
    /// The target as the token names it.
    pub target: &'a TargetName,
    /// `dst_usr` and `dst_pwd`; without them only a target that takes TLS alone can be had.
    pub target_credentials: Option<&'a Credentials>,
    /// `prx_usr` and `prx_pwd`, without which nobody gets past the client leg; where there are none, it is TLS alone.
    pub proxy_credentials: Option<&'a Credentials>,
    /// Where wrong passwords are counted.
    pub guesses: Option<&'a Reservation>,
    /// `cert_thumb256`.
    pub certificate_pin: Option<Thumbprint>,
    /// What the target is to be shown as routing token: another one has sent the client with it.
    pub routing_token: Option<&'a [u8]>,
    /// When all of it must be done.
    pub deadline: Instant,
}

/// How the client's part begins.
#[derive(Debug)]
pub enum RdpOpening {
    /// This Connection Request was taken from the stream.
    X224(ConnectionRequest),
    /// TLS at once; X.224 will follow inside ([MS-RDPBCGR] 5.4.2.2).
    DirectTls,
}

/// TLS to the client.
pub type ClientTls<C> = server::TlsStream<ReadAhead<C>>;

/// TLS to the target.
pub type TargetTls = client::TlsStream<ReadAhead<Stream>>;
