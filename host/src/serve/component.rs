//! Loads a component from a file, ready to be instantiated.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use wasmtime::component::{Component, Linker};
use wasmtime_wasi_http::p3::bindings::ServicePre;

use super::precompiled;
use crate::guest::context::Context;

/// Loads a component. Uses its compiled form from the directory `precompiled` or from the engine's cache; otherwise compiles
/// the component.
///
/// # Errors
/// The file cannot be read, is not a component, imports an interface that links-host lacks, or does not serve HTTP. The error
/// names the file.
pub fn load(
    linker: &Linker<Context>,
    id: &str,
    file: &Path,
    precompiled: Option<&Path>,
) -> Result<ServicePre<Context>> {
    let shown = file.display();
    let bytes = std::fs::read(file).with_context(|| format!("Reading the component {shown}"))?;
    let ready = precompiled.and_then(|directory| {
        let ready = precompiled::load(directory, linker.engine(), id, &bytes);
        let problem = match ready {
            Ok(Some(component)) => return Some(component),
            Ok(None) => format!("{} has no matching compiled component", directory.display()),
            Err(error) => format!("{error:#}"),
        };
        tracing::warn!("component {id} is compiled at startup, which takes time and memory: {problem}");
        None
    });
    let component = match ready {
        Some(component) => component,
        None => Component::new(linker.engine(), &bytes)
            .map_err(|error| anyhow!("{error:#}"))
            .with_context(|| format!("{shown} is not a WebAssembly component; build it again, or install it again"))?,
    };
    let pre = linker
        .instantiate_pre(&component)
        .map_err(|error| anyhow!("{error:#}"))
        .with_context(|| {
            format!("{shown} imports an interface that links-host lacks; run it on Spin, or build it without")
        })?;
    ServicePre::new(pre)
        .map_err(|error| anyhow!("{error:#}"))
        .with_context(|| {
            format!("{shown} does not serve HTTP with WASI 0.3.0; build it with spin-sdk 7 and #[http_service]")
        })
}
