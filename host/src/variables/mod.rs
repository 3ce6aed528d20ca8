//! Application variables: templates and the providers of their values.

mod environment;
mod provider;
mod template;
mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};

pub use self::environment::Environment;
pub use self::provider::Provider;
use self::template::Part;
pub use self::template::{Template, check_name};
pub use self::vault::Vault;
use crate::bindings::variables::Error;

/// A variable declared in spin.toml. Without a default, a provider must have its value.
#[derive(Debug)]
pub struct Declared {
    pub default: Option<String>,
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
}
