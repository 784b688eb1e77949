//! Every input that fuzzing kept is tried again by plain tests: one test for each fuzz target.
//!
//! `corpus/<target>/` holds inputs that together reach what is reachable, `regressions/<target>/` those that once
//! broke a promise.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail and speak as tests do"
)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

mod oracles;

macro_rules! replay {
    ($($target:ident),+ $(,)?) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target), oracles::$target);
            }
        )+

        const TARGETS: &[&str] = &[$(stringify!($target)),+];
    };
}

replay!(
    application_protocol,
    bulk,
    channel_cliprdr,
    channel_drdynvc,
    channel_rdpdr,
    channel_rdpsnd,
    connection_confirm,
    connection_request,
    credssp,
    farewell,
    jet_frame,
    jet_message,
    jet_packet,
    jet_url,
    kerberos,
    preamble,
    preconnection,
    proxy_protocol,
    rdp8_lite,
    session,
    ticket,
    token,
);

#[test]
fn every_fuzz_target_is_replayed() {
    let mut targets: Vec<String> = fs::read_dir(folder().join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| name.trim_end_matches(".rs").to_owned())
        .collect();
    targets.sort();
    assert_eq!(targets, TARGETS);
}

fn replay(target: &str, oracle: fn(&[u8])) {
    let mut count = 0;
    for kind in ["corpus", "regressions"] {
        let Ok(files) = fs::read_dir(folder().join(kind).join(target)) else {
            continue;
        };
        for file in files {
            let path = file.unwrap().path();
            let data = fs::read(&path).unwrap();
            if let Err(cause) = catch_unwind(AssertUnwindSafe(|| oracle(&data))) {
                eprintln!("{} breaks a promise", path.display());
                resume_unwind(cause);
            }
            count += 1;
        }
    }
    assert!(count > 0, "no inputs for {target}");
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}
