//! From the text of `runtime.toml` to [`RuntimeToml`].

use toml::Table;

use super::{RuntimeToml, network, providers, reference, stores, variables};
use crate::config::document::Document;
use crate::config::finding::Finding;
use crate::config::section::Section;
use crate::config::value::integer;

const MEBIBYTE: i64 = 1 << 20;
const TEBIBYTE: i64 = 1 << 40;

impl RuntimeToml {
    /// Reads `runtime.toml`.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the text, with the warnings.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<Finding>> {
        let (runtime, findings) = read(text, file);
        runtime.ok_or(findings)
    }
}

/// Reads `runtime.toml`: its contents where no error was found, and the findings, which may be warnings only.
pub fn read(text: &str, file: &str) -> (Option<RuntimeToml>, Vec<Finding>) {
    let document = Document::new(text, file);
    let mut runtime = None;
    if let Some(table) = document.parse() {
        let mut top = Section::top(&document, table.get_ref());
        tables(&mut top);
        top.refuse_unknown();
        let references = reference::collect(&document, table.get_ref());
        let places = providers::places(&document, table.get_ref());
        // The same text has just been parsed.
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
    top.refused("state_dir", "is the appliance's to set", "remove it");
    top.refused(
        "log_dir",
        "is the appliance's to set: output goes to the journal",
        "remove it",
    );
    top.refused("config_provider", "is an old name", "write `variables_provider`");
}
