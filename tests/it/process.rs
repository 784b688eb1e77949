//! The real program: its exit codes, its signals, and what it does when descriptors run out.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use jetway::token::algorithm::{Algorithm, SignatureAlgorithm};
use jetway::token::mint;
use jetway_lab::certificate::Identity;
use jetway_lab::net::free_address;
use jetway_lab::process::KillOnDrop;
use jetway_lab::wait::{PATIENCE, soon};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const JETWAY: &str = env!("CARGO_BIN_EXE_jetway");

fn jetway(arguments: &[&str]) -> Output {
    Command::new(JETWAY)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// A configuration with a key in `folder`, for a free port.
pub(crate) fn configure(folder: &Path, extra: &str) -> SocketAddr {
    let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
    fs::write(folder.join("sign.pub.pem"), key.public_pem().unwrap()).unwrap();
    let address = free_address();
    // A test that needs its own token table brings it.
    let token = if extra.contains("[token]") {
        ""
    } else {
        "[token]\nkeys = [{ path = \"sign.pub.pem\", usage = \"sign\" }]\n"
    };
    let text = format!("[[listener]]\naddress = \"{address}\"\n{token}{extra}");
    fs::write(folder.join("jetway.toml"), text).unwrap();
    address
}

/// A running gateway; killed when dropped.
pub(crate) struct Served(pub(crate) KillOnDrop);

impl Served {
    /// Starts `jetway serve` with at most `descriptors` open files and waits until it listens.
    pub(crate) fn start(folder: &Path, address: SocketAddr, descriptors: u32) -> Self {
        let config = folder.join("jetway.toml");
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "ulimit -n {descriptors}; exec \"$0\" serve --config \"$1\""
            ))
            .args([JETWAY.as_ref(), config.as_os_str()])
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        wait_until(|| {
            assert!(child.try_wait().unwrap().is_none(), "{}", log(folder));
            log(folder).contains("Listening")
        });
        assert!(log(folder).contains(&address.to_string()));
        Self(KillOnDrop(child))
    }

    /// Of the process.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, signal).unwrap();
    }
}

pub(crate) fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap()
}

pub(crate) fn wait_until(condition: impl FnMut() -> bool) {
    assert!(soon(PATIENCE, condition), "the test has waited long enough");
}

/// Whether the gateway answers a health check within a moment.
pub(crate) fn is_healthy(address: SocketAddr) -> bool {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /jet/health HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    answer().is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
}

#[test]
fn the_key_commands_of_the_readme_and_the_untouched_sample_fit_together() {
    let folder = tempfile::tempdir().unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(here.join("README.md")).unwrap();
    let commands: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("jetway keys new "))
        .map(|line| line.split('#').next().unwrap())
        .collect();
    assert_eq!(commands.len(), 2);
    let run = |command: &str| {
        Command::new(JETWAY)
            .args(command.split_whitespace().skip(1))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    for command in commands {
        assert!(run(command).status.success(), "{command}");
    }
    let sample = here.join("samples/jetway.toml");
    fs::copy(sample, folder.path().join("jetway.toml")).unwrap();
    let checked = run("jetway config check --config jetway.toml");
    let told = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.success(), "{told}");
    let told = String::from_utf8(checked.stdout).unwrap();
    let keys = "token keys: 1 to verify with, 1 to decrypt with";
    assert!(told.contains(keys), "{told}");
}

#[test]
fn config_check_says_whose_certificate_users_see_by_each_port() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::self_signed(&["gw.test"]);
    let [certificate, key] = identity.write(folder.path(), ["c.pem", "k.pem"]);
    let tls = format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n");
    let always = "[session]\ninspect = \"always\"\n";
    let shown = certificate.display().to_string();
    for (extra, words) in [
        (
            String::new(),
            vec![
                "opaque",
                "the target's certificate under the gateway's name",
                "[tls]",
                "inspect = \"always\"",
            ],
        ),
        (
            tls.clone(),
            vec![
                "sessions are opaque",
                "the target's certificate under the gateway's name",
                &shown,
                "inspect = \"always\"",
            ],
        ),
        (
            format!("{tls}{always}"),
            vec!["every session is inspected", &shown],
        ),
    ] {
        configure(folder.path(), &extra);
        let config = folder.path().join("jetway.toml");
        let checked = jetway(&["config", "check", "--config", config.to_str().unwrap()]);
        let told = String::from_utf8(checked.stdout).unwrap();
        assert!(checked.status.success(), "{told}");
        for words in words {
            assert!(told.contains(words), "{words}: {told}");
        }
    }
}

#[test]
fn every_file_that_cannot_be_used_is_told_at_once_with_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), "");
    let key = mint::generate(Algorithm::Signature(SignatureAlgorithm::Es256)).unwrap();
    let private = key.private_pem().unwrap();
    fs::write(folder.path().join("private.pem"), private.as_bytes()).unwrap();
    let config = folder.path().join("jetway.toml");
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n\n[tls]\ncertificate = \"none.pem\"\nkey = \"none.key\"\n\n\
                [token]\nrevoked = \"revokd.json\"\nkeys = [\n  { path = \"sign.pub.pem\" },\n  \
                { path = \"private.pem\", usage = \"sign\" },\n  { path = \"absent.pem\" },\n]\n\n\
                [target]\nverify = \"ca\"\nca = \"none.ca\"\n";
    fs::write(&config, text).unwrap();
    let name = config.to_str().unwrap();
    for arguments in [
        ["config", "check", "--config", name].as_slice(),
        &["serve", "--config", name],
    ] {
        let output = jetway(arguments);
        assert!(!output.status.success());
        let told = String::from_utf8(output.stderr).unwrap();
        for (line, key, words) in [
            (12, "token.keys.1.path", "belongs to their issuer"),
            (13, "token.keys.2.path", "absent.pem"),
            (9, "token.revoked", "there is no such file"),
            (5, "tls.certificate", "none.pem"),
            (18, "target.ca", "none.ca"),
        ] {
            let start = format!("{name}:{line}: {key}: ");
            let found = told
                .lines()
                .any(|told| told.contains(&start) && told.contains(words));
            assert!(found, "{start}{words}\n{told}");
        }
        assert!(!told.contains("token.keys.0"), "{told}");
    }
}

#[test]
fn types_values_and_files_are_told_in_one_round() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("emptied.redb"), "").unwrap();
    fs::write(path("jetway.pins"), "what is this\n").unwrap();
    let name = path("jetway.toml");
    let text = "[[listener]]\naddress = \"192.0.2.7:3389\"\n\n[[listener]]\naddress = \"nowhere\"\n\n\
                [token]\nleeway_s = \"long\"\nkeys = [{ path = \"${CREDENTIALS_DIRECTORY}/k.pem\" }, { path = \"absent.pem\" }]\n\n\
                [tickets]\nlifetime_s = 0\n\n[store]\npath = \"emptied.redb\"\n";
    fs::write(&name, text).unwrap();
    for command in [&["serve"][..], &["config", "check"]] {
        let output = Command::new(JETWAY)
            .args(command)
            .args(["--config", &name])
            .env_remove("CREDENTIALS_DIRECTORY")
            .output()
            .unwrap();
        assert!(!output.status.success());
        let told = String::from_utf8(output.stderr).unwrap();
        for (line, key, words) in [
            (2, "listener.0.address", "192.0.2.7:3389"),
            (5, "listener.1.address", "invalid"),
            (8, "token.leeway_s", "invalid type"),
            (9, "token.keys.0.path", "has no CREDENTIALS_DIRECTORY"),
            (9, "token.keys.1.path", "absent.pem"),
            (12, "tickets.lifetime_s", "needs a lifetime"),
            (15, "store.path", "emptied"),
        ] {
            let start = format!("{name}:{line}: {key}: ");
            let of_it: Vec<&str> = told.lines().filter(|told| told.contains(&start)).collect();
            assert_eq!(of_it.len(), 1, "{start}\n{told}");
            assert!(of_it[0].contains(words), "{start}{words}\n{told}");
        }
        // It is in no line of the file, and wrong all the same.
        assert!(told.contains(": target.pins: "), "{told}");
        assert_eq!(told.matches("jetway.toml:").count(), 8, "{told}");
    }
}

#[test]
fn config_check_is_good_beside_a_gateway_that_runs_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "");
    let files = || {
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let path = folder.path().join("jetway.toml");
    let check = || jetway(&["config", "check", "--config", path.to_str().unwrap()]);
    let before = files();
    let checked = check();
    assert!(checked.status.success());
    assert_eq!(files(), before);
    let _served = Served::start(folder.path(), address, 256);
    let before = files();
    let checked = check();
    let told = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{told}");
    assert!(
        told.contains(&format!("note: {address} is in use now")),
        "{told}"
    );
    assert_eq!(files(), before);
    assert!(is_healthy(address));
}

#[test]
fn config_check_warns_of_files_that_everybody_can_read_as_serve_does() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "");
    Identity::self_signed(&["gw.example"]).write(folder.path(), ["c.pem", "k.pem"]);
    let file = |name: &str| folder.path().join(name);
    let key = mint::generate("ECDH-ES".parse().unwrap()).unwrap();
    fs::write(file("gw.pem"), key.private_pem().unwrap().as_bytes()).unwrap();
    let text = format!(
        "[[listener]]\naddress = \"{address}\"\n[tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n\
         [token]\nkeys = [{{ path = \"sign.pub.pem\", usage = \"sign\" }}, {{ path = \"gw.pem\", usage = \"encrypt\" }}]\n\
         [target]\nverify = \"accept-any\"\n"
    );
    fs::write(file("jetway.toml"), text).unwrap();
    let config = file("jetway.toml");
    let check = || {
        let output = jetway(&["config", "check", "--config", config.to_str().unwrap()]);
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    for name in ["k.pem", "gw.pem"] {
        fs::set_permissions(file(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let told = check();
    drop(Served::start(folder.path(), address, 256));
    for told in [told, log(folder.path())] {
        let open = told
            .lines()
            .filter(|line| line.contains("is open to every user"));
        assert_eq!(open.count(), 2, "{told}");
        assert!(told.contains("k.pem") && told.contains("gw.pem"), "{told}");
        assert!(told.contains("accept-any"), "{told}");
    }
    for name in ["k.pem", "gw.pem"] {
        fs::set_permissions(file(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert!(!check().contains("open to every user"));
}

#[test]
fn a_configuration_named_by_the_environment_is_no_key_of_it() {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), "");
    let check = |store: &str| {
        Command::new(JETWAY)
            .args(["config", "check"])
            .env("JETWAY_CONFIG", folder.path().join("jetway.toml"))
            .env("JETWAY_STORE__PATH", store)
            .output()
            .unwrap()
    };
    let output = check("jetway.redb");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{told}");
    let told = String::from_utf8(check("nowhere/jetway.redb").stderr).unwrap();
    assert!(
        told.contains("jetway: JETWAY_STORE__PATH: store.path: "),
        "{told}"
    );
}

#[test]
fn a_token_goes_into_a_file_that_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let key = mint::generate("ES256".parse().unwrap()).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("k.pem"), key.private_pem().unwrap().as_bytes()).unwrap();
    fs::write(path("alice.jwt"), "an older one, open to all").unwrap();
    let (key, out) = (path("k.pem"), path("alice.jwt"));
    let output = jetway(&[
        "token",
        "new",
        "--sign-key",
        &key,
        "--dst-hst",
        "pc42:3389",
        "--out",
        &out,
    ]);
    assert!(output.status.success());
    assert_eq!(output.stdout, b"");
    let token = fs::read_to_string(&out).unwrap();
    assert_eq!(token.trim().split('.').count(), 3, "{token}");
    let mode = fs::metadata(&out).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(
        folder.path(),
        "[limits]\nconnections = 500\npending_per_address = 500\n",
    );
    let served = Served::start(folder.path(), address, 48);
    let held: Vec<TcpStream> = (0..100)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    wait_until(|| log(folder.path()).contains("Cannot accept connections"));
    drop(held);
    wait_until(|| is_healthy(address));
    assert!(
        log(folder.path())
            .matches("Cannot accept connections")
            .count()
            < 5,
        "reported, not repeated"
    );
    drop(served);
}

#[test]
fn sigterm_stops_it_cleanly_and_sighup_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "");
    let mut served = Served::start(folder.path(), address, 256);
    served.signal(Signal::HUP);
    wait_until(|| log(folder.path()).contains("jetway.toml is read at the start alone"));
    assert!(is_healthy(address));
    served.signal(Signal::TERM);
    let status = served.0.wait().unwrap();
    assert!(status.success(), "{status}: {}", log(folder.path()));
    assert!(log(folder.path()).contains("Stopped"));
}

#[test]
fn a_configuration_that_cannot_work_stops_it_with_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), "[session]\nidle_timout_s = 5\n");
    let path = folder.path().join("jetway.toml");
    for command in [&["serve"][..], &["config", "check"]] {
        let output = jetway(&[command, &["--config", path.to_str().unwrap()]].concat());
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            error.contains("jetway.toml:6: session.idle_timout_s"),
            "{error}"
        );
    }
    configure(folder.path(), "");
    let output = jetway(&["config", "check", "--config", path.to_str().unwrap()]);
    assert!(output.status.success());
}

#[test]
fn a_port_in_use_and_a_missing_key_file_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "");
    let path = folder.path().join("jetway.toml");
    let _taken = TcpListener::bind(address).unwrap();
    let serve = || jetway(&["serve", "--config", path.to_str().unwrap()]);
    let error = String::from_utf8(serve().stderr).unwrap();
    assert!(error.contains(&address.to_string()), "{error}");
    fs::remove_file(folder.path().join("sign.pub.pem")).unwrap();
    let error = String::from_utf8(serve().stderr).unwrap();
    assert!(error.contains("sign.pub.pem"), "{error}");
}

#[test]
fn a_keytab_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    configure(
        folder.path(),
        "[client]\nkerberos = { keytab = \"jetway.keytab\" }\n",
    );
    let path = folder.path().join("jetway.toml");
    let check = || jetway(&["config", "check", "--config", path.to_str().unwrap()]);
    let keytab = folder.path().join("jetway.keytab");
    for (content, problem) in [
        (None, "No such file"),
        (Some(b"\x05\x01".as_slice()), "not a keytab"),
        (Some(b"\x05\x02"), "no AES key for TERMSRV/host"),
    ] {
        if let Some(content) = content {
            fs::write(&keytab, content).unwrap();
        }
        let error = String::from_utf8(check().stderr).unwrap();
        assert!(
            error.contains("jetway.keytab") && error.contains(problem),
            "{error}"
        );
    }
    fs::write(&keytab, include_bytes!("../golden/kerberos/gateway.keytab")).unwrap();
    assert!(check().status.success());
}

#[test]
fn a_demo_that_is_told_to_end_leaves_no_keys_behind() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let temporary = tempfile::tempdir().unwrap();
        let child = Command::new(JETWAY)
            .arg("demo")
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut demo = Served(KillOnDrop(child));
        let files = || {
            let folders = fs::read_dir(temporary.path()).unwrap();
            let folders = folders.map(|folder| folder.unwrap().path());
            folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten())
        };
        wait_until(|| files().next().is_some());
        demo.signal(signal);
        assert!(demo.0.wait().unwrap().success(), "{signal:?}");
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_the_gateway_writes_is_its_users_alone_and_what_is_open_is_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "[target]\nverify = \"first-use\"\n");
    let store = folder.path().join("jetway.redb");
    let pins = folder.path().join("jetway.pins");
    drop(Served::start(folder.path(), address, 256));
    assert_eq!(
        fs::metadata(&store).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(!log(folder.path()).contains("open to every user"));
    fs::write(&pins, "").unwrap();
    for open in [&store, &pins] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o644)).unwrap();
    }
    drop(Served::start(folder.path(), address, 256));
    for told in ["Store", "File of pins"] {
        let told = format!("{told} is open to every user");
        assert!(log(folder.path()).contains(&told), "{told}");
    }
    // Emptied is not new.
    fs::write(&store, "").unwrap();
    let path = folder.path().join("jetway.toml");
    let output = jetway(&["serve", "--config", path.to_str().unwrap()]);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("jetway.redb") && error.contains("emptied"),
        "{error}"
    );
}
