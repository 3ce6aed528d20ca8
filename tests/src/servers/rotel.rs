//! Rotel, in a machine.

use anyhow::{Context as _, Result};

use super::unit::Server;
use crate::artifacts::target_directory;
use crate::machine::Machine;

/// The OpenTelemetry collector Rotel, which logs what it has decoded to its unit's journal. The machine's tree must contain
/// libpython3.11.
///
/// # Errors
/// Fails if `rotel` is missing or does not start.
pub fn rotel(machine: &Machine) -> Result<Server<'_>> {
    let program = target_directory().join("servers/rotel");
    machine
        .copy_in(&program, "/usr/local/bin/rotel")
        .context("Copying Rotel, which .ci/servers installs")?;
    let command = "/usr/local/bin/rotel start --exporter blackhole --debug-log metrics --debug-log traces \
                   --debug-log-verbosity detailed --otlp-http-endpoint 127.0.0.1:4318 --otlp-grpc-endpoint 127.0.0.1:4317";
    Server::run(machine, "rotel", 4318, command, "", "")
}
