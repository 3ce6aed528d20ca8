//! The providers in `runtime.toml` that are other programs, and their positions in the file.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value as Toml};

use super::file::{Place, RuntimeToml};
use super::reference::Origin;
use crate::credentials::Credentials;
use crate::document::{Document, Value};

/// A provider that is reached over a connection. Holds secrets.
#[derive(Clone)]
pub struct Provider {
    /// The name of its table in the file, such as `sqlite_database.default`.
    pub name: String,
    /// The position of that table.
    pub place: Place,
    pub service: Service,
}

/// The service behind a provider.
#[derive(Clone)]
pub enum Service {
    LibSql {
        url: Resolved,
        token: Resolved,
    },
    Redis {
        url: Resolved,
    },
    /// A secrets engine of Vault, KV version 2.
    Vault {
        url: Resolved,
        token: Resolved,
        mount: String,
        prefix: Option<String>,
    },
    /// A cloud service, with its `type`. It is never on this machine.
    Cloud(String),
    /// Any other provider with a URL, with its `type`.
    Other {
        kind: String,
        url: Resolved,
    },
}

/// The schemes of HTTP services.
pub const WEB: &[&str] = &["https", "http"];
/// The schemes of Redis.
pub const REDIS: &[&str] = &["redis", "rediss", "redis+unix", "unix"];

impl Service {
    /// The URL, and its allowed schemes.
    pub fn url(&self) -> Option<(&Resolved, &'static [&'static str])> {
        match self {
            Self::LibSql { url, .. } | Self::Vault { url, .. } | Self::Other { url, .. } => Some((url, WEB)),
            Self::Redis { url } => Some((url, REDIS)),
            Self::Cloud(_) => None,
        }
    }
}

/// A value in the file, with its reference resolved. It is empty if the credential or variable is missing.
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
            // From this process's environment, which may differ from that of the instances.
            Origin::Variable(name) => std::env::var(name).unwrap_or_default(),
        };
        Self { value, origin }
    }
}

impl RuntimeToml {
    /// The providers that are reached over a connection, in the order of the file. A missing credential counts as empty.
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

/// The service of a provider. `None` if the provider is the runtime itself.
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

/// The position of each table that may be a provider.
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

    fn providers(text: &str) -> Vec<Provider> {
        let mut credentials = Credentials::default();
        credentials.insert("t", "resolved");
        RuntimeToml::parse(text, "runtime.toml")
            .unwrap()
            .providers(&credentials)
    }

    #[test]
    fn providers_have_a_position_and_are_in_the_order_of_the_file() {
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
        let providers = providers(text);
        let described: Vec<_> = providers
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
            described,
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
    fn variables_come_from_this_process() {
        let vault = |name: &str| {
            let text = format!(
                "[[variables_provider]]\ntype = \"vault\"\nurl = \"https://v.example\"\ntoken = \"env:{name}\"\nmount = \"m\""
            );
            let provider = providers(&text).remove(0);
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
    fn the_runtime_itself_is_not_a_provider() {
        let own = "[sqlite_database.default]\ntype = \"spin\"\n[key_value_store.a]\ntype = \"spin\"\n\
                   [[variables_provider]]\ntype = \"env\"\n[[variables_provider]]\ntype = \"static\"\nvalues = {}\n\
                   [llm_compute]\ntype = \"spin\"";
        assert!(providers(own).is_empty());
        assert!(providers("").is_empty());
    }
}
