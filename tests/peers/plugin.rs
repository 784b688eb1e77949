//! A stage of another crate (tests/plugin): built as it stands there, between a real client and a real target.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::injects::{stranger, the_only, through};
use crate::lab::clipboard::{self, Copied};
use crate::lab::freerdp::Version;
use crate::lab::gateway::{Gateway, Grant};
use crate::lab::log::CLOSED;
use crate::lab::process::tool;
use crate::lab::target::Target;
use crate::lab::workspace;
use crate::lab::xrdp::Xrdp;

#[test]
fn a_stage_of_another_crate_counts_the_clipboard_of_xrdp_and_keeps_a_channel_shut() -> Result<()> {
    let plugin = build()?;
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let mut gateway = Gateway::start_inside_for(workspace, &target)?;
        gateway.restart_as(workspace, &plugin)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let (version, user) = (Version::Three, stranger(place));
        let options = ["+clipboard", "/sound:sys:fake"];
        let mut client = through(
            workspace, &gateway, "client", version, &token, &options, &user,
        )?;
        client.wait_for_desktop(place)?;
        let text = "what is copied passes, and is counted";
        let _copied = Copied::text(workspace, "copy-here", client.command("xclip"), text)?;
        clipboard::wait_for_text(text, || target.command("xclip"))?;
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        // Whoever writes down what happened hears of it, with the rule.
        gateway.wait_for_audit(&json!({
            "event": "ruled",
            "stage": "customs",
            "rule": "no-sound",
            "action": "denied",
            "channel": "rdpsnd",
        }))?;
        let printed = gateway.printed()?;
        let counted = printed.lines().find_map(|line| {
            let (_session, counted) = line.split_once(": ")?;
            counted.strip_suffix(" bytes of clipboard")?.parse().ok()
        });
        let counted: usize = counted.with_context(|| printed.clone())?;
        ensure!(counted > text.len(), "{printed}");
        gateway.keeps_secret(&[&token, &place.password, text])
    })
}

/// The program, in the build directory of the tests, where most of what it uses is there already.
fn build() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target");
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--locked", "--quiet", "--manifest-path"])
        .arg(root.join("tests/plugin/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target);
    tool(&mut build)?;
    Ok(target.join("debug/jetway-plugin"))
}
