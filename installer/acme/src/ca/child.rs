//! The network process, seen from the process that starts it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use anyhow::Context as _;

use super::protocol::{Reply, Request};
use super::{Authority, deadline};
use crate::words::{Attempt, cleaned, failure};
use links_base::layout::Layout;
use links_base::privileges;
use links_config::acme::{Failure, FailureKind};

/// The subcommand that the process is started with.
pub const SUBCOMMAND: &str = "network";
/// Its option to become user links-acme.
pub const AS_USER: &str = "--as-user";

/// The maximum length of a reply in bytes: a chain of certificates as JSON.
const LONGEST: u64 = 1 << 20;

/// The running process. It ends with this value.
#[derive(Debug)]
pub struct Network {
    child: Child,
    requests: ChildStdin,
    replies: Receiver<String>,
}

impl Network {
    /// Starts the process. With root's privileges on a host, it runs as user links-acme.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(layout: &Layout) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("Looking for this program's own path")?;
        let mut command = Command::new(own);
        command.arg(SUBCOMMAND);
        if privileges::are_roots(layout) {
            command.arg(AS_USER);
        }
        // Nothing of root's environment concerns it.
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("Starting the network process")?;
        let requests = child.stdin.take().context("the network process has no input")?;
        let output = child.stdout.take().context("the network process has no output")?;
        let (sender, replies) = mpsc::channel();
        std::thread::spawn(move || forward(output, &sender));
        Ok(Self {
            child,
            requests,
            replies,
        })
    }
}

/// Sends the lines of the process on, until it ends or writes one that is too long.
fn forward(output: ChildStdout, lines: &mpsc::Sender<String>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = String::new();
        match output.by_ref().take(LONGEST).read_line(&mut line) {
            Ok(1..) if line.ends_with('\n') => {
                if lines.send(line).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

impl Authority for Network {
    fn ask(&mut self, request: &Request) -> Attempt<Reply> {
        let line = serde_json::to_string(request).map_err(|error| ended(&error.to_string()))?;
        writeln!(self.requests, "{line}").map_err(|error| ended(&error.to_string()))?;
        let deadline = deadline(request);
        let reply = self.replies.recv_timeout(deadline).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => failure(
                FailureKind::Network,
                format!("The authority has not responded within {} s.", deadline.as_secs()),
                "links tries again later.",
            ),
            mpsc::RecvTimeoutError::Disconnected => ended("it has ended early"),
        })?;
        match serde_json::from_str(&reply) {
            Ok(Reply::Failed(failure)) => Err(cleaned(*failure)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(ended(&error.to_string())),
        }
    }
}

fn ended(why: &str) -> Box<Failure> {
    failure(
        FailureKind::Other,
        format!("The process that speaks to the authority has failed: {why}."),
        "Its own message is above this one, or in the journal.",
    )
}

impl Drop for Network {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
