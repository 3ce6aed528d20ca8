//! Which crates may depend on which, and which libraries linksctl must not contain.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Each crate, and the crates of this repository that it may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("links-domain", &[]),
    ("links-web", &["links-domain"]),
    ("links-platform", &[]),
    ("links-store", &["links-domain", "links-platform"]),
    (
        "links-redirect",
        &["links-domain", "links-platform", "links-store", "links-web"],
    ),
    (
        "links-api",
        &["links-domain", "links-platform", "links-store", "links-web"],
    ),
    ("links-host", &[]),
    ("links-base", &[]),
    ("links-http", &["links-base"]),
    ("links-config", &["links-base", "links-store"]),
    ("links-release", &["links-base", "links-config", "links-store"]),
    ("links-edge", &["links-base", "links-config"]),
    (
        "links-rollout",
        &["links-base", "links-config", "links-edge", "links-release"],
    ),
    ("links-run", &["links-base", "links-config", "links-release"]),
    (
        "links-db",
        &[
            "links-base",
            "links-config",
            "links-http",
            "links-platform",
            "links-store",
        ],
    ),
    ("links-backup", &["links-base", "links-config", "links-http"]),
    (
        "links-archive",
        &[
            "links-base",
            "links-config",
            "links-edge",
            "links-release",
            "links-rollout",
            "links-store",
        ],
    ),
    ("links-acme", &["links-base", "links-config"]),
    (
        "links-agent",
        &[
            "links-base",
            "links-config",
            "links-db",
            "links-domain",
            "links-release",
            "links-store",
        ],
    ),
    (
        "linksctl",
        &[
            "links-archive",
            "links-base",
            "links-config",
            "links-domain",
            "links-edge",
            "links-release",
            "links-rollout",
        ],
    ),
    ("links-pack", &["links-base", "links-config", "links-release"]),
    ("links-tests", &["links-platform", "links-store"]),
    ("hello", &[]),
];

/// Libraries that linksctl must not contain, because root runs it. Other programs do the work that needs them.
const NOT_IN_LINKSCTL: &[&str] = &[
    "age",
    "hyper",
    "instant-acme",
    "libsqlite3-sys",
    "native-tls",
    "openssl",
    "rcgen",
    "redis",
    "reqwest",
    "rusqlite",
    "rustls",
    "rusty-s3",
    "tokio",
    "ureq",
    "zstd",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a normal dependency; `dev` or `build` otherwise.
    kind: Option<String>,
}

fn cargo(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .output()
        .context("Starting cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// The members of the workspace, and the normal dependencies of each.
fn members() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let arguments = ["metadata", "--format-version=1", "--no-deps", "--locked", "--offline"];
    let metadata: Metadata = serde_json::from_slice(&cargo(&arguments)?)?;
    let members = metadata.packages.into_iter().map(|package| {
        let normal = package
            .dependencies
            .into_iter()
            .filter(|dependency| dependency.kind.is_none());
        (package.name, normal.map(|dependency| dependency.name).collect())
    });
    Ok(members.collect())
}

#[test]
fn crates_depend_only_on_lower_layers() -> Result<()> {
    let members = members()?;
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    for (name, dependencies) in &members {
        let allowed = layers
            .get(name.as_str())
            .with_context(|| format!("LAYERS does not list {name}"))?;
        let internal = dependencies.iter().filter(|name| members.contains_key(*name));
        let upward: Vec<_> = internal.filter(|name| !allowed.contains(&name.as_str())).collect();
        ensure!(upward.is_empty(), "{name} must not depend on {upward:?}");
    }
    ensure!(
        layers.len() == members.len(),
        "LAYERS lists a crate that no longer exists"
    );
    Ok(())
}

#[test]
fn only_the_platform_crate_depends_on_the_spin_sdk() -> Result<()> {
    let members = members()?;
    let users: Vec<_> = members
        .iter()
        .filter(|(_, dependencies)| dependencies.contains("spin-sdk"))
        .map(|(name, _)| name.as_str())
        .collect();
    // hello measures the overhead of the runtime itself.
    assert_eq!(users, ["hello", "links-platform"]);
    Ok(())
}

#[test]
fn linksctl_contains_no_network_or_database_library() -> Result<()> {
    let arguments = [
        "tree",
        "--package=linksctl",
        "--edges=normal",
        "--prefix=none",
        "--locked",
        "--offline",
    ];
    let tree = String::from_utf8(cargo(&arguments)?)?;
    let linked: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(linked.contains("links-base"), "{tree}");
    let found: Vec<_> = NOT_IN_LINKSCTL.iter().filter(|name| linked.contains(*name)).collect();
    ensure!(found.is_empty(), "linksctl contains {found:?}");
    Ok(())
}
