//! The application manifest of a bundle, made from component/spin.toml: every component's file is in `components/`, and nothing
//! is left to build.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use toml_edit::{DocumentMut, Item, TableLike};

use links_base::files;

/// An application manifest that is ready for a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// The rewritten spin.toml.
    pub manifest: String,
    pub components: Vec<Component>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    pub id: String,
    /// The file that the manifest names, relative to the manifest's directory.
    pub source: PathBuf,
}

impl Component {
    /// The path in the bundle.
    pub fn path(&self) -> String {
        component_path(&self.id)
    }
}

fn component_path(id: &str) -> String {
    format!("components/{id}.wasm")
}

/// Points every component to its file in the bundle and drops its `build` table. Comments stay.
///
/// # Errors
/// Fails if the text is not TOML, if it has no component, or if a component needs anything besides one local file, because a
/// bundle contains nothing else.
pub fn rewrite(text: &str) -> anyhow::Result<App> {
    let mut document: DocumentMut = text.parse()?;
    refuse_inline_components(&document)?;
    let tables = document
        .get_mut("component")
        .and_then(Item::as_table_like_mut)
        .context("no [component.NAME] table")?;
    let mut components = Vec::new();
    for (key, item) in tables.iter_mut() {
        let id = key.get().to_owned();
        let component = item
            .as_table_like_mut()
            .with_context(|| format!("component.{id} is not a table"))?;
        components.push(rewrite_component(&id, component)?);
    }
    anyhow::ensure!(!components.is_empty(), "no [component.NAME] table");
    Ok(App {
        manifest: document.to_string(),
        components,
    })
}

fn rewrite_component(id: &str, component: &mut dyn TableLike) -> anyhow::Result<Component> {
    // Version 2 of Spin's manifest has identifiers in kebab case. Here they become file names as well.
    anyhow::ensure!(
        id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
        "component.{id}: the name of a component must consist of letters, digits and hyphens, and start with a letter"
    );
    // Assets and dependencies by path would name files that the bundle does not contain.
    anyhow::ensure!(
        component.get("files").is_none(),
        "component.{id}.files: a bundle cannot contain asset files; compile them into the component"
    );
    anyhow::ensure!(
        !has_path_dependency(component),
        "component.{id}.dependencies: a bundle cannot contain dependencies by path; compose them into the component"
    );
    let source = component
        .get("source")
        .with_context(|| format!("component.{id}.source is missing"))?
        .as_str()
        .with_context(|| format!("component.{id}.source must be the path of a local .wasm file"))?
        .to_owned();
    component.remove("build");
    component.insert("source", toml_edit::value(component_path(id)));
    Ok(Component {
        id: id.to_owned(),
        source: PathBuf::from(source),
    })
}

fn has_path_dependency(component: &dyn TableLike) -> bool {
    component
        .get("dependencies")
        .and_then(Item::as_table_like)
        .is_some_and(|dependencies| {
            dependencies
                .iter()
                .any(|(_, item)| item.as_table_like().is_some_and(|table| table.contains_key("path")))
        })
}

/// Refuses components that are defined inside a trigger. Spin accepts them, but their files would be missing from the bundle.
fn refuse_inline_components(document: &DocumentMut) -> anyhow::Result<()> {
    let triggers = document.get("trigger").and_then(Item::as_table_like);
    for (kind, item) in triggers.iter().flat_map(|table| table.iter()) {
        for trigger in item.as_array_of_tables().into_iter().flatten() {
            anyhow::ensure!(
                trigger.get("component").is_none_or(Item::is_str),
                "trigger.{kind}: give the component a [component.NAME] table of its own and name it here"
            );
        }
    }
    Ok(())
}

/// The version of the tables that the scripts in `store/sql/` beside the application manifest lead to. It is the highest number
/// at the start of a file name `NNNN_*.sql`, or 0 if there are no such files.
///
/// # Errors
/// Fails if the directory cannot be read.
pub fn schema_version(manifest: &Path) -> anyhow::Result<u32> {
    let directory = manifest.with_file_name("store").join("sql");
    let names = files::list(&directory).with_context(|| format!("Reading {}", directory.display()))?;
    Ok(names.iter().filter_map(|name| script_number(name)).max().unwrap_or(0))
}

fn script_number(name: &str) -> Option<u32> {
    let (number, _) = name.strip_suffix(".sql")?.split_once('_')?;
    (number.len() == 4).then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"spin_manifest_version = 2

[application]
name = "links"

[[trigger.http]]
route = "/..."
component = "links"

# The public side.
[component.links]
source = "../target/components/wasi-0.3.0/links.wasm" # built by build.sh
sqlite_databases = ["default"]
[component.links.variables]
admin_token = "{{ admin_token }}"
[component.links.build]
command = "./build.sh"

[component.admin]
source = "admin.wasm"
"#;

    #[test]
    fn sources_point_into_the_bundle_and_build_tables_are_removed() {
        let app = rewrite(MANIFEST).unwrap();
        let table: DocumentMut = app.manifest.parse().unwrap();
        assert_eq!(
            table["component"]["links"]["source"].as_str(),
            Some("components/links.wasm")
        );
        assert_eq!(
            table["component"]["admin"]["source"].as_str(),
            Some("components/admin.wasm")
        );
        assert!(table["component"]["links"].get("build").is_none(), "{}", app.manifest);
        assert!(!app.manifest.contains("build.sh\""), "{}", app.manifest);
        assert!(app.manifest.contains("# The public side."));
        assert_eq!(
            table["component"]["links"]["sqlite_databases"][0].as_str(),
            Some("default")
        );
        assert_eq!(
            table["component"]["links"]["variables"]["admin_token"].as_str(),
            Some("{{ admin_token }}")
        );
        let found: Vec<_> = app
            .components
            .iter()
            .map(|c| (c.id.as_str(), c.source.to_str().unwrap(), c.path()))
            .collect();
        assert_eq!(
            found,
            [
                (
                    "links",
                    "../target/components/wasi-0.3.0/links.wasm",
                    "components/links.wasm".to_owned()
                ),
                ("admin", "admin.wasm", "components/admin.wasm".to_owned())
            ]
        );
    }

    #[test]
    fn errors_name_what_a_bundle_cannot_contain() {
        let cases = [
            (
                "[component.a]\nsource = { url = 'u', digest = 'd' }",
                "component.a.source",
            ),
            ("[component.a]\nfiles = ['x']\nsource = 'a.wasm'", "component.a.files"),
            (
                "[component.a]\nsource = 'a.wasm'\n[component.a.dependencies]\n'x:y/z' = { path = 'b.wasm' }",
                "component.a.dependencies",
            ),
            ("[component.'../a']\nsource = 'a.wasm'", "component.../a"),
            (
                "[[trigger.http]]\ncomponent = { source = 'a.wasm' }\n[component.a]\nsource='a'",
                "trigger.http",
            ),
            ("[component.a]\n", "component.a.source"),
            ("[application]\nname = 'x'", "[component.NAME]"),
            ("[component", "component"),
        ];
        for (text, named) in cases {
            let error = rewrite(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn the_version_of_the_tables_is_the_number_of_the_last_script() {
        let app = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../component/spin.toml"));
        assert_eq!(schema_version(app).unwrap() as usize, links_store::schema::SCHEMA.len());
        assert_eq!(schema_version(Path::new("/nowhere/spin.toml")).unwrap(), 0);
        assert_eq!(script_number("0012_add.sql"), Some(12));
        assert_eq!(script_number("find_link.sql"), None);
    }
}
