//! A machine of its own: network, `/etc`, `/var/lib`, `/usr/local` and `/run` are not this one's, and go with it. So commands can be
//! run as they are printed, with the ports and paths that are printed.
//!
//! Needs root.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use jetway_lab::wait::{PATIENCE, until};
use nix::sched::{CloneFlags, setns};

use super::process::Process;
use super::workspace::Workspace;

#[derive(Debug)]
pub(crate) struct Machine {
    keeper: Process,
    etc: PathBuf,
}

impl Machine {
    /// A machine that knows these hosts, each an address and a name. All addresses of loopback are its own.
    pub(crate) fn start(workspace: &Workspace, hosts: &[(&str, &str)]) -> Result<Self> {
        let home = workspace.folder("machine")?;
        let script = workspace.write("machine.sh", BOOT)?;
        let mut keeper = Process::start(
            workspace,
            "machine",
            Command::new("unshare")
                .args(["--net", "--mount", "--propagation", "private", "bash"])
                .args([&script, &home]),
        )?;
        until("the machine is there", PATIENCE, || {
            keeper.expect_alive()?;
            Ok(home.join("ready").exists().then_some(()))
        })?;
        let machine = Self {
            keeper,
            etc: home.join("etc"),
        };
        let hosts: String = [("127.0.0.1", "localhost")]
            .iter()
            .chain(hosts)
            .map(|(address, name)| format!("{address} {name}\n"))
            .collect();
        fs::write(machine.etc("hosts"), hosts)?;
        Ok(machine)
    }

    /// A file of its `/etc`.
    pub(crate) fn etc(&self, name: &str) -> PathBuf {
        self.etc.join(name)
    }

    /// A command that runs on it, in `folder`. What starts is the command itself: its process is that of the command.
    pub(crate) fn command(&self, folder: &Path, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--net", "--mount", "--target"])
            .arg(self.keeper.pid().to_string())
            .args(["--", "env", "--chdir"])
            .arg(folder)
            .arg(program)
            .env("PATH", PATH);
        command
    }

    /// Listens on one of its ports.
    pub(crate) fn listen(&self, address: &str) -> Result<TcpListener> {
        let address = address.to_owned();
        self.within(move || Ok(TcpListener::bind(address)?))
    }

    /// Connects from it.
    pub(crate) fn connect(&self, address: &str) -> Result<TcpStream> {
        let address = address.to_owned();
        self.within(move || {
            let stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    /// Sockets belong to the network of the thread that makes them.
    fn within<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.keeper.pid()))?;
        let made = thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).context("enter the machine's network")?;
            make()
        });
        made.join()
            .map_err(|_| anyhow!("the thread in the machine's network panicked"))?
    }
}

const PATH: &str = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin";

/// Makes the machine, in namespaces that are new, and stays.
const BOOT: &str = r#"set -eu
home=$1
ip link set lo up
mkdir "$home/etc" "$home/lib"
cp --archive /etc/. "$home/etc"
mount --bind "$home/etc" /etc
mount --bind "$home/lib" /var/lib
mount -t tmpfs -o mode=755 machine /usr/local
mkdir /usr/local/bin
mount -t tmpfs -o mode=755 machine /run
touch "$home/ready"
exec sleep infinity
"#;
