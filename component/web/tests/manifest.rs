//! Compares spin.toml with the code: values in both must agree, and spin.toml must grant exactly what is used.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use links_domain::secret;
use links_store::{cache, place};
use links_web::edge;
use toml::{Table, Value};

const MANIFEST: &str = include_str!("../../spin.toml");

const REDIRECT_VARIABLES: [&str; 9] = [
    "cache_stale",
    "cache_ttl",
    "checkpoints",
    "database_place",
    "edge_port",
    "edge_stale",
    "edge_ttl",
    "link_cache",
    "proxy_secret",
];

const API_VARIABLES: [&str; 16] = [
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

fn manifest() -> Table {
    MANIFEST.parse().unwrap()
}

fn keys(table: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = table.as_table().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn the_version_is_that_of_the_workspace() {
    assert_eq!(
        manifest()["application"]["version"].as_str(),
        Some(env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn routes_lead_to_the_components_that_know_them() {
    let manifest = manifest();
    let triggers = manifest["trigger"]["http"].as_array().unwrap();
    let routes: Vec<_> = triggers
        .iter()
        .map(|trigger| {
            (
                trigger["route"].as_str().unwrap(),
                trigger["component"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        routes,
        [
            ("/...", "redirect"),
            ("/shorten", "api"),
            ("/api/...", "api"),
            ("/internal/...", "api"),
        ]
    );
    assert_eq!(keys(&manifest["component"]), ["api", "redirect"]);
}

#[test]
fn the_public_redirect_gets_a_database_two_stores_no_token_and_no_network() {
    let manifest = manifest();
    let redirect = &manifest["component"]["redirect"];
    let granted = ["build", "key_value_stores", "source", "sqlite_databases", "variables"];
    assert_eq!(keys(redirect), granted);
    assert_eq!(redirect["sqlite_databases"], Value::from(vec!["default"]));
    assert_eq!(redirect["key_value_stores"], Value::from(vec!["default", "local"]));
    assert_gets(redirect, &REDIRECT_VARIABLES);
}

#[test]
fn the_api_gets_all_variables_and_the_edge_of_its_machine() {
    let manifest = manifest();
    let api = &manifest["component"]["api"];
    let granted = [
        "allowed_outbound_hosts",
        "key_value_stores",
        "source",
        "sqlite_databases",
        "variables",
    ];
    assert_eq!(keys(api), granted);
    assert_eq!(
        api["allowed_outbound_hosts"],
        Value::from(vec!["http://127.0.0.1:{{ edge_port }}"])
    );
    assert_eq!(api["sqlite_databases"], Value::from(vec!["default"]));
    assert_eq!(api["key_value_stores"], Value::from(vec!["default", "local"]));
    assert_gets(api, &API_VARIABLES);
    assert_eq!(keys(&manifest["variables"]), API_VARIABLES);
}

/// The component gets exactly these variables, each under its own name.
#[track_caller]
fn assert_gets(component: &Value, names: &[&str]) {
    assert_eq!(keys(&component["variables"]), names);
    for name in names {
        let source = format!("{{{{ {name} }}}}");
        assert_eq!(component["variables"][name].as_str(), Some(source.as_str()));
    }
}

/// A default means the same as an empty value.
#[test]
fn the_defaults_are_those_of_the_code() {
    let manifest = manifest();
    let default = |name: &str| manifest["variables"][name]["default"].as_str().unwrap().to_owned();
    for secret in ["admin_token", "agent_secret", "proxy_secret"] {
        assert_eq!(manifest["variables"][secret]["secret"].as_bool(), Some(true));
        assert_eq!(default(secret), "");
    }
    assert_eq!(default("shorten_access"), "token");
    assert_eq!(cache::is_on(&default("link_cache")), cache::is_on(""));
    assert_eq!(place::is_remote(&default("database_place")), place::is_remote(""));
    assert_eq!(
        cache::Lifetime::parse(&default("cache_ttl"), &default("cache_stale")),
        cache::Lifetime::parse("", "")
    );
    assert_eq!(edge::port(&default("edge_port")), edge::port(""));
    assert_eq!(
        edge::Lifetime::parse(&default("edge_ttl"), &default("edge_stale")),
        edge::Lifetime::parse("", "")
    );
    assert_eq!(
        secret::Lifetime::parse(&default("secrets_ttl"), ""),
        secret::Lifetime::parse("", "")
    );
    assert_eq!(
        secret::Lifetime::parse("1", &default("secrets_stale")),
        secret::Lifetime::parse("1", "")
    );
}
