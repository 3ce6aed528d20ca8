//! A TOML document that knows the position of each value, and collects what is wrong with it. It may consist of several files.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::finding::{Finding, Override, Position, Severity};

/// A value with its span in the text.
pub type Value<'t> = Spanned<DeValue<'t>>;

/// The text of one or more files, with the findings in them. Later files extend and override earlier ones. An offset counts the
/// bytes of all texts, one after the other.
#[derive(Debug)]
pub struct Document<'t> {
    parts: Vec<Part<'t>>,
    /// A table without keys, for sections that are absent.
    empty: DeTable<'t>,
    /// Each finding with the offset of its position.
    findings: RefCell<Vec<(usize, Finding)>>,
    overrides: RefCell<Vec<Override>>,
}

/// One file of a document.
#[derive(Debug)]
struct Part<'t> {
    file: &'t str,
    text: &'t str,
    /// The offset of its first byte.
    start: usize,
}

/// What is wrong with one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The message, which follows the name of the key: "must be an integer, found a string".
    pub message: String,
    pub help: Option<String>,
    /// The span of the wrong part, if it is not the whole value.
    pub span: Option<Range<usize>>,
}

impl Problem {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            span: None,
        }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn within(mut self, span: Range<usize>) -> Self {
        self.span.get_or_insert(span);
        self
    }
}

impl<'t> Document<'t> {
    /// The document in one file.
    pub fn new(text: &'t str, file: &'t str) -> Self {
        Self::of_files([(text, file)])
    }

    /// The document in several files: each a text and the name of the file.
    pub fn of_files(files: impl IntoIterator<Item = (&'t str, &'t str)>) -> Self {
        let mut start = 0;
        let parts = files.into_iter().map(|(text, file)| {
            let part = Part { file, text, start };
            // One more than the length, because the end of a text is a position in it.
            start += text.len() + 1;
            part
        });
        Self {
            parts: parts.collect(),
            empty: DeTable::new(),
            findings: RefCell::default(),
            overrides: RefCell::default(),
        }
    }

    /// A table without keys.
    pub fn empty(&self) -> &DeTable<'t> {
        &self.empty
    }

    /// The top-level table of all files. Tables with the same name are merged; any other value replaces that of an earlier file.
    /// If a text is not TOML, reports an error and returns `None`.
    pub fn parse(&self) -> Option<Spanned<DeTable<'t>>> {
        let mut merged: Option<Spanned<DeTable<'t>>> = None;
        let mut is_toml = true;
        for part in &self.parts {
            let table = match DeTable::parse(part.text) {
                Ok(table) => table,
                Err(error) => {
                    let span = error.span().unwrap_or_default();
                    self.error(
                        shifted_span(&span, part.start),
                        format!("not TOML: {}", error.message().replace('\n', ", ")),
                        None,
                    );
                    is_toml = false;
                    continue;
                }
            };
            match &mut merged {
                None => {
                    let span = shifted_span(&table.span(), part.start);
                    merged = Some(Spanned::new(span, shifted_table(table.into_inner(), part.start)));
                }
                Some(merged) => self.merge(merged.get_mut(), shifted_table(table.into_inner(), part.start), ""),
            }
        }
        merged.filter(|_| is_toml)
    }

    /// Adds the keys of a later file to a table. `path` is the name of the table.
    fn merge(&self, table: &mut DeTable<'t>, later: DeTable<'t>, path: &str) {
        for (key, value) in later {
            let Some((_, earlier)) = table.remove_entry::<str>(key.get_ref()) else {
                table.insert(key, value);
                continue;
            };
            let path = dotted(path, key.get_ref());
            let (span, earlier_span) = (value.span(), earlier.span());
            let merged = match (earlier.into_inner(), value.into_inner()) {
                (DeValue::Table(mut earlier), DeValue::Table(later)) => {
                    self.merge(&mut earlier, later, &path);
                    DeValue::Table(earlier)
                }
                (_, later) => {
                    self.overrides.borrow_mut().push(Override {
                        key: path,
                        position: self.position(span.start),
                        replaced: self.position(earlier_span.start),
                    });
                    later
                }
            };
            // The key too, so that a finding about it names the later file.
            table.insert(key, Spanned::new(span, merged));
        }
    }

    pub fn error(&self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.note(Severity::Error, span, message.into(), help);
    }

    pub fn warning(&self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.note(Severity::Warning, span, message.into(), help);
    }

    fn note(&self, severity: Severity, span: Range<usize>, message: String, help: Option<String>) {
        let Position { file, line, column } = self.position(span.start);
        let finding = Finding {
            severity,
            help,
            ..Finding::error(file, message)
        };
        self.findings
            .borrow_mut()
            .push((span.start, finding.at((line, column))));
    }

    /// The position of an offset.
    pub fn position(&self, offset: usize) -> Position {
        let part = self.parts.iter().rfind(|part| part.start <= offset);
        let (file, text, start) = part.map_or(("", "", 0), |part| (part.file, part.text, part.start));
        let before = text.get(..offset - start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Position {
            file: file.to_owned(),
            line: before.bytes().filter(|&byte| byte == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// The line and the column of an offset.
    pub fn place(&self, offset: usize) -> (usize, usize) {
        let Position { line, column, .. } = self.position(offset);
        (line, column)
    }

    /// The values that replace one of an earlier file. A value that is replaced twice is listed twice.
    pub fn overrides(&self) -> Vec<Override> {
        self.overrides.borrow().clone()
    }

    /// All findings, in the order of the texts.
    pub fn into_findings(self) -> Vec<Finding> {
        let mut findings = self.findings.into_inner();
        findings.sort_by_key(|(offset, _)| *offset);
        findings.into_iter().map(|(_, finding)| finding).collect()
    }
}

/// The name of a key with that of its table, which is empty at the top of the document.
pub fn dotted(table: &str, key: &str) -> String {
    match table {
        "" => key.to_owned(),
        _ => format!("{table}.{key}"),
    }
}

fn shifted_span(span: &Range<usize>, by: usize) -> Range<usize> {
    span.start + by..span.end + by
}

fn shifted<'t>(value: Value<'t>, by: usize) -> Value<'t> {
    let span = shifted_span(&value.span(), by);
    let value = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shifted_table(table, by)),
        DeValue::Array(values) => DeValue::Array(values.into_iter().map(|value| shifted(value, by)).collect()),
        scalar => scalar,
    };
    Spanned::new(span, value)
}

fn shifted_table(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    if by == 0 {
        return table;
    }
    let entries = table.into_iter().map(|(key, value)| {
        let span = shifted_span(&key.span(), by);
        (Spanned::new(span, key.into_inner()), shifted(value, by))
    });
    entries.collect()
}

/// The known name that is most similar to `name`, if one is similar enough: up to a third of its letters may differ, or one of
/// the two is the beginning of the other.
pub fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|candidate| {
            let begins = name.len() >= 3 && (candidate.starts_with(name) || name.starts_with(candidate));
            let distance = strsim::damerau_levenshtein(&name.to_lowercase(), candidate);
            (if begins { 1 } else { distance }, *candidate)
        })
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, nearest)| distance * 3 <= nearest.len().max(3))
        .map(|(_, nearest)| nearest)
}

/// The names as a list: `` `a`, `b`, `c` ``
pub fn quoted(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The type of a value, with its article.
pub fn kind(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const FIRST: (&str, &str) = ("one = 1\n[table]\nkept = 1\nchanged = 1\n", "first");

    #[test]
    fn later_files_extend_tables_and_replace_other_values() {
        let second = ("table.changed = 2\n[new]\nkey = [1, { two = 2 }]", "second");
        let third = ("[table]\nchanged = 3\n", "third");
        let document = Document::of_files([FIRST, second, third]);
        let table = document.parse().unwrap();
        let top = table.get_ref();
        let position = |keys: [&str; 2]| {
            let value = top.get(keys[0]).and_then(|table| table.get_ref().get(keys[1])).unwrap();
            document.position(value.span().start).to_string()
        };
        assert_eq!(top.len(), 3);
        assert_eq!(position(["table", "kept"]), "first:3:8");
        assert_eq!(position(["table", "changed"]), "third:2:11");
        assert_eq!(position(["new", "key"]), "second:3:7");
        let overrides = document.overrides();
        let overrides: Vec<_> = overrides
            .iter()
            .map(|one| (one.key.as_str(), one.position.to_string(), one.replaced.to_string()))
            .collect();
        let expected = [
            ("table.changed", "second:1:17", "first:4:11"),
            ("table.changed", "third:2:11", "second:1:17"),
        ];
        assert_eq!(
            overrides,
            expected.map(|(key, position, replaced)| (key, position.to_owned(), replaced.to_owned()))
        );
    }

    #[test]
    fn a_table_and_another_value_replace_each_other() {
        for (text, count) in [("table = 1", 2), ("[one]\ntwo = 1", 2), ("", 2)] {
            let document = Document::of_files([FIRST, (text, "second")]);
            let table = document.parse().unwrap();
            assert_eq!(table.get_ref().len(), count, "{text}");
            assert_eq!(document.overrides().len(), usize::from(!text.is_empty()), "{text}");
        }
    }

    #[test]
    fn each_text_that_is_not_toml_is_reported_at_its_own_position() {
        let document = Document::of_files([("a = ", "first"), ("b = 1", "second"), ("\nc", "third")]);
        assert!(document.parse().is_none());
        let findings = document.into_findings();
        let places: Vec<_> = findings
            .iter()
            .map(|finding| (finding.file.as_str(), finding.line))
            .collect();
        assert_eq!(places, [("first", Some(1)), ("third", Some(2))]);
    }
}
