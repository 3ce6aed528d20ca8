//! spin.toml against the code: what it repeats must agree, and what it grants must be what is used.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use links_core::{cache, edge, secret, sql};
use toml::{Table, Value};

const MANIFEST: &str = include_str!("../../spin.toml");

fn manifest() -> Table {
    MANIFEST.parse().unwrap()
}

fn keys(table: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = table.as_table().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn has_the_version_of_the_workspace() {
    assert_eq!(
        manifest()["application"]["version"].as_str(),
        Some(env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn hands_on_the_variables_that_the_component_reads() {
    let names = [
        "admin_token",
        "agent_secret",
        "allowed_origin",
        "cache_stale",
        "cache_ttl",
        "checkpoints",
        "database_place",
        "edge_port",
        "edge_stale",
        "edge_ttl",
        "link_cache",
        "proxy_secret",
        "public_url",
        "secrets_stale",
        "secrets_ttl",
        "shorten_access",
    ];
    let manifest = manifest();
    assert_eq!(keys(&manifest["variables"]), names);
    assert_eq!(keys(&manifest["component"]["links"]["variables"]), names);
    for name in names {
        let source = format!("{{{{ {name} }}}}");
        assert_eq!(
            manifest["component"]["links"]["variables"][name].as_str(),
            Some(source.as_str())
        );
    }
    for secret in ["admin_token", "agent_secret", "proxy_secret"] {
        assert_eq!(manifest["variables"][secret]["secret"].as_bool(), Some(true));
        assert_eq!(manifest["variables"][secret]["default"].as_str(), Some(""));
    }
    assert_eq!(
        manifest["variables"]["shorten_access"]["default"].as_str(),
        Some("token")
    );
}

/// The texts are what an empty value means.
#[test]
fn the_defaults_are_those_of_the_code() {
    let manifest = manifest();
    let default = |name: &str| manifest["variables"][name]["default"].as_str().unwrap().to_owned();
    assert_eq!(cache::is_on(&default("link_cache")), cache::is_on(""));
    assert_eq!(sql::is_remote(&default("database_place")), sql::is_remote(""));
    assert_eq!(
        cache::Bounds::parse(&default("cache_ttl"), &default("cache_stale")),
        cache::Bounds::parse("", "")
    );
    assert_eq!(edge::port(&default("edge_port")), edge::port(""));
    assert_eq!(
        edge::Bounds::parse(&default("edge_ttl"), &default("edge_stale")),
        edge::Bounds::parse("", "")
    );
    assert_eq!(
        secret::Bounds::parse(&default("secrets_ttl"), ""),
        secret::Bounds::parse("", "")
    );
    assert_eq!(
        secret::Bounds::parse("1", &default("secrets_stale")),
        secret::Bounds::parse("1", "")
    );
}

#[test]
fn grants_one_database_two_stores_one_address_and_nothing_else() {
    let manifest = manifest();
    let component = &manifest["component"]["links"];
    assert_eq!(
        keys(component),
        [
            "allowed_outbound_hosts",
            "build",
            "key_value_stores",
            "source",
            "sqlite_databases",
            "variables"
        ]
    );
    assert_eq!(
        component["allowed_outbound_hosts"],
        Value::from(vec!["http://127.0.0.1:{{ edge_port }}"])
    );
    assert_eq!(component["sqlite_databases"], Value::from(vec!["default"]));
    assert_eq!(component["key_value_stores"], Value::from(vec!["default", "local"]));
}
