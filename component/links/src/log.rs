//! Lines for the operator, on stderr.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes one line. Not `eprintln!`, which panics where stderr is closed; and there is nowhere else to complain.
pub fn line(what: &str, why: impl Display) {
    let why = why.to_string().replace(char::is_control, " ");
    let _ = writeln!(io::stderr(), "links: {what}: {why}");
}
