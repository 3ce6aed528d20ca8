//! What the components import from the runtime, and how large they are in the packages.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use links_tests::Artifacts;
use links_tests::local::spin_toml;
use wit_component::DecodedWasm;

/// The bytes of a component, from the file that the manifest names.
fn component(id: &str) -> Result<Vec<u8>> {
    let manifest = spin_toml();
    let table: toml::Table = fs::read_to_string(&manifest)?.parse()?;
    let source = table["component"][id]["source"]
        .as_str()
        .context("the manifest names no source")?;
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

/// The runtime refuses interfaces that are not granted. This test checks that the code does not even import them. With
/// `wasi:http/client` it could send requests, with `wasi:random/random` it could create slugs and salts.
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
    ];
    for interface in granted {
        let is_imported = imports.iter().any(|import| import.starts_with(interface));
        ensure!(is_imported, "{interface} is no longer imported: {imports:?}");
    }
    let other = imports
        .iter()
        .find(|import| !granted.iter().any(|interface| import.starts_with(interface)));
    ensure!(other.is_none(), "the import {other:?} is not granted");
    Ok(())
}

#[test]
fn the_api_imports_the_http_client_but_no_sockets() -> Result<()> {
    let imports = imports("api")?;
    ensure!(imports.contains("wasi:http/client"), "no HTTP client: {imports:?}");
    let sockets = imports.iter().find(|import| import.starts_with("wasi:sockets/"));
    ensure!(sockets.is_none(), "the api imports {sockets:?}");
    Ok(())
}

/// Each release contains the components, and importing one compiles them.
#[test]
fn the_components_stay_below_their_size_limits() -> Result<()> {
    let packages = Artifacts::find()?;
    for (id, limit) in [("redirect", 204_800), ("api", 512_000)] {
        let size = packages.size_of(&format!("components/{id}.wasm"))?;
        println!("{id}: {size} bytes");
        ensure!(size <= limit, "{id} has {size} bytes; the limit is {limit}");
    }
    Ok(())
}
