//! A client's window on a display of its own: what it shows and what is typed into it, whichever program it is.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jetway_lab::wait::{PATIENCE, until};

use super::desktop::{BACKGROUND_SHARE, TERMINAL_SHARE};
use super::display::Display;
use super::keyboard;
use super::process::Process;
use super::screenshot::{Colour, Picture};
use super::target::Place;
use super::workspace::Workspace;

/// Fields are dropped in order: the client first, its display last.
#[derive(Debug)]
pub(crate) struct Window {
    client: Process,
    display: Display,
    /// The class of its windows.
    class: &'static str,
}

impl Window {
    pub(crate) fn new(client: Process, display: Display, class: &'static str) -> Self {
        Self {
            client,
            display,
            class,
        }
    }

    /// Waits until the desktop of `place` is on the client's screen and stands still.
    pub(crate) fn wait_for_desktop(&mut self, place: &Place) -> Result<Picture> {
        let Self {
            client, display, ..
        } = self;
        wait_for_desktop(place, PATIENCE, || {
            client.expect_alive()?;
            Picture::of(display).map(Some)
        })
    }

    /// Waits until the client's screen shows what `expected` shows.
    pub(crate) fn wait_for_picture(
        &mut self,
        workspace: &Workspace,
        expected: &Picture,
    ) -> Result<()> {
        let Self {
            client, display, ..
        } = self;
        wait_for_picture(workspace, expected, PATIENCE, || {
            client.expect_alive()?;
            Picture::of(display).map(Some)
        })
    }

    /// Types into the desktop's terminal until what was typed has had its effect there.
    pub(crate) fn type_until_it_arrives(&mut self, place: &Place) -> Result<()> {
        keyboard::create_file_by_typing(&self.display, self.class, &place.writable)
    }

    pub(crate) fn expect_alive(&mut self) -> Result<()> {
        self.client.expect_alive()
    }

    /// What the client printed.
    pub(crate) fn output(&self) -> Result<String> {
        self.client.output()
    }

    /// A command whose windows go to the client's display.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.display.command(program)
    }

    pub(crate) fn process_mut(&mut self) -> &mut Process {
        &mut self.client
    }

    /// Resizes the window, as a user does with the mouse.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<()> {
        keyboard::resize(&self.display, self.class, width, height)
    }
}

/// Waits until `take` shows the desktop of `place`, standing still.
pub(crate) fn wait_for_desktop(
    place: &Place,
    patience: Duration,
    mut take: impl FnMut() -> Result<Option<Picture>>,
) -> Result<Picture> {
    let mut last = None;
    let mut shows_desktop = false;
    let mut still = 0;
    until(
        "the target's desktop on the client's screen",
        patience,
        || {
            let Some(picture) = take()? else {
                return Ok(None);
            };
            let same = last.as_ref() == Some(&picture);
            // To compare takes much less than to count.
            if !same {
                shows_desktop = picture.share_of(place.background) >= BACKGROUND_SHARE
                    && picture.share_of(PAPER) >= TERMINAL_SHARE;
            }
            still = if shows_desktop && same { still + 1 } else { 0 };
            last = Some(picture);
            Ok((still >= STILL_PICTURES).then(|| last.take()).flatten())
        },
    )
}

/// Waits until `take` shows what `expected` shows.
pub(crate) fn wait_for_picture(
    workspace: &Workspace,
    expected: &Picture,
    patience: Duration,
    mut take: impl FnMut() -> Result<Option<Picture>>,
) -> Result<()> {
    let mut seen = None;
    until("the same picture as in a direct session", patience, || {
        let Some(picture) = take()? else {
            return Ok(None);
        };
        let same = picture.difference(expected) <= TOLERATED_PIXELS;
        seen = Some(picture);
        Ok(same.then_some(()))
    })
    .or_else(|error| {
        let seen = seen.context("no picture was taken")?;
        expected.save(&workspace.path("expected.ppm"))?;
        seen.save(&workspace.path("seen.ppm"))?;
        bail!(
            "{error:#}; {} pixels differ (expected.ppm, seen.ppm)",
            seen.difference(expected)
        )
    })
}

/// A picture must be the same this many times in a row, 20 ms and a screenshot apart, to stand still.
const STILL_PICTURES: usize = 5;
/// Less than one letter of the terminal; every session seen so far was equal to the last bit.
pub(crate) const TOLERATED_PIXELS: usize = 10;
const PAPER: Colour = [0xff, 0xff, 0xff];
