//! What people share with the target beside the picture: files, drives, sound and the size of the window, through the
//! gateway as without it, and what the audit log tells of it.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use jetway_lab::wait::{PATIENCE, until};
use serde_json::json;

use crate::injects::{stranger, the_only, through};
use crate::lab::border::Border;
use crate::lab::clipboard::{self, Copied, GNOME_FILES, URI_LIST};
use crate::lab::display::SIZE;
use crate::lab::freerdp::{FreeRdp, Version};
use crate::lab::gateway::{Gateway, Grant};
use crate::lab::log::CLOSED;
use crate::lab::rdesktop::RDesktop;
use crate::lab::sound::{self, Sink};
use crate::lab::target::Target;
use crate::lab::workspace::{self, Workspace};
use crate::lab::xrdp::Xrdp;

#[test]
fn freerdp2_copies_files_to_xrdp() -> Result<()> {
    files_are_copied_to_the_target(Version::Two)
}

#[test]
fn freerdp3_copies_files_to_xrdp() -> Result<()> {
    files_are_copied_to_the_target(Version::Three)
}

fn files_are_copied_to_the_target(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let (gateway, token, mut client) = share(workspace, &target, version, &["+clipboard"])?;
        let files = [
            noise(workspace, "quarterly-report.bin", 2_500_000)?,
            noise(workspace, "empty.bin", 0)?,
            noise(workspace, "short note.txt", 17)?,
        ];
        let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        let xclip = client.command("xclip");
        let copied = Copied::files(workspace, "copy-here", xclip, URI_LIST, &paths)?;
        let listed = |list: &[u8]| {
            let list = String::from_utf8_lossy(list).into_owned();
            list.contains("note.txt").then_some(list)
        };
        let xclip = || target.command("xclip");
        clipboard::wait_for("the files", URI_LIST, xclip, listed)?;
        for file in &files {
            let name = name(file)?;
            let pasted = target.shell(&format!(
                "sha256sum < \"$HOME/thinclient_drives/.clipboard/{name}\""
            ))?;
            ensure!(
                pasted.starts_with(&digest(&fs::read(file)?)),
                "{name}: {pasted}"
            );
        }
        drop(copied);
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        gateway.wait_for_audit(&json!({
            "event": "clipboard_files_listed",
            "direction": "to_target",
            "files": [
                { "name": "quarterly-report.bin", "size": 2_500_000 },
                { "name": "empty.bin", "size": 0 },
                { "name": "short note.txt", "size": 17 },
            ],
            "count": 3,
            "bytes": 2_500_017,
        }))?;
        for (name, bytes) in [("quarterly-report.bin", 2_500_000), ("short note.txt", 17)] {
            gateway.wait_for_audit(&json!({
                "event": "clipboard_file_sent",
                "direction": "to_target",
                "name": name,
                "bytes": bytes,
            }))?;
        }
        gateway.keeps_secret(&[&token, &target.place().password])
    })
}

#[test]
fn rdesktop_shares_a_drive_with_xrdp() -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let token = gateway.token_with(
            &place.address(),
            &Grant::logon(&place.user, &place.password),
        )?;
        let border = Border::start(&gateway.address(), &token)?;
        let drive = workspace.folder("drive")?;
        let big = noise(workspace, "drive/big.bin", 3_000_000)?;
        let option = format!("disk:lab={}", drive.display());
        let mut client = RDesktop::start(
            workspace,
            "client",
            border.address(),
            &["-r", &option],
            &stranger(place),
        )?;
        client.wait_for_desktop(place)?;
        until("the drive in the session", PATIENCE, || {
            client.expect_alive()?;
            let seen = target.shell("cd ~/thinclient_drives/lab && test -f big.bin");
            Ok(seen.is_ok().then_some(()))
        })?;

        let read = target.shell("sha256sum < ~/thinclient_drives/lab/big.bin")?;
        ensure!(read.starts_with(&digest(&fs::read(&big)?)), "{read}");
        let written = target.shell(
            "cd ~/thinclient_drives/lab && head -c 1000000 /dev/urandom > ~/own.bin && \
             cp ~/own.bin new.bin && sha256sum < ~/own.bin",
        )?;
        ensure!(
            written.starts_with(&digest(&fs::read(drive.join("new.bin"))?)),
            "{written}"
        );
        let (new, old, folder) = (
            drive.join("new.bin"),
            drive.join("old.bin"),
            drive.join("folder"),
        );
        // The session does not wait for the client where it closes a file.
        let eventually = |what: &str, condition: &dyn Fn() -> bool| {
            until(what, PATIENCE, || Ok(condition().then_some(())))
        };
        target.shell("mkdir ~/thinclient_drives/lab/folder")?;
        eventually("the folder is made", &|| folder.is_dir())?;
        target.shell("cd ~/thinclient_drives/lab && mv new.bin old.bin")?;
        eventually("it is renamed", &|| old.is_file() && !new.exists())?;
        target.shell("rm ~/thinclient_drives/lab/old.bin")?;
        eventually("it is deleted", &|| !old.exists())?;
        target.shell("rmdir ~/thinclient_drives/lab/folder")?;
        eventually("the folder is deleted", &|| !folder.exists())?;
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        for expected in [
            json!({ "event": "device_announced", "device": { "id": 0, "kind": "drive", "name": "lab" } }),
            json!({ "event": "device_answered", "device": 0, "status": 0 }),
            json!({ "event": "file_closed", "path": "/big.bin", "read": 3_000_000, "written": 0, "writable": false }),
            json!({ "event": "file_closed", "path": "/new.bin", "written": 1_000_000, "writable": true }),
            json!({ "event": "file_closed", "path": "/folder", "directory": true, "created": true }),
            // xrdp begins paths with a slash, and where it renames with a backslash: what it says is what is told.
            json!({ "event": "file_renamed", "path": "/new.bin", "to": "\\old.bin", "status": 0 }),
            json!({ "event": "file_deleted", "path": "/old.bin", "pending": true, "status": 0 }),
            json!({ "event": "file_closed", "path": "/old.bin", "deleted": true }),
            json!({ "event": "file_deleted", "path": "/folder", "pending": true, "status": 0 }),
        ] {
            gateway.wait_for_audit(&expected)?;
        }
        gateway.keeps_secret(&[&token, &place.password])
    })
}

#[test]
fn freerdp2_plays_the_sound_of_xrdp() -> Result<()> {
    sound_is_heard(Version::Two)
}

#[test]
fn freerdp3_plays_the_sound_of_xrdp() -> Result<()> {
    sound_is_heard(Version::Three)
}

fn sound_is_heard(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let sink = Sink::start(workspace)?;
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let arguments = [
            format!("/v:{}", gateway.address()),
            format!("/pcb:{token}"),
            "/sound:sys:pulse".to_owned(),
        ];
        let mut client = FreeRdp::start_in(
            workspace,
            "client",
            version,
            &arguments,
            &stranger(place),
            &[("PULSE_SERVER", &sink.address())],
        )?;
        client.wait_for_desktop(place)?;
        sound::play_until_heard(&sink, &target.display_number()?, 1000.0)?;
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        gateway.wait_for_audit(&json!({
            "event": "sound_played",
            "format": { "channels": 2, "samples_per_s": 44_100, "bits_per_sample": 16 },
        }))?;
        gateway.keeps_secret(&[&token, &place.password])
    })
}

#[test]
fn freerdp2_resizes_the_desktop_of_xrdp() -> Result<()> {
    the_desktop_follows_the_window(Version::Two)
}

#[test]
fn freerdp3_resizes_the_desktop_of_xrdp() -> Result<()> {
    the_desktop_follows_the_window(Version::Three)
}

fn the_desktop_follows_the_window(version: Version) -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let (gateway, token, mut client) =
            share(workspace, &target, version, &["/dynamic-resolution"])?;
        let place = target.place();
        let (width, height) = (800, 600);
        client.resize(width, height)?;
        until("the desktop has the size of the window", PATIENCE, || {
            client.expect_alive()?;
            let screen = target.shell("xrandr --current")?;
            let current = format!("current {width} x {height},");
            Ok(screen.contains(&current).then_some(()))
        })?;
        client.type_until_it_arrives(place)?;
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        let monitor = json!({ "width": width, "height": height });
        for expected in [
            json!({ "event": "channel_opened", "channel": DISPLAY_CONTROL, "dynamic": true }),
            json!({ "event": "desktop_size", "width": SIZE.0, "height": SIZE.1 }),
            json!({ "event": "monitors_requested", "monitors": [monitor] }),
            json!({ "event": "desktop_size", "width": width, "height": height }),
        ] {
            gateway.wait_for_audit(&expected)?;
        }
        gateway.keeps_secret(&[&token, &place.password])
    })
}

#[test]
fn freerdp3_takes_files_from_xrdp_as_in_a_direct_session() -> Result<()> {
    workspace::run(|workspace| {
        let target = Xrdp::start(workspace)?;
        let place = target.place();
        let gateway = Gateway::start_inside_for(workspace, &target)?;
        let grant = Grant::logon(&place.user, &place.password);
        let token = gateway.token_with(&place.address(), &grant)?;
        let content = noise(workspace, "from-there.bin", 1_500_000)?;
        let content = fs::read(content)?;

        let address = [format!("/v:{}", place.address()), "+clipboard".to_owned()];
        let mut direct = FreeRdp::start(workspace, "direct", Version::Three, &address, place)?;
        direct.wait_for_desktop(place)?;
        let file = target.home().join("from-there.bin");
        fs::write(&file, &content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        let expected = paste_file(workspace, &target, &direct, &file)?;
        direct.end();

        let options = ["+clipboard"];
        let user = stranger(place);
        let version = Version::Three;
        let mut client = through(
            workspace, &gateway, "client", version, &token, &options, &user,
        )?;
        client.wait_for_desktop(place)?;
        let pasted = paste_file(workspace, &target, &client, &file)?;
        client.end();
        the_only(gateway.wait_for(CLOSED, 1)?)?;
        for event in gateway.audit()? {
            eprintln!("{event}");
        }
        ensure!(expected.content == content, "a direct session shortens it");
        ensure!(pasted.content == content, "it is not what was copied");
        // FreeRDP 3 asks xrdp for what is behind the end of the file, and is told that there is nothing.
        ensure!(
            pasted.error == expected.error,
            "{:?}, and {:?} in a direct session",
            pasted.error,
            expected.error
        );
        gateway.wait_for_audit(&json!({
            "event": "clipboard_files_listed",
            "direction": "to_client",
            "files": [{ "name": "from-there.bin", "size": 1_500_000 }],
        }))?;
        gateway.wait_for_audit(&json!({
            "event": "clipboard_file_sent",
            "direction": "to_client",
            "name": "from-there.bin",
            "bytes": 1_500_000,
        }))?;
        gateway.keeps_secret(&[&token, &place.password])
    })
}

/// What a client can read of a file, and the error that ends it.
struct Pasted {
    content: Vec<u8>,
    error: Option<ErrorKind>,
}

/// Copies `file` in the session and reads it at the client.
fn paste_file(
    workspace: &Workspace,
    target: &Xrdp,
    client: &FreeRdp,
    file: &Path,
) -> Result<Pasted> {
    let xclip = target.command("xclip")?;
    let _copied = Copied::files(workspace, "copy-there", xclip, GNOME_FILES, &[file])?;
    let folder = format!("file://{}/", client.clipboard_folder().display());
    let name = name(file)?;
    let pasted = clipboard::wait_for(
        name,
        URI_LIST,
        || Ok(client.command("xclip")),
        |list| {
            let list = String::from_utf8_lossy(list).into_owned();
            let mut lines = list.lines();
            let line = lines.find(|line| line.starts_with(&folder) && line.ends_with(name))?;
            Some(PathBuf::from(line.strip_prefix("file://")?))
        },
    )?;
    let (mut file, mut content) = (fs::File::open(pasted)?, Vec::new());
    let mut buffer = vec![0; 64 * 1024];
    let error = loop {
        match file.read(&mut buffer) {
            Ok(0) => break None,
            Ok(length) => content.extend_from_slice(&buffer[..length]),
            Err(error) => break Some(error.kind()),
        }
    };
    Ok(Pasted { content, error })
}

/// A session in which the gateway logs on, with the desktop on the client's screen.
fn share(
    workspace: &Workspace,
    target: &Xrdp,
    version: Version,
    options: &[&str],
) -> Result<(Gateway, String, FreeRdp)> {
    let place = target.place();
    let gateway = Gateway::start_inside_for(workspace, target)?;
    let grant = Grant::logon(&place.user, &place.password);
    let token = gateway.token_with(&place.address(), &grant)?;
    let user = stranger(place);
    let mut client = through(
        workspace, &gateway, "client", version, &token, options, &user,
    )?;
    client.wait_for_desktop(place)?;
    let logon = json!({ "event": "logon_requested", "user": place.user, "has_password": true });
    gateway.wait_for_audit(&logon)?;
    Ok((gateway, token, client))
}

/// A file that nothing can shorten.
fn noise(workspace: &Workspace, name: &str, length: usize) -> Result<PathBuf> {
    let mut content = vec![0; length];
    openssl::rand::rand_bytes(&mut content)?;
    workspace.write(name, content)
}

fn name(file: &Path) -> Result<&str> {
    let name = file.file_name().and_then(|name| name.to_str());
    name.context("a name")
}

fn digest(content: &[u8]) -> String {
    hex::encode(openssl::sha::sha256(content))
}

const DISPLAY_CONTROL: &str = "Microsoft::Windows::RDS::DisplayControl";
