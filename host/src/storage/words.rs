//! The first word of a SQL statement.

/// Whether the first word of a statement, after any comments, is one of `words`.
pub fn starts_with(sql: &str, words: &[&str]) -> bool {
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
