#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use toml::{Table, Value};

use super::{Error, Variables, digest, runtime_config, with_variables};
use crate::credentials::Credentials;
use crate::files::Places;
use crate::links::Config;
use crate::runtime::RuntimeToml;
use crate::telemetry::Exports;
use links_base::layout::Layout;

fn credentials(secrets: &[(&str, &str)]) -> Credentials {
    let mut credentials = Credentials::default();
    for (name, secret) in secrets {
        credentials.insert(*name, *secret);
    }
    credentials
}

fn try_render(runtime: &str, links: &str, secrets: &[(&str, &str)], root: &str) -> Result<String, Error> {
    let runtime = RuntimeToml::parse(runtime, "runtime.toml").unwrap();
    let config = Config::parse(links, "links.toml").unwrap();
    let secrets = credentials(secrets);
    runtime_config(
        &runtime,
        &config,
        &secrets,
        Variables::Own,
        &Places::new(&Layout::new(root)),
    )
}

fn render(runtime: &str, links: &str, secrets: &[(&str, &str)]) -> Table {
    toml::from_str(&try_render(runtime, links, secrets, "/").unwrap()).unwrap()
}

fn paths(runtime: &str, root: &str) -> Table {
    toml::from_str(&try_render(runtime, "", &[], root).unwrap()).unwrap()
}

fn values(provider: &Value) -> Vec<(&str, &str)> {
    let values = provider["values"].as_table().unwrap();
    values
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
        .collect()
}

#[test]
fn the_shipped_files_render_exactly() {
    let shipped = include_str!("../../../../runtime.toml");
    let rendered = try_render(shipped, "", &[("admin_token", "t0k3n")], "/").unwrap();
    let expected = r#"# Written by linksctl from links.toml, runtime.toml and the credentials. Holds secrets: keep it 0600.
log_dir = ""

[key_value_store.default]
path = "/var/lib/links/data/key-value.db"
type = "spin"

[key_value_store.local]
path = "/var/lib/links/data/local.db"
type = "spin"

[sqlite_database.default]
path = "/var/lib/links/data/links.db"
type = "spin"

[[variables_provider]]
type = "static"

[variables_provider.values]
allowed_origin = ""
cache_stale = "86400"
cache_ttl = "60"
checkpoints = "agent"
database_place = "local"
edge_port = "7000"
edge_stale = "600"
edge_ttl = "300"
link_cache = "off"
public_url = ""
secrets_stale = "900"
secrets_ttl = "0"
shorten_access = "token"

[[variables_provider]]
type = "static"

[variables_provider.values]
admin_token = "t0k3n"
"#;
    assert_eq!(rendered, expected);
}

#[test]
fn links_toml_comes_before_the_users_providers_and_the_admin_token_after_them() {
    let runtime = "[[variables_provider]]\ntype = \"vault\"\nurl = \"https://v.example\"\ntoken = \"credential:v\"\nmount = \"m\"\n[[variables_provider]]\ntype = \"env\"";
    let links = "public_url = \"https://s.example.org\"\nshorten = { access = \"open\", allowed_origin = \"https://a.example\" }";
    let table = render(runtime, links, &[("v", "hvs.x"), ("admin_token", "t")]);
    let providers = table["variables_provider"].as_array().unwrap();
    let types: Vec<_> = providers
        .iter()
        .map(|provider| provider["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["static", "vault", "env", "static"]);
    assert_eq!(
        values(&providers[0]),
        [
            ("allowed_origin", "https://a.example"),
            ("cache_stale", "86400"),
            ("cache_ttl", "60"),
            ("checkpoints", "agent"),
            ("database_place", "local"),
            ("edge_port", "7000"),
            ("edge_stale", "600"),
            ("edge_ttl", "300"),
            ("link_cache", "off"),
            ("public_url", "https://s.example.org"),
            ("secrets_stale", "900"),
            ("secrets_ttl", "30"),
            ("shorten_access", "open")
        ]
    );
    assert_eq!(providers[1]["token"].as_str(), Some("hvs.x"));
    assert_eq!(values(&providers[3]), [("admin_token", "t")]);
}

#[test]
fn the_cache_is_on_for_remote_databases_unless_links_toml_overrides_it() {
    let remote = "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"\"";
    for (runtime, links, cache) in [
        ("", "", "off"),
        (remote, "", "on"),
        ("", "cache.enabled = true", "on"),
        (remote, "cache.enabled = false", "off"),
    ] {
        let table = render(runtime, &format!("{links}\ncache.ttl = \"2m\""), &[]);
        let values: Vec<_> = values(&table["variables_provider"][0]);
        assert!(values.contains(&("link_cache", cache)), "{runtime} {links}: {values:?}");
        assert!(values.contains(&("cache_ttl", "120")), "{values:?}");
        let (place, edge_ttl) = if runtime == remote {
            ("remote", "5")
        } else {
            ("local", "300")
        };
        assert!(values.contains(&("edge_ttl", edge_ttl)), "{values:?}");
        assert!(values.contains(&("database_place", place)), "{values:?}");
        let checkpoints = if runtime == remote { "" } else { "agent" };
        assert!(values.contains(&("checkpoints", checkpoints)), "{values:?}");
    }
}

#[test]
fn a_site_that_links_does_not_manage_has_an_edge_port_only_on_request() {
    for (links, port) in [
        ("base_port = 9000\nnginx.cache_ttl = \"7s\"", "9000"),
        ("nginx = { manage = false, cache_ttl = \"7s\" }", "7000"),
        ("nginx.manage = false", "0"),
    ] {
        let table = render("", links, &[]);
        let values = values(&table["variables_provider"][0]);
        assert!(values.contains(&("edge_port", port)), "{links}: {values:?}");
    }
}

#[test]
fn a_missing_admin_token_is_not_rendered_as_an_empty_one() {
    let table = render("", "", &[]);
    assert_eq!(table["variables_provider"].as_array().unwrap().len(), 1);
}

#[test]
fn no_value_can_escape_its_quotes() {
    let runtime = "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"credential:t\"\n[[variables_provider]]\ntype = \"static\"\nvalues = { a = \"credential:t\", b = \"'''\\n[x]\" }";
    for hostile in [
        "\"\ntype = \"spin",
        "'''",
        "\"\"\"",
        "\\",
        "\\\"",
        "a\nb",
        "]\n[[variables_provider]]",
        "\u{0}\u{7f}\u{85}\u{2028}",
        "# not a comment",
        "{{ x }}",
        "credential:t",
        "ünïcode 🔗",
        " ",
        "",
    ] {
        let table = render(runtime, "", &[("t", hostile), ("admin_token", hostile)]);
        let database = table["sqlite_database"]["default"].as_table().unwrap();
        assert_eq!(database["token"].as_str(), Some(hostile));
        assert_eq!(database["type"].as_str(), Some("libsql"));
        let providers = table["variables_provider"].as_array().unwrap();
        assert_eq!(providers.len(), 3);
        assert_eq!(values(&providers[1]), [("a", hostile), ("b", "'''\n[x]")]);
        assert_eq!(values(&providers[2]), [("admin_token", hostile)]);
        assert_eq!(table.len(), 4, "{table:?}");
    }
}

#[test]
fn a_missing_credential_is_named() {
    let runtime = "[key_value_store.c]\ntype = \"redis\"\nurl = \"credential:redis_url\"";
    let error = try_render(runtime, "", &[("admin_token", "t")], "/").unwrap_err();
    assert_eq!(
        error,
        Error::MissingCredential {
            name: "redis_url".to_owned()
        }
    );
    assert!(
        error.to_string().contains("/etc/links/credentials/redis_url"),
        "{error}"
    );
}

#[test]
fn a_variable_is_resolved_only_by_the_supervisor() {
    let runtime = |name: &str| {
        format!("[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"env:{name}\"")
    };
    let own = render(&runtime("CARGO_PKG_NAME"), "", &[]);
    let token = &own["sqlite_database"]["default"]["token"];
    assert_eq!(token.as_str(), Some(std::env!("CARGO_PKG_NAME")));
    let parsed = RuntimeToml::parse(&runtime("NOBODY_SETS_THIS"), "runtime.toml").unwrap();
    let config = Config::parse("", "links.toml").unwrap();
    let of = |variables| {
        runtime_config(
            &parsed,
            &config,
            &credentials(&[]),
            variables,
            &Places::new(&Layout::new("/")),
        )
    };
    let error = of(Variables::Own).unwrap_err().to_string();
    assert!(error.starts_with("the variable `NOBODY_SETS_THIS`, which the configuration asks for, is not set"));
    assert!(of(Variables::Another).unwrap().contains("\"env:NOBODY_SETS_THIS\""));
}

#[test]
fn every_database_is_a_file_below_the_data_directory() {
    for (runtime, label, root, path) in [
        ("", "default", "/", "/var/lib/links/data/links.db"),
        ("", "default", "/srv/x", "/srv/x/var/lib/links/data/links.db"),
        (
            "[sqlite_database.default]\ntype = \"spin\"",
            "default",
            "/",
            "/var/lib/links/data/links.db",
        ),
        (
            "[sqlite_database.default]\ntype = \"spin\"\npath = \"a/b.db\"",
            "default",
            "/",
            "/var/lib/links/data/a/b.db",
        ),
        (
            "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/links/data/b.db\"",
            "default",
            "/srv/x",
            "/srv/x/var/lib/links/data/b.db",
        ),
        (
            "[sqlite_database.default]\ntype = \"spin\"\npath = \"/mnt/b.db\"",
            "default",
            "/srv/x",
            "/mnt/b.db",
        ),
        (
            "[sqlite_database.default]\ntype = \"spin\"\npath = \"/var/lib/linksother/b.db\"",
            "default",
            "/srv/x",
            "/var/lib/linksother/b.db",
        ),
        (
            "[sqlite_database.more]\ntype = \"spin\"",
            "more",
            "/",
            "/var/lib/links/data/more.db",
        ),
        (
            "[sqlite_database.more]\ntype = \"spin\"",
            "default",
            "/",
            "/var/lib/links/data/links.db",
        ),
        (
            "[sqlite_database.\"../x\"]\ntype = \"spin\"",
            "../x",
            "/",
            "/var/lib/links/data/.._x.db",
        ),
    ] {
        let table = paths(runtime, root);
        assert_eq!(
            table["sqlite_database"][label]["path"].as_str(),
            Some(path),
            "{runtime} below {root}"
        );
    }
    let remote = render(
        "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"\"",
        "",
        &[],
    );
    assert!(remote["sqlite_database"]["default"].get("path").is_none());
}

#[test]
fn other_paths_are_resolved_too() {
    let runtime = r#"
        [key_value_store.file]
        type = "spin"
        path = "kv.db"
        [key_value_store.memory]
        type = "spin"
        [[variables_provider]]
        type = "env"
        dotenv_path = "x.env"
        [[client_tls]]
        component_ids = ["links"]
        hosts = ["a.example"]
        ca_roots_file = "/etc/links/roots.pem"
        client_cert_file = "tls/cert.pem"
        client_private_key_file = "/etc/ssl/private/key.pem"
    "#;
    let table = paths(runtime, "/r");
    assert_eq!(
        table["key_value_store"]["file"]["path"].as_str(),
        Some("/r/var/lib/links/data/kv.db")
    );
    assert!(table["key_value_store"]["memory"].get("path").is_none());
    assert_eq!(
        table["variables_provider"][1]["dotenv_path"].as_str(),
        Some("/r/etc/links/x.env")
    );
    let tls = &table["client_tls"][0];
    assert_eq!(tls["ca_roots_file"].as_str(), Some("/r/etc/links/roots.pem"));
    assert_eq!(tls["client_cert_file"].as_str(), Some("/r/etc/links/tls/cert.pem"));
    assert_eq!(
        tls["client_private_key_file"].as_str(),
        Some("/etc/ssl/private/key.pem")
    );
}

#[test]
fn both_stores_exist_and_local_stays_on_this_machine() {
    for (runtime, default) in [
        ("", Some("/srv/x/var/lib/links/data/key-value.db")),
        (
            "[key_value_store.cache]\ntype = \"spin\"",
            Some("/srv/x/var/lib/links/data/key-value.db"),
        ),
        (
            "[key_value_store.default]\ntype = \"spin\"\npath = \"kv.db\"",
            Some("/srv/x/var/lib/links/data/kv.db"),
        ),
        (
            "[key_value_store.default]\ntype = \"redis\"\nurl = \"redis://127.0.0.1\"",
            None,
        ),
    ] {
        let stores = &paths(runtime, "/srv/x")["key_value_store"];
        let place = |label: &str| stores[label].get("path").and_then(Value::as_str);
        assert_eq!(place("default"), default, "{runtime}");
        assert_eq!(stores["local"]["type"].as_str(), Some("spin"), "{runtime}");
        assert_eq!(stores["local"].as_table().map(Table::len), Some(2), "{runtime}");
        assert_eq!(place("local"), Some("/srv/x/var/lib/links/data/local.db"), "{runtime}");
    }
}

#[test]
fn the_digest_changes_with_everything_that_needs_a_restart() {
    let of = |runtime: &str, links: &str, token: &str| {
        let config = Config::parse(links, "links.toml").unwrap();
        let secrets = [("admin_token", token), ("otlp", &format!("key={token}"))];
        let exports = Exports::new(&config, &credentials(&secrets)).unwrap();
        digest(&try_render(runtime, links, &secrets, "/").unwrap(), &config, &exports)
    };
    let before = of(
        "max_instance_memory = 1048576\n[outbound_http]\nconnection_pooling = true",
        "",
        "t",
    );
    assert_eq!(before.len(), 64);
    let same = "# a comment\noutbound_http.connection_pooling = true\nmax_instance_memory = 0x10_0000";
    assert_eq!(
        of(
            same,
            "instances = 3\nrollout.min_healthy = \"5s\"\nnginx.listen = 8080\nmetrics.listen = \"127.0.0.1:9000\"",
            "t"
        ),
        before
    );
    for (links, token) in [
        ("public_url = \"https://s.example.org\"", "t"),
        ("base_port = 7100", "t"),
        ("drain.timeout = \"31s\"", "t"),
        ("health.interval = \"2s\"", "t"),
        ("metrics.listen = \"off\"", "t"),
        ("metrics.otlp_listen = \"127.0.0.1:9000\"", "t"),
        ("telemetry.endpoint = \"http://127.0.0.1:4318\"", "t"),
        ("", "u"),
    ] {
        assert_ne!(of(same, links, token), before, "{links}");
    }
    assert_ne!(of("", "", "t"), before);

    // Headers that only the agent sends count too, because it reads them from a file of the instance.
    let headers = |key: &str| {
        let links = "telemetry = { endpoint = \"http://x.example\", headers = \"credential:otlp\", traces = false }";
        let config = Config::parse(links, "links.toml").unwrap();
        let exports = Exports::new(&config, &credentials(&[("otlp", key)])).unwrap();
        digest("", &config, &exports)
    };
    assert_ne!(headers("key=old"), headers("key=new"));
}

#[test]
fn the_secrets_of_this_boot_come_before_vault() {
    let vault =
        "[[variables_provider]]\ntype = \"vault\"\nurl = \"http://v\"\ntoken = \"credential:vault\"\nmount = \"kv\"\n";
    let rendered = try_render(vault, "", &[("admin_token", "t0k3n"), ("vault", "s3cret")], "/").unwrap();
    let with = with_variables(&rendered, &[("agent_secret", "a"), ("proxy_secret", "")]).unwrap();
    assert!(with.starts_with("# Written by linksctl "), "{with}");
    let mut table: Table = toml::from_str(&with).unwrap();
    let providers = table["variables_provider"].as_array_mut().unwrap();
    let first = providers.remove(0);
    assert_eq!(first["type"].as_str(), Some("static"));
    assert_eq!(values(&first), [("agent_secret", "a"), ("proxy_secret", "")]);
    let rest: Table = toml::from_str(&rendered).unwrap();
    assert_eq!(table, rest, "nothing else changes");
}
