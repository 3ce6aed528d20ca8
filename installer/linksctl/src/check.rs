//! `linksctl check`.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::tls;
use links_base::layout::Layout;
use links_base::services::{OnBehalfOf, Services};
use links_base::{exec, programs};
use links_config::check::check;
use links_config::connectivity::{Connectivity, Tried};
use links_config::files::ConfigFiles;
use links_config::finding::{Finding, Override};
use links_config::links::Config;
use links_config::load::EX_CONFIG;
use links_config::reader::{Disk, Reader};
use links_edge::Edge;
use links_release::sqlite;

/// The exit status if there are no errors. Warnings do not change it.
pub const FINE: u8 = 0;
/// The time limit for asking all servers. links-db asks them at the same time, each for five seconds.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Serialize)]
struct Report<'f> {
    ok: bool,
    errors: usize,
    warnings: usize,
    findings: &'f [Finding],
    /// The values in links.toml.d that replace one of an earlier file. Empty if there are errors.
    overrides: &'f [Override],
    /// The servers that were asked, with `--online`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<&'f [Tried]>,
}

/// Checks the host's configuration, nginx's as far as it concerns links, and, if `online`, the servers that runtime.toml names.
/// Prints the result to standard output, and returns the exit status.
///
/// # Errors
/// The servers cannot be asked, the files of the nginx site cannot be read, or standard output cannot be written.
pub fn run(layout: &Layout, json: bool, online: bool) -> anyhow::Result<u8> {
    let ask: &AskServers = &|| ask_servers(layout);
    let nginx: &AskNginx = &|config| ask_nginx(layout, config);
    let asks = Asks {
        servers: online.then_some(ask),
        // `linksctl up` has an nginx of its own.
        nginx: layout.is_host().then_some(nginx),
    };
    report(layout, &Disk, json, asks, &mut io::stdout().lock())
}

type AskServers<'a> = dyn Fn() -> anyhow::Result<Connectivity> + 'a;
type AskNginx<'a> = dyn Fn(&Config) -> anyhow::Result<Vec<Finding>> + 'a;

/// What to ask besides reading files, if the configuration has no errors.
#[derive(Clone, Copy, Default)]
struct Asks<'a> {
    servers: Option<&'a AskServers<'a>>,
    nginx: Option<&'a AskNginx<'a>>,
}

fn ask_nginx(layout: &Layout, config: &Config) -> anyhow::Result<Vec<Finding>> {
    if !nix::unistd::geteuid().is_root() {
        let finding = Finding::warning("nginx.conf", "not checked: nginx shows its configuration only to root");
        return Ok(vec![finding.help("run this as root to check it too")]);
    }
    Edge::new(layout, Services::of_host(OnBehalfOf::Person)).conflicts(config)
}

/// Runs links-db, because linksctl speaks none of the servers' protocols.
fn ask_servers(layout: &Layout) -> anyhow::Result<Connectivity> {
    let program = programs::path(programs::DATABASE)?;
    let progress = ProgressBar::new_spinner().with_message("asking the servers");
    progress.enable_steady_tick(Duration::from_millis(100));
    let arguments = ["--root".as_ref(), layout.root().as_os_str(), "ask-servers".as_ref()];
    let asked = exec::finish_within(&program.to_string_lossy(), arguments, TIMEOUT);
    progress.finish_and_clear();
    let finished = asked?.with_context(|| format!("asking the servers took longer than {TIMEOUT:?}"))?;
    ensure!(finished.success, "{}", finished.stderr.trim_end());
    serde_json::from_str(&finished.stdout).context("Reading the servers' results")
}

fn report(layout: &Layout, reader: &impl Reader, json: bool, asks: Asks, out: &mut impl Write) -> anyhow::Result<u8> {
    let checked = check(&ConfigFiles::new(layout), reader);
    let mut findings = checked.findings;
    let unsafe_checkpoints = sqlite::observe(layout).and_then(|sqlite| sqlite.warning);
    findings
        .extend(unsafe_checkpoints.map(|warning| Finding::warning(layout.data_dir().display().to_string(), warning)));
    if let Some(loaded) = &checked.loaded {
        findings.extend(tls::findings(layout, &loaded.config.tls));
    }
    if let (Some(ask), Some(loaded)) = (asks.nginx, &checked.loaded) {
        findings.extend(ask(&loaded.config)?);
    }
    let (files, overrides) = match &checked.loaded {
        Some(loaded) => (&*loaded.inputs, &*loaded.overrides),
        None => (&[][..], &[][..]),
    };
    let tried = match (asks.servers, &checked.loaded) {
        (None, _) => None,
        (Some(ask), Some(_)) => {
            let asked = ask()?;
            findings.extend(asked.findings);
            Some(asked.tried)
        }
        (Some(_), None) => {
            let file = layout.runtime_toml().display().to_string();
            findings.push(Finding::warning(
                file,
                "no server was asked: fix the errors above first",
            ));
            None
        }
    };
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let warnings = findings.len() - errors;
    if json {
        let report = Report {
            ok: errors == 0,
            errors,
            warnings,
            findings: &findings,
            overrides,
            tried: tried.as_deref(),
        };
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
        for replacing in overrides {
            writeln!(out, "{replacing}")?;
        }
        for tried in tried.iter().flatten().filter(|tried| tried.answers()) {
            writeln!(out, "{tried}")?;
        }
        if errors == 0 {
            let but = if warnings == 0 { "" } else { ", but see above" };
            let runtime = layout.runtime_toml().display().to_string();
            let files: Vec<_> = files.iter().map(|input| &*input.file).chain([&*runtime]).collect();
            writeln!(out, "the configuration is fine{but}: {}", files.join(", "))?;
        }
    }
    Ok(if errors == 0 { FINE } else { EX_CONFIG })
}

#[cfg(test)]
mod tests;
