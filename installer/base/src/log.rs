//! Log lines on standard error. systemd reads the priority from `<N>` at the start of a line (sd-daemon(3)); the prefix is
//! left out if standard error does not go to the journal.

use std::io::Write as _;
use std::sync::LazyLock;

static TO_JOURNAL: LazyLock<bool> = LazyLock::new(|| std::env::var_os("JOURNAL_STREAM").is_some());

/// Writes the lines of `text` with one priority.
///
/// Errors are ignored: a closed terminal or pipe is no reason to stop serving. `eprintln!` would panic.
pub fn write(priority: u8, text: &str) {
    let mut stream = std::io::stderr().lock();
    for line in printable(text).lines() {
        // In one write, because other processes write to the same stream.
        let line = if *TO_JOURNAL {
            format!("<{priority}>{line}\n")
        } else {
            format!("{line}\n")
        };
        let _ = stream.write_all(line.as_bytes());
    }
}

/// A text with its control characters escaped, except for line breaks and tabs. On a terminal, those in a name that somebody made
/// up could do anything.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && !matches!(c, '\n' | '\t') {
            true => printable.extend(c.escape_default()),
            false => printable.push(c),
        }
    }
    printable
}

#[doc(hidden)]
#[macro_export]
macro_rules! log_error {
    ($($part:tt)*) => { $crate::log::write(3, &format!($($part)*)) };
}
#[doc(hidden)]
#[macro_export]
macro_rules! log_notice {
    ($($part:tt)*) => { $crate::log::write(5, &format!($($part)*)) };
}
/// Logs an error, with the arguments of `format!`.
pub use log_error as error;
/// Logs a notice, with the arguments of `format!`.
pub use log_notice as notice;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}\rb\n\tc ü"), "a\\u{1b}[2J\\u{9b}\\rb\n\tc ü");
    }
}
