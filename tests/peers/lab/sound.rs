//! Sound without a sound card: what a client plays is recorded from a PulseAudio sink that nobody hears.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use jetway_lab::wait::{PATIENCE, until};

use super::process::{Process, tool};
use super::workspace::Workspace;

/// Fields are dropped in order: the recorder first.
#[derive(Debug)]
pub(crate) struct Sink {
    _recorder: Process,
    _server: Process,
    socket: PathBuf,
    recorded: PathBuf,
}

impl Sink {
    pub(crate) fn start(workspace: &Workspace) -> Result<Self> {
        let home = workspace.folder("home-pulse")?;
        let socket = workspace.path("pulse.socket");
        let mut server = Process::start(
            workspace,
            "pulseaudio",
            Command::new("pulseaudio")
                .args([
                    "-n",
                    "--daemonize=no",
                    "--use-pid-file=no",
                    "--exit-idle-time=-1",
                ])
                .args(["-L", "module-null-sink sink_name=rdp"])
                .arg("-L")
                .arg(format!(
                    "module-native-protocol-unix socket={} auth-anonymous=1",
                    socket.display()
                ))
                .env("HOME", &home)
                .env("XDG_RUNTIME_DIR", &home),
        )?;
        until("the sound server", PATIENCE, || {
            server.expect_alive()?;
            Ok(tool(pactl(&socket).arg("info")).is_ok().then_some(()))
        })?;
        let recorded = workspace.path("sound.raw");
        let recorder = Process::start_as_is(
            workspace,
            "parec",
            Command::new("parec")
                .args(["--device=rdp.monitor", "--raw", "--format=s16le"])
                .args([
                    &format!("--rate={RATE}"),
                    "--channels=1",
                    "--latency-msec=20",
                ])
                .env("PULSE_SERVER", server_address(&socket))
                .stdin(Stdio::null())
                .stdout(workspace.create("sound.raw")?)
                .stderr(workspace.create("parec.log")?),
        )?;
        Ok(Self {
            _recorder: recorder,
            _server: server,
            socket,
            recorded,
        })
    }

    /// The value of `PULSE_SERVER` for who is to play here.
    pub(crate) fn address(&self) -> String {
        server_address(&self.socket)
    }

    /// The pitch of what is heard now, in hertz, if it is a lasting tone.
    pub(crate) fn pitch(&self) -> Result<Option<f64>> {
        let bytes = std::fs::read(&self.recorded)?;
        let samples: Vec<i16> = bytes
            .chunks_exact(2)
            .map(|sample| i16::from_le_bytes([sample[0], sample[1]]))
            .collect();
        Ok(samples.rchunks_exact(WINDOW).find_map(pitch))
    }
}

/// The upward crossings of zero per second, where each is as far from the last as the one before, as in a sine.
fn pitch(samples: &[i16]) -> Option<f64> {
    let loud = samples.iter().filter(|sample| sample.unsigned_abs() > 2000);
    if loud.count() < samples.len() / 2 {
        return None;
    }
    let crossings: Vec<usize> = samples
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[0] < 0 && pair[1] >= 0)
        .map(|(at, _)| at)
        .collect();
    let (first, last) = (crossings.first()?, crossings.last()?);
    let gaps = || crossings.windows(2).map(|pair| pair[1] - pair[0]);
    if gaps().max()? > gaps().min()? + 2 {
        return None;
    }
    let periods = u32::try_from(crossings.len() - 1).ok()?;
    let length = u32::try_from(last - first).ok()?;
    Some(f64::from(periods) * f64::from(RATE) / f64::from(length))
}

/// A tone that is played in a session of xrdp: the channel server takes raw sound on a socket.
#[derive(Debug)]
pub(crate) struct Tone {
    socket: UnixStream,
    hertz: f64,
    played: u32,
}

impl Tone {
    /// Plays in the session on the display of that number.
    pub(crate) fn start(display: &str, hertz: f64) -> Result<Self> {
        let path = format!("/run/xrdp/sockdir/xrdp_chansrv_audio_out_socket_{display}");
        let socket = until("the sound of the session", PATIENCE, || {
            Ok(UnixStream::connect(&path).ok())
        })
        .context(path)?;
        Ok(Self {
            socket,
            hertz,
            played: 0,
        })
    }

    /// Plays a fortieth of a second more.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        let mut block = Vec::new();
        for sample in self.played..self.played + BLOCK {
            let turn = f64::from(sample) * self.hertz / f64::from(RATE);
            let level = (turn * std::f64::consts::TAU).sin() * 12_000.0;
            #[expect(clippy::as_conversions, reason = "it is within 12,000")]
            let level = (level as i16).to_le_bytes();
            block.extend_from_slice(&level);
            block.extend_from_slice(&level);
        }
        self.played += BLOCK;
        // A kind (0: sound) and the length, itself included.
        let length = i32::try_from(block.len() + 8)?;
        let head = [0i32.to_le_bytes(), length.to_le_bytes()].concat();
        self.socket.write_all(&[head, block].concat())?;
        Ok(())
    }
}

/// Plays a tone until it is heard.
pub(crate) fn play_until_heard(sink: &Sink, display: &str, hertz: f64) -> Result<()> {
    let mut tone = Tone::start(display, hertz)?;
    let mut last = None;
    let heard = until("the tone", PATIENCE, || {
        tone.go_on()?;
        last = sink.pitch()?.or(last);
        let same = last.is_some_and(|heard| (heard - hertz).abs() < hertz / 100.0);
        Ok(same.then_some(()))
    });
    match heard {
        Ok(()) => Ok(()),
        Err(error) => bail!("{error:#}: {hertz} Hz is played, {last:?} Hz is heard"),
    }
}

fn pactl(socket: &std::path::Path) -> Command {
    let mut command = Command::new("pactl");
    command.env("PULSE_SERVER", server_address(socket));
    command
}

fn server_address(socket: &std::path::Path) -> String {
    format!("unix:{}", socket.display())
}

const RATE: u32 = 44_100;
/// A fortieth of a second.
const BLOCK: u32 = RATE / 40;
/// What counts as lasting: a tenth of a second.
const WINDOW: usize = 4_410;
