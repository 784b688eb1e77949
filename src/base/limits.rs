//! Every bound on what a peer that has proved nothing can make the gateway hold or wait for.
//!
//! One constant each, with its unit in the name and its reason beside it. What an administrator may want to
//! change is in the configuration, with these values as defaults; the rest follows from the protocols.

use std::time::Duration;

/// Largest RDP preconnection PDU, bytes. A 16 KiB token takes 32 KiB in UTF-16; twice that leaves room.
pub const PRECONNECTION_PDU_BYTES: usize = 64 * 1024;

/// Largest X.224 Connection Request, bytes: what the two length bytes of TPKT can name.
pub const CONNECTION_REQUEST_BYTES: usize = 65_535;

/// Largest X.224 Connection Confirm accepted from a target, bytes. Real ones have 11 or 19.
pub const CONNECTION_CONFIRM_BYTES: usize = 1024;

/// Largest PROXY protocol v2 header, bytes: 16 and a generous area for TLVs.
pub const PROXY_HEADER_BYTES: usize = 4096;

/// Largest token text, bytes, checked before any cryptography.
pub const TOKEN_BYTES: usize = 16 * 1024;

/// Longest ticket text, characters, so that it fits a routing token of 238 bytes with room to spare.
pub const TICKET_CHARS: usize = 64;

/// Largest HTTP request body, bytes: one token and its JSON wrapping.
pub const HTTP_BODY_BYTES: usize = 32 * 1024;

/// Largest HTTP request head, bytes.
pub const HTTP_HEAD_BYTES: usize = 32 * 1024;

/// From the head of an HTTP request until its body is whole.
pub const HTTP_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// From accept until the token text is in hand.
pub const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(10);

/// Behind a preconnection PDU, how long a client may say nothing that tells X.224 from TLS and from the rest, until it is connected as
/// one whose server speaks first. Clients write both in one go, so this is for one lost packet on the way.
pub const OPENING_PATIENCE: Duration = Duration::from_millis(500);

/// From accept until bytes are relayed.
pub const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a refused client is given to send the Connection Request that its refusal answers.
pub const REFUSAL_LINGER: Duration = Duration::from_secs(2);

/// How long the same address is answered with the reason of its first refusal when it returns without a token.
pub const REFUSAL_MEMORY: Duration = Duration::from_secs(15);

/// Remembered refusals of one /64 (IPv6); an IPv4 address has one.
pub const REFUSAL_MEMORY_PER_ADDRESS: usize = 16;

/// Remembered refusals; the oldest is forgotten first.
pub const REFUSAL_MEMORY_ENTRIES: usize = 4096;

/// How long an auto-reconnect cookie of a target is good, seconds: the longest session with its reconnects.
pub const RECONNECT_COOKIE_S: u64 = 24 * 60 * 60;

/// Auto-reconnect cookies that are known; the oldest is forgotten first.
pub const RECONNECT_COOKIES: usize = 65_536;

/// Auto-reconnect cookies of one session. Windows gives a new one every hour, and only the last one counts.
pub const RECONNECT_COOKIES_PER_SESSION: usize = 4;

/// Auto-reconnect cookies of one association: those of its last two sessions.
pub const RECONNECT_COOKIES_PER_ASSOCIATION: usize = 2 * RECONNECT_COOKIES_PER_SESSION;

/// Auto-reconnect cookies of the sessions of one address.
pub const RECONNECT_COOKIES_PER_ADDRESS: usize = RECONNECT_COOKIES / 4;

/// Default for connections of any kind at one time.
pub const CONNECTIONS: usize = 20_000;

/// Default for connections that have not shown a valid token, in total.
pub const PENDING_CONNECTIONS: usize = 2048;

/// Default for connections that have not shown a valid token, for one address (IPv6: one /64; a /56 has twice as many and a
/// /48 four times, and so everywhere).
pub const PENDING_PER_ADDRESS: usize = 128;

/// Default for established sessions from one address (IPv6: one /64).
pub const SESSIONS_PER_ADDRESS: usize = 1024;

/// Default for token cryptography one address may cause, microseconds of CPU each second. A nested RSA-2048 token
/// costs about 300, RSA-4096 about 4,500.
pub const TOKEN_WORK_US_PER_S: u32 = 50_000;

/// Token cryptography one address may cause in a burst, microseconds of CPU.
pub const TOKEN_WORK_BURST_US: u32 = 250_000;

/// Networks whose token work is remembered; beyond it the fullest buckets (the least suspicious) go first.
pub const TOKEN_WORK_ADDRESSES: usize = 16_384;

/// Tickets that are good, used ones among them, which go first.
pub const TICKETS: usize = 10_000;

/// Tickets of one token. It opens one session, so one is enough; a portal may make one for every click.
pub const TICKETS_PER_TOKEN: usize = 16;

/// Tickets that one address may get by tokens alone: those of a portal without an API key, for half a minute of many users.
pub const TICKETS_PER_ADDRESS: usize = 1024;

/// Sessions of one token that are set up, ended or wait for each other. One at a time is relayed.
pub const SESSIONS_PER_TOKEN: usize = 16;

/// `dst_hst` and `dst_alt` together.
pub const TARGETS: usize = 16;

/// Addresses one target name may resolve to; the rest are ignored.
pub const ADDRESSES_PER_TARGET: usize = 16;

/// Largest message of a static virtual channel that is put together for a stage, bytes. A 4K bitmap on the
/// clipboard has 33 MB; buffers grow with what arrives, never with what is announced.
pub const CHANNEL_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// What one side of an inspected session may make the gateway remember, bytes: messages that are not whole, histories of
/// compression, requests, names and lists of all its channels together. A bitmap of [`CHANNEL_MESSAGE_BYTES`] fits, with
/// half of that for all else.
pub const REMEMBERED_PER_DIRECTION_BYTES: usize = 96 * 1024 * 1024;

/// What both sides of an inspected session may make the gateway remember, bytes. Real sessions need a few, and 64 MiB
/// while a picture is copied. What is read of one message while it is looked at comes on top, and is gone after it.
pub const REMEMBERED_BYTES: usize = 128 * 1024 * 1024;

/// What may have come behind messages that wait for their verdicts before their sender has to wait, bytes: a second of a fast line.
pub const BEHIND_HELD_MESSAGES_BYTES: usize = 1024 * 1024;

/// Static virtual channels of a session ([MS-RDPBCGR] 2.2.1.3.4).
pub const STATIC_CHANNELS: usize = 31;

/// Formats one clipboard may offer. Office programs offer about 30.
pub const CLIPBOARD_FORMATS: usize = 1024;

/// Files and folders copied at once; each takes 592 bytes of one message.
pub const CLIPBOARD_FILES: usize = 16_384;

/// Requests for contents of copied files that one side may leave without an answer; the oldest is forgotten first.
pub const CLIPBOARD_REQUESTS: usize = 256;

/// File lists that one side may keep locked.
pub const CLIPBOARD_LOCKS: usize = 64;

/// Devices a client may announce.
pub const DEVICES: usize = 256;

/// Longest path on a redirected drive, bytes of UTF-16: 4,096 characters.
pub const DEVICE_PATH_BYTES: usize = 8192;

/// Files that may be open on all redirected devices together.
pub const DEVICE_OPEN_FILES: usize = 4096;

/// Device requests that may wait for their answer.
pub const DEVICE_REQUESTS: usize = 1024;

/// Dynamic channels open at one time. Windows opens about 20.
pub const DYNAMIC_CHANNELS: usize = 1024;

/// Largest message of a dynamic channel whose messages are read, bytes.
pub const DYNAMIC_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Revocations that operators have made by REST or command. Whoever needs more names a claim that all of them share.
pub const REVOCATIONS: usize = 10_000;

/// Longest name of a claim, and longest text of its value, that an operator revokes, bytes.
pub const REVOCATION_BYTES: usize = 1024;

/// Largest answer that a command of an operator reads, bytes: the list of as many sessions as a gateway has.
pub const API_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Largest JSON message of a signaling channel, bytes: an answer with all its candidates and room to spare.
pub const JET_MESSAGE_BYTES: usize = 32 * 1024;

/// Candidates of one association: four transports of four relays, or as many addresses of one host.
pub const JET_CANDIDATES: usize = 16;

/// Default for associations at one time.
pub const JET_ASSOCIATIONS: usize = 10_000;

/// Default for associations that one address (IPv6: one /64) has created without showing who it is.
pub const JET_ASSOCIATIONS_PER_ADDRESS: usize = 128;

/// Associations that one token may create, where it names none itself.
pub const JET_ASSOCIATIONS_PER_TOKEN: usize = 16;

/// Acceptors that wait, or are in a session, by one token: one on each of the usual transports of its associations.
pub const JET_ACCEPTORS_PER_TOKEN: usize = 4 * JET_ASSOCIATIONS_PER_TOKEN;

/// Largest WebSocket message of a JET peer, bytes. Peers send streams, which they may cut as they like.
pub const WEBSOCKET_MESSAGE_BYTES: usize = 1024 * 1024;

/// Longest statement of an agent, bytes: a short header, five short members and a signature.
pub const STATEMENT_BYTES: usize = 2048;

/// Agents that can be enrolled.
pub const AGENTS: usize = 10_000;

/// Enrolments waiting to be used.
pub const ENROLMENTS: usize = 1000;

/// Longest life of an enrolment, seconds: one working day.
pub const ENROLMENT_S: u64 = 24 * 60 * 60;

/// Targets that one agent can be enrolled for.
pub const AGENT_TARGETS: usize = 64;

/// Messages on their way to one agent. One that does not read them is busy.
pub const AGENT_QUEUE: usize = 64;

/// Sessions through one agent at one time.
pub const AGENT_SESSIONS: usize = 256;

/// Of those the ones by one token. It opens one session; those that are not over yet may be a few.
pub const AGENT_SESSIONS_PER_TOKEN: usize = 8;

/// Of those the ones from one address: most users of a branch are in one office, and some place is left for others.
pub const AGENT_SESSIONS_PER_ADDRESS: usize = 192;

/// From an offer until the agent has accepted somewhere.
pub const AGENT_ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// What a peer of a rendezvous may send before it has met anybody, bytes.
pub const RENDEZVOUS_EARLY_BYTES: usize = 64 * 1024;

/// Wrong passwords (`prx_pwd`) after which a token is spent. Who mistypes twice still gets in.
pub const PASSWORD_GUESSES: u32 = 5;

/// How long the answer to a first wrong password is held back; that to each further one twice as long.
pub const PASSWORD_DELAY: Duration = Duration::from_millis(250);

/// Longest delay of an answer to a wrong password: far below [`ESTABLISH_TIMEOUT`], so that it is still given.
pub const PASSWORD_DELAY_MAX: Duration = Duration::from_secs(4);

/// Tokens whose wrong passwords are counted. With more of them a first wrong password spends its token.
pub const GUESSED_TOKENS: usize = 65_536;

/// Clients that a target has sent on and that have not come back yet.
pub const REDIRECTIONS: usize = 4096;

/// Of those the ones from one address.
pub const REDIRECTIONS_PER_ADDRESS: usize = REDIRECTIONS / 4;

/// Default for the silence of a side whose other side has ended, seconds: time to compute an answer to a question that is complete,
/// and far less than a session that nobody ends.
pub const HALF_CLOSE_S: u64 = 600;

/// Longest line of the audit, bytes: what a longer record says at length is left out. Less than what syslog servers take in one message
/// (rsyslog is commonly set to 64 KiB).
pub const AUDIT_LINE_BYTES: usize = 32 * 1024;

/// What the file system of the store must have left, bytes: a transaction that grows the file takes a part of it.
pub const STORE_FREE_BYTES: u64 = 16 * 1024 * 1024;

/// Records of the audit that wait to be written, bytes: minutes of a busy gateway while its disk is full.
pub const AUDIT_QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// What may be spent at once, and what comes back each second. The unit is the caller's: lines or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u64,
    /// In the long run.
    pub per_s: u64,
}

/// Log lines of one kind that one address (IPv6: one /64) may cause that has proved nothing: a room full of users whose tokens have
/// expired, at once; then one each second.
pub const LOG_LINES_OF_ANYBODY: Rate = Rate {
    burst: 100,
    per_s: 1,
};

/// Log lines of one kind that one address may cause with tokens and keys that hold: two for each session of a whole company behind
/// one address in the morning, and 72,000 an hour.
pub const LOG_LINES_OF_PROVEN: Rate = Rate {
    burst: 4096,
    per_s: 20,
};

/// Budgets of log lines, each for one address and one kind of line; beyond it addresses share one for each kind.
pub const LOG_BUDGETS: usize = 8192;

/// Records of one kind that one session may leave in the log, bytes: the names of about 5,000 copied files at once, and 40 each second.
pub const LOG_RECORD_BYTES: Rate = Rate {
    burst: 2 * 1024 * 1024,
    per_s: 16 * 1024,
};

/// How long suppressed log lines are counted before their number is told.
pub const LOG_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Log lines that wait for a reader, bytes: some thousand lines, beside as many that are being written. Beyond it they are lost,
/// and counted.
pub const LOG_QUEUE_BYTES: usize = 1024 * 1024;
