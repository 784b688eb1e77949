//! Where the gateway may connect to.
