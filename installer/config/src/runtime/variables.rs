//! `[[variables_provider]]`, see Spin's crates/runtime-config/src/variables.rs and variables-*.

use super::providers::WEB;
use super::reference::{Origin, PREFIX, file_of, location, path, plain, secret};
use crate::document::{Problem, Value};
use crate::section::Section;
use crate::value::{one_of, string};
use links_base::layout::ADMIN_TOKEN;

// The names of the component's variables that links sets, in the order of the component's manifest.
pub const PUBLIC_URL: &str = "public_url";
pub const SHORTEN_ACCESS: &str = "shorten_access";
pub const ALLOWED_ORIGIN: &str = "allowed_origin";
/// Set from `[sqlite_database.default]` in runtime.toml.
pub const DATABASE_PLACE: &str = "database_place";
/// Set from `[sqlite_database.default]` in runtime.toml.
pub const CHECKPOINTS: &str = "checkpoints";
pub const LINK_CACHE: &str = "link_cache";
pub const CACHE_TTL: &str = "cache_ttl";
pub const CACHE_STALE: &str = "cache_stale";
pub const SECRETS_TTL: &str = "secrets_ttl";
pub const SECRETS_STALE: &str = "secrets_stale";
pub const EDGE_PORT: &str = "edge_port";
pub const EDGE_TTL: &str = "edge_ttl";
pub const EDGE_STALE: &str = "edge_stale";
/// The variables that links.toml sets, with their keys there.
const SET_BY_LINKS_TOML: [(&str, &str); 11] = [
    (PUBLIC_URL, "public_url"),
    (SHORTEN_ACCESS, "shorten.access"),
    (ALLOWED_ORIGIN, "shorten.allowed_origin"),
    (LINK_CACHE, "cache.enabled"),
    (CACHE_TTL, "cache.ttl"),
    (CACHE_STALE, "cache.stale"),
    (SECRETS_TTL, "secrets.ttl"),
    (SECRETS_STALE, "secrets.stale"),
    (EDGE_PORT, "base_port"),
    (EDGE_TTL, "nginx.cache_ttl"),
    (EDGE_STALE, "nginx.cache_stale"),
];

pub fn provider(section: &mut Section<'_, '_>) {
    match section.required("type", one_of(&["static", "env", "vault", "azure_key_vault"])) {
        Some("static") => {
            section.require("values");
            section.section("values", values);
        }
        Some("env") => {
            section.optional("prefix", string);
            section.optional("dotenv_path", path);
        }
        Some("vault") => {
            section.required("url", location(WEB));
            section.required("token", secret);
            section.required("mount", plain);
            section.optional("prefix", plain);
        }
        Some(_) => {
            section.required("vault_url", location(&["https"]));
            section.optional("client_id", plain);
            section.optional("client_secret", secret);
            section.optional("tenant_id", plain);
            section.together(&["client_id", "client_secret", "tenant_id"]);
            section.optional(
                "authority_host",
                one_of(&["AzurePublicCloud", "AzureChina", "AzureGermany", "AzureGovernment"]),
            );
        }
        None => section.accept_unknown(),
    }
}

fn values(section: &mut Section<'_, '_>) {
    for (name, value) in section.entries() {
        if let Err(problem) = variable(name, value) {
            section.refuse(name, value, problem);
        } else if looks_secret(name) && string(value).is_ok_and(|text| Origin::of(text) == Origin::Written) {
            section.document().warning(
                value.span(),
                format!("`{name}` looks like a secret, and everybody on this host can read this file"),
                Some(format!("put it into {} and write \"{PREFIX}{name}\"", file_of(name))),
            );
        }
    }
}

fn variable(name: &str, value: &Value<'_>) -> Result<(), Problem> {
    if let Some((_, key)) = SET_BY_LINKS_TOML.iter().find(|(variable, _)| *variable == name) {
        return Err(Problem::new("is set in links.toml").help(format!("set `{key}` there")));
    }
    if name == DATABASE_PLACE {
        return Err(Problem::new("follows from [sqlite_database.default]").help("remove it"));
    }
    if name == CHECKPOINTS {
        return Err(Problem::new("is set by linksctl").help("remove it"));
    }
    // Spin: crates/expressions/src/lib.rs, Key::validate.
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(Problem::new("is not a valid variable name").help("use lower-case letters, digits and `_`"));
    }
    if name == ADMIN_TOKEN {
        return secret(value);
    }
    string(value).map(|_| ())
}

fn looks_secret(name: &str) -> bool {
    name.split('_')
        .any(|word| matches!(word, "token" | "secret" | "password" | "passphrase" | "key"))
}
