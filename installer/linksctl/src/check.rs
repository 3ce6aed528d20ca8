//! `linksctl check`.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::tls;
use links_base::layout::Layout;
use links_base::{exec, programs};
use links_config::check::check;
use links_config::connectivity::{Connectivity, Tried};
use links_config::files::ConfigFiles;
use links_config::finding::{Finding, Override};
use links_config::load::EX_CONFIG;
use links_config::reader::{Disk, Reader};
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

/// Checks the host's configuration and, if `online`, the servers that it names. Prints the result to standard output, and
/// returns the exit status.
///
/// # Errors
/// The servers cannot be asked, or standard output cannot be written.
pub fn run(layout: &Layout, json: bool, online: bool) -> anyhow::Result<u8> {
    let ask: &dyn Fn() -> anyhow::Result<Connectivity> = &|| ask_servers(layout);
    report(layout, &Disk, json, online.then_some(ask), &mut io::stdout().lock())
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

fn report(
    layout: &Layout,
    reader: &impl Reader,
    json: bool,
    ask: Option<&dyn Fn() -> anyhow::Result<Connectivity>>,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let checked = check(&ConfigFiles::new(layout), reader);
    let mut findings = checked.findings;
    let unsafe_checkpoints = sqlite::observe(layout).and_then(|sqlite| sqlite.warning);
    findings
        .extend(unsafe_checkpoints.map(|warning| Finding::warning(layout.data_dir().display().to_string(), warning)));
    if let Some(loaded) = &checked.loaded {
        findings.extend(tls::findings(layout, &loaded.config.tls));
    }
    let (files, overrides) = match &checked.loaded {
        Some(loaded) => (&*loaded.inputs, &*loaded.overrides),
        None => (&[][..], &[][..]),
    };
    let tried = match (ask, &checked.loaded) {
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
