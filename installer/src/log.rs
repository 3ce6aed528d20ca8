//! Lines for the journal. systemd reads the priority from `<N>` at the start of a line (sd-daemon(3)); where standard
//! error is no journal stream, the line goes out without it.

use std::io::Write as _;
use std::sync::LazyLock;

static TO_JOURNAL: LazyLock<bool> = LazyLock::new(|| std::env::var_os("JOURNAL_STREAM").is_some());

/// Writes one line; each further line of `text` gets the same priority.
///
/// Nobody may read any more (a closed terminal, a pipe whose reader left). That is no reason to stop serving, which
/// `eprintln!`'s panic would do.
pub fn write(priority: u8, text: &str) {
    let mut stream = std::io::stderr().lock();
    for line in text.lines() {
        // In one piece: others write to the same stream.
        let line = if *TO_JOURNAL {
            format!("<{priority}>{line}\n")
        } else {
            format!("{line}\n")
        };
        let _ = stream.write_all(line.as_bytes());
    }
}

macro_rules! error {
    ($($part:tt)*) => { $crate::log::write(3, &format!($($part)*)) };
}
macro_rules! notice {
    ($($part:tt)*) => { $crate::log::write(5, &format!($($part)*)) };
}
pub(crate) use {error, notice};
