//! An association of the gateway under test, and a peer that speaks the binary protocol over TCP.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use jetway::jet::exchange::{JetPath, Operation, Request, Response, Status};
use jetway::jet::message::Version;
use jetway::jet::packet;
use jetway_lab::wait::{PATIENCE, until};
use serde_json::Value;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::gateway::{API_KEY, Gateway, jetway};

/// An association that a token has created, and so demands it of its peers.
#[derive(Debug)]
pub(crate) struct Rendezvous<'a> {
    gateway: &'a Gateway,
    association: Uuid,
    candidates: HashMap<String, (String, Uuid)>,
    token: String,
}

impl<'a> Rendezvous<'a> {
    pub(crate) fn create(gateway: &'a Gateway) -> Result<Self> {
        Self::create_for(gateway, &[])
    }

    /// The same with more in its token, as `jetway token new` takes it.
    pub(crate) fn create_for(gateway: &'a Gateway, further: &[&str]) -> Result<Self> {
        let association = Uuid::new_v4();
        let id = association.to_string();
        let arguments = ["token", "new", "--jet-cm", "rdv", "--jet-aid", &id];
        let mut arguments: Vec<&OsStr> = arguments.iter().chain(further).map(OsStr::new).collect();
        arguments.extend([OsStr::new("--sign-key"), gateway.keys().signing.as_os_str()]);
        let token = jetway(&arguments)?;
        gateway.request(&format!("POST /jet/association/{id}"), &token)?;
        let gathered = gateway.request(&format!("POST /jet/gather/{id}"), &token)?;
        let gathered = gathered["candidates"].as_array().context("candidates")?;
        let candidates = gathered.iter().map(|candidate| {
            let text = |name: &str| candidate[name].as_str().context(candidate.to_string());
            let url = text("url")?.split('?').next().unwrap_or_default();
            let (transport, _) = url.split_once("://").context("a URL")?;
            Ok((transport.to_owned(), (url.to_owned(), text("id")?.parse()?)))
        });
        Ok(Self {
            gateway,
            association,
            candidates: candidates.collect::<Result<_>>()?,
            token,
        })
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn ticket(&self) -> Result<String> {
        self.gateway.ticket(&self.token)
    }

    /// What a peer of this transport asks for, and the URL of the candidate without it.
    pub(crate) fn path(&self, operation: Operation, transport: &str) -> Result<(JetPath, &str)> {
        let (url, candidate) = self
            .candidates
            .get(transport)
            .context("no such candidate")?;
        let path = JetPath {
            operation,
            association: self.association,
            candidate: *candidate,
        };
        Ok((path, url))
    }

    /// What a WebSocket peer opens.
    pub(crate) fn url(&self, operation: Operation, transport: &str) -> Result<String> {
        let (path, url) = self.path(operation, transport)?;
        Ok(format!("{url}{path}"))
    }

    /// A peer over TCP at the candidate of `transport`, with the token.
    pub(crate) fn peer(&self, operation: Operation, transport: &str) -> Result<TcpPeer> {
        let mut stream = TcpStream::connect(self.gateway.address())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(&self.packet(operation, transport)?)?;
        let mut head = [0; packet::HEADER_BYTES];
        stream.read_exact(&mut head)?;
        let size = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let mut bytes = vec![0; size];
        bytes[..head.len()].copy_from_slice(&head);
        stream.read_exact(&mut bytes[head.len()..])?;
        let packet = packet::decode(&bytes)?.context("a whole packet")?;
        let response = Response::parse(&packet.payload)?;
        ensure!(response.status == Status::Ok, "{:?}", response.status);
        Ok(TcpPeer { stream })
    }

    /// What a peer of the binary protocol says first.
    pub(crate) fn packet(&self, operation: Operation, transport: &str) -> Result<Vec<u8>> {
        let request = Request {
            path: self.path(operation, transport)?.0,
            version: Version::V2,
            host: Some("localhost".to_owned()),
            token: Some(Zeroizing::new(self.token.clone())),
        };
        Ok(packet::encode(&request.to_payload(), 0x5A)?)
    }

    /// An operator deletes it.
    pub(crate) fn delete(&self) -> Result<()> {
        let path = format!("DELETE /jet/association/{}", self.association);
        self.gateway.request(&path, API_KEY).map(drop)
    }

    /// What an operator reads of it.
    pub(crate) fn shown(&self) -> Result<Value> {
        let path = format!("GET /jet/association/{}", self.association);
        self.gateway.request(&path, API_KEY)
    }

    /// Waits until so many bytes were counted to the acceptor and to the connector: they may arrive before.
    pub(crate) fn has_relayed(&self, to_acceptor: usize, to_connector: usize) -> Result<()> {
        let mut shown = Value::Null;
        until("the bytes are counted", PATIENCE, || {
            shown = self.shown()?;
            let right = shown["bytes_to_acceptor"] == to_acceptor
                && shown["bytes_to_connector"] == to_connector;
            Ok(right.then_some(()))
        })
        .with_context(|| shown.to_string())
    }
}

/// A peer over TCP, past its response.
#[derive(Debug)]
pub(crate) struct TcpPeer {
    pub(crate) stream: TcpStream,
}

impl TcpPeer {
    pub(crate) fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.stream.write_all(text.as_bytes())?)
    }

    /// Waits until it has received `text`.
    pub(crate) fn expect(&mut self, text: &str) -> Result<()> {
        let mut arrived = vec![0; text.len()];
        self.stream
            .read_exact(&mut arrived)
            .context(text.to_owned())?;
        ensure!(arrived == text.as_bytes(), "{arrived:?} instead of {text}");
        Ok(())
    }

    /// Waits until the other peer has left; nothing else may come.
    pub(crate) fn expect_end(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        if rest.is_empty() {
            return Ok(());
        }
        bail!("{} bytes instead of the end", rest.len())
    }

    /// Breaks off, as a system does for a process that has crashed with bytes unread.
    pub(crate) fn reset(self) -> Result<()> {
        Ok(socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO))?)
    }

    /// Says that nothing more comes.
    pub(crate) fn finish(&self) -> Result<()> {
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }
}
