//! The network namespace of a machine, and connections made in it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::stream::{Address, Stream};

/// The network namespace of a running machine. A socket stays in the namespace of the thread that created it.
#[derive(Clone, Debug)]
pub struct NetNamespace(Arc<File>);

impl NetNamespace {
    /// Opens the network namespace of a process.
    ///
    /// # Errors
    /// Fails if there is no such process.
    pub(crate) fn of_process(pid: nix::unistd::Pid) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(format!("/proc/{pid}/ns/net"))?)))
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// Fails if the caller is not root.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&*self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// Connects from inside the namespace. Any thread may use the connection.
    ///
    /// # Errors
    /// Fails as [`Stream::connect`] does.
    pub fn connect(&self, address: &Address, deadline: Duration) -> io::Result<Stream> {
        let connect = || {
            self.enter()?;
            Stream::connect(address, deadline)
        };
        thread::scope(|scope| scope.spawn(connect).join())
            .unwrap_or_else(|_| Err(io::Error::other("the connecting thread panicked")))
    }
}
