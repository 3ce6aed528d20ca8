//! The kinds of SQL statements, recognized by their first word. Nothing is compiled.

/// Whether a statement starts like a query, so that running it again repeats nothing but reads.
///
/// SQLite's own answer (`sqlite3_stmt_readonly`) is not enough, because it is also true for BEGIN, COMMIT and ATTACH.
pub fn is_query(sql: &str) -> bool {
    starts_with(sql, &["SELECT", "WITH", "VALUES"])
}

/// Whether a statement certainly changes rows and does nothing else. WITH is excluded, because it may also start a query.
pub fn is_change(sql: &str) -> bool {
    starts_with(sql, &["INSERT", "UPDATE", "DELETE", "REPLACE"])
}

/// Whether a statement that is not read-only sets `sqlite3_changes`.
pub fn counts_changes(sql: &str) -> bool {
    is_change(sql) || starts_with(sql, &["WITH"])
}

/// Whether a statement opens a transaction.
pub fn begins_transaction(sql: &str) -> bool {
    starts_with(sql, &["BEGIN", "SAVEPOINT"])
}

/// Whether a statement ends the whole transaction.
pub fn ends_transaction(sql: &str) -> bool {
    starts_with(sql, &["COMMIT", "END"]) || is_rollback(sql)
}

/// Whether a statement rolls back the whole transaction, not just to a savepoint.
pub fn is_rollback(sql: &str) -> bool {
    let to = |word: &str| word.trim_end_matches(';').eq_ignore_ascii_case("TO");
    starts_with(sql, &["ROLLBACK"]) && !sql.split_whitespace().any(to)
}

/// Whether the first word of a statement, after any comments, is one of `words`.
fn starts_with(sql: &str, words: &[&str]) -> bool {
    let mut rest = sql.trim_start();
    loop {
        rest = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n').map_or("", |(_, after)| after).trim_start()
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, after)| after).trim_start()
        } else {
            break;
        }
    }
    let word = rest.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or("");
    words.iter().any(|one| word.eq_ignore_ascii_case(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_recognized_by_their_first_word() {
        for change in [
            "INSERT INTO t VALUES (1)",
            " -- a\n /* b */ update t SET a = 1",
            "DELETE FROM t",
            "REPLACE INTO t VALUES (1)",
        ] {
            assert!(is_change(change) && counts_changes(change), "{change}");
        }
        for other in [
            "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
            "EXPLAIN INSERT INTO t VALUES (1)",
            "BEGIN IMMEDIATE",
            "PRAGMA x",
            "VACUUM",
            "",
        ] {
            assert!(!is_change(other), "{other}");
        }
    }

    #[test]
    fn a_query_may_follow_comments() {
        for query in [
            "select 1",
            "VALUES (1)",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "-- a\n--b\n/* c */SELECT 1",
        ] {
            assert!(is_query(query), "{query}");
        }
        for other in [
            "BEGIN",
            "EXPLAIN SELECT 1",
            "-- SELECT 1",
            "/* SELECT 1",
            "SELECTED",
            "(SELECT 1)",
        ] {
            assert!(!is_query(other), "{other}");
        }
    }

    #[test]
    fn only_a_whole_rollback_ends_a_transaction() {
        for end in ["COMMIT", "end transaction", "ROLLBACK;", "rollback transaction"] {
            assert!(ends_transaction(end), "{end}");
        }
        for other in [
            "ROLLBACK TO x",
            "rollback transaction to savepoint x",
            "RELEASE x",
            "BEGIN",
        ] {
            assert!(!ends_transaction(other), "{other}");
        }
        for begin in ["BEGIN IMMEDIATE", "savepoint x"] {
            assert!(begins_transaction(begin), "{begin}");
        }
    }
}
