//! A server as a systemd unit.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::http::Client;
use crate::machine::Machine;
use crate::process::eventually;

/// How long a server may take until it listens.
pub(super) const START: Duration = Duration::from_secs(30);

/// A server in a machine, identified by its unit. It ends with the machine.
#[derive(Debug)]
pub struct Server<'a> {
    machine: &'a Machine,
    unit: &'static str,
    port: u16,
}

impl<'a> Server<'a> {
    /// Runs `program` as a unit, with `environment` in a file that only root can read.
    pub(super) fn run(
        machine: &'a Machine,
        unit: &'static str,
        port: u16,
        program: &str,
        environment: &str,
        more: &str,
    ) -> Result<Self> {
        machine.write_secret(&format!("/etc/{unit}.env"), environment)?;
        let text = format!(
            "[Service]\nExecStart={program}\nEnvironmentFile=/etc/{unit}.env\nStateDirectory={unit}\nUMask=0077\n{more}"
        );
        machine.write(&format!("/etc/systemd/system/{unit}.service"), text)?;
        machine.ok(["systemctl", "daemon-reload"])?;
        let server = Self { machine, unit, port };
        server.start()?;
        Ok(server)
    }

    /// A unit that exists already, such as one of a Debian package.
    pub(super) fn of(machine: &'a Machine, unit: &'static str, port: u16) -> Self {
        Self { machine, unit, port }
    }

    /// Stops the unit. Connections are then refused, as by a machine without the server.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn stop(&self) -> Result<()> {
        self.machine.ok(["systemctl", "stop", self.unit]).map(drop)
    }

    /// Starts the unit and waits until it listens.
    ///
    /// # Errors
    /// Fails if the server does not listen within 30 s.
    pub fn start(&self) -> Result<()> {
        self.machine.ok(["systemctl", "start", self.unit])?;
        eventually(&format!("{} listens", self.unit), START, || {
            Ok(self.client().connect().ok().map(drop))
        })
        .with_context(|| self.machine.journal(self.unit).unwrap_or_default())
    }

    /// Pauses the processes of the unit. Connections are then accepted but never answered, as by a machine that hangs.
    ///
    /// # Errors
    /// Fails if the unit does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal("SIGSTOP")
    }

    /// Lets a paused unit continue.
    ///
    /// # Errors
    /// Fails if the unit does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal("SIGCONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let signal = format!("--signal={signal}");
        self.machine.ok(["systemctl", "kill", &signal, self.unit]).map(drop)
    }

    pub fn client(&self) -> Client {
        self.machine.http_at(self.port)
    }
}
