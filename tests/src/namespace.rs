//! Sockets in a machine's network.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::stream::{Address, Stream};

/// The network of a running machine. A socket stays in the network that its thread was in when it was made.
#[derive(Clone, Debug)]
pub struct NetNamespace(Arc<File>);

impl NetNamespace {
    /// # Errors
    /// No such process.
    pub(crate) fn of_process(pid: nix::unistd::Pid) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(format!("/proc/{pid}/ns/net"))?)))
    }

    /// Moves the calling thread into it, for good.
    ///
    /// # Errors
    /// Not root.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&*self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// A connection made inside, for use by any thread.
    ///
    /// # Errors
    /// As [`Stream::connect`].
    pub fn connect(&self, address: &Address, deadline: Duration) -> io::Result<Stream> {
        let connect = || {
            self.enter()?;
            Stream::connect(address, deadline)
        };
        thread::scope(|scope| scope.spawn(connect).join())
            .unwrap_or_else(|_| Err(io::Error::other("the connecting thread panicked")))
    }
}
