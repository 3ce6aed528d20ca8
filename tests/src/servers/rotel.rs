//! Rotel, on a host.

use anyhow::{Context as _, Result};

use super::unit::Server;
use crate::artifacts::target_directory;
use crate::host::Host;

/// The OpenTelemetry collector Rotel, which logs what it has decoded to its unit's journal. The host must have the package
/// libpython of its [`Suite::python`](crate::Suite::python).
///
/// # Errors
/// Fails if `rotel` is missing or does not start.
pub fn rotel(host: &Host) -> Result<Server<'_>> {
    let program = target_directory().join(format!("servers/rotel-{}", host.suite().python()));
    host.copy_in(&program, "/usr/local/bin/rotel")
        .context("Copying Rotel, which .ci/servers installs")?;
    let command = "/usr/local/bin/rotel start --exporter blackhole --debug-log metrics --debug-log traces \
                   --debug-log-verbosity detailed --otlp-http-endpoint 127.0.0.1:4318 --otlp-grpc-endpoint 127.0.0.1:4317";
    Server::run(host, "rotel", 4318, command, "", "")
}
