//! The commands of operators, by the real program.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::sessions;
use crate::lab::{Lab, Target, failure, within};
use crate::process::JETWAY;

/// A gateway, and an operator with a key for it.
struct Desk {
    lab: Lab,
    key: PathBuf,
}

const KEY: &str = "operator-secret";

impl Desk {
    fn new() -> Self {
        let digest = hex::encode(openssl::sha::sha256(KEY.as_bytes()));
        let lab = Lab::start(&format!(
            "[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n"
        ));
        let key = lab.folder.path().join("desk.key");
        std::fs::write(&key, format!("{KEY}\n")).unwrap();
        Self { lab, key }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(JETWAY);
        command
            .args(arguments)
            .env("JETWAY_GATEWAY", format!("http://{}", self.lab.address()))
            .env("JETWAY_KEY_FILE", &self.key);
        let output = tokio::task::spawn_blocking(move || command.output());
        within(output).await.unwrap().unwrap()
    }

    async fn said(&self, arguments: &[&str]) -> String {
        let Output {
            status,
            stdout,
            stderr,
        } = self.run(arguments).await;
        let errors = String::from_utf8_lossy(&stderr).into_owned();
        assert!(status.success() && errors.is_empty(), "{errors}");
        String::from_utf8(stdout).unwrap()
    }

    async fn refused(&self, arguments: &[&str]) -> String {
        let Output {
            status,
            stdout,
            stderr,
        } = self.run(arguments).await;
        assert!(!status.success() && stdout.is_empty());
        String::from_utf8(stderr).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_lists_shows_and_ends_sessions() {
    let desk = Desk::new();
    let target = Target::start().await;
    let name = "alice";
    let token = desk.lab.token(target.address, json!({ "sub": name }));
    let mut client = desk.lab.session(&token).await;
    let id = sessions(&desk.lab, KEY).await[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();

    let table = desk.said(&["sessions", "list"]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[0].starts_with("ID "), "{table}");
    assert!(
        lines[1].starts_with(&id) && lines[1].contains(&target.address.to_string()),
        "{table}"
    );
    let list = desk.said(&["sessions", "list", "--json"]).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (&list[0]["id"], &list[0]["user"]),
        (&json!(id), &json!(name))
    );

    let shown = desk.said(&["sessions", "show", &id]).await;
    assert!(shown.contains("jet_ap") && shown.contains(&id), "{shown}");
    let none = uuid::Uuid::nil().to_string();
    for command in ["show", "end"] {
        let told = desk.refused(&["sessions", command, &none]).await;
        assert!(told.contains("there is no such live session"), "{told}");
    }
    assert_eq!(desk.said(&["sessions", "end", &id]).await, "ended\n");
    // With or without an orderly end.
    let _end = within(client.read_to_end(&mut Vec::new())).await;
    // It is listed until it has said goodbye to both sides.
    let over = async {
        while sessions(&desk.lab, KEY).await != json!([]) {
            tokio::task::yield_now().await;
        }
    };
    within(over).await;
    assert_eq!(desk.said(&["sessions", "list"]).await.lines().count(), 1);
    assert_eq!(desk.said(&["agents", "list"]).await.lines().count(), 1);
    let told = desk.refused(&["agents", "revoke", "nobody"]).await;
    assert!(told.contains("agent"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_revokes_a_user_whose_sessions_end_and_takes_it_back() {
    let mut desk = Desk::new();
    let target = Target::start().await;
    let token = |lab: &Lab| lab.token(target.address, json!({ "sub": "mallory", "jet_reuse": 60 }));
    let first = token(&desk.lab);
    let mut client = desk.lab.session(&first).await;
    let other = desk.lab.token(target.address, json!({ "sub": "alice" }));
    let mut stays = desk.lab.session(&other).await;

    let told = desk.said(&["revoke", "add", "sub", "mallory"]).await;
    assert!(told.ends_with("ended 1 sessions\n"), "{told}");
    let _end = within(client.read_to_end(&mut Vec::new())).await;
    for revoked in [first, token(&desk.lab)] {
        failure(&mut desk.lab.client(&revoked).await).await;
    }
    let record = desk
        .lab
        .audited(|record| record["event"] == "token.revoked")
        .await;
    assert_eq!(record["by"], "desk");
    assert_eq!(
        record["detail"],
        json!({ "claim": "sub", "value": "mallory" })
    );
    let refused = desk.lab.audited(|record| record["rule"] == "revoked").await;
    assert_eq!(refused["user"], "mallory");
    stays.write_all(b"still here").await.unwrap();
    let mut echo = [0; 10];
    within(stays.read_exact(&mut echo)).await.unwrap();
    drop(stays);

    // Another process knows it, too.
    desk.lab.restart().await;
    failure(&mut desk.lab.client(&token(&desk.lab)).await).await;
    let list = desk.said(&["revoke", "list", "--json"]).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (&list[0]["claim"], &list[0]["by"]),
        (&json!("sub"), &json!("desk"))
    );
    let id = list[0]["id"].as_str().unwrap();
    assert!(desk.said(&["revoke", "list"]).await.contains(id));
    assert_eq!(desk.said(&["revoke", "withdraw", id]).await, "withdrawn\n");
    let told = desk.refused(&["revoke", "withdraw", id]).await;
    assert!(told.contains("no such revocation"), "{told}");
    desk.lab.session(&token(&desk.lab)).await;

    // What revokes nothing, or would be a secret in the open.
    let told = desk.refused(&["revoke", "add", "dst_pwd", "hunter2"]).await;
    assert!(
        told.contains("password") && !told.contains("hunter2"),
        "{told}"
    );
    let told = desk
        .refused(&["revoke", "add", "--not-text", "level", "[1]"])
        .await;
    assert!(told.contains("level"), "{told}");
    let log = crate::lab::log();
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_key_is_told_so_and_the_key_is_nowhere() {
    let desk = Desk::new();
    std::fs::write(&desk.key, "another-secret").unwrap();
    for command in [
        &["sessions", "list"][..],
        &["revoke", "list"],
        &["revoke", "add", "sub", "alice"],
    ] {
        let told = desk.refused(command).await;
        assert!(told.contains("API key"), "{told}");
    }
    let told = desk.refused(&["sessions", "list"]).await;
    assert!(!told.contains("another-secret"), "{told}");
    std::fs::remove_file(&desk.key).unwrap();
    let told = desk.refused(&["sessions", "list"]).await;
    assert!(told.contains("desk.key"), "{told}");
}
