//! websockets: a WebSocket library in Python that shares no code with browsers or with Jetway.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::authority::Authority;
use super::dialogue::Dialogue;
use super::environment;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct WebSockets {
    dialogue: Dialogue,
    authority: String,
}

impl WebSockets {
    /// A peer called `role` that trusts `authority`; it has no connection yet.
    pub(crate) fn start(workspace: &Workspace, role: &str, authority: &Authority) -> Result<Self> {
        let mut command = Command::new(environment::file("websockets", "bin/python")?);
        command.arg(workspace.write("websockets_peer.py", SCRIPT)?);
        Ok(Self {
            dialogue: Dialogue::start(workspace, role, &mut command)?,
            authority: authority.certificate().display().to_string(),
        })
    }

    pub(crate) fn ask(&mut self, order: &Value) -> Result<Value> {
        self.dialogue.ask(order)
    }

    /// What comes of a handshake with the bearer in its header.
    pub(crate) fn try_open(&mut self, url: &str, bearer: &str) -> Result<Value> {
        self.ask(&json!({ "do": "open", "url": url, "bearer": bearer, "ca": self.authority }))
    }

    /// A handshake that is to be granted.
    pub(crate) fn open(&mut self, url: &str, bearer: &str) -> Result<()> {
        let opened = self.try_open(url, bearer)?;
        let offered = opened["offered"].as_str().unwrap_or_default();
        ensure!(offered.contains("permessage-deflate"), "{opened}");
        // Not selected: nothing may be compressed, in either direction.
        ensure!(opened["extensions"].is_null(), "{opened}");
        Ok(())
    }

    /// Sends one message in as many fragments as there are texts.
    pub(crate) fn send(&mut self, fragments: &[&str]) -> Result<()> {
        let order = json!({ "do": "send", "parts": fragments });
        self.ask(&order).map(drop)
    }

    /// Waits until it has received `text`.
    pub(crate) fn expect(&mut self, text: &str) -> Result<()> {
        let arrived = self.ask(&json!({ "do": "receive", "count": text.len() }))?;
        ensure!(arrived == text, "{arrived} instead of {text:?}");
        Ok(())
    }

    /// Sends a ping and waits for its pong.
    pub(crate) fn ping(&mut self, data: &str) -> Result<()> {
        let answered = self.ask(&json!({ "do": "ping", "data": data }))?;
        ensure!(answered == true, "no pong for {data:?}");
        Ok(())
    }

    /// Waits until the gateway has closed the connection for this reason, and no message came before.
    pub(crate) fn expect_close(&mut self, code: u16, reason: &str) -> Result<()> {
        let closed = self.ask(&json!({ "do": "closed" }))?;
        let received = json!({ "code": code, "reason": reason });
        ensure!(closed["received"] == received, "{closed}");
        ensure!(closed["messages"] == 0, "{closed}");
        Ok(())
    }
}

const SCRIPT: &str = include_str!("websockets_peer.py");
