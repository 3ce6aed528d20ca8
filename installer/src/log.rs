//! Lines for the journal. systemd reads the priority from `<N>` at the start of a line (sd-daemon(3)); where standard
//! error is no journal stream, the line goes out without it.

use std::io::Write as _;
use std::sync::LazyLock;

static TO_JOURNAL: LazyLock<bool> = LazyLock::new(|| std::env::var_os("JOURNAL_STREAM").is_some());

/// Writes one line; each further line of `text` gets the same priority.
pub fn write(priority: u8, text: &str) {
    let mut stderr = std::io::stderr().lock();
    for line in text.lines() {
        // A terminal that was closed is no reason to leave anything half done.
        let _ = match *TO_JOURNAL {
            true => writeln!(stderr, "<{priority}>{line}"),
            false => writeln!(stderr, "{line}"),
        };
    }
}

macro_rules! error {
    ($($part:tt)*) => { $crate::log::write(3, &format!($($part)*)) };
}
macro_rules! notice {
    ($($part:tt)*) => { $crate::log::write(5, &format!($($part)*)) };
}
pub(crate) use {error, notice};
