//! Targets that an authority vouches for (`target.verify = "ca"`): what their certificates may be for.

use std::net::SocketAddr;

use jetway::rdp::connection_request::{self, PROTOCOL_SSL};
use jetway_lab::certificate::Authority;
use jetway_lab::rcgen::ExtendedKeyUsagePurpose;
use jetway_lab::tls::server_config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::agent::Branch;
use crate::lab::{SELECTED_TLS, confirm, forget_log, logged, opened};
use crate::proof::{offering, send, tls};

/// A target that takes TLS alone, with a certificate for these purposes.
async fn target(authority: &Authority, purposes: &[ExtendedKeyUsagePurpose]) -> SocketAddr {
    let identity = authority.certify(&["localhost"], purposes);
    let acceptor = TlsAcceptor::from(server_config(&identity));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, acceptor.clone()));
        }
    });
    address
}

async fn serve(mut stream: TcpStream, acceptor: TlsAcceptor) {
    let mut request = Vec::new();
    while connection_request::decode(&request).unwrap().is_none() {
        assert!(stream.read_buf(&mut request).await.unwrap() > 0);
    }
    stream.write_all(&SELECTED_TLS.encode()).await.unwrap();
    // Whoever does not like the certificate goes.
    if let Ok(mut stream) = acceptor.accept(stream).await {
        let _end = stream.read_to_end(&mut Vec::new()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_for_remote_desktop_alone_and_for_any_purpose_are_taken_and_those_for_clients_not()
 {
    let authority = Authority::generate();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, authority.pem()).unwrap();
    let site = Branch::start_with(&format!(
        "[session]\ninspect = \"always\"\n[target]\nverify = \"ca\"\nca = {file:?}\n"
    ));
    // [MS-WCCE]: Remote Desktop Authentication, the only purpose of what enterprise templates make.
    let remote_desktop = || ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 311, 54, 1, 2]);
    for (purposes, is_taken) in [
        (vec![remote_desktop()], true),
        (vec![ExtendedKeyUsagePurpose::Any], true),
        (vec![ExtendedKeyUsagePurpose::ServerAuth], true),
        (vec![], true),
        (
            vec![ExtendedKeyUsagePurpose::ClientAuth, remote_desktop()],
            true,
        ),
        (vec![ExtendedKeyUsagePurpose::ClientAuth], false),
        (vec![ExtendedKeyUsagePurpose::CodeSigning], false),
    ] {
        let target = target(&authority, &purposes).await;
        let changes = json!({ "dst_hst": format!("localhost:{}", target.port()) });
        let token = site.lab.token(target, changes);
        forget_log();
        let mut client = send(&site.lab, Some(&token), &offering(PROTOCOL_SSL, 0, None)).await;
        confirm(&mut client).await;
        let client = tls(client).await;
        if is_taken {
            let line: Value = opened(1).await.remove(0);
            assert_eq!(line["mode"], "inspected", "{purposes:?}");
            drop(client);
        } else {
            // It does not wait to be told.
            drop(client);
            let line = logged("Session refused").await;
            assert_eq!(line["rule"], "target-certificate", "{purposes:?}: {line}");
            let reason = line["reason"].as_str().unwrap();
            assert!(
                reason.contains("extended key usage"),
                "{purposes:?}: {reason}"
            );
        }
    }
}
