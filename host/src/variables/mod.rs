//! Application variables: templates and the providers of their values.

mod vault;

pub use self::vault::Vault;

use std::collections::{BTreeMap, HashMap};
use std::env::VarError;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};

use crate::bindings::variables::Error;

/// A variable declared in spin.toml. Without a default, a provider must have its value.
#[derive(Debug)]
pub struct Declared {
    pub default: Option<String>,
}

/// A text with `{{ name }}` placeholders.
#[derive(Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Variable(String),
}

impl Template {
    /// # Errors
    /// A `{{` is not closed.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else {
                bail!("{text:?} has a {{{{ without a matching }}}}");
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Variable(name.trim().to_owned()));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The names of the variables in the template.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Variable(name) => Some(name.as_str()),
        })
    }
}

/// Checks a variable name by Spin's rule: lower-case letters, digits and single underscores between them, a letter first.
///
/// # Errors
/// The name is invalid. The error states which part of the rule it breaks.
pub fn check_name(name: &str) -> Result<()> {
    let odd = name
        .chars()
        .find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_'));
    let problem = if let Some(odd) = odd {
        format!("{odd:?} is not a lower-case letter, a digit or an underscore")
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "it must start with a letter".to_owned()
    } else if name.ends_with('_') || name.contains("__") {
        "an underscore must stand alone between other characters".to_owned()
    } else {
        return Ok(());
    };
    bail!("{name:?} is not a valid variable name: {problem}")
}

/// A source of values. If several providers have a variable, the first one wins.
pub enum Provider {
    Static(HashMap<String, String>),
    Environment(Environment),
    Vault(Box<Vault>),
}

/// Omits the values, which may be secrets.
impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Static(values) => f.debug_set().entries(values.keys()).finish(),
            Self::Environment(environment) => write!(f, "{}_*", environment.prefix),
            Self::Vault(vault) => vault.fmt(f),
        }
    }
}

/// The environment variables `PREFIX_NAME`, with those of a dotenv file as a fallback.
pub struct Environment {
    pub prefix: String,
    pub file: HashMap<String, String>,
}

impl Environment {
    pub const DEFAULT_PREFIX: &str = "SPIN_VARIABLE";

    /// As in Spin, the file `dotenv` may be missing.
    ///
    /// # Errors
    /// The dotenv file exists but cannot be read or parsed.
    pub fn load(prefix: Option<String>, dotenv: Option<PathBuf>) -> Result<Self> {
        let mut file = HashMap::new();
        if let Some(path) = dotenv {
            let reading = || format!("Reading {}", path.display());
            match dotenvy::from_path_iter(&path) {
                Ok(entries) => {
                    for entry in entries {
                        let (key, value) = entry.with_context(reading)?;
                        file.insert(key, value);
                    }
                }
                Err(error) if error.not_found() => {}
                Err(error) => return Err(error).with_context(reading),
            }
        }
        Ok(Self {
            prefix: prefix.unwrap_or_else(|| Self::DEFAULT_PREFIX.to_owned()),
            file,
        })
    }

    fn get(&self, name: &str) -> Result<Option<String>> {
        let key = format!("{}_{}", self.prefix, name.to_ascii_uppercase());
        match std::env::var(&key) {
            Ok(value) => Ok(Some(value)),
            Err(VarError::NotPresent) => Ok(self.file.get(&key).cloned()),
            Err(VarError::NotUnicode(_)) => bail!("the environment variable {key} is not UTF-8"),
        }
    }
}

impl Provider {
    async fn get(&self, name: &str) -> Result<Option<String>> {
        match self {
            Self::Static(values) => Ok(values.get(name).cloned()),
            Self::Environment(environment) => environment.get(name),
            Self::Vault(vault) => vault.get(name).await,
        }
    }

    /// Whether the provider may have the variable. Network providers always may, because they are not queried here.
    fn may_have(&self, name: &str) -> bool {
        match self {
            Self::Static(values) => values.contains_key(name),
            Self::Environment(environment) => matches!(environment.get(name), Ok(Some(_))),
            Self::Vault(_) => true,
        }
    }
}

/// The variables of the application.
#[derive(Debug)]
pub struct Variables {
    declared: BTreeMap<String, Declared>,
    providers: Vec<Provider>,
}

impl Variables {
    /// # Errors
    /// No provider has the value of a required variable.
    pub fn new(declared: BTreeMap<String, Declared>, providers: Vec<Provider>) -> Result<Self> {
        let missing: Vec<&str> = declared
            .iter()
            .filter(|(name, variable)| {
                variable.default.is_none() && !providers.iter().any(|provider| provider.may_have(name))
            })
            .map(|(name, _)| name.as_str())
            .collect();
        ensure!(
            missing.is_empty(),
            "no value for required variables: {}; set them in a [[variables_provider]] of the runtime configuration or in \
             the environment as {}_NAME",
            missing.join(", "),
            Environment::DEFAULT_PREFIX
        );
        Ok(Self { declared, providers })
    }

    /// Replaces the variables in a template with their values.
    ///
    /// # Errors
    /// A provider fails, or a variable has no value.
    pub async fn fill_in(&self, template: &Template) -> Result<String, Error> {
        let mut text = String::new();
        for part in &template.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Variable(name) => text.push_str(&self.value(name).await?),
            }
        }
        Ok(text)
    }

    async fn value(&self, name: &str) -> Result<String, Error> {
        for provider in &self.providers {
            match provider.get(name).await {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(error) => return Err(Error::Provider(format!("{error:#}"))),
            }
        }
        let declared = self
            .declared
            .get(name)
            .ok_or_else(|| Error::InvalidName(name.to_owned()))?;
        let missing = || Error::Provider(format!("no provider resolved required variable {name:?}"));
        declared.default.clone().ok_or_else(missing)
    }
}

/// The variables of one component.
#[derive(Debug)]
pub struct ComponentVariables {
    pub component: String,
    pub templates: BTreeMap<String, Template>,
    pub application: Arc<Variables>,
}

impl ComponentVariables {
    pub async fn get(&self, name: &str) -> Result<String, Error> {
        check_name(name).map_err(|error| Error::InvalidName(error.to_string()))?;
        let undefined = || Error::Undefined(format!("no variable for {:?}.{name:?}", self.component));
        let template = self.templates.get(name).ok_or_else(undefined)?;
        self.application.fill_in(template).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    fn provider(values: &[(&str, &str)]) -> Provider {
        Provider::Static(
            values
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    }

    fn declared(variables: &[(&str, Option<&str>)]) -> BTreeMap<String, Declared> {
        let declared = |default: &Option<&str>| Declared {
            default: default.map(str::to_owned),
        };
        variables
            .iter()
            .map(|(name, default)| ((*name).to_owned(), declared(default)))
            .collect()
    }

    fn component(variables: Variables, templates: &[(&str, &str)]) -> ComponentVariables {
        let templates = templates
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Template::parse(text).unwrap()));
        ComponentVariables {
            component: "c".into(),
            templates: templates.collect(),
            application: Arc::new(variables),
        }
    }

    fn get(component: &ComponentVariables, name: &str) -> Result<String, Error> {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(component.get(name))
    }

    #[test]
    fn a_dotenv_file_may_be_missing_but_not_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Environment::load(None, Some(dir.path().join("missing"))).is_ok());
        let file = dir.path().join("file");
        std::fs::write(&file, "SPIN_VARIABLE_A=1\n").unwrap();
        assert!(Environment::load(None, Some(file.clone())).is_ok());
        // Not a directory. Unlike a missing permission, this fails for root as well.
        let error = Environment::load(None, Some(file.join("x"))).err().unwrap();
        assert!(format!("{error:#}").contains("file/x"), "{error:#}");
    }

    #[test]
    fn templates_are_filled_in() {
        let variables = Variables::new(declared(&[("host", Some("h")), ("port", Some("80"))]), vec![]).unwrap();
        let component = component(
            variables,
            &[("url", "http://{{ host }}:{{port}}/"), ("text", "plain"), ("empty", "")],
        );
        assert_eq!(get(&component, "url").unwrap(), "http://h:80/");
        assert_eq!(get(&component, "text").unwrap(), "plain");
        assert_eq!(get(&component, "empty").unwrap(), "");
    }

    #[test]
    fn the_first_provider_wins_and_the_default_comes_last() {
        let providers = vec![provider(&[("a", "one")]), provider(&[("a", "two"), ("b", "two")])];
        let variables = Variables::new(
            declared(&[("a", Some("d")), ("b", Some("d")), ("c", Some("d"))]),
            providers,
        )
        .unwrap();
        let component = component(variables, &[("a", "{{ a }}"), ("b", "{{ b }}"), ("c", "{{ c }}")]);
        assert_eq!(get(&component, "a").unwrap(), "one");
        assert_eq!(get(&component, "b").unwrap(), "two");
        assert_eq!(get(&component, "c").unwrap(), "d");
    }

    #[test]
    fn missing_required_variables_are_reported_at_the_start() {
        assert!(Variables::new(declared(&[("token", None)]), vec![provider(&[("token", "t")])]).is_ok());
        let error = Variables::new(declared(&[("token", None)]), vec![provider(&[])])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("token") && error.contains("variables_provider"),
            "{error}"
        );
    }

    #[test]
    fn a_component_sees_only_its_own_variables() {
        let variables = Variables::new(declared(&[("secret", Some("s"))]), vec![]).unwrap();
        let component = component(variables, &[]);
        assert!(matches!(get(&component, "secret"), Err(Error::Undefined(_))));
        assert!(matches!(get(&component, "Secret"), Err(Error::InvalidName(_))));
    }

    #[test]
    fn names_follow_spins_rule() {
        for good in ["a", "abc", "a1b2", "a_1", "a_1_b"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "aX", "1bc", "_x", "x.y", "x_", "a__b", "x-y"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unclosed_placeholder_is_an_error() {
        assert!(Template::parse("{{ a }} {{ b").is_err());
        assert_eq!(Template::parse("{{ a }}").unwrap().names().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn a_dotenv_file_is_a_fallback_for_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".env");
        std::fs::write(&path, "LINKS_TEST_ONLY_IN_FILE=\"from file\"\n").unwrap();
        let environment = Environment::load(Some("LINKS_TEST".into()), Some(path)).unwrap();
        assert_eq!(environment.get("only_in_file").unwrap().as_deref(), Some("from file"));
        assert_eq!(environment.get("nowhere").unwrap(), None);
        assert!(
            Environment::load(None, Some(dir.path().join("missing")))
                .unwrap()
                .file
                .is_empty()
        );
    }
}
