//! What the statements of a component may do, and which of them spoil their connection for other handles. SQLite's authorizer
//! reports each action of a statement while it is compiled (<https://sqlite.org/c3ref/set_authorizer.html>).

use rusqlite::ffi;
use rusqlite::hooks::{AuthAction, Authorization};

/// What follows from an action.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ruling {
    pub authorization: Authorization,
    /// Whether the action changes the connection itself. No other handle may use it afterwards.
    pub taints: bool,
    /// The busy timeout that the action sets, in milliseconds.
    pub busy_timeout: Option<u64>,
}

/// A harmless action.
const ALLOWED: Ruling = Ruling {
    authorization: Authorization::Allow,
    taints: false,
    busy_timeout: None,
};

/// Pragmas that change or query the file, and not the connection.
const ABOUT_THE_FILE: [&str; 15] = [
    "application_id",
    "foreign_key_check",
    "foreign_key_list",
    "incremental_vacuum",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "optimize",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
    "wal_checkpoint",
];

/// Decides on an action of a statement.
pub fn rule(action: &AuthAction<'_>, allow_attach_file: bool) -> Ruling {
    match action {
        AuthAction::Attach { filename } => attach(Some(filename), allow_attach_file),
        // SQLite does not report the file name of an ATTACH unless it is a string literal.
        AuthAction::Unknown { code, .. } if *code == ffi::SQLITE_ATTACH => attach(None, allow_attach_file),
        AuthAction::Pragma {
            pragma_name,
            pragma_value: Some(value),
        } => Ruling {
            taints: changes_connection(pragma_name, value),
            busy_timeout: pragma_name
                .eq_ignore_ascii_case("busy_timeout")
                .then(|| value.parse().unwrap_or(0)),
            ..ALLOWED
        },
        AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. } => Ruling {
            taints: true,
            ..ALLOWED
        },
        _ => ALLOWED,
    }
}

/// Decides on an ATTACH. The file name is `None` if it is not a string literal.
fn attach(filename: Option<&str>, allow_attach_file: bool) -> Ruling {
    // As in Spin, only temporary and in-memory databases may be attached. VACUUM INTO attaches the file that it writes.
    let is_file = !matches!(filename, Some("" | ":memory:"));
    Ruling {
        authorization: if is_file && !allow_attach_file {
            Authorization::Deny
        } else {
            Authorization::Allow
        },
        // VACUUM attaches a temporary database without a name and detaches it at the end.
        taints: filename != Some(""),
        busy_timeout: None,
    }
}

/// Whether a pragma with a value changes the connection, unlike pragmas that change the file or only query it.
fn changes_connection(name: &str, value: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // WAL mode is a property of the file; the other journal modes are not.
    !(ABOUT_THE_FILE.contains(&name.as_str()) || name == "journal_mode" && value.eq_ignore_ascii_case("wal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pragma(name: &'static str, value: Option<&'static str>) -> Ruling {
        let action = AuthAction::Pragma {
            pragma_name: name,
            pragma_value: value,
        };
        rule(&action, false)
    }

    #[test]
    fn files_are_attached_only_if_allowed() {
        let unnamed = AuthAction::Unknown {
            code: ffi::SQLITE_ATTACH,
            arg1: None,
            arg2: None,
        };
        for file in [AuthAction::Attach { filename: "/other.db" }, unnamed] {
            let refused = rule(&file, false);
            assert_eq!((refused.authorization, refused.taints), (Authorization::Deny, true));
            let allowed = rule(&file, true);
            assert_eq!((allowed.authorization, allowed.taints), (Authorization::Allow, true));
        }
        for (filename, taints) in [("", false), (":memory:", true)] {
            let ruling = rule(&AuthAction::Attach { filename }, false);
            assert_eq!((ruling.authorization, ruling.taints), (Authorization::Allow, taints));
        }
    }

    #[test]
    fn a_pragma_taints_if_it_changes_the_connection() {
        for (name, value) in [
            ("foreign_keys", "ON"),
            ("journal_mode", "memory"),
            ("Synchronous", "off"),
        ] {
            assert!(pragma(name, Some(value)).taints, "{name}");
        }
        for (name, value) in [
            ("journal_mode", "WAL"),
            ("User_Version", "3"),
            ("wal_checkpoint", "FULL"),
        ] {
            assert_eq!(pragma(name, Some(value)), ALLOWED, "{name}");
        }
        assert_eq!(pragma("foreign_keys", None), ALLOWED);
    }

    #[test]
    fn a_busy_timeout_is_noticed() {
        assert_eq!(pragma("BUSY_TIMEOUT", Some("30")).busy_timeout, Some(30));
        // SQLite takes a negative timeout, or one that is not a number, for 0.
        assert_eq!(pragma("busy_timeout", Some("-1")).busy_timeout, Some(0));
        assert_eq!(pragma("busy_timeout", None).busy_timeout, None);
    }
}
