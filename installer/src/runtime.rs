//! The runtime as a process: how it is called, and whether what it serves answers.

use std::path::Path;

/// Starts the bundle's runtime on a free loopback port with a database of its own, sees `GET /health` answer 200,
/// and stops it again.
///
/// # Errors
/// The runtime exits or does not answer within 30 s; the error holds the last lines that it wrote.
pub fn smoke(bundle: &Path) -> anyhow::Result<()> {
    anyhow::bail!("starting {} to see it answer", bundle.display())
}
