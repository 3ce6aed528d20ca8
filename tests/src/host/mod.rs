//! The host that a test runs on: a booted Debian, with links or without.
//!
//! A [`Host`] is made by its builder, which says what the host is. All else is in files by topic: the package, the service,
//! the instances, nginx, the database, and the clients. What has nothing to do with links (commands, files, units, boots) is
//! in [`Machine`], to which a host dereferences.

pub(crate) mod builder;
pub(crate) mod database;
mod edge;
mod instances;
mod links;
pub(crate) mod packages;
pub(crate) mod service;

use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use crate::machine::Machine;
use crate::releases::Releases;
use crate::suite::Suite;

/// A booted host. Nothing of it is left when it is dropped, not even when the test process is killed.
#[derive(Debug)]
pub struct Host {
    suite: Suite,
    machine: Machine,
    /// Made when a test asks for a release for the first time.
    releases: OnceLock<Releases>,
}

impl Host {
    /// The release of Debian that it was booted with.
    pub fn suite(&self) -> Suite {
        self.suite
    }
}

impl Deref for Host {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }
}
