//! From permit to target: alternatives, names, egress rules, time limits.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jetway::gateway::upstream;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::lab::{Lab, Target, failure, forget_log, logged, within};

/// `SSL_CERT_NOT_ON_SERVER`: not reachable, whatever the reason.
const UNREACHABLE: u32 = 3;

#[tokio::test]
async fn the_alternative_is_used_when_the_first_target_is_down() {
    let (lab, target) = (Lab::start(""), Target::start().await);
    let down = {
        let parked = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        parked.local_addr().unwrap()
    };
    let alternatives = json!({ "dst_alt": [target.address.to_string()] });
    drop(lab.session(&lab.token(down, alternatives)).await);
    assert_eq!(
        logged("Session closed").await["target"],
        target.address.to_string()
    );
}

// J-DST-1
#[tokio::test]
async fn ipv6_targets_and_names_are_reached() {
    let lab = Lab::start("");
    let ipv6 = Target::start_at("[::1]:0".parse().unwrap()).await;
    drop(lab.session(&lab.token(ipv6.address, json!({}))).await);
    let target = Target::start().await;
    let name = format!("localhost:{}", target.address.port());
    drop(
        lab.session(&lab.token(target.address, json!({ "dst_hst": name })))
            .await,
    );
    assert_eq!(target.connections(), 1);
}

#[tokio::test]
async fn egress_rules_hold_and_look_like_an_unreachable_target() {
    let lab = Lab::start("[egress]\nallow = [{ cidr = \"127.0.0.0/8\", ports = \"1-1023\" }]\n");
    let target = Target::start().await;
    let token = lab.token(target.address, json!({}));
    assert_eq!(failure(&mut lab.client(&token).await).await, UNREACHABLE);
    let refused = logged("Session refused").await;
    assert_eq!(refused["rule"], "egress");
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn this_machine_is_no_target_unless_a_rule_says_so() {
    let lab = Lab::start("[egress]\n");
    let target = Target::start().await;
    let name = format!("localhost:{}", target.address.port());
    for changes in [json!({}), json!({ "dst_hst": name })] {
        let token = lab.token(target.address, changes);
        assert_eq!(failure(&mut lab.client(&token).await).await, UNREACHABLE);
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn an_interface_of_this_machine_is_no_target_unless_a_rule_names_it() {
    let own = upstream::own_addresses().unwrap().into_iter();
    let mut own = own.filter(|ip| !ip.is_loopback() && !is_link_local(ip));
    let own = own.next().expect("a machine with a network");
    let target = Target::start_at(SocketAddr::new(own, 0)).await;
    let port = target.address.port();
    let mapped = match own {
        IpAddr::V4(v4) => format!("[::ffff:{v4}]:{port}"),
        IpAddr::V6(_) => target.address.to_string(),
    };
    let elsewhere = "127.0.0.1:9";
    let wide = "[egress]\nallow = [{ cidr = \"0.0.0.0/0\" }, { cidr = \"::/0\" }]\n";
    for rules in ["[egress]\n", wide] {
        let lab = Lab::start(rules);
        for changes in [
            json!({}),
            json!({ "dst_hst": mapped }),
            json!({ "dst_hst": elsewhere, "dst_alt": [target.address.to_string()] }),
        ] {
            let token = lab.token(target.address, changes);
            assert_eq!(failure(&mut lab.client(&token).await).await, UNREACHABLE);
            let refused = logged("Session refused").await;
            assert_eq!(refused["rule"], "egress");
            let reason = refused["reason"].as_str().unwrap();
            assert!(reason.contains("this-machine"), "{reason}");
            assert!(reason.contains("egress.allow"), "{reason}");
            forget_log();
        }
    }
    assert_eq!(target.connections(), 0);
    let lab = Lab::start(&format!("[egress]\nallow = [{{ cidr = \"{own}\" }}]\n"));
    drop(lab.session(&lab.token(target.address, json!({}))).await);
    assert_eq!(target.connections(), 1);
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[tokio::test]
async fn a_silent_session_ends_after_its_idle_time() {
    let lab = Lab::start("[session]\nidle_timeout_s = 1\n");
    let target = Target::start().await;
    let mut client = lab.session(&lab.token(target.address, json!({}))).await;
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(
        logged("Session closed").await["reason"],
        "idle for too long"
    );
}

#[tokio::test]
async fn a_session_ends_at_its_time_limit_however_busy() {
    let lab = Lab::start("[session]\ntime_limit_s = 1\n");
    let target = Target::start().await;
    // The token asks for a minute; the shorter of the two holds.
    let mut client = lab
        .session(&lab.token(target.address, json!({ "jet_ttl": 1 })))
        .await;
    let busy = async {
        let mut echo = [0_u8; 1];
        while tokio::io::AsyncWriteExt::write_all(&mut client, b"x")
            .await
            .is_ok()
            && matches!(client.read(&mut echo).await, Ok(1))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(busy).await;
    assert_eq!(
        logged("Session closed").await["reason"],
        "time limit reached"
    );
}

#[tokio::test]
async fn shutdown_ends_live_sessions_after_the_drain_time() {
    let mut lab = Lab::start("[session]\ndrain_s = 0\n");
    let target = Target::start().await;
    let mut client = lab.session(&lab.token(target.address, json!({}))).await;
    lab.stop().await;
    let mut rest = Vec::new();
    let _end = within(client.read_to_end(&mut rest)).await;
    assert_eq!(
        logged("Session closed").await["reason"],
        "the gateway is shutting down"
    );
}
