//! Changes the number of instances in links.toml and leaves everything else as it was written.

use anyhow::Context as _;
use toml_edit::{DocumentMut, Formatted, Item, Value};

const KEY: &str = "instances";
/// The start of the line that shows the default in the shipped file.
const COMMENTED: &str = "#instances = ";

/// The text of links.toml with `count` instances.
///
/// # Errors
/// `text` is not valid TOML.
pub fn with_instances(text: &str, count: u16) -> anyhow::Result<String> {
    let mut document: DocumentMut = text.parse().context("Reading links.toml")?;
    if let Some(Item::Value(value)) = document.get_mut(KEY) {
        let decor = value.decor().clone();
        *value = Value::Integer(Formatted::new(i64::from(count)));
        *value.decor_mut() = decor;
        return Ok(document.to_string());
    }
    let line = format!("{KEY} = {count}");
    // The line goes to its explanation if that is still there, and above the first table in any case.
    let tables = document
        .iter()
        .any(|(_, item)| item.is_table() || item.is_array_of_tables());
    let mut lines: Vec<_> = text.lines().collect();
    let first_table = match tables {
        true => lines.iter().position(|line| line.trim_start().starts_with('[')),
        false => None,
    };
    let commented = lines.iter().position(|line| line.starts_with(COMMENTED));
    match (commented, first_table) {
        (Some(at), table) if table.is_none_or(|table| at < table) => lines[at] = &line,
        (_, Some(table)) => lines.insert(table, &line),
        (_, None) => lines.push(&line),
    }
    let edited = lines.join("\n") + "\n";
    // If a multi-line string contains what looks like a table, let toml_edit insert the key, away from its explanation.
    let right = edited
        .parse::<DocumentMut>()
        .is_ok_and(|edited| edited.get(KEY).and_then(Item::as_integer) == Some(i64::from(count)));
    if right {
        return Ok(edited);
    }
    document.insert(KEY, toml_edit::value(i64::from(count)));
    Ok(document.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_config::links::read;

    #[track_caller]
    fn expect(text: &str, expected: &str) {
        assert_eq!(with_instances(text, 5).unwrap(), expected);
    }

    #[test]
    fn only_the_number_changes() {
        expect(
            "# mine\ninstances  =  3 # three\nbase_port = 7100\n\n[drain]\ntimeout = \"5s\"\n",
            "# mine\ninstances  =  5 # three\nbase_port = 7100\n\n[drain]\ntimeout = \"5s\"\n",
        );
    }

    #[test]
    fn a_missing_key_gets_its_own_line() {
        expect(
            "# How many.\n#instances = 2\n\n[drain]\n",
            "# How many.\ninstances = 5\n\n[drain]\n",
        );
        expect("", "instances = 5\n");
        expect(
            "[drain]\ntimeout = \"5s\"\n",
            "instances = 5\n[drain]\ntimeout = \"5s\"\n",
        );
        expect("base_port = 7100\n", "base_port = 7100\ninstances = 5\n");
    }

    #[test]
    fn the_shipped_file_keeps_all_its_explanations() {
        let shipped = include_str!("../../../packaging/links.toml");
        let edited = with_instances(shipped, 5).unwrap();
        assert_eq!(edited, shipped.replacen("#instances = 2", "instances = 5", 1));
        assert_eq!(read(&edited, "links.toml").0.map(|config| config.instances), Some(5));
        assert_eq!(
            with_instances(&edited, 2).unwrap(),
            shipped.replacen("#instances", "instances", 1)
        );
    }

    #[test]
    fn invalid_toml_is_refused() {
        assert!(with_instances("instances = = 3\n", 5).is_err());
    }
}
