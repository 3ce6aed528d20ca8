//! Log lines, on stderr.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes one line with a single call, because the other instances of the process write to the same stderr. `eprintln!` would
/// panic if stderr is closed. A failure is ignored, because there is nowhere to report it.
pub fn line(what: impl Display, why: impl Display) {
    write_line(&what, &why);
}

/// Compiled once for all types.
fn write_line(what: &dyn Display, why: &dyn Display) {
    let why = why.to_string().replace(char::is_control, " ");
    let line = format!("links: {what}: {why}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}
