//! The laboratory by itself: client and target with nothing between, so that a failure elsewhere is the gateway's.

use anyhow::{Result, ensure};

use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::target::{self, TargetKind};
use crate::lab::window::TOLERATED_PIXELS;
use crate::lab::workspace;

macro_rules! direct_sessions {
    ($($name:ident: $version:ident, $target:ident;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            desktop_appears_twice_alike_and_keys_arrive(Version::$version, TargetKind::$target)
        }
    )*};
}

direct_sessions! {
    freerdp2_alone_reaches_the_nla_desktop: Two, ShadowNla;
    freerdp3_alone_reaches_the_nla_desktop: Three, ShadowNla;
    freerdp2_alone_reaches_the_tls_desktop: Two, ShadowTls;
    freerdp3_alone_reaches_the_tls_desktop: Three, ShadowTls;
    freerdp2_alone_reaches_the_xrdp_desktop: Two, Xrdp;
    freerdp3_alone_reaches_the_xrdp_desktop: Three, Xrdp;
}

fn desktop_appears_twice_alike_and_keys_arrive(version: Version, kind: TargetKind) -> Result<()> {
    workspace::run(|workspace| {
        let target = target::start(workspace, kind)?;
        let place = target.place();
        let mut first = FreeRdp::direct(workspace, version, place)?;
        let picture = first.wait_for_desktop(place)?;
        first.end();
        let mut second = FreeRdp::direct(workspace, version, place)?;
        second.wait_for_picture(workspace, &picture)?;
        second.type_until_it_arrives(place)
    })
}

/// The comparison tells desktops apart that differ in nothing but the phrase in the terminal.
#[test]
fn another_desktop_is_not_taken_for_this_one() -> Result<()> {
    workspace::run(|workspace| {
        let mut pictures = Vec::new();
        for _ in 0..2 {
            let target = target::start(workspace, TargetKind::ShadowTls)?;
            let mut client = FreeRdp::direct(workspace, Version::Three, target.place())?;
            pictures.push(client.wait_for_desktop(target.place())?);
        }
        let difference = pictures[0].difference(&pictures[1]);
        ensure!(
            difference > 10 * TOLERATED_PIXELS,
            "only {difference} pixels differ"
        );
        Ok(())
    })
}
