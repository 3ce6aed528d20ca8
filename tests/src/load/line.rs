//! A client and the connection that it keeps.

use anyhow::{Context as _, Result};

use super::ask::Ask;
use super::{Connections, Method};
use crate::http::{Client, Failure};
use crate::wire::{Broken, Reply, Wire};

/// A client in a thread of the machine's network, with the connection that it keeps.
pub(super) struct Line {
    client: Client,
    connections: Connections,
    header_lines: String,
    open: Option<Wire>,
    pub closes: u64,
    pub retries: u64,
}

impl Line {
    pub fn open(client: Client, connections: Connections) -> Result<Self> {
        client.network().enter().context("Entering the machine's network")?;
        Ok(Self {
            header_lines: client.header_lines(),
            client,
            connections,
            open: None,
            closes: 0,
            retries: 0,
        })
    }

    /// One request, with the second try that HTTP allows: see the module's text. The error tells on what connection it
    /// came about.
    pub fn send(&mut self, ask: &Ask) -> Result<Reply, (Failure, &'static str)> {
        let request = ask.bytes(&self.header_lines, self.connections);
        let to_head = ask.method() == Method::Head;
        if let Some(mut kept) = self.open.take() {
            if kept.is_closed() {
                self.closes += 1;
            } else {
                match kept.exchange(&request, to_head) {
                    Ok(reply) => return Ok(self.keep(kept, reply)),
                    Err(Broken {
                        failure: Failure::Reset,
                        received: 0,
                    }) if ask.method() != Method::Post => self.retries += 1,
                    Err(Broken { failure, .. }) => return Err((failure, "on a kept connection")),
                }
            }
        }
        let mut fresh = self.client.wire().map_err(|failure| (failure, "connecting"))?;
        let reply = fresh
            .exchange(&request, to_head)
            .map_err(|Broken { failure, .. }| (failure, "on a fresh connection"))?;
        Ok(self.keep(fresh, reply))
    }

    fn keep(&mut self, wire: Wire, reply: Reply) -> Reply {
        if reply.keeps && self.connections != Connections::Fresh {
            self.open = Some(wire);
        }
        reply
    }
}
