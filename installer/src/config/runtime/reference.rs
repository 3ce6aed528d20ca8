//! `"credential:NAME"` and `"env:NAME"`: how a file that everybody may read speaks of a secret.

use std::path::{Component, Path};

use serde::Serialize;
use toml::de::{DeTable, DeValue};
use url::Url;

use crate::config::credentials::is_name;
use crate::config::document::{Document, Problem, Value};
use crate::config::value::{string, text, url};
use crate::layout::Layout;

/// What a reference to a credential starts with.
pub const PREFIX: &str = "credential:";
/// What a reference to a variable of the instances' environment starts with.
const VARIABLE_PREFIX: &str = "env:";

/// A credential that the file asks for, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reference {
    pub credential: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl Reference {
    fn new(credential: &str, document: &Document<'_>, value: &Value<'_>) -> Self {
        let (line, column) = document.place(value.span().start);
        Self {
            credential: credential.to_owned(),
            line,
            column,
        }
    }

    /// A value that can be nothing else.
    pub fn read(document: &Document<'_>, value: &Value<'_>) -> Result<Self, Problem> {
        let Some(name) = string(value)?.strip_prefix(PREFIX) else {
            return Err(not_the_secret());
        };
        if !is_name(name) {
            return Err(Problem::new(format!("names no credential: {}", not_a_name(name))).help(NAMES));
        }
        Ok(Self::new(name, document, value))
    }
}

/// Where a string's value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the file itself.
    Written,
    Credential(String),
    /// In the instances' environment.
    Variable(String),
}

impl Origin {
    pub fn of(text: &str) -> Self {
        if let Some(name) = text.strip_prefix(PREFIX) {
            Self::Credential(name.to_owned())
        } else if let Some(name) = text.strip_prefix(VARIABLE_PREFIX) {
            Self::Variable(name.to_owned())
        } else {
            Self::Written
        }
    }

    /// What is no string is written here.
    fn of_value(value: &Value<'_>) -> Self {
        string(value).map_or(Self::Written, Self::of)
    }
}

const NAMES: &str = "use letters, digits, `_`, `-` and `.`";

fn not_a_name(name: &str) -> String {
    format!("\"{}\" cannot name a credential", name.escape_debug())
}

fn not_the_secret() -> Problem {
    Problem::new("must be a credential, not the secret itself: everybody on this host can read this file").help(
        format!(
            "put the secret into {}, mode 0600, and write \"{PREFIX}NAME\"",
            file_of("NAME")
        ),
    )
}

/// Where a person puts the credential `name`.
pub fn file_of(name: &str) -> String {
    Layout::new("/").credentials_dir().join(name).display().to_string()
}

/// Every reference of the document. One that names no credential is noted.
pub fn collect<'t>(document: &Document<'t>, table: &DeTable<'t>) -> Vec<Reference> {
    let mut references = Vec::new();
    for (_, value) in table {
        visit(document, value, &mut references);
    }
    references.sort_by_key(|reference| (reference.line, reference.column));
    references
}

fn visit<'t>(document: &Document<'t>, value: &Value<'t>, references: &mut Vec<Reference>) {
    match value.get_ref() {
        DeValue::Table(table) => table.iter().for_each(|(_, value)| visit(document, value, references)),
        DeValue::Array(values) => values.iter().for_each(|value| visit(document, value, references)),
        DeValue::String(text) => match Origin::of(text) {
            Origin::Credential(name) if is_name(&name) => references.push(Reference::new(&name, document, value)),
            Origin::Credential(name) => document.error(value.span(), not_a_name(&name), Some(NAMES.to_owned())),
            Origin::Variable(name) if !is_variable(&name) => {
                let message = format!("\"{}\" cannot name a variable", name.escape_debug());
                document.error(value.span(), message, Some(VARIABLES.to_owned()));
            }
            Origin::Variable(_) | Origin::Written => {}
        },
        _ => {}
    }
}

/// A name as shells have it (POSIX.1-2017, Base Definitions, 8.1).
fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

const VARIABLES: &str = "use letters, digits and `_`, not a digit first";

/// A value that is secret. The empty string says that there is none.
pub fn secret(value: &Value<'_>) -> Result<(), Problem> {
    if Origin::of_value(value) != Origin::Written || string(value)?.is_empty() {
        return Ok(());
    }
    Err(not_the_secret())
}

/// A value that says something, written here or in a credential.
pub fn plain(value: &Value<'_>) -> Result<(), Problem> {
    text(value).map(|_| ())
}

/// A URL without a secret in it, or a reference to one with.
pub fn location(schemes: &'static [&'static str]) -> impl Fn(&Value<'_>) -> Result<Option<Url>, Problem> {
    move |value| {
        match Origin::of_value(value) {
            Origin::Credential(_) => return Ok(None),
            Origin::Variable(_) => {
                return Err(Problem::new(
                    "must be here or in a credential: which machine it leads to has to be known before an instance starts",
                ));
            }
            Origin::Written => {}
        }
        url(schemes)(value).map(Some).map_err(|problem| match problem.help {
            Some(_) => problem,
            None => problem.help(format!(
                "put the whole URL into {}, mode 0600, and write \"{PREFIX}NAME\"",
                file_of("NAME")
            )),
        })
    }
}

/// A path of a file, absolute or relative.
pub fn path<'v>(value: &'v Value<'_>) -> Result<&'v Path, Problem> {
    let text = string(value)?;
    if Origin::of(text) != Origin::Written {
        return Err(Problem::new("must be a path: no reference can stand for it"));
    }
    if text == ":memory:" || text.starts_with("file:") {
        return Err(Problem::new("must be the path of a file").help("remove `path` for the default"));
    }
    let path = Path::new(text);
    if path.file_name().is_none() || text.ends_with('/') || text.contains(char::is_control) {
        return Err(Problem::new(format!(
            "must be the path of a file, found \"{}\"",
            text.escape_debug()
        )));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(Problem::new("must not lead through `..`"));
    }
    Ok(path)
}
