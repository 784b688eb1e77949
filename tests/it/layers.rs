//! The core stays a core: no runtime, no files, no sockets, no clock; there is one file that reads a clock; and inside the gateway
//! nothing looks up.

use std::path::{Path, PathBuf};

/// What the core is made of, below `src/`.
const CORE: [&str; 7] = ["base", "entry", "jet", "policy", "rdp", "stage", "token"];

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        let is_code = path.extension().is_some_and(|extension| extension == "rs");
        return is_code.then(|| path.to_owned()).into_iter().collect();
    }
    let entries = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries.flat_map(|path| sources(&path)).collect()
}

/// The file without its tests.
fn production_code(path: &Path) -> String {
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        return String::new();
    }
    let text = std::fs::read_to_string(path).unwrap();
    let tests = ["\n#[cfg(test)]\nmod ", "\n#[cfg(test)]\n#[expect"];
    let end = tests.iter().filter_map(|start| text.find(start)).min();
    text[..end.unwrap_or(text.len())].to_owned()
}

#[test]
fn the_core_has_no_runtime_no_files_no_sockets_and_no_clock() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let forbidden = [
        "tokio",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "Instant::now",
        "SystemTime::now",
        "now_v7",
        "std::thread",
        "tracing::",
        "crate::clock",
    ];
    for part in CORE {
        for path in sources(&root.join(part)) {
            let code = production_code(&path);
            for line in code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
            {
                // sspi tells passwords to whoever listens: it is called with nobody listening.
                if line.contains("NoSubscriber") {
                    continue;
                }
                for word in forbidden {
                    assert!(!line.contains(word), "{}: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn one_file_reads_a_clock_and_one_dials() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&root) {
        let name = path
            .strip_prefix(&root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let code = production_code(&path);
        // The runtime's own clock drives timers, and tests can stop it.
        let runtime_clock = code.contains("tokio::time") && !code.contains("std::time::Instant");
        let reads_a_clock = code.contains("SystemTime::now")
            || code.contains("now_v7")
            || (code.contains("Instant::now") && !runtime_clock);
        assert!(
            !reads_a_clock || name == "io/clock.rs",
            "{name} reads a clock"
        );
        // The demo's client and peers are clients of the gateway, not parts of it.
        let client = name.starts_with("demo") || name.starts_with("peer/");
        let dials = code.contains("TcpStream::connect");
        assert!(
            !dials || client || name == "gateway/upstream/mod.rs",
            "{name} dials"
        );
    }
}

/// The parts of the gateway from top to bottom; those of one line stand side by side.
const FLOORS: [&[&str]; 12] = [
    &["run"],
    &["arrival"],
    &["api"],
    &["rendezvous"],
    &["session"],
    &["build", "upkeep"],
    &["state"],
    &["meeting"],
    &["connection"],
    &["listener", "live"],
    &["trust"],
    &["config", "refusal", "upstream"],
];

/// Names by which the crate knows parts of the gateway, too.
const SHORT: [(&str, &str); 8] = [
    ("api", "api"),
    ("config", "config"),
    ("keyring", "trust"),
    ("listener", "listener"),
    ("refusal", "refusal"),
    ("session", "session"),
    ("target_certificate", "trust"),
    ("tls", "trust"),
];

fn floor(part: &str) -> usize {
    let floor = FLOORS.iter().position(|parts| parts.contains(&part));
    floor.unwrap_or_else(|| panic!("src/gateway/{part} has no floor"))
}

/// The parts of the gateway that a line of code names.
fn named(line: &str) -> Vec<&str> {
    let paths = line.split("crate::").skip(1);
    let named = paths.filter_map(|path| {
        let mut names = path.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        let first = names.next()?;
        if first == "gateway" {
            return names.find(|name| !name.is_empty());
        }
        let short = SHORT.iter().find(|(short, _)| *short == first);
        short.map(|(_, part)| *part)
    });
    named.collect()
}

#[test]
fn inside_the_gateway_each_part_uses_those_below_it_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway");
    let mut seen = 0;
    for path in sources(&root) {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy();
        let part = name.split(['/', '.']).next().unwrap().to_owned();
        if part == "mod" {
            continue;
        }
        let code = production_code(&path);
        let code = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for used in code.flat_map(named).filter(|used| *used != part) {
            seen += 1;
            assert!(floor(&part) < floor(used), "{name} uses {used}");
        }
    }
    assert!(seen > 100, "{seen} uses found");
}
