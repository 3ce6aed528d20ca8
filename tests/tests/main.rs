//! The end-to-end tests. They are one program, which compiles once and always has two machines to run at a time; soak.rs and
//! wal.rs are programs of their own, because they measure or depend on timing.

mod acme;
mod appliance;
mod arm64;
mod backup;
mod changes;
mod clicks;
mod components;
mod configuration;
mod containers;
mod crates;
mod debian;
mod disturbances;
mod documents;
mod edge;
mod failures;
mod foreground;
mod https;
mod lab;
mod libsql;
mod metrics;
mod modules;
mod moving;
mod network;
mod proofs;
mod providers;
mod proxies;
mod redis;
mod releasing;
mod repository;
mod rollout;
mod secrets;
mod site;
mod tls;
mod traces;
mod trust;
mod upgrades;
mod vault;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

/// A file that no program includes contains tests that never run.
#[test]
fn every_file_of_tests_is_part_of_a_program() -> Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let manifest = include_str!("../Cargo.toml");
    let listed = |name: &str| {
        include_str!("main.rs")
            .lines()
            .any(|line| line == format!("mod {name};"))
            || manifest.contains(&format!("path = \"tests/{name}.rs\""))
    };
    let mut unlisted = BTreeSet::new();
    for entry in fs::read_dir(tests)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "rs") && !listed(&name) {
            unlisted.insert(name);
        }
    }
    assert_eq!(unlisted, BTreeSet::new(), "tests/tests/main.rs has no `mod` for them");
    Ok(())
}
