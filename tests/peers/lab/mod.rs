//! The laboratory: real clients, targets and displays around the real gateway, all on loopback.
//!
//! Every process is started here and ended by its pid when the value that holds it goes out of scope; nothing waits for
//! a time to pass, only for a condition with a deadline. What other tests use as well is in `tests/lab`.

pub(crate) mod aardwolf;
pub(crate) mod authority;
pub(crate) mod border;
pub(crate) mod branch;
pub(crate) mod browser;
pub(crate) mod clipboard;
pub(crate) mod desktop;
pub(crate) mod dialogue;
pub(crate) mod disk;
pub(crate) mod display;
pub(crate) mod dns;
pub(crate) mod environment;
pub(crate) mod forge;
pub(crate) mod freerdp;
pub(crate) mod gateway;
pub(crate) mod grd;
pub(crate) mod guacd;
pub(crate) mod kdc;
pub(crate) mod keyboard;
pub(crate) mod link;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod namespace;
pub(crate) mod piped;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod rdesktop;
pub(crate) mod remmina;
pub(crate) mod rendezvous;
pub(crate) mod screenshot;
pub(crate) mod script;
pub(crate) mod shadow;
pub(crate) mod sound;
pub(crate) mod target;
pub(crate) mod tripwire;
pub(crate) mod unit;
pub(crate) mod websockets;
pub(crate) mod weston;
pub(crate) mod window;
pub(crate) mod workspace;
pub(crate) mod xrdp;
