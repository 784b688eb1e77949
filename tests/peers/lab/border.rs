//! A border proxy: brings the token for clients that have no option for it, and moves bytes.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use anyhow::Result;
use jetway::rdp::preconnection;

#[derive(Debug)]
pub(crate) struct Border {
    address: String,
}

impl Border {
    /// Listens until the process of the test ends; every connection goes to `gateway` behind a preconnection PDU with
    /// `token`.
    pub(crate) fn start(gateway: &str, token: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let gateway = gateway.to_owned();
        let greeting = preconnection::encode_v2(0, token)?.to_vec();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (gateway, greeting) = (gateway.clone(), greeting.clone());
                // Who is cut off here is seen at both ends.
                thread::spawn(move || bridge(client, &gateway, &greeting));
            }
        });
        Ok(Self { address })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

fn bridge(client: TcpStream, gateway: &str, greeting: &[u8]) -> io::Result<()> {
    let mut target = TcpStream::connect(gateway)?;
    client.set_nodelay(true)?;
    target.set_nodelay(true)?;
    io::Write::write_all(&mut target, greeting)?;
    let (from, to) = (client.try_clone()?, target.try_clone()?);
    let up = thread::spawn(move || one_way(from, to));
    let down = one_way(target, client);
    up.join().unwrap_or(Ok(())).and(down)
}

fn one_way(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    // A client that is ended with something unread resets its connection: the gateway hears of that, too.
    to.shutdown(Shutdown::Write)?;
    copied.map(|_| ())
}
