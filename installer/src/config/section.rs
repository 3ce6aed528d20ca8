//! Walks the tables of a document. A reader asks a [`Section`] for the keys that it knows; every other key is a mistake.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::document::{Document, Problem, Value, kind, nearest, quoted};

/// A table of the document, while it is read.
#[derive(Debug)]
pub struct Section<'d, 't> {
    document: &'d Document<'t>,
    table: &'d DeTable<'t>,
    /// As its header names it; empty at the top.
    name: String,
    span: Range<usize>,
    known: Vec<&'static str>,
    /// Reported already, and never offered as the nearest key.
    refused: Vec<&'static str>,
    anything_goes: bool,
}

impl<'d, 't> Section<'d, 't> {
    /// The top of a document.
    pub fn top(document: &'d Document<'t>, table: &'d DeTable<'t>) -> Self {
        Self {
            document,
            table,
            name: String::new(),
            span: 0..0,
            known: Vec::new(),
            refused: Vec::new(),
            anything_goes: false,
        }
    }

    pub fn document(&self) -> &'d Document<'t> {
        self.document
    }

    /// Of the table's header or braces.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// A key of this table as the top of the document would name it.
    pub fn path(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    /// The value of a key, which is known from now on.
    pub fn value(&mut self, key: &'static str) -> Option<&'d Value<'t>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// Where the value at a path of keys is; of what is there of the path, if not all of it is.
    pub fn place_of(&self, path: &[&str]) -> Range<usize> {
        let (mut table, mut span) = (self.table, self.span());
        for key in path {
            let Some(value) = table.get(*key) else { break };
            span = value.span();
            let DeValue::Table(inner) = value.get_ref() else { break };
            table = inner;
        }
        span
    }

    /// A key that may be absent. None as well where its value is wrong, which is noted.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'d Value<'t>) -> Result<T, Problem>,
    ) -> Option<T> {
        let value = self.value(key)?;
        read(value).map_err(|problem| self.refuse(key, value, problem)).ok()
    }

    /// A key that must be there.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'d Value<'t>) -> Result<T, Problem>,
    ) -> Option<T> {
        self.require(key);
        self.optional(key, read)
    }

    /// Notes that a key is missing, if it is.
    pub fn require(&self, key: &str) {
        if !self.table.contains_key(key) {
            let message = format!("`{key}` is missing in [{}]", self.name);
            self.document.error(self.span(), message, None);
        }
    }

    /// Keys that mean something only together: all of them, or none.
    pub fn together(&self, keys: &[&str]) {
        let absent: Vec<&str> = keys
            .iter()
            .copied()
            .filter(|key| !self.table.contains_key(*key))
            .collect();
        if !absent.is_empty() && absent.len() < keys.len() {
            let message = format!("[{}] needs all of {} or none of them", self.name, quoted(keys));
            self.document
                .error(self.span(), message, Some(format!("missing: {}", quoted(&absent))));
        }
    }

    /// A key that means something to the runtime, but not here.
    pub fn refused(&mut self, key: &'static str, why: &str, help: &str) {
        if let Some((name, _)) = self.table.get_key_value(key) {
            self.document.error(
                name.span(),
                format!("`{}` {why}", self.path(key)),
                Some(help.to_owned()),
            );
        }
        self.refused.push(key);
    }

    /// Notes what is wrong with a value of this table.
    pub fn refuse(&self, key: &str, value: &Value<'t>, problem: Problem) {
        self.document.error(
            problem.span.unwrap_or_else(|| value.span()),
            format!("`{}` {}", self.path(key), problem.message),
            problem.help,
        );
    }

    /// `[key]`, read by `read`; its unknown keys are noted after it.
    pub fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'d, 't>) -> T) -> Option<T> {
        let value = self.value(key)?;
        self.inside(key, value, read)
    }

    /// `[key.LABEL]` for every label.
    pub fn labelled(&mut self, key: &'static str, mut read: impl FnMut(&str, &mut Section<'d, 't>)) {
        let Some(value) = self.value(key) else { return };
        let Some(tables) = self.table_of(key, value) else {
            return;
        };
        for (label, value) in tables {
            let label = label.get_ref();
            let path = format!("{key}.{label}");
            self.inside(&path, value, |section| read(label, section));
        }
    }

    /// `[[key]]`, each of them.
    pub fn list(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'d, 't>)) {
        let Some(value) = self.value(key) else { return };
        let DeValue::Array(values) = value.get_ref() else {
            let problem = Problem::new(format!("must be an array of tables, found {}", kind(value)))
                .help(format!("write `[[{}]]`", self.path(key)));
            return self.refuse(key, value, problem);
        };
        for value in values.iter() {
            self.inside(key, value, &mut read);
        }
    }

    fn table_of(&self, key: &str, value: &'d Value<'t>) -> Option<&'d DeTable<'t>> {
        if let DeValue::Table(table) = value.get_ref() {
            return Some(table);
        }
        self.refuse(
            key,
            value,
            Problem::new(format!("must be a table, found {}", kind(value))),
        );
        None
    }

    fn inside<T>(&self, key: &str, value: &'d Value<'t>, read: impl FnOnce(&mut Section<'d, 't>) -> T) -> Option<T> {
        let mut section = Section {
            document: self.document,
            table: self.table_of(key, value)?,
            name: self.path(key),
            span: value.span(),
            known: Vec::new(),
            refused: Vec::new(),
            anything_goes: false,
        };
        let answer = read(&mut section);
        section.refuse_unknown();
        Some(answer)
    }

    /// The keys of this table cannot be known, because what decides on them is wrong already.
    pub fn accept_unknown(&mut self) {
        self.anything_goes = true;
    }

    /// Every key and value of this table, whatever its name; none of them is unknown.
    pub fn entries(&mut self) -> impl Iterator<Item = (&'d str, &'d Value<'t>)> + use<'d, 't> {
        self.anything_goes = true;
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), value))
    }

    /// Notes every key that nobody asked for.
    pub fn refuse_unknown(&self) {
        if self.anything_goes {
            return;
        }
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) || self.refused.contains(&name) {
                continue;
            }
            let within = if self.name.is_empty() {
                String::new()
            } else {
                format!(" in [{}]", self.name)
            };
            let help = match nearest(name, &self.known) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("known here: {}", quoted(&self.known)),
            };
            let message = format!("unknown key `{}`{within}", name.escape_debug());
            self.document.error(key.span(), message, Some(help));
        }
    }
}
