//! Where the database is.

use links_domain::variable::Invalid;

/// Whether the variable `database_place` says that the database is on another machine.
///
/// # Errors
/// Fails if the value is neither "local" nor "remote".
pub fn is_remote(database_place: &str) -> Result<bool, Invalid> {
    match database_place.trim() {
        "" | "local" => Ok(false),
        "remote" => Ok(true),
        _ => Err(Invalid {
            variable: "database_place",
            wanted: "\"local\" or \"remote\"",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_is_local_unless_it_is_remote() {
        assert_eq!(is_remote(""), Ok(false));
        assert_eq!(is_remote("local"), Ok(false));
        assert_eq!(is_remote("remote\n"), Ok(true));
        assert!(is_remote("libsql").is_err_and(|invalid| invalid.variable == "database_place"));
    }
}
