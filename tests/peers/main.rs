//! Jetway between real parts: FreeRDP 2 and 3, rdesktop and aardwolf as clients, freerdp-shadow-cli, xrdp and weston as
//! targets.
//!
//! `tests/install.sh peers` installs them. xrdp needs root.

mod agent;
mod behind;
mod direct;
mod injects;
mod kerberos;
mod lab;
mod legs;
mod lives;
mod opens;
mod others;
mod redirects;
mod refuses;
mod shares;
mod withholds;
