//! Jetway between real parts: FreeRDP 2 and 3, Remmina, guacd, rdesktop and aardwolf as clients, freerdp-shadow-cli, xrdp, weston and
//! GNOME Remote Desktop as targets; pages in Chromium, websockets, wscat, `openssl s_client` and socat as peers of a rendezvous; OpenSSH
//! and Xvnc as what else is spoken.
//! And what users are told to do: the README, the samples and the units, as printed.
//!
//! `tests/install.sh peers` installs them. xrdp, namespaces and units need root.

mod agent;
mod audit;
mod behind;
mod differs;
mod direct;
mod gnome;
mod guacamole;
mod injects;
mod kerberos;
mod lab;
mod legs;
mod lives;
mod meets;
mod monitoring;
mod opens;
mod others;
mod pages;
mod plugin;
mod protocols;
mod readme;
mod redirects;
mod refuses;
mod remmina;
mod samples;
mod shares;
mod shown;
mod straight;
mod told;
mod units;
mod withholds;
