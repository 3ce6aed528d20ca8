//! spin.toml against the code: what it repeats must agree, and what it grants must be what is used.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

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
    let names = ["admin_token", "allowed_origin", "public_url", "shorten_access"];
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
    assert_eq!(manifest["variables"]["admin_token"]["secret"].as_bool(), Some(true));
    assert_eq!(
        manifest["variables"]["shorten_access"]["default"].as_str(),
        Some("token")
    );
}

#[test]
fn grants_one_database_and_nothing_else() {
    let manifest = manifest();
    let component = &manifest["component"]["links"];
    assert_eq!(keys(component), ["build", "source", "sqlite_databases", "variables"]);
    assert_eq!(component["sqlite_databases"], Value::from(vec!["default"]));
}
