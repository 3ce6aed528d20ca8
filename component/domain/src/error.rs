//! The reasons why a request cannot be served, independent of any protocol.

use std::borrow::Cow;
use std::fmt;

/// A client's value that is not accepted. The reason says what the client has to change, and contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(Cow<'static, str>);

impl Refused {
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Refused {
        Refused(reason.into())
    }

    pub fn reason(&self) -> &str {
        &self.0
    }

    pub fn into_reason(self) -> Cow<'static, str> {
        self.0
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The database did not answer. The reason is in the log; the client only learns that the fault is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;
