//! Child processes that end with the value that holds them.

use std::ops::{Deref, DerefMut};
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::soon;

/// A child process that is killed when it goes out of scope.
#[derive(Debug)]
pub struct KillOnDrop(pub Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Deref for KillOnDrop {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for KillOnDrop {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// A child process that is asked to end when it goes out of scope, and killed if it does not: some leave a mess when they are killed
/// at once (xfreerdp3 a dead FUSE mount).
#[derive(Debug)]
pub struct TerminateOnDrop(pub Child);

impl TerminateOnDrop {
    /// Ends the process and waits until it has ended.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        if !soon(GRACE, || self.has_ended()) {
            self.kill();
        }
    }

    /// Kills the process and waits until it has ended.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        soon(GRACE, || self.has_ended());
    }

    fn signal(&mut self, signal: Signal) {
        // Until it is waited for, the pid cannot have passed to another process.
        if !self.has_ended() {
            signal_pid(self.0.id(), signal);
        }
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for TerminateOnDrop {
    fn drop(&mut self) {
        self.terminate();
    }
}

impl Deref for TerminateOnDrop {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for TerminateOnDrop {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// Sends `signal` to a process, which may have ended.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _may_have_ended = kill_process(pid, signal);
    }
}

/// How long a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(5);
