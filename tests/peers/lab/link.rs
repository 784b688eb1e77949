//! A link that can be cut: moves bytes until somebody pulls the plug, and carries new connections afterwards.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;

#[derive(Debug)]
pub(crate) struct Link {
    address: String,
    /// Both ends of each connection.
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Link {
    /// Listens until the process of the test ends; every connection goes to `to`.
    pub(crate) fn start(to: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let ends: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (to, kept) = (to.to_owned(), Arc::clone(&ends));
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // Who is cut off here is seen at both ends.
                let _gone = carry(near, &to, &kept);
            }
        });
        Ok(Self { address, ends })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Breaks every connection there is.
    pub(crate) fn cut(&self) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for end in ends.drain(..) {
            // It may have ended by itself.
            let _gone = end.shutdown(Shutdown::Both);
        }
    }
}

fn carry(near: TcpStream, to: &str, kept: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    let far = TcpStream::connect(to)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ends = [near.try_clone()?, far.try_clone()?];
    kept.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(ends);
    for (from, into) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        thread::spawn(move || one_way(from, into));
    }
    Ok(())
}

fn one_way(mut from: TcpStream, mut into: TcpStream) -> io::Result<u64> {
    let moved = io::copy(&mut from, &mut into);
    let _gone = into.shutdown(Shutdown::Both);
    moved
}
