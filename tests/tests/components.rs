//! The components as they are built: what they import from the runtime, and how large they are.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use links_tests::local::spin_toml;
use wit_component::DecodedWasm;

/// A component's bytes, from the file that the manifest names.
fn component(id: &str) -> Result<Vec<u8>> {
    let manifest = spin_toml();
    let table: toml::Table = fs::read_to_string(&manifest)?.parse()?;
    let source = table["component"][id]["source"].as_str().context("no source")?;
    let path = manifest.with_file_name("").join(source);
    fs::read(&path).with_context(|| format!("Reading {} (component/build.sh writes it)", path.display()))
}

/// The interfaces that a component imports, without their versions.
fn imports(id: &str) -> Result<BTreeSet<String>> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(&component(id)?)? else {
        anyhow::bail!("{id} is not a component");
    };
    let imports = resolve.worlds[world].imports.keys();
    let names = imports.map(|key| resolve.name_world_key(key));
    Ok(names
        .map(|name| name.split_once('@').map_or(name.clone(), |(name, _)| name.to_owned()))
        .collect())
}

/// The runtime refuses what is not granted; this asks that the code does not even try. `wasi:http/client` would be outbound
/// requests, `wasi:random/random` would make slugs and salts.
#[test]
fn the_public_redirect_imports_only_what_it_is_granted() -> Result<()> {
    let imports = imports("redirect")?;
    let granted = [
        "spin:key-value/",
        "spin:sqlite/",
        "spin:variables/",
        "wasi:cli/",
        "wasi:clocks/",
        "wasi:http/types",
        "wasi:io/",
        "wasi:random/insecure-seed",
    ];
    for interface in granted {
        let is_imported = imports.iter().any(|import| import.starts_with(interface));
        ensure!(is_imported, "{interface} is not imported any more: {imports:?}");
    }
    let other = imports
        .iter()
        .find(|import| !granted.iter().any(|interface| import.starts_with(interface)));
    ensure!(other.is_none(), "{other:?} is not granted");
    Ok(())
}

#[test]
fn the_api_imports_the_client_for_its_edge() -> Result<()> {
    let imports = imports("api")?;
    ensure!(imports.contains("wasi:http/client"), "{imports:?}");
    let sockets = imports.iter().find(|import| import.starts_with("wasi:sockets/"));
    ensure!(sockets.is_none(), "{sockets:?}");
    Ok(())
}

/// Each instance is compiled from them at import, and each release carries them.
#[test]
fn the_components_do_not_grow_unnoticed() -> Result<()> {
    for (id, most) in [("redirect", 360_000), ("api", 920_000)] {
        let size = component(id)?.len();
        println!("{id}: {size} bytes");
        ensure!(size <= most, "{id} has {size} bytes, more than {most}");
    }
    Ok(())
}
