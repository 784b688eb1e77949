//! A target that only notices whether anyone came.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;

#[derive(Debug)]
pub(crate) struct Tripwire {
    address: String,
    visitors: Arc<AtomicUsize>,
}

impl Tripwire {
    /// Listens until the process of the test ends.
    pub(crate) fn set() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let visitors = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&visitors);
        thread::spawn(move || {
            for _visitor in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { address, visitors })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn visitors(&self) -> usize {
        self.visitors.load(Ordering::SeqCst)
    }
}
