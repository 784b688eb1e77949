//! The connections of a session that is over are closed in order.
//!
//! Each side gets what is on its way to it and the end, and what it still says is taken: a socket that is closed while its peer speaks
//! makes systems throw away what they had not delivered yet. A target has [`LINGER_TIMEOUT`] for it, and then its connection breaks, so
//! that whoever carries it (an agent) does not keep the other end of it. A client on a slow line may take far longer to read its last
//! picture and the reason of the end; the session has been accounted for by then, and keeps nothing but its connection.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, sink};
use tokio::time::timeout;

use jetway_io::over_tcp::OverTcp;

/// How long a side whose session is over may take to close, before the session is accounted for.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client may take to read what is on its way to it: 4 MiB, the largest send buffer that Linux gives a socket by itself, at
/// 70 KB/s.
const LAST_WORDS_TO_CLIENT: Duration = Duration::from_secs(60);

/// Clients that may take that long at one time; further ones have [`LINGER_TIMEOUT`]. They are no sessions any more, and no limit of
/// those counts them.
const LINGERING_CLIENTS: usize = 1024;

static LINGERING: AtomicUsize = AtomicUsize::new(0);

/// What is left to be done for the connections of a session that is over. Dropped, they close at once.
#[must_use]
pub struct Parting<'a> {
    closing: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl std::fmt::Debug for Parting<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parting").finish_non_exhaustive()
    }
}

impl<'a> Parting<'a> {
    /// Nobody is left to part from.
    pub fn done() -> Self {
        Self::new(async {})
    }

    /// `closing` is not bounded in time for a client, and is for a target.
    pub(super) fn new(closing: impl Future<Output = ()> + Send + 'a) -> Self {
        // In a box, so that a live session does not hold the room for its end.
        Self {
            closing: Box::pin(closing),
        }
    }

    /// Closes for as long as the session may wait for it: whether all is closed.
    pub async fn begin(&mut self) -> bool {
        timeout(LINGER_TIMEOUT, &mut self.closing).await.is_ok()
    }

    /// Gives the client the rest of its time.
    pub async fn finish(self) {
        if let Some(_place) = Place::take() {
            // It had its time.
            let _ = timeout(LAST_WORDS_TO_CLIENT, self.closing).await;
        }
    }
}

/// One of the [`LINGERING_CLIENTS`].
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken = LINGERING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |clients| {
            (clients < LINGERING_CLIENTS).then_some(clients.saturating_add(1))
        });
        taken.is_ok().then_some(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        LINGERING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes a target's connection by `closing`, for as long as a target has. Where it takes longer, or is dropped, the connection breaks.
pub(super) async fn part_from_target<S: OverTcp>(mut stream: S, closing: impl AsyncFnOnce(&mut S)) {
    // What it has not got is for nobody, however orderly the rest is.
    let breaks = stream.breaks_on_drop();
    stream.break_on_drop();
    let closed = timeout(LINGER_TIMEOUT, closing(&mut stream)).await.is_ok();
    if closed && !breaks {
        stream.close_on_drop();
    }
}

/// Ends a connection in order: says that nothing more comes, and takes what was still on its way from the peer, until its end.
pub(super) async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    // It has been as polite as it can be.
    let _ = async {
        stream.shutdown().await?;
        drain(stream).await
    }
    .await;
}

/// Reads until the end, and throws it away.
pub(super) async fn drain(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    tokio::io::copy(stream, &mut sink()).await.map(drop)
}
