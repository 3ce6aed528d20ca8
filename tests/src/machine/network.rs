//! The network of a machine, which is its loopback interface.

use std::net::Ipv4Addr;

use super::Machine;
use crate::http::Client;
use crate::namespace::NetNamespace;
use crate::stream::Address;

impl Machine {
    /// A client for port 80.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    pub fn http(&self) -> Client {
        self.http_at(80)
    }

    /// A client for a port of the loopback interface.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    pub fn http_at(&self, port: u16) -> Client {
        self.http_through(Address::Tcp((Ipv4Addr::LOCALHOST, port).into()))
    }

    /// A client for another address inside.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    pub fn http_through(&self, address: Address) -> Client {
        Client::inside(self.network(), address)
    }

    /// The network namespace of the machine, until its next boot.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    #[allow(
        clippy::expect_used,
        reason = "talking to a machine after its shutdown is a bug of the test"
    )]
    pub fn network(&self) -> NetNamespace {
        self.running().expect("the machine is running").network.clone()
    }
}
