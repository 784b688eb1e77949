//! How the gateway logs on to targets, and what proves clients: what an operator configures for both legs of an inspected session.

use crate::trust::target_certificate::TargetCertificate;
use crate::upstream::kdc::KdcSource;
use jetway_rdp::credssp::server::ClientKerberos;

/// What an operator configures for the target leg.
#[derive(Clone, Debug)]
pub struct SecureConfig {
    /// How certificates of targets are judged, unless a token pins one.
    pub target_certificate: TargetCertificate,
    /// Kerberos to the target; NTLM without it.
    pub kerberos: Option<TargetKerberos>,
    /// Kerberos from clients, in the place of `prx_pwd`.
    pub client_kerberos: Option<ClientKerberos>,
}

/// Kerberos to targets that were named, not addressed: there is no ticket for an IP address.
#[derive(Clone, Debug)]
pub struct TargetKerberos {
    /// Where the KDCs are.
    pub kdcs: KdcSource,
    /// The realm of user names that name none.
    pub realm: Option<String>,
    /// Whether NTLM may be used where there is no ticket: no KDC answers or has the right time, the KDC does not know
    /// the target, the target has no name, the user belongs to no realm. Wrong credentials never lead to a second
    /// attempt, and neither does a target that does not take a ticket.
    pub ntlm_fallback: bool,
}
