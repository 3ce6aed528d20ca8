//! The providers of `runtime.toml` that another program answers for, and where the file names each.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value as Toml};

use super::RuntimeToml;
use super::reference::Origin;
use crate::config::credentials::Credentials;
use crate::config::document::{Document, Value};

/// Line and column, both from 1.
pub type Place = (usize, usize);

/// One that is asked over a connection. Holds secrets.
#[derive(Clone)]
pub struct Provider {
    /// As the file names its table: `sqlite_database.default`.
    pub name: String,
    /// Of that table.
    pub place: Place,
    pub service: Service,
}

#[derive(Clone)]
pub enum Service {
    LibSql {
        url: Resolved,
        token: Resolved,
    },
    Redis {
        url: Resolved,
    },
    /// A KV version 2 engine.
    Vault {
        url: Resolved,
        token: Resolved,
        mount: String,
        prefix: Option<String>,
    },
    /// By its `type`. Where it is follows from the other keys, and is never this machine.
    Cloud(String),
    /// Anything else with a URL, by its `type`.
    Other {
        kind: String,
        url: Resolved,
    },
}

pub const WEB: &[&str] = &["https", "http"];
pub const REDIS: &[&str] = &["redis", "rediss", "redis+unix", "unix"];

impl Service {
    /// The URL, and the schemes that it may have.
    pub fn url(&self) -> Option<(&Resolved, &'static [&'static str])> {
        match self {
            Self::LibSql { url, .. } | Self::Vault { url, .. } | Self::Other { url, .. } => Some((url, WEB)),
            Self::Redis { url } => Some((url, REDIS)),
            Self::Cloud(_) => None,
        }
    }
}

/// A value of the file that may stand elsewhere. What is missing there counts as empty.
#[derive(Clone)]
pub struct Resolved {
    pub value: String,
    pub origin: Origin,
}

impl Resolved {
    fn new(text: &str, credentials: &Credentials) -> Self {
        let origin = Origin::of(text);
        let value = match &origin {
            Origin::Written => text.to_owned(),
            Origin::Credential(name) => credentials.get(name).unwrap_or_default().to_owned(),
            // This process's own, which need not be the instances'.
            Origin::Variable(name) => std::env::var(name).unwrap_or_default(),
        };
        Self { value, origin }
    }
}

impl RuntimeToml {
    /// Those that are asked over a connection, in the order of the file. A credential that is missing counts as empty.
    pub fn providers(&self, credentials: &Credentials) -> Vec<Provider> {
        let mut found = Vec::new();
        for key in ["sqlite_database", "key_value_store"] {
            let tables = self.table.get(key).and_then(Toml::as_table);
            for (label, value) in tables.into_iter().flatten() {
                let name = format!("{key}.{label}");
                found.extend(self.provider(name.clone(), &name, value, credentials));
            }
        }
        let list = self.table.get("variables_provider").and_then(Toml::as_array);
        for (index, value) in list.into_iter().flatten().enumerate() {
            let place = numbered("variables_provider", index);
            found.extend(self.provider("variables_provider".to_owned(), &place, value, credentials));
        }
        if let Some(value) = self.table.get("llm_compute") {
            found.extend(self.provider("llm_compute".to_owned(), "llm_compute", value, credentials));
        }
        found.sort_by_key(|provider| provider.place);
        found
    }

    fn provider(&self, name: String, place: &str, value: &Toml, credentials: &Credentials) -> Option<Provider> {
        Some(Provider {
            name,
            place: self.places.get(place).copied().unwrap_or((1, 1)),
            service: service(value.as_table()?, credentials)?,
        })
    }
}

/// None: the runtime itself answers.
fn service(table: &Table, credentials: &Credentials) -> Option<Service> {
    let text = |key: &str| table.get(key).and_then(Toml::as_str);
    let resolved = |key: &str| Resolved::new(text(key).unwrap_or_default(), credentials);
    let plain = |key: &str| text(key).map(|text| Resolved::new(text, credentials).value);
    Some(match text("type")? {
        "libsql" => Service::LibSql {
            url: resolved("url"),
            token: resolved("token"),
        },
        "redis" => Service::Redis { url: resolved("url") },
        "vault" => Service::Vault {
            url: resolved("url"),
            token: resolved("token"),
            mount: plain("mount").unwrap_or_default(),
            prefix: plain("prefix"),
        },
        kind @ ("azure_cosmos" | "aws_dynamo" | "azure_key_vault") => Service::Cloud(kind.to_owned()),
        kind => Service::Other {
            kind: kind.to_owned(),
            url: Resolved::new(text("url")?, credentials),
        },
    })
}

/// Where each table that may be a provider begins.
pub fn places<'t>(document: &Document<'t>, table: &DeTable<'t>) -> BTreeMap<String, Place> {
    let at = |value: &Value<'t>| document.place(value.span().start);
    let mut places = BTreeMap::new();
    for (key, value) in table {
        let key = key.get_ref();
        places.insert(key.to_string(), at(value));
        match value.get_ref() {
            DeValue::Table(inner) => {
                for (label, value) in inner {
                    places.insert(format!("{key}.{}", label.get_ref()), at(value));
                }
            }
            DeValue::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    places.insert(numbered(key, index), at(value));
                }
            }
            _ => {}
        }
    }
    places
}

fn numbered(key: &str, index: usize) -> String {
    format!("{key}[{index}]")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<Provider> {
        let mut credentials = Credentials::default();
        credentials.insert("t", "resolved");
        RuntimeToml::parse(text, "runtime.toml")
            .unwrap()
            .providers(&credentials)
    }

    #[test]
    fn each_is_found_with_its_place_in_the_order_of_the_file() {
        let text = r#"
[[variables_provider]]
type = "vault"
url = "https://v.example"
token = "credential:t"
mount = "secret"
prefix = "links"

[key_value_store.default]
type = "redis"
url = "credential:t"

[sqlite_database.default]
type = "libsql"
url = "https://x.example"
token = ""

[key_value_store.cosmos]
type = "azure_cosmos"
account = "a"
database = "b"
container = "c"

  [[variables_provider]]
  type = "azure_key_vault"
  vault_url = "https://x.example"

[llm_compute]
type = "remote_http"
url = "https://l.example"
auth_token = ""
"#;
        let providers = found(text);
        let told: Vec<_> = providers
            .iter()
            .map(|provider| {
                let service = match &provider.service {
                    Service::LibSql { url, token } => format!("libsql {} {}", url.value, token.value),
                    Service::Redis { url } => format!("redis {} of {:?}", url.value, url.origin),
                    Service::Vault {
                        token, mount, prefix, ..
                    } => format!("vault {} {mount} {prefix:?}", token.value),
                    Service::Cloud(kind) => kind.clone(),
                    Service::Other { kind, url } => format!("{kind} {}", url.value),
                };
                format!("{}:{} {} {service}", provider.place.0, provider.place.1, provider.name)
            })
            .collect();
        assert_eq!(
            told,
            [
                "2:1 variables_provider vault resolved secret Some(\"links\")",
                "9:1 key_value_store.default redis resolved of Credential(\"t\")",
                "13:1 sqlite_database.default libsql https://x.example ",
                "18:1 key_value_store.cosmos azure_cosmos",
                "24:3 variables_provider azure_key_vault",
                "28:1 llm_compute remote_http https://l.example",
            ]
        );
    }

    #[test]
    fn a_variable_is_this_process_s_own() {
        let vault = |name: &str| {
            let text = format!(
                "[[variables_provider]]\ntype = \"vault\"\nurl = \"https://v.example\"\ntoken = \"env:{name}\"\nmount = \"m\""
            );
            let provider = found(&text).remove(0);
            let Service::Vault { token, .. } = provider.service else {
                unreachable!()
            };
            token
        };
        let own = vault("CARGO_PKG_NAME");
        assert_eq!(own.origin, Origin::Variable("CARGO_PKG_NAME".to_owned()));
        assert_eq!(own.value, std::env::var("CARGO_PKG_NAME").unwrap());
        assert_eq!(vault("NOBODY_SETS_THIS").value, "");
    }

    #[test]
    fn what_the_runtime_itself_does_asks_nobody() {
        let own = "[sqlite_database.default]\ntype = \"spin\"\n[key_value_store.a]\ntype = \"spin\"\n\
                   [[variables_provider]]\ntype = \"env\"\n[[variables_provider]]\ntype = \"static\"\nvalues = {}\n\
                   [llm_compute]\ntype = \"spin\"";
        assert!(found(own).is_empty());
        assert!(found("").is_empty());
    }
}
