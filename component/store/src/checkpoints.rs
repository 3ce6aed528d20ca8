//! Which versions of SQLite may checkpoint a database while other processes use it.

use serde::{Deserialize, Serialize};

/// The value of the variable `checkpoints` that makes linksctl's agent checkpoint the database wherever the runtime's SQLite
/// cannot do so safely.
pub const BY_AGENT: &str = "agent";

/// The answer to `GET /internal/sqlite`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// The version of the runtime's SQLite.
    pub version: String,
    /// Whether a commit by the runtime may start a checkpoint.
    pub checkpoints: bool,
}

impl Engine {
    /// Whether this runtime may lose commits, because it checkpoints with a SQLite that has the WAL-reset bug.
    pub fn is_unsafe(&self) -> bool {
        self.checkpoints && !checkpoints_safely(&self.version)
    }
}

/// Whether this version of SQLite can checkpoint safely while other connections are open. In versions 3.7.0 to 3.51.2 a
/// checkpoint that starts while another connection resets the write-ahead log can mark frames as copied that were not. Those
/// frames are lost ("The WAL Reset Bug", <https://sqlite.org/wal.html#walresetbug>). The fix is in the checkpoint itself, so a
/// connection that never checkpoints does no harm in any version. Releases 3.44.6 and 3.50.7 have the fix too.
pub fn checkpoints_safely(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) = (numbers.next(), numbers.next(), numbers.next()) else {
        return false;
    };
    match (major, minor) {
        (3, 44) => patch >= 6,
        (3, 50) => patch >= 7,
        _ => (major, minor, patch) >= (3, 51, 3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_without_the_fix_are_known() {
        for (version, safe) in [
            ("3.40.1", false),
            ("3.44.5", false),
            ("3.44.6", true),
            ("3.45.0", false),
            ("3.49.1", false),
            ("3.50.6", false),
            ("3.50.7", true),
            ("3.51.2", false),
            ("3.51.3", true),
            ("3.53.0", true),
            ("3.54.1", true),
            ("4.0.0", true),
            ("3.54", false),
            ("", false),
        ] {
            assert_eq!(checkpoints_safely(version), safe, "{version}");
        }
    }

    #[test]
    fn an_old_version_is_safe_while_it_does_not_checkpoint() {
        let engine = |version: &str, checkpoints| Engine {
            version: version.into(),
            checkpoints,
        };
        assert!(engine("3.49.1", true).is_unsafe());
        assert!(!engine("3.49.1", false).is_unsafe());
        assert!(!engine("3.54.1", true).is_unsafe());
    }
}
