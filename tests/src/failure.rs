//! Requests that got no answer.

use std::io;
use std::time::Duration;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("connection refused")]
    Refused,
    /// The connection was reset, or closed before the answer was complete.
    #[error("the connection was reset")]
    Reset,
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    pub(crate) fn of_io(error: &io::Error, deadline: Duration) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::Reset,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut(deadline),
            _ => Self::Other(error.to_string()),
        }
    }

    pub(crate) fn of_hyper(error: &hyper::Error, deadline: Duration) -> Self {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
        match source {
            Some(source) => Self::of_io(source, deadline),
            None if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => Self::Reset,
            None => Self::Other(error.to_string()),
        }
    }
}
