//! What happens in a session, as facts: the events that the [`Tracker`](super::tracker::Tracker) reads out of PDUs, and the verdict
//! a [`Sink`] gives on each.
//!
//! Events borrow from the PDU (or from its decompressed form) and live as long as the call that reports them.

use std::fmt;
use std::ops::Range;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Direction;
use super::client_info::ClientInfo;
use super::gcc::{ClientData, ServerData};
use super::input::Input;
use super::logon::{AutoReconnectCookie, SaveSessionInfo};
use super::redirection::Redirection;
use super::share::CapabilitySets;

/// What a PDU says.
///
/// `Debug` shows no bytes of PDUs and no keys: there are passwords among them.
///
/// It is exhaustive, so that a stage which records everything does not compile until it knows a new kind.
pub enum Event<'a> {
    /// The session entered a phase.
    Phase(Phase),
    /// MCS Connect Initial: what the client is and asks for.
    ClientData(&'a ClientData),
    /// MCS Connect Response: what the target grants; the static channels have their ids from here on.
    ServerData {
        /// The target's data.
        data: &'a ServerData,
        /// Every static channel, in the order of the client's list.
        channels: &'a [StaticChannel],
    },
    /// The Client Info PDU as the client sent it, without its password.
    ClientInfo(&'a ClientInfo),
    /// A licensing PDU.
    Licence {
        /// Who sent it.
        direction: Direction,
        /// `bMsgType` ([MS-RDPBCGR] 2.2.1.12.1.1).
        message_type: u8,
    },
    /// Demand Active (to the client) or Confirm Active (to the target).
    Capabilities {
        /// Who sent it.
        direction: Direction,
        /// Names this activation.
        share_id: u32,
        /// The capability sets.
        sets: CapabilitySets<'a>,
    },
    /// The target ends this activation; another Demand Active follows, as when the desktop is resized.
    Deactivated,
    /// The size of the desktop from now on, as the target demands it.
    DesktopSize {
        /// Pixels.
        width: u16,
        /// Pixels.
        height: u16,
    },
    /// A Share Data PDU, decompressed.
    ShareData {
        /// Who sent it.
        direction: Direction,
        /// `pduType2` ([MS-RDPBCGR] 2.2.8.1.1.1.2).
        pdu_type2: u8,
        /// What follows the Share Data Header.
        data: &'a [u8],
    },
    /// One fast-path update of the target, decompressed.
    FastPathUpdate {
        /// `updateCode`.
        code: u8,
        /// `fragmentation`: 0 single, 1 last, 2 first, 3 next.
        fragmentation: u8,
        /// The update or its fragment.
        data: &'a [u8],
    },
    /// Bulk compression of a kind that was not used in this direction before.
    BulkCompression {
        /// Who uses it.
        direction: Direction,
        /// `CompressionTypeMask`: 0 and 1 MPPC, 2 NCRUSH, 3 XCRUSH.
        kind: u8,
    },
    /// One event of keyboard or pointer, in fast-path or slow-path form.
    Input(Input),
    /// The target says who logged on, and how.
    Logon(SaveSessionInfo),
    /// The target gave the client a cookie to reconnect with. It is a secret.
    AutoReconnectCookie(&'a AutoReconnectCookie),
    /// The client brings a cookie to reconnect with.
    Reconnect {
        /// Session of the target; `None` where the cookie is too short to name one.
        logon_id: Option<u32>,
        /// Whether the cookie may be used here; another was taken out of the Client Info PDU.
        passed: bool,
    },
    /// Set Error Info: why the target is about to end the session.
    ErrorInfo(u32),
    /// The target sends the client elsewhere. The tracker refuses it unless it was allowed.
    Redirection(&'a Redirection),
    /// A message of a static virtual channel, put together and decompressed.
    ChannelMessage {
        /// Who sent it.
        direction: Direction,
        /// The channel.
        channel: &'a StaticChannel,
        /// The message without any channel PDU header.
        data: &'a [u8],
    },
    /// A PDU of the message channel: automatic detection of the network, heartbeat.
    MessageChannel {
        /// Who sent it.
        direction: Direction,
        /// Flags of the security header, which name the kind.
        flags: u16,
        /// What follows the security header.
        data: &'a [u8],
    },
    /// Something that nobody here knows; it passes, unless a stage says otherwise, or it says that it does not.
    Unknown {
        /// Who sent it.
        direction: Direction,
        /// What it is.
        what: Unknown,
    },
    /// MCS Disconnect Provider Ultimatum.
    Disconnect {
        /// Who sent it.
        direction: Direction,
        /// T.125 `Reason`: 0 domain disconnected, 1 provider initiated, 3 user requested, ...
        reason: u8,
    },
    /// A whole PDU as it goes on, decrypted and after edits; reported last, once for each PDU that was not withheld, in the order in
    /// which they leave. What one side is shown of a session is these in one direction, and nothing else.
    Pdu {
        /// Where it goes.
        direction: Direction,
        /// Who has made it.
        origin: Origin,
        /// From TPKT or fast-path header to the end.
        bytes: &'a [u8],
        /// Where secrets are in `bytes`: passwords and cookies. Whoever keeps bytes blanks these first.
        secrets: &'a [Range<usize>],
    },
}

impl Event<'_> {
    /// Bytes that the event borrows, if any.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match self {
            Self::ShareData { data, .. }
            | Self::FastPathUpdate { data, .. }
            | Self::ChannelMessage { data, .. }
            | Self::MessageChannel { data, .. } => data,
            Self::Pdu { bytes, .. } => bytes,
            Self::Phase(_)
            | Self::ClientData(_)
            | Self::ServerData { .. }
            | Self::ClientInfo(_)
            | Self::Licence { .. }
            | Self::Capabilities { .. }
            | Self::Deactivated
            | Self::DesktopSize { .. }
            | Self::BulkCompression { .. }
            | Self::Input(_)
            | Self::Logon(_)
            | Self::AutoReconnectCookie(_)
            | Self::Reconnect { .. }
            | Self::ErrorInfo(_)
            | Self::Redirection(_)
            | Self::Unknown { .. }
            | Self::Disconnect { .. } => &[],
        }
    }
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, detail): (&str, &dyn fmt::Debug) = match self {
            Self::Phase(phase) => ("Phase", phase),
            Self::ClientData(data) => ("ClientData", data),
            Self::ServerData { data, .. } => ("ServerData", data),
            Self::ClientInfo(info) => ("ClientInfo", info),
            Self::Licence { message_type, .. } => ("Licence", message_type),
            Self::Capabilities { share_id, .. } => ("Capabilities", share_id),
            Self::Deactivated => ("Deactivated", &()),
            Self::DesktopSize { width, height } => {
                return write!(f, "DesktopSize({width}, {height})");
            }
            Self::ShareData { pdu_type2, .. } => ("ShareData", pdu_type2),
            Self::FastPathUpdate { code, .. } => ("FastPathUpdate", code),
            Self::BulkCompression { kind, .. } => ("BulkCompression", kind),
            Self::Input(_) => ("Input", &()),
            Self::Logon(logon) => ("Logon", logon),
            Self::AutoReconnectCookie(cookie) => ("AutoReconnectCookie", cookie),
            Self::Reconnect { passed, .. } => ("Reconnect", passed),
            Self::ErrorInfo(code) => ("ErrorInfo", code),
            Self::Redirection(redirection) => ("Redirection", redirection),
            Self::ChannelMessage { channel, .. } => ("ChannelMessage", &channel.name),
            Self::MessageChannel { flags, .. } => ("MessageChannel", flags),
            Self::Unknown { what, .. } => ("Unknown", what),
            Self::Disconnect { reason, .. } => ("Disconnect", reason),
            Self::Pdu { secrets, .. } => ("Pdu", secrets),
        };
        write!(f, "{name}({detail:?}, {} bytes)", self.data().len())
    }
}

/// Who has made a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The side that it comes from; fields of it may differ between the legs.
    Peer,
    /// The gateway: in place of a message, as the answer to one that was withheld, or to say that the session is over.
    Gateway,
}

/// Where a session stands. Peers choose the order of their bytes, so a phase says what was seen, not what must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Until MCS Connect Initial and Response have passed.
    BasicSettings,
    /// MCS domain, user and channels, until the Client Info PDU.
    ChannelConnection,
    /// Until the licence is settled.
    Licensing,
    /// Until Demand Active and Confirm Active have passed; again after a deactivation.
    CapabilitiesExchange,
    /// A session: input, graphics, channels.
    Active,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BasicSettings => "basic settings",
            Self::ChannelConnection => "channel connection",
            Self::Licensing => "licensing",
            Self::CapabilitiesExchange => "capabilities exchange",
            Self::Active => "active",
        })
    }
}

/// A static virtual channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticChannel {
    /// As the client wrote it, at most 7 characters.
    pub name: String,
    /// MCS channel id, from the target's network data.
    pub id: u16,
    /// `CHANNEL_OPTION_*`.
    pub options: u32,
}

/// What passes although nobody here knows what it says: no receiver finds anything in it that a stage reads. See
/// [`tracker`](super::tracker) for why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Bytes behind an MCS PDU in its frame, too few to be another.
    BehindMcs {
        /// How many.
        bytes: usize,
    },
    /// A share control PDU of a type that RDP does not use.
    SharePdu {
        /// `type` in `pduType`.
        pdu_type: u8,
        /// Bytes with its header.
        bytes: usize,
    },
    /// The target grants another number of static channels than the client asked for.
    ChannelCount {
        /// Names in the client's list.
        asked: usize,
        /// Ids in the target's.
        granted: usize,
    },
    /// Data of the target on a channel that does not exist: withheld, as clients drop them.
    Nowhere {
        /// MCS channel.
        channel: u16,
        /// Bytes of data.
        bytes: usize,
    },
    /// A chunk that does not fit to those before it, of a channel on which nothing depends: its message is not read.
    Chunk {
        /// MCS channel.
        channel: u16,
        /// Bytes of the chunk.
        bytes: usize,
    },
    /// A share control PDU of a type that is known and that only the other side sends.
    OtherSide {
        /// `type` in `pduType`.
        pdu_type: u8,
        /// Bytes with its header.
        bytes: usize,
    },
}

/// What becomes of what an event tells.
///
/// `Replace`, `Hold` and `Deny` answer a [`Event::ChannelMessage`] of a channel on which the sink [decides](Interest::Decide). A `Deny`
/// without answers also withholds a PDU of input. Anywhere else they end the session: what has gone on cannot be
/// taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it came, byte for byte.
    Forward,
    /// Another message goes on in its place.
    Replace {
        /// That message.
        data: Vec<u8>,
        /// Why.
        grounds: Box<Grounds>,
    },
    /// It waits for its verdict ([`Sink::poll_answer`]), and what comes behind it on its channel and in its direction waits with it, in
    /// order. Other channels go on.
    Hold,
    /// It does not go on. Its sender gets these messages on the same channel, since a request without an answer
    /// leaves clients hanging.
    Deny {
        /// What the other side would have said.
        answers: Vec<Vec<u8>>,
        /// Why.
        grounds: Box<Grounds>,
    },
    /// The session ends.
    Terminate(Termination),
}

/// Why a sink has decided as it did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grounds {
    /// The rule, by the name that whoever wrote it has given it.
    pub rule: String,
    /// For log and audit.
    pub reason: String,
    /// For the user, where there is a way to show it.
    pub words: Option<String>,
}

impl Grounds {
    /// By `rule`, because of `reason`, without words for the user.
    #[must_use]
    pub fn new(rule: impl Into<String>, reason: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            rule: rule.into(),
            reason: reason.into(),
            words: None,
        })
    }
}

/// The end of a session by a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// Why.
    pub grounds: Box<Grounds>,
    /// Set Error Info code for the user ([MS-RDPBCGR] 2.2.5.1.1).
    pub error_info: u32,
}

/// A message that waits for its verdict: there is one on each channel and in each direction at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldMessage {
    /// MCS channel id.
    pub channel: u16,
    /// Where it is to go.
    pub direction: Direction,
}

/// How much of a static channel a sink needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interest {
    /// Nothing: chunks pass as they come.
    Ignore,
    /// Its messages as far as they can be put together, while their chunks pass as they come; nothing depends on them.
    Sample,
    /// Its messages, while their chunks pass as they come.
    Observe,
    /// Its messages before any of their bytes has passed.
    Decide,
}

/// Takes events and judges them.
pub trait Sink {
    /// How much of this channel is needed; asked once, when the channel gets its id.
    fn interest(&self, channel: &str) -> Interest;

    /// Whether bulk compression must stay off, so that messages can be replaced and withheld.
    fn decides(&self) -> bool;

    /// The time at which the events that follow happen, counted from the start of the session. Stages that measure need it.
    fn set_now(&mut self, now: Duration) {
        let _ = now;
    }

    /// Ready when the sink can take more, which is asked before anything is read for it. As long as it is not, both sides wait: what
    /// was read at once, and decompressed of it, is all that it may be given beyond its own bound.
    ///
    /// # Errors
    /// The sink cannot do its work any more, and the session ends.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Termination>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// Judges one event.
    fn on_event(&mut self, event: &Event<'_>) -> Verdict;

    /// Ready with a message that was [held](Verdict::Hold), once its verdict can be given. The end of the session ends the wait.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<HeldMessage> {
        let _ = cx;
        Poll::Pending
    }

    /// Judges the message that [`poll_answer`](Self::poll_answer) has named. It may be held once more.
    fn on_answer(&mut self, event: &Event<'_>) -> Verdict {
        self.on_event(event)
    }

    /// Of a message in this direction that its receiver cannot use before it is whole: so many bytes at least are still to come.
    fn awaited(&self, direction: Direction) -> usize {
        let _ = direction;
        0
    }
}
