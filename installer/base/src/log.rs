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
    for line in text.lines() {
        // In one write, because other processes write to the same stream.
        let line = if *TO_JOURNAL {
            format!("<{priority}>{line}\n")
        } else {
            format!("{line}\n")
        };
        let _ = stream.write_all(line.as_bytes());
    }
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
