//! Reads `runtime.toml` into a [`RuntimeToml`].

use toml::Table;

use super::file::RuntimeToml;
use super::{network, providers, reference, stores, variables};
use crate::document::Document;
use crate::finding::Finding;
use crate::section::Section;
use crate::value::integer;

const MEBIBYTE: i64 = 1 << 20;
const TEBIBYTE: i64 = 1 << 40;

impl RuntimeToml {
    /// Reads `runtime.toml`.
    ///
    /// # Errors
    /// All errors and warnings, in the order of the text, if there is at least one error.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<Finding>> {
        let (runtime, findings) = read(text, file);
        runtime.ok_or(findings)
    }
}

/// Reads `runtime.toml`. Returns its contents if there are no errors, and all findings, which may be only warnings.
pub fn read(text: &str, file: &str) -> (Option<RuntimeToml>, Vec<Finding>) {
    let document = Document::new(text, file);
    let mut runtime = None;
    if let Some(table) = document.parse() {
        let mut top = Section::top(&document, table.get_ref());
        tables(&mut top);
        top.refuse_unknown();
        let references = reference::collect(&document, table.get_ref());
        let places = providers::places(&document, table.get_ref());
        // This cannot fail, because the same text has just been parsed.
        runtime = toml::from_str::<Table>(text).ok().map(|table| RuntimeToml {
            table,
            references,
            places,
        });
    }
    let findings = document.into_findings();
    (runtime.filter(|_| !findings.iter().any(Finding::is_error)), findings)
}

fn tables(top: &mut Section<'_, '_>) {
    top.labelled("sqlite_database", stores::sqlite_database);
    top.labelled("key_value_store", stores::key_value_store);
    top.list("variables_provider", variables::provider);
    top.section("outbound_http", network::outbound_http);
    top.section("outbound_networking", network::outbound_networking);
    top.list("client_tls", network::client_tls);
    top.section("llm_compute", network::llm_compute);
    top.optional("max_instance_memory", integer(MEBIBYTE..=TEBIBYTE));
    top.refused("state_dir", "is set by linksctl", "remove it");
    top.refused("log_dir", "is set by linksctl: output goes to the journal", "remove it");
    top.refused("config_provider", "is an old name", "write `variables_provider`");
}
