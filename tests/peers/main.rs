//! Jetway between real parts: FreeRDP 2 and 3 and rdesktop as clients, freerdp-shadow-cli and xrdp as targets.
//!
//! `tests/install.sh peers` installs them. xrdp needs root.

mod direct;
mod injects;
mod kerberos;
mod lab;
mod legs;
mod lives;
mod opens;
mod refuses;
mod shares;
