//! Walks the tables of a document. A reader asks a [`Section`] for the keys that it knows. Every other key is an error.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::document::{Document, Problem, Value, dotted, kind, nearest, quoted};

/// A table of the document while it is being read.
#[derive(Debug)]
pub struct Section<'d, 't> {
    document: &'d Document<'t>,
    table: &'d DeTable<'t>,
    /// The name in the table's header, such as `health`. Empty at the top of the document.
    name: String,
    span: Range<usize>,
    /// The keys that the reader has asked for.
    known: Vec<&'static str>,
    /// Keys that have been reported already. They are never suggested for a misspelt key.
    refused: Vec<&'static str>,
    /// Whether every key is accepted.
    accepts_unknown: bool,
}

impl<'d, 't> Section<'d, 't> {
    /// The top-level table of a document.
    pub fn top(document: &'d Document<'t>, table: &'d DeTable<'t>) -> Self {
        Self {
            document,
            table,
            name: String::new(),
            span: 0..0,
            known: Vec::new(),
            refused: Vec::new(),
            accepts_unknown: false,
        }
    }

    pub fn document(&self) -> &'d Document<'t> {
        self.document
    }

    /// The span of the table's header or braces.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The dotted path of a key of this table, such as `health.timeout`.
    pub fn path(&self, key: &str) -> String {
        dotted(&self.name, key)
    }

    /// The value of a key. The key counts as known from now on.
    pub fn value(&mut self, key: &'static str) -> Option<&'d Value<'t>> {
        self.known.push(key);
        self.table.get(key)
    }

    /// Whether the table has a key.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The span of the value at a path of keys, or of the longest part of the path that exists.
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

    /// Reads a key that may be absent. Also returns `None` if the value is wrong, and reports that.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'d Value<'t>) -> Result<T, Problem>,
    ) -> Option<T> {
        let value = self.value(key)?;
        read(value).map_err(|problem| self.refuse(key, value, problem)).ok()
    }

    /// Reads a key, and reports it if it is missing or its value is wrong.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'d Value<'t>) -> Result<T, Problem>,
    ) -> Option<T> {
        self.require(key);
        self.optional(key, read)
    }

    /// Reports a key that is missing.
    pub fn require(&self, key: &str) {
        if !self.table.contains_key(key) {
            let message = format!("`{key}` is missing in [{}]", self.name);
            self.document.error(self.span(), message, None);
        }
    }

    /// Reports keys that are only valid together, unless all or none of them are present.
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

    /// Reports a key that the runtime knows but that is not allowed here.
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

    /// Reports a wrong value of this table.
    pub fn refuse(&self, key: &str, value: &Value<'t>, problem: Problem) {
        self.document.error(
            problem.span.unwrap_or_else(|| value.span()),
            format!("`{}` {}", self.path(key), problem.message),
            problem.help,
        );
    }

    /// Reads the table `[key]`, and reports its unknown keys.
    pub fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'d, 't>) -> T) -> Option<T> {
        let value = self.value(key)?;
        self.inside(key, value, read)
    }

    /// Reads the table `[key]`, which counts as empty if it is absent or no table, and reports its unknown keys.
    pub fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'d, 't>) -> T) -> T {
        let value = self.value(key);
        let table = value.and_then(|value| Some((self.table_of(key, value)?, value.span())));
        let (table, span) = table.unwrap_or((self.document.empty(), self.span()));
        self.within(key, table, span, read)
    }

    /// Reads the table `[key.LABEL]` of every label.
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

    /// Reads each table of the array `[[key]]`.
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
        let table = self.table_of(key, value)?;
        Some(self.within(key, table, value.span(), read))
    }

    fn within<T>(
        &self,
        key: &str,
        table: &'d DeTable<'t>,
        span: Range<usize>,
        read: impl FnOnce(&mut Section<'d, 't>) -> T,
    ) -> T {
        let mut section = Section {
            document: self.document,
            table,
            name: self.path(key),
            span,
            known: Vec::new(),
            refused: Vec::new(),
            accepts_unknown: false,
        };
        let contents = read(&mut section);
        section.refuse_unknown();
        contents
    }

    /// Accepts all keys of this table, because the `type` that decides which are valid is wrong itself.
    pub fn accept_unknown(&mut self) {
        self.accepts_unknown = true;
    }

    /// All keys and values of this table. Accepts all of its keys.
    pub fn entries(&mut self) -> impl Iterator<Item = (&'d str, &'d Value<'t>)> + use<'d, 't> {
        self.accepts_unknown = true;
        self.table.iter().map(|(key, value)| (key.get_ref().as_ref(), value))
    }

    /// Reports every key that the reader has not asked for.
    pub fn refuse_unknown(&self) {
        if self.accepts_unknown {
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
                None => format!("valid keys: {}", quoted(&self.known)),
            };
            let message = format!("unknown key `{}`{within}", name.escape_debug());
            self.document.error(key.span(), message, Some(help));
        }
    }
}
