//! The tables about outgoing connections of the components, and about language models.

use std::net::IpAddr;

use super::providers::WEB;
use super::reference::{location, path, plain, secret};
use crate::document::{Problem, Value};
use crate::section::Section;
use crate::value::{boolean, integer, list, one_of, string};

/// `[outbound_http]`, see Spin's crates/factor-outbound-http/src/runtime_config/spin.rs.
pub fn outbound_http(section: &mut Section<'_, '_>) {
    section.optional("connection_pooling", boolean);
    section.optional("max_concurrent_requests", integer(1..=1_000_000));
}

/// `[outbound_networking]`, see Spin's crates/factor-outbound-networking/src/runtime_config/spin.rs.
pub fn outbound_networking(section: &mut Section<'_, '_>) {
    section.optional("block_networks", list(network));
}

fn network(value: &Value<'_>) -> Result<(), Problem> {
    let text = string(value)?;
    let cidr = text.split_once('/').and_then(|(address, length)| {
        let bits = match address.parse().ok()? {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        Some(length.parse::<u8>().ok()? <= bits)
    });
    if text == "private" || cidr == Some(true) {
        return Ok(());
    }
    Err(Problem::new(format!(
        "must name networks as \"10.0.0.0/8\" or \"private\", found \"{}\"",
        text.escape_debug()
    )))
}

/// `[[client_tls]]`, see the same file as for [`outbound_networking`].
pub fn client_tls(section: &mut Section<'_, '_>) {
    section.required("component_ids", list(plain));
    section.required("hosts", list(plain));
    section.optional("ca_use_platform_roots", boolean);
    section.optional("ca_use_webpki_roots", boolean);
    section.optional("ca_roots_file", path);
    section.optional("client_cert_file", path);
    section.optional("client_private_key_file", path);
    section.together(&["client_cert_file", "client_private_key_file"]);
}

/// `[llm_compute]`, see Spin's crates/factor-llm/src/spin.rs.
pub fn llm_compute(section: &mut Section<'_, '_>) {
    match section.required("type", one_of(&["spin", "remote_http"])) {
        Some("spin") => {}
        Some(_) => {
            section.required("url", location(WEB));
            section.required("auth_token", secret);
            section.optional("api_type", one_of(&["default", "open_ai"]));
        }
        None => section.accept_unknown(),
    }
}
