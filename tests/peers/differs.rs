//! What clients take from a target, they take through an inspecting gateway: a scripted target says what no real one says,
//! or only some, to FreeRDP 2 and 3, with and without the gateway between. Either the session lives on both ways, or it
//! ends both ways, or the row says why not.
//!
//! `cargo nextest run --test peers -E 'test(/^differs::/)' --no-capture` prints the table.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::lab::display::{Display, SIZE};
use crate::lab::freerdp::Version;
use crate::lab::gateway::{Gateway, Protection};
use crate::lab::process::Process;
use crate::lab::script::{FIRST, LAST, Session, Stage, send_data, share_data};
use crate::lab::workspace::{self, Workspace};

/// One thing that a target says.
struct Row {
    /// What is said.
    what: &'static str,
    /// What comes before it, and what is asked behind it.
    on: Channel,
    say: fn(&mut Session) -> Result<()>,
    /// Why a session may end only with the gateway between, if it may.
    exception: Option<&'static str>,
}

/// Where something is said, and how it is brought there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Core,
    Sound,
    Clipboard,
    /// With long names of formats.
    ClipboardLong,
    Dynamic,
    Display,
    Devices,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Lives,
    /// The session lives on, the channel does not answer any more.
    LivesWithoutChannel,
    Ends,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Lives => "lives",
            Self::LivesWithoutChannel => "lives, mute",
            Self::Ends => "ends",
        }
    }

    fn ends(self) -> bool {
        self == Self::Ends
    }
}

#[test]
fn sound() -> Result<()> {
    compare(&[Channel::Sound])
}

#[test]
fn clipboard() -> Result<()> {
    compare(&[Channel::Clipboard, Channel::ClipboardLong])
}

#[test]
fn dynamic_channels() -> Result<()> {
    compare(&[Channel::Dynamic])
}

#[test]
fn display_control() -> Result<()> {
    compare(&[Channel::Display])
}

#[test]
fn devices() -> Result<()> {
    compare(&[Channel::Devices])
}

#[test]
fn what_is_on_no_channel() -> Result<()> {
    compare(&[Channel::Core])
}

/// Plays the rows of these channels both ways, and prints what became of the sessions.
#[expect(clippy::print_stdout, reason = "the table is what it is run for")]
fn compare(channels: &[Channel]) -> Result<()> {
    workspace::run(|workspace| {
        let stage = Stage::build()?;
        // Clients on one display share its clipboard.
        let displays = (0..AT_ONCE)
            .map(|number| Display::start(workspace, &format!("clients-{number}")))
            .collect::<Result<Vec<_>>>()?;
        let gateway = Gateway::start_inside_with(
            workspace,
            "first-use",
            "\n[session]\ninspect = \"always\"\n",
        )?;
        workspace.folder("drive")?;
        let lab = Lab {
            workspace,
            stage,
            gateway,
        };
        let mut rows = rows();
        rows.retain(|row| channels.contains(&row.on));
        let runs = rows
            .iter()
            .flat_map(|row| [Version::Two, Version::Three].map(|version| (row, version)));
        let queue: Mutex<VecDeque<_>> = Mutex::new(runs.enumerate().collect());
        let results = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for display in &displays {
                scope.spawn(|| {
                    while let Some((number, (row, version))) = next(&queue) {
                        let verdicts = lab.both_ways(display, number, row, version);
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        results.push((number, row, version, verdicts));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(number, ..)| *number);
        let mut faults = Vec::new();
        println!("\n| said by the target | FreeRDP | without | with the gateway | |");
        println!("|---|---|---|---|---|");
        for (_, row, version, verdicts) in results {
            let version = match version {
                Version::Two => 2,
                Version::Three => 3,
            };
            let (direct, through, note) = match &verdicts {
                Ok((direct, through)) => {
                    let note = match (direct.ends(), through.ends(), row.exception) {
                        (false, true, Some(why)) => why,
                        (false, true, None) => "**differs**",
                        (true, false, _) => "the client alone ends it",
                        _ => "",
                    };
                    (direct.name(), through.name(), note.to_owned())
                }
                Err(error) => ("?", "?", format!("**{error:#}**")),
            };
            if note.starts_with("**") {
                faults.push(format!("{:?}: {} (FreeRDP {version})", row.on, row.what));
            }
            println!(
                "| {:?}: {} | {version} | {direct} | {through} | {note} |",
                row.on, row.what,
            );
        }
        ensure!(
            faults.is_empty(),
            "not the same with the gateway:\n{}",
            faults.join("\n")
        );
        Ok(())
    })
}

fn next<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.pop_front()
}

struct Lab<'a> {
    workspace: &'a Workspace,
    stage: Stage,
    gateway: Gateway,
}

impl Lab<'_> {
    fn both_ways(
        &self,
        display: &Display,
        number: usize,
        row: &Row,
        version: Version,
    ) -> Result<(Verdict, Verdict)> {
        let run = |name: &str, through| {
            self.run(display, &format!("{name}-{number}"), row, version, through)
        };
        let direct = run("direct", false)?;
        let mut through = run("through", true)?;
        if through.ends() && !direct.ends() && row.exception.is_none() {
            // These clients break by themselves now and then; what a gateway does, it does again.
            through = run("again", true)?;
        }
        Ok((direct, through))
    }

    fn run(
        &self,
        display: &Display,
        name: &str,
        row: &Row,
        version: Version,
        through: bool,
    ) -> Result<Verdict> {
        let target = self.stage.target()?;
        let address = target.address()?.to_string();
        let way = if through {
            let token = self.gateway.token(&address, Protection::Signed)?;
            vec![
                format!("/v:{}", self.gateway.address()),
                format!("/pcb:{token}"),
            ]
        } else {
            vec![format!("/v:{address}")]
        };
        let mut client = Process::start(
            self.workspace,
            name,
            display
                .command(version.program())
                .args(way)
                .args(client_arguments(&self.workspace.path("drive")))
                .env("HOME", self.workspace.folder("home")?)
                .env("LC_ALL", "C.UTF-8"),
        )?;
        let mut session = target
            .session(|| client.expect_alive())
            .with_context(|| format!("{name} before anything was said"))?;
        prepare(row.on, &mut session)
            .with_context(|| format!("{name}: {:?} cannot be prepared", row.on))?;
        (row.say)(&mut session)?;
        let answered = answers(row.on, &mut session)?;
        Ok(match (session.lives()?, answered) {
            (true, true) => Verdict::Lives,
            (true, false) => Verdict::LivesWithoutChannel,
            (false, _) => Verdict::Ends,
        })
    }
}

fn client_arguments(drive: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "/u:alice",
        "/p:secret",
        "/sec:tls",
        "/cert:ignore",
        "/log-level:WARN",
        "+clipboard",
        "/sound:sys:fake",
        "/dynamic-resolution",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("/size:{}x{}", SIZE.0, SIZE.1));
    arguments.push(format!("/drive:lab,{}", drive.display()));
    arguments
}

/// Opens the channel as a target does.
fn prepare(channel: Channel, session: &mut Session) -> Result<()> {
    match channel {
        Channel::Core => {}
        Channel::Sound => {
            session.say("rdpsnd", &sound_pdu(7, &formats(1)))?;
            let answer = session.wait_for("rdpsnd", |message| message.first() == Some(&7))?;
            answer.context("no audio formats")?;
        }
        Channel::Clipboard | Channel::ClipboardLong => {
            let flags: u32 = if channel == Channel::ClipboardLong {
                2
            } else {
                0
            };
            let general = [&[1, 0, 12, 0, 2, 0, 0, 0][..], &flags.to_le_bytes()].concat();
            let capabilities = [&[1, 0, 0, 0][..], &general].concat();
            session.say("cliprdr", &clipboard_pdu(7, 0, &capabilities))?;
            session.say("cliprdr", &clipboard_pdu(1, 0, &[]))?;
            let answer = session.wait_for("cliprdr", |message| message.first() == Some(&2))?;
            answer.context("no format list")?;
            session.say("cliprdr", &clipboard_pdu(3, 1, &[]))?;
        }
        Channel::Dynamic => dynamic_capabilities(session)?,
        Channel::Display => {
            dynamic_capabilities(session)?;
            let name = b"Microsoft::Windows::RDS::DisplayControl\0";
            session.say("drdynvc", &[&[0x10, DISPLAY][..], name].concat())?;
            let taken =
                session.wait_for("drdynvc", |message| message.starts_with(&[0x10, DISPLAY]))?;
            let taken = taken.context("no answer for display control")?;
            ensure!(taken.get(5) == Some(&0), "display control is refused");
        }
        Channel::Devices => {
            session.say("rdpdr", b"rDnI\x01\0\x0c\0\x07\0\0\0")?;
            let named = session.wait_for("rdpdr", |message| message.starts_with(b"rDNC"))?;
            named.context("no client name")?;
            session.say("rdpdr", &device_capabilities(2, &[]))?;
            session.say("rdpdr", b"rDCC\x01\0\x0c\0\x07\0\0\0")?;
            let able = session.wait_for("rdpdr", |message| message.starts_with(b"rDPC"))?;
            able.context("no client capabilities")?;
            session.say("rdpdr", b"rDLU")?;
            let listed = session.wait_for("rdpdr", |message| {
                message.starts_with(b"rDAD") && message.get(8) == Some(&8)
            })?;
            let listed = listed.context("no drive")?;
            ensure!(
                listed.get(12..16) == Some(&DRIVE.to_le_bytes()),
                "another drive: {listed:02x?}"
            );
            session.say(
                "rdpdr",
                &[b"rDrd", &DRIVE.to_le_bytes()[..], &[0; 4]].concat(),
            )?;
        }
    }
    Ok(())
}

fn dynamic_capabilities(session: &mut Session) -> Result<()> {
    session.say("drdynvc", &[0x50, 0, 1, 0])?;
    let answer = session.wait_for("drdynvc", |message| {
        message.first().is_some_and(|header| header >> 4 == 5)
    })?;
    answer.context("no dynamic channels")?;
    Ok(())
}

/// Whether the channel still answers.
fn answers(channel: Channel, session: &mut Session) -> Result<bool> {
    let answer = match channel {
        Channel::Core => return Ok(true),
        Channel::Sound => {
            session.say("rdpsnd", &sound_pdu(6, &[7, 0, 0, 4]))?;
            session.wait_for("rdpsnd", |message| message.first() == Some(&6))?
        }
        Channel::Clipboard | Channel::ClipboardLong => {
            let mut list = long_formats(&["probe"]);
            if channel == Channel::Clipboard {
                list.resize(36, 0);
            }
            session.say("cliprdr", &clipboard_pdu(2, 0, &list))?;
            session.wait_for("cliprdr", |message| message.first() == Some(&3))?
        }
        Channel::Dynamic | Channel::Display => {
            session.say("drdynvc", b"\x10\xf0probe\0")?;
            session.wait_for("drdynvc", |message| message.starts_with(&[0x10, 0xf0]))?
        }
        Channel::Devices => {
            session.say("rdpdr", &open("\\\0".as_bytes(), 99))?;
            session.wait_for("rdpdr", |message| {
                message.starts_with(b"rDCI") && message.get(8) == Some(&99)
            })?
        }
    };
    Ok(answer.is_some())
}

fn rows() -> Vec<Row> {
    use Channel::{Clipboard, ClipboardLong, Core, Devices, Display, Dynamic, Sound};
    let row = |on, what, say| Row {
        what,
        on,
        say,
        exception: None,
    };
    let except = |on, what, why, say| Row {
        what,
        on,
        say,
        exception: Some(why),
    };
    vec![
        // The first says that the test itself can tell.
        row(Core, "nothing", |_| Ok(())),
        row(Sound, "nothing", |_| Ok(())),
        row(Sound, "Wave2 whose BodySize counts its header", |session| {
            session.say("rdpsnd", &wave2(4, 0))
        }),
        row(Sound, "Wave2 whose BodySize is far too large", |session| {
            session.say("rdpsnd", &wave2(60_000, 0))
        }),
        row(Sound, "Wave2 with less BodySize than it has", |session| {
            session.say("rdpsnd", &wave2(-16, 0))
        }),
        row(
            Sound,
            "Wave2 of a format that the client does not have",
            |session| session.say("rdpsnd", &wave2(0, 77)),
        ),
        row(Sound, "Wave2 that is cut off", |session| {
            session.say("rdpsnd", &wave2(0, 0)[..10])
        }),
        row(
            Sound,
            "Wave with less sound than WaveInfo says",
            |session| {
                session.say("rdpsnd", &[2, 0, 40, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4])?;
                session.say("rdpsnd", &[0; 12])
            },
        ),
        row(Sound, "more formats announced than there are", |session| {
            let mut formats = formats(1);
            formats[14] = 9;
            session.say("rdpsnd", &sound_pdu(7, &formats))
        }),
        row(Sound, "formats with bytes behind them", |session| {
            session.say(
                "rdpsnd",
                &[&sound_pdu(7, &formats(1))[..], &[9; 5]].concat(),
            )
        }),
        row(Sound, "a training whose BodySize is 0", |session| {
            session.say("rdpsnd", &[6, 0, 0, 0, 1, 0, 0, 4])
        }),
        row(Sound, "an unknown msgType", |session| {
            session.say("rdpsnd", &sound_pdu(0x55, &[1, 2, 3]))
        }),
        row(Sound, "Quality Mode, which clients send", |session| {
            session.say("rdpsnd", &sound_pdu(0x0c, &[1]))
        }),
        row(Sound, "a first chunk inside a message", |session| {
            session.say_chunk("rdpsnd", 100, FIRST, &[6, 0, 4, 0, 1, 0])?;
            session.say("rdpsnd", &sound_pdu(6, &[1, 0, 0, 4]))
        }),
        row(Sound, "a message shorter than announced", |session| {
            session.say_chunk("rdpsnd", 100, FIRST | LAST, &sound_pdu(6, &[1, 0, 0, 4]))
        }),
        row(Sound, "a message longer than announced", |session| {
            session.say_chunk("rdpsnd", 4, FIRST | LAST, &sound_pdu(6, &[1, 0, 0, 4]))
        }),
        row(Clipboard, "nothing", |_| Ok(())),
        row(
            Clipboard,
            "a long-form Format List where short names were agreed",
            |session| {
                session.say(
                    "cliprdr",
                    &clipboard_pdu(2, 0, &long_formats(&["Rich Text Format"])),
                )
            },
        ),
        row(
            Clipboard,
            "a short Format List with 3 bytes behind it",
            |session| session.say("cliprdr", &clipboard_pdu(2, 0, &[0; 39])),
        ),
        row(
            Clipboard,
            "a short Format List that is cut off",
            |session| session.say("cliprdr", &clipboard_pdu(2, 0, &[1; 60])),
        ),
        row(
            ClipboardLong,
            "a long Format List with 2 bytes behind it",
            |session| {
                let list = [&long_formats(&["a"])[..], &[0, 0]].concat();
                session.say("cliprdr", &clipboard_pdu(2, 0, &list))
            },
        ),
        row(
            ClipboardLong,
            "a format whose name has 600 characters",
            |session| {
                let name = "x".repeat(600);
                session.say("cliprdr", &clipboard_pdu(2, 0, &long_formats(&[&name])))
            },
        ),
        row(ClipboardLong, "a name without its end", |session| {
            let mut list = long_formats(&["abc"]);
            list.truncate(list.len() - 2);
            session.say("cliprdr", &clipboard_pdu(2, 0, &list))
        }),
        row(
            Clipboard,
            "a Format List Response with neither flag",
            |session| session.say("cliprdr", &clipboard_pdu(3, 0, &[])),
        ),
        row(
            Clipboard,
            "a data response with both flags that nobody asked for",
            |session| session.say("cliprdr", &clipboard_pdu(5, 3, b"x\0")),
        ),
        row(
            Clipboard,
            "a general capability set of 4 bytes",
            |session| {
                let capabilities = [1, 0, 0, 0, 1, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0];
                session.say("cliprdr", &clipboard_pdu(7, 0, &capabilities))
            },
        ),
        row(Clipboard, "an unknown capability set", |session| {
            let capabilities = [1, 0, 0, 0, 9, 0, 6, 0, 1, 2];
            session.say("cliprdr", &clipboard_pdu(7, 0, &capabilities))
        }),
        row(Clipboard, "an unknown msgType", |session| {
            session.say("cliprdr", &clipboard_pdu(0x77, 0, &[]))
        }),
        row(
            Clipboard,
            "Temporary Directory, which clients send",
            |session| session.say("cliprdr", &clipboard_pdu(6, 0, &[0; 520])),
        ),
        row(
            Clipboard,
            "a request for size and contents of a file at once",
            |session| {
                let request = [7, 0, 0, 0, 3, 0, 0, 8].map(|field: u32| field.to_le_bytes());
                session.say("cliprdr", &clipboard_pdu(8, 0, &request.concat()[..24]))
            },
        ),
        row(
            Clipboard,
            "a request for a format that was not offered",
            |session| session.say("cliprdr", &clipboard_pdu(4, 0, &[0x99, 0xc0, 0, 0])),
        ),
        row(Clipboard, "more dataLen than there is", |session| {
            let mut pdu = clipboard_pdu(1, 0, &[]);
            pdu[4] = 9;
            session.say("cliprdr", &pdu)
        }),
        row(Clipboard, "bytes behind a message", |session| {
            session.say(
                "cliprdr",
                &[&clipboard_pdu(2, 0, &[])[..], &[0; 4]].concat(),
            )
        }),
        row(Clipboard, "a first chunk inside a message", |session| {
            session.say_chunk("cliprdr", 100, FIRST, &[2, 0, 0, 0])?;
            session.say("cliprdr", &clipboard_pdu(2, 0, &[]))
        }),
        except(
            Clipboard,
            "a message shorter than announced",
            "receivers differ in where it ends",
            |session| session.say_chunk("cliprdr", 100, FIRST | LAST, &clipboard_pdu(2, 0, &[])),
        ),
        row(Dynamic, "nothing", |_| Ok(())),
        row(Dynamic, "capabilities of version 9", |session| {
            session.say("drdynvc", &[0x50, 0, 9, 0])
        }),
        row(
            Dynamic,
            "capabilities of version 2 without priorities",
            |session| session.say("drdynvc", &[0x50, 0, 2, 0]),
        ),
        row(Dynamic, "a request with cbChId 3", |session| {
            session.say("drdynvc", b"\x13\x09\0\0\0odd\0")
        }),
        row(Dynamic, "a request whose name does not end", |session| {
            session.say("drdynvc", b"\x10\x09odd")
        }),
        row(
            Dynamic,
            "a request for a name of 300 characters",
            |session| session.say("drdynvc", &[&b"\x10\x09"[..], &[b'x'; 300], b"\0"].concat()),
        ),
        row(
            Dynamic,
            "data on a channel that does not exist",
            |session| session.say("drdynvc", &[0x30, 0x44, 1, 2, 3]),
        ),
        row(
            Dynamic,
            "the end of a channel that does not exist",
            |session| session.say("drdynvc", &[0x40, 0x44]),
        ),
        row(Dynamic, "Soft-Sync that cannot be read", |session| {
            session.say("drdynvc", &[0x80, 0, 1, 0, 0, 0, 3, 0])
        }),
        row(Dynamic, "Soft-Sync", |session| {
            session.say("drdynvc", &[0x80, 0, 8, 0, 0, 0, 1, 0, 0, 0])
        }),
        row(Dynamic, "an unknown command", |session| {
            session.say("drdynvc", &[0xb0, 1, 2])
        }),
        row(
            Dynamic,
            "two requests for one id before an answer",
            |session| {
                session.say("drdynvc", b"\x10\x09one\0")?;
                session.say("drdynvc", b"\x10\x09two\0")
            },
        ),
        except(
            Dynamic,
            "a message shorter than announced",
            "receivers differ in where it ends",
            |session| session.say_chunk("drdynvc", 100, FIRST | LAST, b"\x10\x09odd\0"),
        ),
        row(Display, "nothing", |_| Ok(())),
        row(
            Display,
            "a request for the id of a channel that is open",
            |session| {
                let name = b"Microsoft::Windows::RDS::DisplayControl\0";
                session.say("drdynvc", &[&[0x10, DISPLAY][..], name].concat())
            },
        ),
        row(
            Display,
            "another name for the id of a channel that is open",
            |session| session.say("drdynvc", &[&[0x10, DISPLAY][..], b"other\0"].concat()),
        ),
        row(Display, "capabilities that are cut off", |session| {
            session.say("drdynvc", &display(20, &[1, 0, 0, 0]))
        }),
        row(Display, "capabilities with Length 7", |session| {
            session.say(
                "drdynvc",
                &display(7, &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]),
            )
        }),
        row(
            Display,
            "capabilities with Length beyond their end",
            |session| {
                session.say(
                    "drdynvc",
                    &display(90, &[1, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0]),
                )
            },
        ),
        row(Display, "capabilities with bytes behind them", |session| {
            let body = [1, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 9, 9];
            session.say("drdynvc", &display(20, &body))
        }),
        row(Display, "an unknown Type", |session| {
            session.say("drdynvc", &[0x30, DISPLAY, 9, 0, 0, 0, 8, 0, 0, 0])
        }),
        row(Display, "more data than announced", |session| {
            session.say("drdynvc", &[0x20, DISPLAY, 4, 5])?;
            session.say("drdynvc", &[0x30, DISPLAY, 0, 0, 0, 20, 0, 0, 0])
        }),
        row(Display, "a message inside a message", |session| {
            session.say("drdynvc", &[0x20, DISPLAY, 20, 5])?;
            session.say("drdynvc", &[0x20, DISPLAY, 20, 5, 0, 0, 0, 20, 0, 0, 0])?;
            let rest = [1, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0];
            session.say("drdynvc", &[&[0x30, DISPLAY][..], &rest].concat())
        }),
        row(
            Display,
            "compressed data that do not decompress",
            |session| session.say("drdynvc", &[0x70, DISPLAY, 1, 2, 3]),
        ),
        row(Devices, "nothing", |_| Ok(())),
        row(Devices, "an unknown PacketId", |session| {
            session.say("rdpdr", b"rDxx1234")
        }),
        row(Devices, "an unknown Component", |session| {
            session.say("rdpdr", b"xxxx1234")
        }),
        row(
            Devices,
            "Client Name Request, which clients send",
            |session| session.say("rdpdr", b"rDNC\x01\0\0\0\0\0\0\0\x02\0\0\0a\0"),
        ),
        row(Devices, "capabilities with bytes behind them", |session| {
            session.say(
                "rdpdr",
                &[&device_capabilities(2, &[])[..], &[0; 4]].concat(),
            )
        }),
        row(Devices, "a capability set that nobody knows", |session| {
            session.say(
                "rdpdr",
                &device_capabilities(3, &[0x77, 0, 10, 0, 1, 0, 0, 0, 9, 9]),
            )
        }),
        row(Devices, "40 capability sets", |session| {
            let unknown = [0x77, 0, 8, 0, 1, 0, 0, 0].repeat(38);
            session.say("rdpdr", &device_capabilities(40, &unknown))
        }),
        row(Devices, "a capability set of 3 bytes", |session| {
            session.say(
                "rdpdr",
                &device_capabilities(3, &[0x77, 0, 3, 0, 1, 0, 0, 0]),
            )
        }),
        row(
            Devices,
            "Server Announce Request that is cut off",
            |session| session.say("rdpdr", b"rDnI\x01\0"),
        ),
        row(Devices, "an open with a path of 5 bytes", |session| {
            session.say("rdpdr", &open(b"\\\0a\0b", 3))
        }),
        row(Devices, "a rename that is cut off", |session| {
            let body = [&0x0a_u32.to_le_bytes()[..], &[0; 28]].concat();
            session.say("rdpdr", &io(DRIVE, 5, 6, &body))
        }),
        row(Devices, "a new length without the length", |session| {
            let body = [&0x14_u32.to_le_bytes()[..], &[0; 28]].concat();
            session.say("rdpdr", &io(DRIVE, 5, 6, &body))
        }),
        row(
            Devices,
            "a request to a device that does not exist",
            |session| session.say("rdpdr", &io(77, 5, 2, &[0; 32])),
        ),
        row(Devices, "a function that nobody knows", |session| {
            session.say("rdpdr", &io(DRIVE, 5, 0x33, &[0; 32]))
        }),
        row(Devices, "a write with less than it says", |session| {
            let body = [&900_u32.to_le_bytes()[..], &[0; 28]].concat();
            session.say("rdpdr", &io(DRIVE, 5, 4, &body))
        }),
        row(Core, "data on MCS channel 0", |session| {
            session.say_mcs(0, &[0; 12])
        }),
        row(Core, "data on an MCS channel that nobody has", |session| {
            session.say_mcs(1099, &[0, 0, 0, 0, 3, 0, 0, 0, 1])
        }),
        row(Core, "a Font Map without its fields", |session| {
            session.say_io(&share_data(40, &[]))
        }),
        row(
            Core,
            "a Font Map whose length says 26, with half of its fields",
            |session| {
                let mut pdu = share_data(40, &[0; 4]);
                pdu[0] = 26;
                session.say_io(&pdu)
            },
        ),
        row(Core, "an empty slow-path update", |session| {
            session.say_io(&share_data(2, &[]))
        }),
        row(Core, "a share PDU of an unknown type", |session| {
            session.say_io(&[8, 0, 0x1f, 0, 0xea, 3, 9, 9])
        }),
        row(Core, "Confirm Active, which clients send", |session| {
            session.say_io(&[8, 0, 0x13, 0, 0xea, 3, 9, 9])
        }),
        row(Core, "a share data PDU of an unknown type", |session| {
            session.say_io(&share_data(99, &[1, 2, 3]))
        }),
        row(Core, "bytes behind a share PDU", |session| {
            session.say_io(&[&share_data(47, &[0; 4])[..], &[0, 0]].concat())
        }),
        row(Core, "flow control", |session| {
            session.say_io(&[0, 0x80, 0, 0x41, 1, 0, 0xea, 3])
        }),
        row(Core, "a Save Session Info that is cut off", |session| {
            session.say_io(&share_data(38, &[0, 0, 0, 0, 9, 0]))
        }),
        row(Core, "a Set Error Info that is cut off", |session| {
            session.say_io(&share_data(47, &[0, 0]))
        }),
        row(Core, "a fast-path PDU with nothing in it", |session| {
            session.say_bytes(&[0, 2])
        }),
        row(Core, "a fast-path update that is cut off", |session| {
            session.say_bytes(&[0, 8, 1, 99, 0, 0, 0, 0])
        }),
        row(Core, "a fast-path update of an unknown code", |session| {
            session.say_bytes(&[0, 7, 0x0e, 2, 0, 0, 0])
        }),
        row(Core, "bytes behind an MCS PDU", |session| {
            let mut frame = send_data(1003, &share_data(47, &[0; 4]))?;
            frame.extend([0; 2]);
            frame[3] += 2;
            session.say_bytes(&frame)
        }),
        row(Core, "a licence in an active session", |session| {
            let licence = [
                0x80, 0, 0, 0, 0xff, 3, 16, 0, 7, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0,
            ];
            session.say_io(&licence)
        }),
        row(Core, "a chunk that is no channel PDU", |session| {
            session.say_mcs(1004, &[1, 2, 3])
        }),
        row(Core, "Server Redirection to another host", |session| {
            let mut body = vec![0, 0, 0, 4, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 8, 0, 0, 0];
            body.extend(b"x\0y\0z\0\0\0");
            body.extend([0; 8]);
            let length = u16::try_from(body.len() + 6)?;
            let header = [&length.to_le_bytes()[..], &[0x1a, 0, 0xea, 3]].concat();
            session.say_io(&[header, body].concat())
        }),
    ]
}

/// [MS-RDPEA] 2.2.1.
fn sound_pdu(msg_type: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_le_bytes();
    [&[msg_type, 0][..], &length, body].concat()
}

/// [MS-RDPEA] 2.2.2.1, with one format, PCM.
fn formats(count: u8) -> Vec<u8> {
    let mut body = vec![0; 14];
    body.extend([count, 0, 0, 6, 0, 0]);
    body.extend([
        1, 0, 2, 0, 0x44, 0xac, 0, 0, 0x10, 0xb1, 2, 0, 4, 0, 16, 0, 0, 0,
    ]);
    body
}

/// [MS-RDPEA] 2.2.3.10 with 64 bytes of sound, and a `BodySize` that is so much larger.
fn wave2(more: i32, format: u8) -> Vec<u8> {
    let mut pdu = sound_pdu(
        13,
        &[&[0, 0, format, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &[0; 64]].concat(),
    );
    let size = u16::try_from(76 + more).unwrap_or(0);
    pdu[2..4].copy_from_slice(&size.to_le_bytes());
    pdu
}

/// [MS-RDPECLIP] 2.2.1.
fn clipboard_pdu(msg_type: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let header = [
        &msg_type.to_le_bytes()[..],
        &flags.to_le_bytes(),
        &length.to_le_bytes(),
    ];
    [&header.concat()[..], body].concat()
}

fn long_formats(names: &[&str]) -> Vec<u8> {
    let mut list = Vec::new();
    for (id, name) in (0xc100_u32..).zip(names) {
        list.extend(id.to_le_bytes());
        list.extend(name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
    }
    list
}

/// [MS-RDPEDISP] 2.2.2.1 with this Length, in a dynamic channel PDU.
fn display(length: u32, body: &[u8]) -> Vec<u8> {
    let header = [&[0x30, DISPLAY, 5, 0, 0, 0][..], &length.to_le_bytes()].concat();
    [&header[..], body].concat()
}

/// [MS-RDPEFS] 2.2.2.7: general and drive sets, and what else there is.
fn device_capabilities(count: u8, further: &[u8]) -> Vec<u8> {
    let mut pdu = b"rDPS".to_vec();
    pdu.extend([count, 0, 0, 0]);
    pdu.extend([1, 0, 44, 0, 2, 0, 0, 0]);
    for field in [2_u32, 0, 0x000c_0001, 0xffff, 0, 7, 0, 0, 0] {
        pdu.extend(field.to_le_bytes());
    }
    pdu.extend([4, 0, 8, 0, 2, 0, 0, 0]);
    pdu.extend_from_slice(further);
    pdu
}

/// [MS-RDPEFS] 2.2.1.4 with file 1.
fn io(device: u32, completion: u32, major: u32, body: &[u8]) -> Vec<u8> {
    let fields = [device, 1, completion, major, 0].map(u32::to_le_bytes);
    [&b"rDRI"[..], &fields.concat(), body].concat()
}

/// [MS-RDPEFS] 2.2.1.4.1: opens what exists, for reading.
fn open(path: &[u8], completion: u32) -> Vec<u8> {
    let length = u32::try_from(path.len()).unwrap_or(u32::MAX);
    let fields = [0x0012_0089_u32, 0, 0, 0, 7, 1, 0, length].map(u32::to_le_bytes);
    io(DRIVE, completion, 0, &[&fields.concat()[..], path].concat())
}

/// The number that these clients give their first device.
const DRIVE: u32 = 1;

/// The dynamic channel of display control.
const DISPLAY: u8 = 5;

/// Rows that are played at the same time.
const AT_ONCE: usize = 4;
