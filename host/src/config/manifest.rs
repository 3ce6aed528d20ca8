//! Reads spin.toml (manifest version 2) and checks that links-host supports everything in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::toml_error;
use crate::serve::route::Route;
use crate::variables::{Declared, Template, check_name};

/// An application that links-host can serve.
#[derive(Debug)]
pub struct Application {
    pub name: String,
    pub variables: BTreeMap<String, Declared>,
    /// Each route and the id of its component, in the order of spin.toml.
    pub routes: Vec<(Route, String)>,
    /// The components by id. Components without a route are left out.
    pub components: BTreeMap<String, Component>,
}

#[derive(Debug)]
pub struct Component {
    /// The path of the wasm file, absolute or relative to spin.toml.
    pub source: PathBuf,
    pub variables: BTreeMap<String, Template>,
    pub environment: BTreeMap<String, String>,
    pub sqlite_databases: Vec<String>,
    pub key_value_stores: Vec<String>,
    /// Each template becomes a [`crate::outbound::Address`] once its variables are resolved.
    pub allowed_outbound_hosts: Vec<Template>,
}

/// Reads the application from a spin.toml or the directory that contains it. Also returns the directory.
///
/// # Errors
/// The file cannot be read or served. The error names the file.
pub fn load(from: &Path) -> Result<(Application, PathBuf)> {
    let file = if from.is_dir() {
        from.join("spin.toml")
    } else {
        from.to_owned()
    };
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "Reading the application {}; specify its spin.toml with --from",
            file.display()
        )
    })?;
    let application = parse(&text).with_context(|| format!("{} cannot be served", file.display()))?;
    // The parent of a bare file name is the empty path.
    let dir = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok((application, dir.to_owned()))
}

/// Parses the text of a spin.toml.
///
/// # Errors
/// A key is unknown or missing, or the manifest uses a Spin feature that links-host lacks. The error names it.
pub fn parse(text: &str) -> Result<Application> {
    let file: File = toml_error::from_str(text)?;
    ensure!(
        file.spin_manifest_version == 2,
        "spin_manifest_version is {}; links-host supports only version 2",
        file.spin_manifest_version
    );
    let mut variables = BTreeMap::new();
    for (name, variable) in file.variables {
        check_name(&name).with_context(|| format!("in [variables.{name}]"))?;
        variables.insert(
            name.clone(),
            variable.check().with_context(|| format!("in [variables.{name}]"))?,
        );
    }
    let mut routes = Vec::new();
    for trigger in file.trigger.http {
        if let Some(route) = trigger.check()? {
            routes.push(route);
        }
    }
    ensure!(
        !routes.is_empty(),
        "no [[trigger.http]] has a route, so no component could be reached"
    );
    let mut components = BTreeMap::new();
    for (id, component) in file.component {
        let component = component
            .check(&variables)
            .with_context(|| format!("in [component.{id}]"))?;
        components.insert(id, component);
    }
    for (route, id) in &routes {
        ensure!(
            components.contains_key(id),
            "the route {:?} uses the component {id:?}, but there is no [component.{id}]",
            route.raw
        );
    }
    components.retain(|id, _| routes.iter().any(|(_, target)| target == id));
    Ok(Application {
        name: file.application.name,
        variables,
        routes,
        components,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    spin_manifest_version: i64,
    application: Details,
    #[serde(default)]
    variables: BTreeMap<String, Variable>,
    trigger: Triggers,
    #[serde(default)]
    component: BTreeMap<String, RawComponent>,
}

/// The [application] table. Only the name matters at runtime; the rest is for tools and readers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "listed so that misspelt keys are rejected")]
struct Details {
    name: String,
    version: Option<String>,
    description: Option<String>,
    authors: Option<Vec<String>>,
    targets: Option<toml::Value>,
    tool: Option<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(default)]
    required: bool,
    default: Option<String>,
    /// Meant for tools that print values; links-host prints none.
    #[serde(rename = "secret")]
    _secret: Option<bool>,
}

impl Variable {
    fn check(self) -> Result<Declared> {
        match (self.required, self.default) {
            (true, Some(_)) => bail!("a variable is either required or has a default, not both"),
            (false, None) => bail!("a variable needs a default or required = true"),
            (_, default) => Ok(Declared { default }),
        }
    }
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "only [[trigger.http]]: links-host supports no other trigger"
)]
struct Triggers {
    #[serde(default)]
    http: Vec<Trigger>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Trigger {
    #[serde(rename = "id")]
    _id: Option<String>,
    route: RawRoute,
    component: Option<toml::Value>,
    static_response: Option<toml::Value>,
    executor: Option<Executor>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a route is a string or { private = true }")]
enum RawRoute {
    Public(String),
    Private { private: bool },
}

#[derive(Deserialize)]
struct Executor {
    r#type: String,
}

impl Trigger {
    /// Returns the route and its component, or none for a private route.
    fn check(self) -> Result<Option<(Route, String)>> {
        let shown = match &self.route {
            RawRoute::Public(route) => format!("[[trigger.http]] with the route {route:?}"),
            RawRoute::Private { .. } => "a private [[trigger.http]]".to_owned(),
        };
        if self.static_response.is_some() {
            bail!("{shown} has a static_response, which links-host lacks: respond from a component or run it on Spin");
        }
        if let Some(executor) = self.executor.filter(|executor| executor.r#type != "http") {
            bail!(
                "{shown} uses the executor {:?}; links-host supports only \"http\"",
                executor.r#type
            );
        }
        let component = match self.component {
            Some(toml::Value::String(id)) => id,
            Some(_) => bail!("{shown} defines its component inline: move it to a [component.NAME] table"),
            None => bail!("{shown} names no component"),
        };
        match self.route {
            RawRoute::Public(route) => Ok(Some((Route::parse(&route)?, component))),
            RawRoute::Private { private: true } => Ok(None),
            RawRoute::Private { private: false } => bail!("{shown}: a route is a string or {{ private = true }}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawComponent {
    source: toml::Value,
    #[serde(rename = "description")]
    _description: Option<String>,
    #[serde(default)]
    variables: BTreeMap<String, String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    sqlite_databases: Vec<String>,
    #[serde(default)]
    key_value_stores: Vec<String>,
    #[serde(default)]
    allowed_outbound_hosts: Vec<String>,
    #[serde(default)]
    allowed_http_hosts: Vec<String>,
    #[serde(default)]
    ai_models: Vec<String>,
    #[serde(default)]
    files: Vec<toml::Value>,
    #[serde(default)]
    dependencies: toml::Table,
    // Keys for building, and keys that only modify an unsupported feature.
    #[serde(rename = "exclude_files")]
    _exclude_files: Option<Vec<String>>,
    #[serde(rename = "dependencies_inherit_configuration")]
    _dependencies_inherit_configuration: Option<bool>,
    #[serde(rename = "build")]
    _build: Option<toml::Value>,
    #[serde(rename = "targets")]
    _targets: Option<toml::Value>,
    #[serde(rename = "tool")]
    _tool: Option<toml::Value>,
    #[serde(rename = "profile")]
    _profile: Option<toml::Value>,
}

impl RawComponent {
    fn check(self, declared: &BTreeMap<String, Declared>) -> Result<Component> {
        let lacks = [
            (
                "allowed_http_hosts",
                "support for this older name of allowed_outbound_hosts",
                self.allowed_http_hosts.is_empty(),
            ),
            ("ai_models", "AI models", self.ai_models.is_empty()),
            ("files", "files mounted into a component", self.files.is_empty()),
            ("dependencies", "component dependencies", self.dependencies.is_empty()),
        ];
        for (key, what, empty) in lacks {
            ensure!(
                empty,
                "{key} is not empty, but links-host has no {what}: remove it, or run this application on Spin"
            );
        }
        let toml::Value::String(source) = self.source else {
            bail!("source must be the path of a wasm file: links-host downloads no components");
        };
        let mut variables = BTreeMap::new();
        for (name, text) in self.variables {
            check_name(&name)?;
            let template = template(&text, declared).with_context(|| format!("in the variable {name:?}"))?;
            variables.insert(name, template);
        }
        let allowed_outbound_hosts = self.allowed_outbound_hosts.iter();
        let allowed_outbound_hosts = allowed_outbound_hosts
            .map(|text| template(text, declared))
            .collect::<Result<_>>()
            .context("in allowed_outbound_hosts")?;
        Ok(Component {
            source: source.into(),
            variables,
            environment: self.environment,
            sqlite_databases: self.sqlite_databases,
            key_value_stores: self.key_value_stores,
            allowed_outbound_hosts,
        })
    }
}

fn template(text: &str, declared: &BTreeMap<String, Declared>) -> Result<Template> {
    let template = Template::parse(text)?;
    if let Some(unknown) = template.names().find(|name| !declared.contains_key(*name)) {
        bail!("{text:?} uses {{{{ {unknown} }}}}, but there is no [variables.{unknown}]");
    }
    Ok(template)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    const LINKS: &str = r#"
        spin_manifest_version = 2
        [application]
        name = "links"
        version = "1.0.0"
        [variables]
        admin_token = { default = "", secret = true }
        region = { required = true }
        [[trigger.http]]
        route = "/..."
        component = "links"
        [component.links]
        source = "components/links.wasm"
        sqlite_databases = ["default"]
        allowed_outbound_hosts = []
        [component.links.variables]
        admin_token = "{{ admin_token }}"
        [component.links.build]
        command = "cargo build"
    "#;

    /// The error for `LINKS` with `from` replaced by `to`.
    fn refusal(from: &str, to: &str) -> String {
        assert!(LINKS.contains(from), "{from:?} is not in the manifest");
        format!("{:#}", parse(&LINKS.replace(from, to)).unwrap_err())
    }

    #[test]
    fn an_application_is_read() {
        let app = parse(LINKS).unwrap();
        assert_eq!(app.name, "links");
        assert_eq!(app.routes[0].1, "links");
        assert_eq!(app.variables["admin_token"].default.as_deref(), Some(""));
        assert_eq!(app.variables["region"].default, None);
        let component = &app.components["links"];
        assert_eq!(component.source, PathBuf::from("components/links.wasm"));
        assert_eq!(component.sqlite_databases, ["default"]);
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_line() {
        let error = refusal("sqlite_databases =", "sqlite_database =");
        assert!(
            error.contains("`sqlite_database`") && error.contains("`sqlite_databases`"),
            "{error}"
        );
        assert!(error.contains("line 14"), "{error}");
    }

    #[test]
    fn unsupported_features_are_refused_by_name() {
        let error = refusal(
            "allowed_outbound_hosts = []",
            "allowed_http_hosts = ['https://example.com']",
        );
        assert!(
            error.contains("component.links") && error.contains("allowed_http_hosts"),
            "{error}"
        );
        let error = refusal("allowed_outbound_hosts = []", "files = ['assets/**']");
        assert!(error.contains("files is not empty"), "{error}");
        let error = refusal(
            r#"source = "components/links.wasm""#,
            r#"source = { url = "u", digest = "d" }"#,
        );
        assert!(error.contains("downloads no components"), "{error}");
        let error = refusal("[[trigger.http]]", "[[trigger.redis]]");
        assert!(error.contains("`redis`"), "{error}");
        let error = refusal(r#"route = "/...""#, "route = '/...'\nexecutor = { type = 'wagi' }");
        assert!(error.contains("wagi"), "{error}");
        let error = refusal("spin_manifest_version = 2", "spin_manifest_version = 1");
        assert!(error.contains("version 2"), "{error}");
    }

    #[test]
    fn references_must_resolve() {
        let error = refusal(r#"component = "links""#, r#"component = "admin""#);
        assert!(error.contains("[component.admin]"), "{error}");
        let error = refusal("{{ admin_token }}", "{{ admin_tokn }}");
        assert!(error.contains("[variables.admin_tokn]"), "{error}");
        let error = refusal(
            "allowed_outbound_hosts = []",
            "allowed_outbound_hosts = ['http://{{ region }}:{{ port }}']",
        );
        assert!(
            error.contains("allowed_outbound_hosts") && error.contains("[variables.port]"),
            "{error}"
        );
        let error = refusal(r#"route = "/...""#, "route = { private = true }");
        assert!(error.contains("no component could be reached"), "{error}");
    }

    #[test]
    fn a_variable_has_a_default_or_is_required() {
        assert!(refusal("{ required = true }", "{ secret = true }").contains("variables.region"));
        assert!(refusal("{ required = true }", "{ required = true, default = 'x' }").contains("not both"));
    }

    #[test]
    fn a_component_without_a_route_is_not_loaded() {
        let app = parse(&format!("{LINKS}\n[component.other]\nsource = 'missing.wasm'\n")).unwrap();
        assert!(!app.components.contains_key("other"));
    }
}
