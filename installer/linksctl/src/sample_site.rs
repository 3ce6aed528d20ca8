//! `linksctl sample-site`.

use std::io::{self, Write as _};

use anyhow::Context as _;

use links_base::layout::Layout;
use links_config::files::ConfigFiles;
use links_config::load::load_links;
use links_rollout::{Appliance, Stage, peers};

/// Prints the nginx site for this host's configuration.
///
/// # Errors
/// links.toml or the file with the networks of Cloudflare is wrong, or standard output cannot be written.
pub fn print(layout: &Layout, appliance: &Appliance) -> anyhow::Result<()> {
    let config = load_links(&ConfigFiles::new(layout))?;
    let site = appliance
        .edge
        .sample(&config, &peers(appliance, &config, Stage::Final))?;
    io::stdout()
        .write_all(site.as_bytes())
        .context("Writing to standard output")
}
