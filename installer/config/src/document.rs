//! A TOML document that knows the position of each value, and collects what is wrong with it.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::finding::{Finding, Severity};

/// A value with its span in the text.
pub type Value<'t> = Spanned<DeValue<'t>>;

/// The text of one file, with the findings in it.
#[derive(Debug)]
pub struct Document<'t> {
    file: &'t str,
    text: &'t str,
    findings: RefCell<Vec<Finding>>,
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
    pub fn new(text: &'t str, file: &'t str) -> Self {
        Self {
            file,
            text,
            findings: RefCell::default(),
        }
    }

    /// The top-level table. If the text is not TOML, reports an error and returns `None`.
    pub fn parse(&self) -> Option<Spanned<DeTable<'t>>> {
        DeTable::parse(self.text)
            .map_err(|error| {
                self.note(
                    Severity::Error,
                    error.span().unwrap_or_default(),
                    format!("not TOML: {}", error.message().replace('\n', ", ")),
                    None,
                );
            })
            .ok()
    }

    pub fn error(&self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.note(Severity::Error, span, message.into(), help);
    }

    pub fn warning(&self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.note(Severity::Warning, span, message.into(), help);
    }

    fn note(&self, severity: Severity, span: Range<usize>, message: String, help: Option<String>) {
        let finding = Finding {
            severity,
            help,
            ..Finding::error(self.file, message)
        };
        self.findings.borrow_mut().push(finding.at(self.place(span.start)));
    }

    /// The line and the column of a byte of the text. Both start at 1; the column counts characters.
    pub fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }

    /// All findings, in the order of the text.
    pub fn into_findings(self) -> Vec<Finding> {
        let mut findings = self.findings.into_inner();
        findings.sort_by_key(|finding| (finding.line, finding.column));
        findings
    }
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
