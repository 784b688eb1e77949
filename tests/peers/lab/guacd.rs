//! guacd, Apache Guacamole's daemon, and what a browser is for it: one connection of the Guacamole protocol, with a picture, keys, a
//! clipboard and a window.
//!
//! <https://guacamole.apache.org/doc/gug/protocol-reference.html>

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{Rgba, RgbaImage, imageops};
use jetway_lab::wait::{PATIENCE, soon, until};

use super::display::SIZE;
use super::environment;
use super::port::Port;
use super::process::Process;
use super::screenshot::Picture;
use super::target::Place;
use super::window;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Guacd {
    _process: Process,
    port: Port,
}

impl Guacd {
    pub(crate) fn start(workspace: &Workspace) -> Result<Self> {
        let port = Port::free()?;
        let mut command = Command::new(environment::file("guacd", "run")?);
        command
            .args(["-f", "-L", "debug", "-b", "127.0.0.1"])
            .args(["-l", &port.number().to_string()])
            .env("HOME", workspace.folder("home-guacd")?)
            .env("LC_ALL", "C.UTF-8");
        let mut process = Process::start(workspace, "guacd", &mut command)?;
        port.wait_for_listener(|| process.expect_alive())?;
        Ok(Self {
            _process: process,
            port,
        })
    }

    /// A connection to the gateway at `address` as `user`, with further `parameters` as an administrator of Guacamole sets them.
    pub(crate) fn connect(
        &self,
        address: &str,
        user: &Place,
        parameters: &[(&str, &str)],
    ) -> Result<Guacamole> {
        let (host, port) = address.split_once(':').context("an address")?;
        let mut values = HashMap::from([
            ("hostname", host),
            ("port", port),
            ("username", user.user.as_str()),
            ("password", user.password.as_str()),
            ("ignore-cert", "true"),
            ("color-depth", "32"),
            ("resize-method", "display-update"),
        ]);
        values.extend(parameters.iter().copied());
        Guacamole::open(self.port.number(), &values)
    }
}

/// One connection, as the page in a browser has it.
#[derive(Debug)]
pub(crate) struct Guacamole {
    stream: TcpStream,
    seen: Arc<Mutex<Seen>>,
}

impl Guacamole {
    fn open(port: u16, values: &HashMap<&str, &str>) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut instructions = BufReader::new(stream.try_clone()?);
        send(&stream, &["select", "rdp"])?;
        let asked = receive(&mut instructions)?.context("guacd is gone")?;
        let [opcode, version, names @ ..] = &asked[..] else {
            bail!("guacd asks for nothing: {asked:?}");
        };
        ensure!(opcode == "args", "{asked:?}");
        let (width, height) = (SIZE.0.to_string(), SIZE.1.to_string());
        send(&stream, &["size", &width, &height, "96"])?;
        send(&stream, &["audio"])?;
        send(&stream, &["video"])?;
        send(&stream, &["image", "image/png"])?;
        send(&stream, &["timezone", "Etc/UTC"])?;
        let mut connect = vec!["connect", version];
        connect.extend(
            names
                .iter()
                .map(|name| values.get(name.as_str()).copied().unwrap_or_default()),
        );
        let unknown = values
            .keys()
            .find(|name| !names.iter().any(|asked| asked == *name));
        ensure!(unknown.is_none(), "guacd does not ask for {unknown:?}");
        send(&stream, &connect)?;
        stream.set_read_timeout(None)?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let connection = Self {
            stream: stream.try_clone()?,
            seen: Arc::clone(&seen),
        };
        thread::spawn(move || {
            let followed = follow(&stream, &mut instructions, &seen);
            lock(&seen).ended =
                Some(followed.map_or_else(|error| format!("{error:#}"), |()| String::new()));
        });
        Ok(connection)
    }

    /// Waits until the desktop of `place` is what the user sees, standing still.
    pub(crate) fn wait_for_desktop(&self, place: &Place) -> Result<Picture> {
        window::wait_for_desktop(place, PATIENCE, || {
            self.expect_alive()?;
            Ok(lock(&self.seen).picture())
        })
    }

    /// Types into the desktop's terminal until what was typed has had its effect there.
    ///
    /// The first keys after a connection may be lost: the command can be typed again without harm.
    pub(crate) fn type_until_it_arrives(&self, place: &Place) -> Result<()> {
        let typed = place.writable.join("typed_by-keys.42");
        let command = format!("touch {}", typed.display());
        for _ in 0..ATTEMPTS {
            // Nothing manages windows there: the keys go where the pointer is, the terminal of the desktop.
            for buttons in ["0", "1", "0"] {
                self.send(&["mouse", "200", "200", buttons])?;
            }
            for letter in command.chars() {
                self.press(letter.into())?;
            }
            self.press(RETURN)?;
            if soon(PATIENCE_PER_ATTEMPT, || typed.exists()) {
                return std::fs::remove_file(&typed).context("remove what was typed");
            }
            self.expect_alive()?;
        }
        bail!(
            "no typed command arrived in {ATTEMPTS} attempts: {} is missing",
            typed.display()
        )
    }

    fn press(&self, keysym: u32) -> Result<()> {
        let keysym = keysym.to_string();
        self.send(&["key", &keysym, "1"])?;
        self.send(&["key", &keysym, "0"])
    }

    /// Copies `text` in the browser.
    pub(crate) fn copy(&self, text: &str) -> Result<()> {
        self.send(&["clipboard", "0", "text/plain"])?;
        self.send(&["blob", "0", &STANDARD.encode(text)])?;
        self.send(&["end", "0"])
    }

    /// Waits until `text`, copied on the desktop, can be pasted in the browser.
    pub(crate) fn wait_for_text(&self, text: &str) -> Result<()> {
        until(&format!("{text:?} in the browser"), PATIENCE, || {
            self.expect_alive()?;
            Ok((lock(&self.seen).copied == text).then_some(()))
        })
    }

    /// Gives the window another size.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.send(&["size", &width.to_string(), &height.to_string()])
    }

    /// Waits until the desktop has that size.
    pub(crate) fn wait_for_size(&self, width: u16, height: u16) -> Result<()> {
        let size = (width.into(), height.into());
        until(&format!("a desktop of {size:?}"), PATIENCE, || {
            self.expect_alive()?;
            let picture = lock(&self.seen).picture();
            Ok(picture.and_then(|picture| (picture.size() == size).then_some(())))
        })
    }

    /// Waits until an error is told of, by the number of which the page shows a sentence, and guacd's own words.
    pub(crate) fn error(&self) -> Result<(u16, String)> {
        until("guacd tells of an error", PATIENCE, || {
            Ok(lock(&self.seen).error.clone())
        })
    }

    fn expect_alive(&self) -> Result<()> {
        let seen = lock(&self.seen);
        if let Some((number, text)) = &seen.error {
            bail!("guacd tells of an error: 0x{number:X} {text}");
        }
        match &seen.ended {
            Some(ended) => bail!("guacd has ended: {ended}"),
            None => Ok(()),
        }
    }

    fn send(&self, instruction: &[&str]) -> Result<()> {
        send(&self.stream, instruction)
    }
}

impl Drop for Guacamole {
    fn drop(&mut self) {
        let _gone = self.send(&["disconnect"]);
        let _gone = self.stream.shutdown(Shutdown::Both);
    }
}

/// What guacd has said so far.
#[derive(Debug, Default)]
struct Seen {
    /// Layers and buffers by their numbers; layer 0 is what the user sees.
    layers: HashMap<i32, RgbaImage>,
    /// What arrives in pieces, by the number of its stream.
    streams: HashMap<String, (Content, Vec<u8>)>,
    /// The layer, place and size of the next fill.
    rectangle: [i32; 5],
    /// What was last copied on the desktop.
    copied: String,
    error: Option<(u16, String)>,
    /// Why nothing more comes.
    ended: Option<String>,
}

#[derive(Debug)]
enum Content {
    Image {
        over: bool,
        layer: i32,
        x: i32,
        y: i32,
    },
    Clipboard,
}

impl Seen {
    fn picture(&self) -> Option<Picture> {
        let screen = self.layers.get(&0)?;
        let width = usize::try_from(screen.width()).ok()?;
        // Not pixel by pixel: that takes seconds without optimisation.
        let pixels = screen.as_raw().chunks_exact(4);
        let pixels = pixels.map(|pixel| [pixel[0], pixel[1], pixel[2]]);
        Some(Picture::new(width, pixels.collect()))
    }

    /// The layer, which grows where something is drawn beyond its edges.
    fn layer(&mut self, number: i32, width: i32, height: i32) -> Result<&mut RgbaImage> {
        let layer = self.layers.entry(number).or_default();
        let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
        if layer.width() < width || layer.height() < height {
            let mut larger = RgbaImage::new(layer.width().max(width), layer.height().max(height));
            imageops::replace(&mut larger, layer, 0, 0);
            *layer = larger;
        }
        Ok(layer)
    }

    /// What to do with an instruction; returns what there is to answer.
    fn handle(&mut self, opcode: &str, arguments: &[&str]) -> Result<Option<Vec<String>>> {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        match (opcode, arguments) {
            ("sync", [time, ..]) => return Ok(words(&["sync", time])),
            ("error", [text, number]) => self.error = Some((number.parse()?, (*text).to_owned())),
            ("size", [layer, width, height]) => {
                let mut resized = RgbaImage::new(width.parse()?, height.parse()?);
                let layer = self.layer(layer.parse()?, 0, 0)?;
                imageops::replace(&mut resized, layer, 0, 0);
                *layer = resized;
            }
            ("img", [stream, mask, layer, _, x, y]) => {
                let content = Content::Image {
                    over: *mask == OVER,
                    layer: layer.parse()?,
                    x: x.parse()?,
                    y: y.parse()?,
                };
                self.streams
                    .insert((*stream).to_owned(), (content, Vec::new()));
            }
            ("clipboard", [stream, "text/plain"]) => {
                let clipboard = (Content::Clipboard, Vec::new());
                self.streams.insert((*stream).to_owned(), clipboard);
                return Ok(words(&["ack", stream, "OK", "0"]));
            }
            ("blob", [stream, data]) => {
                if let Some((content, bytes)) = self.streams.get_mut(*stream) {
                    bytes.extend(STANDARD.decode(data)?);
                    if matches!(content, Content::Clipboard) {
                        return Ok(words(&["ack", stream, "OK", "0"]));
                    }
                }
            }
            ("end", [stream]) => match self.streams.remove(*stream) {
                Some((Content::Clipboard, bytes)) => self.copied = String::from_utf8(bytes)?,
                Some((Content::Image { over, layer, x, y }, bytes)) => {
                    let image = image::load_from_memory(&bytes)?;
                    self.draw(&image.to_rgba8(), layer, x, y, over)?;
                }
                None => {}
            },
            ("rect", [layer, x, y, width, height]) => {
                for (field, text) in self.rectangle.iter_mut().zip([layer, x, y, width, height]) {
                    *field = text.parse()?;
                }
            }
            ("cfill", [_, _, red, green, blue, alpha]) => {
                let [layer, x, y, width, height] = self.rectangle;
                let colour = [red.parse()?, green.parse()?, blue.parse()?, alpha.parse()?];
                let (width, height) = (width.try_into()?, height.try_into()?);
                let filled = RgbaImage::from_pixel(width, height, Rgba(colour));
                self.draw(&filled, layer, x, y, false)?;
            }
            ("copy", [from, x, y, width, height, mask, to, to_x, to_y]) => {
                let part = self.copy_area([from, x, y, width, height])?;
                self.draw(
                    &part,
                    to.parse()?,
                    to_x.parse()?,
                    to_y.parse()?,
                    *mask == OVER,
                )?;
            }
            ("transfer", [from, x, y, width, height, SOURCE, to, to_x, to_y]) => {
                let part = self.copy_area([from, x, y, width, height])?;
                self.draw(&part, to.parse()?, to_x.parse()?, to_y.parse()?, false)?;
            }
            // A picture that would be wrong without a word.
            ("transfer" | "lfill" | "cstroke" | "lstroke", _) => {
                bail!("{opcode} {arguments:?} is not drawn")
            }
            _ => {}
        }
        Ok(None)
    }

    fn copy_area(&mut self, [from, x, y, width, height]: [&str; 5]) -> Result<RgbaImage> {
        let (x, y): (i32, i32) = (x.parse()?, y.parse()?);
        let (width, height): (i32, i32) = (width.parse()?, height.parse()?);
        let source = self.layer(from.parse()?, x + width, y + height)?;
        let (x, y) = (x.try_into()?, y.try_into()?);
        let (width, height) = (width.try_into()?, height.try_into()?);
        Ok(imageops::crop_imm(source, x, y, width, height).to_image())
    }

    fn draw(&mut self, image: &RgbaImage, layer: i32, x: i32, y: i32, over: bool) -> Result<()> {
        let (width, height) = (
            i32::try_from(image.width())?,
            i32::try_from(image.height())?,
        );
        let layer = self.layer(layer, x + width, y + height)?;
        if over {
            imageops::overlay(layer, image, x.into(), y.into());
        } else {
            imageops::replace(layer, image, x.into(), y.into());
        }
        Ok(())
    }
}

/// Takes what guacd says until it ends.
fn follow(stream: &TcpStream, instructions: &mut impl BufRead, seen: &Mutex<Seen>) -> Result<()> {
    while let Some(instruction) = receive(instructions)? {
        let words: Vec<&str> = instruction.iter().map(String::as_str).collect();
        let Some((opcode, arguments)) = words.split_first() else {
            continue;
        };
        let answer = lock(seen).handle(opcode, arguments);
        if let Some(answer) = answer.with_context(|| (*opcode).to_owned())? {
            let answer: Vec<&str> = answer.iter().map(String::as_str).collect();
            send(stream, &answer)?;
        }
    }
    Ok(())
}

/// The next instruction, or none where the stream has ended.
fn receive(from: &mut impl BufRead) -> Result<Option<Vec<String>>> {
    let mut elements = Vec::new();
    loop {
        let mut length = Vec::new();
        from.read_until(b'.', &mut length)?;
        if length.is_empty() && elements.is_empty() {
            return Ok(None);
        }
        let length = String::from_utf8(length)?;
        let length: usize = length.trim_end_matches('.').parse()?;
        // In letters, not in bytes.
        let mut bytes = Vec::with_capacity(length);
        for _ in 0..length {
            let mut first = [0];
            from.read_exact(&mut first)?;
            let letter: usize = first[0].leading_ones().max(1).try_into()?;
            bytes.extend(first);
            let start = bytes.len();
            bytes.resize(start + letter - 1, 0);
            from.read_exact(&mut bytes[start..])?;
        }
        elements.push(String::from_utf8(bytes)?);
        let mut end = [0];
        from.read_exact(&mut end)?;
        if end == *b";" {
            return Ok(Some(elements));
        }
    }
}

fn send(mut stream: &TcpStream, instruction: &[&str]) -> Result<()> {
    let elements: Vec<String> = instruction
        .iter()
        .map(|element| format!("{}.{element}", element.chars().count()))
        .collect();
    Ok(stream.write_all(format!("{};", elements.join(",")).as_bytes())?)
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The channel mask of pictures that are drawn with their transparency.
const OVER: &str = "14";
/// The transfer function that takes the source as it is.
const SOURCE: &str = "3";
/// The keysym of the key Return.
const RETURN: u32 = 0xff0d;
const ATTEMPTS: usize = 5;
const PATIENCE_PER_ATTEMPT: Duration = Duration::from_secs(2);
