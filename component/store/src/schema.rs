//! The migration scripts, and the columns of a link that they create.

use std::iter;

/// The scripts that lead from each version of the tables to the next: `sql/0001_*.sql` and so on. Version 0 has no tables.
pub const SCHEMA: &[&str] = &include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// The columns of the table of links, in the order in which the scripts create them. `id` is not among them, because it belongs
/// to one database.
pub const LINK_COLUMNS: &[&str] = &include!(concat!(env!("OUT_DIR"), "/link_columns.rs"));

/// The statements of a script. A statement ends at a `;` followed by an empty line or the end of the script. The body of a
/// trigger has no empty line, so it stays in one piece.
pub fn statements(script: &str) -> impl Iterator<Item = &str> {
    let mut rest = script;
    // Searching by `str::split` would bring 8 KB of code into the components.
    iter::from_fn(move || {
        let end = rest.as_bytes().windows(3).position(|end| end == b";\n\n");
        let (statement, others) = rest.split_at_checked(end.unwrap_or(rest.len()))?;
        rest = others.trim_start_matches([';', '\n']);
        (!statement.is_empty()).then_some(statement)
    })
    .map(|statement| statement.trim().trim_end_matches(';'))
    .filter(|statement| !statement.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_split_into_its_statements() {
        let script = "-- About; it\nCREATE TABLE a (b);\n\nCREATE TRIGGER t AFTER INSERT ON a BEGIN\n  SELECT 1;\n  SELECT 2;\nEND;\n";
        assert_eq!(
            statements(script).collect::<Vec<_>>(),
            [
                "-- About; it\nCREATE TABLE a (b)",
                "CREATE TRIGGER t AFTER INSERT ON a BEGIN\n  SELECT 1;\n  SELECT 2;\nEND"
            ]
        );
        assert_eq!(statements("\n").count(), 0);
    }
}
