//! What monitoring asks: metrics that tell what has happened, and whether the gateway is ready.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use jetway_lab::certificate::Identity;
use jetway_lab::net::free_address;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api::{http_json, sessions};
use crate::lab::{Lab, PATIENCE, Target, failure, within};
use crate::process::{Served, configure, log};

const KEY: &str = "operator-secret";

/// A gateway with a port for monitoring, whose operator has [`KEY`].
fn lab() -> Lab {
    let digest = hex::encode(openssl::sha::sha256(KEY.as_bytes()));
    Lab::start(&format!(
        "[api]\nkeys = [{{ name = \"desk\", sha256 = \"{digest}\" }}]\n[monitoring]\naddress = \"127.0.0.1:0\"\n"
    ))
}

/// What a monitor gets from `path`.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

async fn metrics(lab: &Lab) -> String {
    let (status, text) = get(lab.running().monitoring().unwrap(), "/metrics").await;
    assert_eq!(status, 200, "{text}");
    text
}

async fn ready(address: SocketAddr) -> (u16, Value) {
    let (status, body) = get(address, "/health/ready").await;
    (status, serde_json::from_str(&body).unwrap())
}

/// The value of a series, by its name and labels as they stand in the text.
fn value(text: &str, series: &str) -> Option<f64> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Asks until the metrics are as wanted.
async fn metrics_until(lab: &Lab, wanted: impl Fn(&str) -> bool) -> String {
    let asked = async {
        loop {
            let text = metrics(lab).await;
            if wanted(&text) {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(text) => text,
        Err(_) => panic!("not so: {}", metrics(lab).await),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_has_happened() {
    let lab = lab();
    let target = Target::start().await;
    let token = lab.token(target.address, json!({ "sub": "alice" }));
    let client = lab.session(&token).await;
    let live = "jetway_sessions{phase=\"relaying\",mode=\"opaque\"}";
    let text = metrics_until(&lab, |text| value(text, live) == Some(1.0)).await;
    assert_eq!(
        value(&text, "jetway_events_total{event=\"session.opened\"}"),
        Some(1.0)
    );
    assert_eq!(
        value(&text, "jetway_session_setup_seconds_count{mode=\"opaque\"}"),
        Some(1.0)
    );
    assert_eq!(value(&text, "jetway_target_dial_seconds_count"), Some(1.0));
    assert_eq!(
        value(
            &text,
            "jetway_token_verification_seconds_count{outcome=\"good\"}"
        ),
        Some(1.0)
    );
    assert!(value(&text, "jetway_store_writes_total{outcome=\"good\"}") >= Some(1.0));
    let moved = value(&text, "jetway_bytes_total{to=\"target\"}").unwrap();
    assert!(moved > 0.0, "{text}");
    assert_eq!(value(&text, "jetway_keys{use=\"verify\"}"), Some(1.0));
    assert_eq!(value(&text, "jetway_ready"), Some(1.0));

    // The same token again, a scan, and a request for nothing.
    failure(&mut lab.client(&token).await).await;
    let mut scan = lab.connect().await;
    scan.write_all(b"\x00\x01\x02 what is this?").await.unwrap();
    // It may be closed with a reset.
    let _end = within(scan.read_to_end(&mut Vec::new())).await;
    assert_eq!(http_json(&lab, "gw", "GET /nothing", "", "").await.0, 404);
    let counted = "jetway_refusals_total{event=\"connection.dropped\",rule=\"unrecognised\"}";
    let text = metrics_until(&lab, |text| value(text, counted) == Some(1.0)).await;
    let refused = "jetway_refusals_total{event=\"session.refused\",rule=\"in-use\"}";
    assert_eq!(value(&text, refused), Some(1.0), "{text}");
    let problems = "jetway_http_problems_total{status=\"Not Found\",rule=\"path\"}";
    assert_eq!(value(&text, problems), Some(1.0));

    // What an operator ends; its bytes stay counted.
    let id = sessions(&lab, KEY).await[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let end = format!("DELETE /jet/sessions/{id}");
    assert_eq!(http_json(&lab, "gw", &end, KEY, "").await.0, 204);
    let ended = "jetway_sessions_ended_total{outcome=\"operator\"}";
    let text = metrics_until(&lab, |text| {
        value(text, ended) == Some(1.0) && value(text, live) == Some(0.0)
    })
    .await;
    assert!(value(&text, "jetway_bytes_total{to=\"target\"}") >= Some(moved));
    drop(client);

    // Nobody is named: not the user, nor the token, nor a key.
    for name in [
        "alice",
        "desk",
        &target.address.to_string(),
        &token[..20],
        "127.0.0.1",
    ] {
        assert!(!text.contains(name), "{name} in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_the_port_of_the_clients_metrics_and_reasons_are_for_operators() {
    let lab = lab();
    let (status, _) = http_json(&lab, "gw", "GET /metrics", "", "").await;
    assert_eq!(status, 401);
    let (status, _) = http_json(&lab, "gw", "GET /metrics", "a-guess", "").await;
    assert_eq!(status, 401);
    let (status, text) = crate::api::http(
        &lab,
        &format!("GET /metrics HTTP/1.1\r\nAuthorization: Bearer {KEY}"),
        "",
    )
    .await;
    assert_eq!(status, 200);
    assert!(value(&text, "jetway_ready").is_some(), "{text}");
    let (status, body) = http_json(&lab, "gw", "GET /health/ready", "", "").await;
    assert_eq!((status, body), (200, json!({ "status": "ready" })));
    let (_, body) = http_json(&lab, "gw", "GET /health/ready", "a-guess", "").await;
    assert_eq!(body, json!({ "status": "ready" }));
    let (_, body) = http_json(&lab, "gw", "GET /health/ready", KEY, "").await;
    assert_eq!(
        body,
        json!({ "status": "ready", "reasons": [], "warnings": [] })
    );
    let (status, body) = http_json(&lab, "gw", "GET /health/live", "", "").await;
    assert_eq!((status, body), (200, json!({ "status": "live" })));
    // A monitor can change nothing, and has none of the other paths.
    let address = lab.running().monitoring().unwrap();
    for path in ["/jet/sessions", "/jet/health", "/jet/agents"] {
        assert_eq!(get(address, path).await.0, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_read_again_are_a_warning_until_they_can() {
    let lab = lab();
    let address = lab.running().monitoring().unwrap();
    let path = lab.folder.path().join("sign.pub.pem");
    let good = fs::read(&path).unwrap();
    fs::write(&path, "no key at all").unwrap();
    lab.running().reload();
    let warned = json!({ "status": "ready", "reasons": [], "warnings": ["keys"] });
    assert_eq!(ready(address).await, (200, warned));
    let text = metrics(&lab).await;
    assert_eq!(value(&text, "jetway_keys_stale"), Some(1.0));
    let failed = "jetway_reloads_total{file=\"token.keys\",outcome=\"failed\"}";
    assert!(value(&text, failed) >= Some(1.0), "{text}");
    fs::write(&path, good).unwrap();
    lab.running().reload();
    let (_, body) = ready(address).await;
    assert_eq!(body["warnings"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_drains_says_so_until_its_last_session_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let monitoring = free_address();
    let address = configure(
        folder.path(),
        &format!(
            "[session]\ndrain_s = 60\n[monitoring]\naddress = \"{monitoring}\"\n\
             [development]\naccept_unsigned_tokens = true\n[egress]\nallow = [{{ cidr = \"127.0.0.0/8\" }}]\n"
        ),
    );
    let served = Served::start(folder.path(), address, 1024);
    assert_eq!(ready(monitoring).await.0, 200);
    let target = Target::start().await;
    let token = unsigned(&Lab::claims(target.address, json!({})));
    let client = Lab::session_at(address, &token).await;
    served.signal(Signal::TERM);
    let draining = async {
        loop {
            let (status, body) = ready(monitoring).await;
            if status == 503 {
                return body;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let body = within(draining).await;
    assert_eq!(
        body,
        json!({ "status": "not-ready", "reasons": ["draining"], "warnings": [] })
    );
    assert_eq!(get(monitoring, "/health/live").await.0, 200);
    let text = get(monitoring, "/metrics").await.1;
    assert_eq!(value(&text, "jetway_draining"), Some(1.0));
    let live = "jetway_sessions{phase=\"relaying\",mode=\"opaque\"}";
    assert_eq!(value(&text, live), Some(1.0), "{text}");
    assert!(TcpStream::connect(address).await.is_err());
    drop(client);
    let mut process = served.0;
    let ended = tokio::task::spawn_blocking(move || process.wait().unwrap().success());
    assert!(within(ended).await.unwrap(), "{}", log(folder.path()));
}

fn unsigned(claims: &Value) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let parts = [r#"{"alg":"none"}"#, &claims.to_string()].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!("{}.", parts.join("."))
}

/// What stands in a query where a metric can stand.
fn names(query: &str) -> HashSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("jetway_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// All strings that stand under `key`, however deep.
fn texts(value: &Value, key: &str, found: &mut Vec<String>) {
    if let Some(fields) = value.as_object() {
        found.extend(fields.get(key).and_then(Value::as_str).map(str::to_owned));
        fields.values().for_each(|value| texts(value, key, found));
    }
    let values = value.as_array().into_iter().flatten();
    values.for_each(|value| texts(value, key, found));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_and_the_alerts_ask_for_metrics_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::self_signed(&["gw.test"]);
    let [certificate, key] = identity.write(folder.path(), ["gw.crt", "gw.key"]);
    let lab = Lab::start(&format!(
        "[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n[monitoring]\naddress = \"127.0.0.1:0\"\n"
    ));
    // Rules have no series before they refuse somebody.
    assert_eq!(
        http_json(&lab, "gw", "GET /jet/sessions", "a-guess", "")
            .await
            .0,
        401
    );
    let text = metrics_until(&lab, |text| text.contains("jetway_refusals_total{")).await;
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut known = HashSet::new();
    for (name, kind) in kinds.map(|line| line.split_once(' ').unwrap()) {
        if kind == "histogram" {
            known.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
        } else {
            known.insert(name.to_owned());
        }
    }
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let read = |name: &str| fs::read_to_string(samples.join(name)).unwrap();
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let mut queries = Vec::new();
    texts(&dashboard, "expr", &mut queries);
    assert!(queries.len() > 10, "{queries:?}");
    let alerts = read("alerts.yml");
    let rules = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "));
    let rules: Vec<String> = rules.map(str::to_owned).collect();
    assert!(rules.len() > 5, "{rules:?}");
    for query in queries.into_iter().chain(rules) {
        let names = names(&query);
        assert!(!names.is_empty(), "{query}");
        for name in names {
            assert!(known.contains(&name), "{name} of {query} in\n{text}");
        }
    }
}
