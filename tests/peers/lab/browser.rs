//! Chromium as a user starts it, with a page of a site of its own in each tab; Playwright clicks and types for the user.
//!
//! It trusts the certificate authority of the lab as the users of a company trust theirs: by the certificate database in
//! their home. So names and chains are verified as everywhere, which a switch that ignores errors would not prove.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::authority::Authority;
use super::dialogue::Dialogue;
use super::environment;
use super::process::tool;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Browser {
    dialogue: Dialogue,
    screenshots: PathBuf,
}

impl Browser {
    /// A browser that trusts `authority`.
    pub(crate) fn start(workspace: &Workspace, authority: &Authority) -> Result<Self> {
        let home = workspace.folder("home-browser")?;
        let certificates = workspace.folder("home-browser/.pki/nssdb")?;
        let certificates = format!("sql:{}", certificates.display());
        let database = ["-d", certificates.as_str()];
        let empty = ["-N", "--empty-password"];
        tool(Command::new("certutil").args(database).args(empty))?;
        let added = ["-A", "-t", "C,,", "-n", "lab", "-i"];
        let mut add = Command::new("certutil");
        tool(add.args(database).args(added).arg(authority.certificate()))?;

        let modules = environment::file("node", "node_modules")?;
        let screenshots = workspace.path("tab");
        let mut command = Command::new("node");
        command
            .arg(workspace.write("browser.cjs", SCRIPT)?)
            .arg(workspace.path("profile"))
            .arg(workspace.write("page.html", PAGE)?)
            .arg(&screenshots)
            .env("NODE_PATH", modules)
            .env("HOME", home);
        let mut dialogue = Dialogue::start(workspace, "browser", &mut command)?;
        dialogue.answer()?;
        Ok(Self {
            dialogue,
            screenshots,
        })
    }

    /// Calls a function of the page in `tab`.
    pub(crate) fn call(&mut self, tab: &str, function: &str, with: Value) -> Result<Value> {
        let order = json!({ "page": tab, "call": function, "with": with });
        self.dialogue.ask(&order)
    }

    /// Opens a WebSocket that is to be granted, and gives it the name of its tab.
    pub(crate) fn open(&mut self, tab: &str, url: &str, protocols: &[String]) -> Result<()> {
        let opened = self.try_open(tab, url, protocols)?;
        let selected = if protocols.is_empty() { "" } else { "jet" };
        let expected = json!({ "opened": true, "protocol": selected });
        ensure!(opened == expected, "{url}: {opened}");
        Ok(())
    }

    /// Opens a WebSocket, and says what came of it.
    pub(crate) fn try_open(&mut self, tab: &str, url: &str, protocols: &[String]) -> Result<Value> {
        self.call(tab, "open", json!([tab, url, protocols]))
    }

    pub(crate) fn send(&mut self, tab: &str, text: &str) -> Result<()> {
        self.call(tab, "send", json!([tab, text])).map(drop)
    }

    /// Waits until it has received `text`.
    pub(crate) fn expect(&mut self, tab: &str, text: &str) -> Result<()> {
        let arrived = self.call(tab, "receive", json!([tab, text.len()]))?;
        ensure!(arrived == text, "{tab}: {arrived} instead of {text:?}");
        Ok(())
    }

    /// Waits for its CloseEvent.
    pub(crate) fn closed(&mut self, tab: &str) -> Result<Value> {
        self.call(tab, "closed", json!([tab]))
    }

    /// Closes the browser; each tab is then in a picture for people to look at.
    pub(crate) fn end(mut self) -> Result<()> {
        self.dialogue.end()?;
        let folder = self.screenshots.parent().context("a folder")?;
        let pictures = std::fs::read_dir(folder)?.flatten().filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("tab-") && name.ends_with(".png")
        });
        ensure!(pictures.count() > 0, "no picture was taken");
        Ok(())
    }
}

const SCRIPT: &str = include_str!("browser.cjs");
const PAGE: &str = include_str!("page.html");
