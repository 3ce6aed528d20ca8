//! The documentation of links.toml: the man page links.toml(5) and the documented example. Both are made from the declarations of
//! the keys.

use roff::{Inline, Roff, bold, roman};

use links_config::links::keys::{Absent, Key, Since, TABLES};

/// The sections before and after the keys.
const MAN_HEAD: &str = include_str!("../../../packaging/links.toml.5.head");
const MAN_TAIL: &str = include_str!("../../../packaging/links.toml.5.tail");
const EXAMPLE_HEAD: &str = include_str!("../../../packaging/links.toml.example.head");

/// The width of a line of the example.
const WIDTH: usize = 120;

/// The man page. `date` (`YYYY-MM-DD`) is shown in the footer.
pub fn man_page(date: &str) -> String {
    let mut title = Roff::new();
    title.control("TH", ["links.toml", "5", date, "links", "links"]);
    let mut keys = Roff::new();
    keys.control("SH", ["KEYS"]);
    for table in TABLES {
        if !table.name.is_empty() {
            let heading = format!("[{}]", table.name);
            keys.control("SS", [heading.as_str()]).text(inlines(table.about));
        }
        for key in table.keys {
            let value = match key.absent {
                Absent::Default(value) => format!(" = {value}"),
                Absent::Unset { .. } => " (unset)".to_owned(),
            };
            keys.control("TP", []).text([bold(key.name), roman(value)]);
            keys.text(inlines(key.about)).text(inlines(&requirement(key)));
            if let Absent::Unset { example } = key.absent {
                keys.text([roman("Example:")]).text([bold(example)]);
            }
        }
    }
    [title.render(), MAN_HEAD.to_owned(), keys.render(), MAN_TAIL.to_owned()].concat()
}

/// What the value must be, and since when there is the key.
fn requirement(key: &Key) -> String {
    let since = match key.since {
        Since::V0_1_0 => String::new(),
        since => format!(" Since version {since}."),
    };
    format!("The value must be {}.{since}", key.kind)
}

/// The text with what is in backticks in bold.
fn inlines(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts
        .map(|(index, part)| if index % 2 == 1 { bold(part) } else { roman(part) })
        .collect()
}

/// A links.toml with every key, commented out.
pub fn example() -> String {
    let mut text = EXAMPLE_HEAD.to_owned();
    for table in TABLES {
        if !table.name.is_empty() {
            text += &format!("\n{}[{}]\n", comment(table.about), table.name);
        }
        for key in table.keys {
            let unset = match key.absent {
                Absent::Default(_) => "",
                Absent::Unset { .. } => " Unset by default.",
            };
            let about = format!("{} {}{unset}", key.about, requirement(key));
            text += &format!("\n{}#{} = {}\n", comment(&about), key.name, key.sample());
        }
    }
    text
}

/// The text as lines that start with `# `.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split(' ') {
        if let Some(line) = lines.last_mut()
            && line.chars().count() + 1 + word.chars().count() <= WIDTH
        {
            *line += " ";
            *line += word;
        } else {
            lines.push(format!("# {word}"));
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_config::links::{Config, keys, read};

    /// The example with its keys enabled. Prose has a blank after its `#`, keys have none.
    fn uncommented() -> String {
        let example = example();
        let lines = example.lines().map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|first: char| first.is_ascii_lowercase()) => key,
            _ => line,
        });
        lines.map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn the_example_means_the_defaults_and_shows_every_key() {
        assert_eq!(read(&example(), "links.toml").0, Some(Config::default()));
        let text = uncommented();
        let (config, findings) = read(&text, "links.toml");
        assert!(config.is_some(), "{findings:?}");
        for key in keys::all() {
            let line = format!("\n{} = {}\n", key.name, key.sample());
            let header = format!("\n[{}]\n", key.table);
            let table = match key.table {
                "" => text.as_str(),
                _ => text.split_once(&header).unwrap().1,
            };
            let table = table.split_once("\n[").map_or(table, |(table, _)| table);
            assert!(table.contains(&line), "{}", key.path());
        }
    }

    #[test]
    fn lines_of_the_example_fit() {
        for line in example().lines().filter(|line| line.contains(' ')) {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert_eq!(comment("a b"), "# a b\n");
    }

    #[test]
    fn the_man_page_describes_every_key() {
        let page = man_page("2026-11-22");
        for part in [
            ".TH links.toml 5 2026-11-22 links links\n",
            ".SH NAME\nlinks.toml \\- settings of the links URL shortener\n",
            ".SS [health]\n",
            ".TP\n\\fBstart_timeout\\fR = \"30s\"\n",
            ".TP\n\\fBpublic_url\\fR (unset)\n",
            "The value must be a duration from \\fB\"1s\"\\fR to \\fB\"10m\"\\fR.\n",
            ".SH SEE ALSO\n",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        for key in keys::all() {
            assert!(page.contains(&format!("\n\\fB{}\\fR", key.name)), "{}", key.path());
        }
        assert!(!page.contains('`'), "{page}");
    }
}
