//! What manifests and clippy cannot say of themselves: members use those below them alone, the core reaches no runtime and no system;
//! one part of the gateway dials; and inside the gateway nothing looks up.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The members of the workspace from top to bottom; those of one line stand side by side.
const MEMBERS: [&[&str]; 9] = [
    &["jetway"],
    &["jetway-gateway"],
    &[
        "jetway-demo",
        "jetway-log",
        "jetway-peer",
        "jetway-relay",
        "jetway-store",
    ],
    &["jetway-io"],
    &["jetway-entry", "jetway-jet", "jetway-stage"],
    &["jetway-policy"],
    &[
        "jetway-audit",
        "jetway-metrics",
        "jetway-rdp",
        "jetway-token",
    ],
    &["jetway-base"],
    &[LAB],
];

/// For tests alone: no member uses it but in `[dev-dependencies]`.
const LAB: &str = "jetway-lab";

/// The members that may do I/O; all others are core.
const SHELL: [&str; 9] = [
    "jetway",
    "jetway-demo",
    "jetway-gateway",
    "jetway-io",
    "jetway-log",
    "jetway-metrics",
    "jetway-peer",
    "jetway-relay",
    "jetway-store",
];

/// What only the shell may reach, however far down.
const SYSTEM: [&str; 7] = [
    "hickory-resolver",
    "hyper",
    "mio",
    "nix",
    "rustix",
    "socket2",
    "tokio",
];

/// The graph of dependencies of this platform, as Cargo resolves it.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .arg("--filter-platform=host-tuple")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().unwrap().iter()
}

#[test]
fn members_use_those_below_them_alone_and_the_core_reaches_no_runtime_and_no_system() {
    let floor = |member: &str| {
        let floor = MEMBERS.iter().position(|floor| floor.contains(&member));
        floor.unwrap_or_else(|| panic!("{member} has no floor"))
    };
    let metadata = metadata();
    let names: HashMap<&str, &str> = list(&metadata["packages"])
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let nodes: HashMap<&str, &Value> = list(&metadata["resolve"]["nodes"])
        .map(|node| (text(&node["id"]), node))
        .collect();
    let members: HashSet<&str> = list(&metadata["workspace_members"]).map(text).collect();
    assert_eq!(members.len(), MEMBERS.concat().len());

    for member in &members {
        let name = names[member];
        for dependency in list(&nodes[member]["deps"]) {
            let used = text(&dependency["pkg"]);
            if !members.contains(used) {
                continue;
            }
            let mut kinds = list(&dependency["dep_kinds"]);
            let for_tests = kinds.all(|kind| kind["kind"] == "dev");
            assert!(
                names[used] != LAB || for_tests,
                "{name} uses {LAB} outside of its tests"
            );
            assert!(
                floor(name) < floor(names[used]),
                "{name} uses {}",
                names[used]
            );
        }
        if SHELL.contains(&name) || name == LAB {
            continue;
        }
        let mut reached = HashSet::from([*member]);
        let mut rest = vec![*member];
        while let Some(node) = rest.pop() {
            let used = list(&nodes[node]["deps"]).filter(|dep| {
                let mut kinds = list(&dep["dep_kinds"]);
                kinds.any(|kind| kind["kind"] != "dev")
            });
            for used in used.map(|dep| text(&dep["pkg"])) {
                assert!(
                    !SYSTEM.contains(&names[used]),
                    "{name} reaches {} by {}",
                    names[used],
                    names[node]
                );
                if reached.insert(used) {
                    rest.push(used);
                }
            }
        }
    }
}

#[test]
fn no_core_member_has_rules_of_its_own_for_clippy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert!(root.join("clippy.toml").exists());
    let core = MEMBERS.concat();
    for member in core
        .iter()
        .filter(|member| !SHELL.contains(member) && **member != LAB)
    {
        let folder = root.join(member.trim_start_matches("jetway-"));
        assert!(folder.join("Cargo.toml").exists(), "{member}");
        for own in ["clippy.toml", ".clippy.toml"] {
            assert!(!folder.join(own).exists(), "{member} has {own}");
        }
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member}");
    }
}

#[test]
fn members_of_the_shell_repeat_the_rules_of_the_root_for_clippy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let rules = read(&root.join(".clippy.toml"));
    for member in SHELL.iter().filter(|member| **member != "jetway") {
        let folder = root.join("src").join(member.trim_start_matches("jetway-"));
        let own = read(&folder.join("clippy.toml"));
        let (comment, own) = own.split_once('\n').unwrap();
        assert!(comment.starts_with('#') && own == rules, "{member}");
        let manifest = read(&folder.join("Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member}");
    }
}

pub(crate) fn sources(path: &Path) -> Vec<PathBuf> {
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
fn one_part_of_the_gateway_dials() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&root) {
        let name = path.strip_prefix(&root).unwrap().to_string_lossy();
        // The demo's client and peers are clients of the gateway, not parts of it.
        let client = name.starts_with("demo/") || name.starts_with("peer/");
        let dials = production_code(&path).contains("TcpStream::connect");
        assert!(
            !dials || client || name == "gateway/upstream/mod.rs",
            "{name} dials"
        );
    }
}

/// The parts of the gateway from top to bottom; those of one line stand side by side.
const FLOORS: [&[&str]; 13] = [
    &["run"],
    &["arrival"],
    &["api"],
    &["rendezvous"],
    &["session"],
    &["build", "monitoring", "upkeep"],
    &["state"],
    &["meeting"],
    &["connection", "trail"],
    &["listener", "live"],
    &["trust"],
    &["refusal"],
    &["config", "upstream"],
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
        names.next().filter(|name| !name.is_empty())
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
        if part == "lib" {
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
