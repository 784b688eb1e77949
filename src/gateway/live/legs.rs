//! What was agreed on the legs of a session that the gateway stands inside of.

use std::fmt;

use tokio_rustls::rustls;

/// What was agreed on both legs: the GCC data of each has to say the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Legs {
    /// `requestedProtocols` of the client: goes back to it in the server core data.
    pub client_requested: u32,
    /// `selectedProtocol` that the client was told.
    pub client_selected: u32,
    /// `requestedProtocols` that the target was told.
    pub target_requested: u32,
    /// `selectedProtocol` of the target: goes back to it in the client core data.
    pub target_selected: u32,
    /// How the client proved itself.
    pub client_logon: LegAuthentication,
    /// How the gateway logged on to the target.
    pub target_logon: LegAuthentication,
    /// TLS to the client.
    pub client_tls: TlsFacts,
    /// TLS to the target.
    pub target_tls: TlsFacts,
}

/// How somebody proved who they are, in CredSSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LegAuthentication {
    /// Not at all: TLS alone.
    None,
    /// By a password.
    Ntlm,
    /// By a ticket.
    Kerberos,
}

impl LegAuthentication {
    /// Its name, for logs and API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ntlm => "ntlm",
            Self::Kerberos => "kerberos",
        }
    }
}

/// Version and cipher of a TLS connection, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// For example `TLSv1_3`.
    pub version: String,
    /// For example `TLS13_AES_256_GCM_SHA384`.
    pub cipher: String,
}

impl fmt::Display for TlsFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.version, self.cipher)
    }
}

impl TlsFacts {
    /// Of a connection whose handshake is done.
    #[must_use]
    pub fn of(connection: &rustls::CommonState) -> Self {
        let unknown = || "unknown".to_owned();
        let version = connection.protocol_version();
        let suite = connection.negotiated_cipher_suite();
        Self {
            version: version.map_or_else(unknown, |version| format!("{version:?}")),
            cipher: suite.map_or_else(unknown, |suite| format!("{:?}", suite.suite())),
        }
    }
}
