//! The audit: each decision has its record, in a chain that shows what was done to it.

use std::fs;
use std::path::Path;
use std::process::Command;

use jetway::audit::record::Event;
use jetway::store::audit::files;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::{http_json, sessions, ticket};
use crate::lab::{Lab, PATIENCE, Target, closed, failure, request, within};
use crate::process::{JETWAY, Served, configure};
use crate::rendezvous::Place;

/// A gateway whose operator has the key `operator-secret`, under the name `desk`.
fn lab(extra: &str) -> Lab {
    let digest = hex::encode(openssl::sha::sha256(KEY.as_bytes()));
    Lab::start(&format!(
        "[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n{extra}"
    ))
}

const KEY: &str = "operator-secret";

fn of(event: Event) -> impl Fn(&Value) -> bool {
    move |record| record["event"] == event.name()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_decision_has_its_record() {
    let mut lab = lab("");
    let target = Target::start().await;
    let token = lab.token(target.address, json!({ "sub": "alice" }));
    let client = lab.session(&token).await;
    let opened = lab.audited(of(Event::SessionOpened)).await;
    assert_eq!(opened["user"], "alice");
    assert_eq!(opened["target"], target.address.to_string());
    assert_eq!(opened["address"], target.address.to_string());
    assert_eq!(opened["protocol"], "rdp");
    assert_eq!(opened["detail"]["mode"], "opaque");
    assert_eq!(
        (&opened["class_uid"], &opened["activity_id"]),
        (&json!(4001), &json!(1))
    );
    let peer = client.local_addr().unwrap().to_string();
    assert_eq!(opened["peer"], peer);

    // What an operator ends, and by which name.
    let id = sessions(&lab, KEY).await[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(opened["session"], id);
    let end = format!("DELETE /jet/sessions/{id}");
    assert_eq!(http_json(&lab, "gw.test", &end, KEY, "").await.0, 204);
    let ended = lab.audited(of(Event::SessionEnded)).await;
    assert_eq!(
        (&ended["by"], &ended["session"]),
        (&json!("desk"), &json!(id))
    );
    let record = lab.audited(of(Event::SessionClosed)).await;
    assert_eq!(
        (&record["by"], &record["reason"]),
        (&json!("desk"), &json!("ended by desk"))
    );
    assert!(record["bytes_to_target"].as_u64() > Some(0), "{record}");
    assert!(record["duration_ms"].is_u64());

    // The same token again is refused, with what is known of it.
    failure(&mut lab.client(&token).await).await;
    let refused = lab.audited(of(Event::SessionRefused)).await;
    assert_eq!(
        (&refused["rule"], &refused["user"]),
        (&json!("replayed"), &json!("alice"))
    );
    assert_eq!(refused["token"], opened["token"]);
    assert_eq!(
        (&refused["severity_id"], &refused["status_id"]),
        (&json!(3), &json!(2))
    );

    // Somebody without a token.
    let mut stranger = lab.connect().await;
    stranger
        .write_all(&request(None).encode().unwrap())
        .await
        .unwrap();
    within(stranger.read_to_end(&mut Vec::new())).await.unwrap();
    let nobody = lab.audited(|record| record["rule"] == "no-token").await;
    assert!(
        nobody["user"].is_null() && nobody["token"].is_null(),
        "{nobody}"
    );

    let other = lab.token(target.address, json!({ "sub": "bob" }));
    let text = ticket(&lab, &other).await;
    let issued = lab.audited(of(Event::TicketIssued)).await;
    assert_eq!(
        (&issued["by"], &issued["user"]),
        (&json!("token"), &json!("bob"))
    );
    let asked = http_json(&lab, "gw.test", "POST /jet/tickets", "a-guess", "").await;
    assert_eq!(asked.0, 401);
    lab.audited(of(Event::TicketRefused)).await;
    assert_eq!(
        http_json(&lab, "gw.test", "GET /jet/sessions", "a-guess", "")
            .await
            .0,
        401
    );
    let guessed = lab.audited(of(Event::ApiRefused)).await;
    assert_eq!(guessed["rule"], "api-key");

    lab.stop().await;
    let records = lab.audit();
    let names: Vec<&str> = records
        .iter()
        .map(|record| record["event"].as_str().unwrap())
        .collect();
    assert_eq!(names[..2], ["audit.opened", "gateway.started"]);
    assert_eq!(
        names[names.len() - 2..],
        ["gateway.stopped", "audit.closed"]
    );
    let all = serde_json::to_string(&records).unwrap();
    for secret in [&token, &other, &text, KEY, "a-guess"] {
        assert!(!all.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn associations_have_their_records() {
    let place = Place::start("");
    let association = uuid::Uuid::new_v4();
    let token = place.token(association, json!({ "sub": "carol" }));
    place.association(association, &token).await;
    let created = place.lab.audited(of(Event::AssociationCreated)).await;
    assert_eq!(
        (&created["jet_aid"], &created["user"]),
        (&json!(association), &json!("carol"))
    );
    let delete = format!("DELETE /jet/association/{association}");
    assert_eq!(place.http(&delete, &token, "").await.0, 200);
    let deleted = place.lab.audited(of(Event::AssociationDeleted)).await;
    assert_eq!(
        (&deleted["jet_aid"], &deleted["by"]),
        (&json!(association), &json!("token"))
    );
}

/// Nor is anybody who reads it shown what moves the cursor.
#[tokio::test(flavor = "multi_thread")]
async fn no_name_ends_a_record_or_makes_another() {
    let lab = lab("");
    let target = Target::start().await;
    // Names that no token may have, and what a JSON reader could be led astray by.
    let hidden = "x\n\u{1b}[2J\u{9b}\u{202e}\u{2028}";
    let refused = lab.token(target.address, json!({ "sub": hidden, "jti": hidden }));
    failure(&mut lab.client(&refused).await).await;
    lab.audited(of(Event::SessionRefused)).await;
    let forged = "x\"},{\"version\":1,\"event\":\"session.opened\",\"user\":\"\\u000a";
    let token = lab.token(target.address, json!({ "sub": forged }));
    drop(lab.session(&token).await);
    closed(1).await;
    lab.audited(of(Event::SessionClosed)).await;
    let records = lab.audit();
    let opened: Vec<&Value> = records
        .iter()
        .filter(|record| of(Event::SessionOpened)(record))
        .collect();
    assert_eq!(opened.len(), 1, "{records:?}");
    assert_eq!(opened[0]["user"], forged);
    let text = fs::read_to_string(lab.folder.path().join("jetway-audit.jsonl")).unwrap();
    assert!(
        !text
            .chars()
            .any(|c| c != '\n' && jetway::escape::is_hidden(c)),
        "{text}"
    );
}

/// One address has a budget, and what is left out is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_does_not_fill_the_disk() {
    let mut lab = lab("");
    let asks = request(None).encode().unwrap();
    for _ in 0..400 {
        let mut stranger = lab.connect().await;
        stranger.write_all(&asks).await.unwrap();
        within(stranger.read_to_end(&mut Vec::new())).await.unwrap();
    }
    lab.stop().await;
    let records = lab.audit();
    let refused = records
        .iter()
        .filter(|record| of(Event::SessionRefused)(record))
        .count();
    assert!((50..300).contains(&refused), "{refused}");
    let told: u64 = records
        .iter()
        .filter(|record| of(Event::AuditSuppressed)(record))
        .map(|record| record["detail"]["records"].as_u64().unwrap())
        .sum();
    assert_eq!(u64::try_from(refused).unwrap() + told, 400);
}

/// What `jetway audit verify` says of an audit.
fn verify(path: &Path, more: &[&str]) -> (bool, String) {
    let output = Command::new(JETWAY)
        .args(["audit", "verify"])
        .arg(path)
        .args(more)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_an_audit_is_found_by_the_command() {
    let mut lab = lab("");
    let target = Target::start().await;
    for number in 1..=3 {
        let token = lab.token(target.address, json!({}));
        drop(lab.session(&token).await);
        closed(number).await;
        lab.restart().await;
    }
    lab.stop().await;
    let path = lab.folder.path().join("jetway-audit.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let (good, said) = verify(&path, &[]);
    assert!(good, "{said}");
    assert!(
        said.contains(&format!("{} records in 1 files", lines.len())),
        "{said}"
    );
    let last = said
        .lines()
        .find_map(|line| line.strip_prefix("The last one: "))
        .unwrap();
    assert!(verify(&path, &["--known", last]).0);

    let write = |lines: &[String]| fs::write(&path, lines.join("\n") + "\n").unwrap();
    let owned: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    for at in 0..lines.len() {
        let mut removed = owned.clone();
        removed.remove(at);
        write(&removed);
        // Of the end, only who knows the end can tell.
        let known: &[&str] = if at + 1 == lines.len() {
            &["--known", last]
        } else {
            &[]
        };
        let (good, said) = verify(&path, known);
        assert!(!good, "removed {at}: {said}");

        let mut changed = owned.clone();
        changed[at] = changed[at].replace("\"version\":1", "\"version\":2");
        write(&changed);
        let (good, said) = verify(&path, known);
        assert!(!good, "changed {at}: {said}");

        if at > 0 {
            let mut moved = owned.clone();
            moved.swap(at - 1, at);
            write(&moved);
            let (good, said) = verify(&path, &[]);
            assert!(
                !good && said.contains("jetway-audit.jsonl:"),
                "moved {at}: {said}"
            );
        }
    }
    // A file of it was put elsewhere.
    write(&owned[5..]);
    assert!(!verify(&path, &[]).0);
    let after = jetway::audit::chain::Head::behind(5, lines[4].as_bytes()).to_string();
    let (good, said) = verify(&path, &["--after", &after]);
    assert!(good, "{said}");
    fs::write(&path, "no record\n".repeat(1000)).unwrap();
    let (good, said) = verify(&path, &[]);
    assert!(
        !good && said.contains("1000 faults") && said.lines().count() < 110,
        "{said}"
    );
    fs::remove_file(&path).unwrap();
    let (good, said) = verify(&path, &[]);
    assert!(!good && said.contains("there is no audit"), "{said}");
}

/// And it goes on with the next start.
#[test]
fn an_audit_is_whole_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let address = configure(folder.path(), "");
    let path = folder.path().join("jetway-audit.jsonl");
    for kill in [true, true, false] {
        let gateway = Served::start(folder.path(), address, 1024);
        let recorded = jetway_lab::wait::soon(PATIENCE, || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            text.lines()
                .last()
                .is_some_and(|line| line.contains("gateway.started"))
        });
        assert!(recorded, "the start");
        gateway.signal(if kill { Signal::KILL } else { Signal::TERM });
        let mut gateway = gateway;
        gateway.0.wait().unwrap();
    }
    let (good, said) = verify(&path, &[]);
    assert!(good, "{said}");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches("gateway.started").count(), 3);
    assert_eq!(text.matches("gateway.stopped").count(), 1);
    assert_eq!(files(&path).unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_from_the_audit_while_the_gateway_is_stopped_is_missed() {
    let mut lab = lab("");
    lab.restart().await;
    lab.stop().await;
    let path = lab.folder.path().join("jetway-audit.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains(Event::AuditRecovered.name()), "{text}");
    let last = text.lines().count();
    for rest in [last - 2, 0] {
        // Its last lines, and then all of it.
        let kept: String = text.split_inclusive('\n').take(rest).collect();
        if rest == 0 {
            fs::remove_file(&path).unwrap();
        } else {
            fs::write(&path, kept).unwrap();
        }
        lab.start_again();
        lab.stop().await;
        let found = fs::read_to_string(&path).unwrap();
        let missed = found
            .lines()
            .find(|line| line.contains(Event::AuditRecovered.name()));
        let missed: Value = serde_json::from_str(missed.unwrap()).unwrap();
        let known = missed["detail"]["known"].as_str().unwrap();
        let known: u64 = known.split(':').next().unwrap().parse().unwrap();
        assert!(usize::try_from(known).unwrap() >= last, "{missed}");
        // Nobody can make it look whole: the numbers go on behind what is missing.
        let next = missed["sequence"].as_u64().unwrap();
        assert!(next > known, "{missed}");
        let verified = Command::new(JETWAY)
            .args(["audit", "verify"])
            .arg(&path)
            .output();
        assert!(!verified.unwrap().status.success());
    }
}
