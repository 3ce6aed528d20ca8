//! A client and the connection that it keeps open.

use anyhow::{Context as _, Result};

use super::mix::Connections;
use super::report::Method;
use super::request::Request;
use crate::failure::Failure;
use crate::http::Client;
use crate::wire::{ExchangeError, Reply, Wire};

/// A client whose thread has entered the machine's network, and the connection that it keeps open.
pub(super) struct Session {
    client: Client,
    connections: Connections,
    header_lines: String,
    open: Option<Wire>,
    pub closes: u64,
    pub retries: u64,
}

impl Session {
    pub fn open(client: Client, connections: Connections) -> Result<Self> {
        client.enter_network().context("Entering the machine's network")?;
        Ok(Self {
            header_lines: client.header_lines(),
            client,
            connections,
            open: None,
            closes: 0,
            retries: 0,
        })
    }

    /// Sends one request, with the second try that HTTP allows (see the text of the module `load`). An error comes with the
    /// kind of connection on which it happened.
    pub fn send(&mut self, request: &Request) -> Result<Reply, (Failure, &'static str)> {
        let bytes = request.bytes(&self.header_lines, self.connections);
        let is_head = request.method() == Method::Head;
        if let Some(mut kept) = self.open.take() {
            if kept.is_closed() {
                self.closes += 1;
            } else {
                match kept.exchange(&bytes, is_head) {
                    Ok(reply) => return Ok(self.keep(kept, reply)),
                    Err(ExchangeError {
                        failure: Failure::Reset,
                        received: 0,
                    }) if request.method() != Method::Post => self.retries += 1,
                    Err(ExchangeError { failure, .. }) => return Err((failure, "on a kept connection")),
                }
            }
        }
        let mut fresh = self.client.wire().map_err(|failure| (failure, "connecting"))?;
        let reply = fresh
            .exchange(&bytes, is_head)
            .map_err(|ExchangeError { failure, .. }| (failure, "on a fresh connection"))?;
        Ok(self.keep(fresh, reply))
    }

    fn keep(&mut self, wire: Wire, reply: Reply) -> Reply {
        if reply.keep_alive && self.connections != Connections::Fresh {
            self.open = Some(wire);
        }
        reply
    }
}
