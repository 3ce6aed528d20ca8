//! References to secrets, `"credential:NAME"` and `"env:NAME"`, from a file that everybody may read.

use std::path::{Component, Path};

use serde::Serialize;
use toml::de::{DeTable, DeValue};
use url::Url;

use crate::credentials::is_name;
use crate::document::{Document, Problem, Value};
use crate::finding::Position;
use crate::value::{string, text, url};
use links_base::layout::Layout;

/// The prefix of a reference to a credential.
pub const PREFIX: &str = "credential:";
/// The prefix of a reference to a variable in the instances' environment.
const VARIABLE_PREFIX: &str = "env:";

/// A reference to a credential, and its position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reference {
    pub credential: String,
    pub position: Position,
}

impl Reference {
    fn new(credential: &str, document: &Document<'_>, value: &Value<'_>) -> Self {
        Self {
            credential: credential.to_owned(),
            position: document.position(value.span().start),
        }
    }

    /// Reads a value that must be a reference to a credential.
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

/// Where the value of a string comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The value is written in the file itself.
    Written,
    /// The value is in the credential of this name.
    Credential(String),
    /// The value is in this variable of the instances' environment.
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

    /// The origin of a value. A value that is not a string counts as written in the file.
    fn of_value(value: &Value<'_>) -> Self {
        string(value).map_or(Self::Written, Self::of)
    }
}

const NAMES: &str = "use letters, digits, `_`, `-` and `.`";

fn not_a_name(name: &str) -> String {
    format!("\"{}\" is not a valid credential name", name.escape_debug())
}

fn not_the_secret() -> Problem {
    Problem::new("must be a credential, not the secret itself: everybody on this host can read this file").help(
        format!(
            "put the secret into {}, mode 0600, and write \"{PREFIX}NAME\"",
            file_of("NAME")
        ),
    )
}

/// The path of the file in which a person stores the credential `name`.
pub fn file_of(name: &str) -> String {
    Layout::new("/").credentials_dir().join(name).display().to_string()
}

/// All references to credentials in the document. Reports those with an invalid name.
pub fn collect<'t>(document: &Document<'t>, table: &DeTable<'t>) -> Vec<Reference> {
    let mut references = Vec::new();
    for (_, value) in table {
        visit(document, value, &mut references);
    }
    references.sort_by_key(|reference| (reference.position.line, reference.position.column));
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
                let message = format!("\"{}\" is not a valid variable name", name.escape_debug());
                document.error(value.span(), message, Some(VARIABLES.to_owned()));
            }
            Origin::Variable(_) | Origin::Written => {}
        },
        _ => {}
    }
}

/// Whether this is a valid name for an environment variable (POSIX.1-2017, Base Definitions, 8.1).
fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

const VARIABLES: &str = "use letters, digits and `_`, not a digit first";

/// Checks that a secret is a reference. An empty string is allowed, and stands for no secret.
pub fn secret(value: &Value<'_>) -> Result<(), Problem> {
    if Origin::of_value(value) != Origin::Written || string(value)?.is_empty() {
        return Ok(());
    }
    Err(not_the_secret())
}

/// Checks that a string is not empty. It may be a reference.
pub fn plain(value: &Value<'_>) -> Result<(), Problem> {
    text(value).map(|_| ())
}

/// A URL without a secret, or `None` for a reference to a credential with the whole URL.
pub fn location(schemes: &'static [&'static str]) -> impl Fn(&Value<'_>) -> Result<Option<Url>, Problem> {
    move |value| {
        match Origin::of_value(value) {
            Origin::Credential(_) => return Ok(None),
            Origin::Variable(_) => {
                return Err(Problem::new(
                    "must be written here or in a credential: linksctl must know the host before it starts an instance",
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

/// The path of a file, absolute or relative.
pub fn path<'v>(value: &'v Value<'_>) -> Result<&'v Path, Problem> {
    let text = string(value)?;
    if Origin::of(text) != Origin::Written {
        return Err(Problem::new("must be a path, not a reference"));
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
        return Err(Problem::new("must not contain `..`"));
    }
    Ok(path)
}
