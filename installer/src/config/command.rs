//! `linksctl check`.

use std::io::{self, Write};

use serde::Serialize;

use super::check::check;
use super::finding::Finding;
use super::reader::{Disk, Reader};
use crate::layout::Layout;
use crate::online::{self, Tried};
use crate::sqlite;

/// Exit status where nothing is wrong, warnings aside.
pub const FINE: u8 = 0;
/// Exit status where the configuration is wrong: `EX_CONFIG` of sysexits.h.
pub const WRONG: u8 = 78;

#[derive(Serialize)]
struct Report<'f> {
    ok: bool,
    errors: usize,
    warnings: usize,
    findings: &'f [Finding],
    /// With `--online`: whom was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<&'f [Tried]>,
}

/// Looks at the host's configuration, and at the servers that it names where `online` says so; prints to standard output,
/// and gives the exit status.
///
/// # Errors
/// Standard output cannot be written.
pub fn check_command(layout: &Layout, json: bool, online: bool) -> io::Result<u8> {
    run(layout, &Disk, json, online, &mut io::stdout().lock())
}

fn run(layout: &Layout, reader: &impl Reader, json: bool, online: bool, out: &mut impl Write) -> io::Result<u8> {
    let checked = check(layout, reader);
    let mut findings = checked.findings;
    let unsafe_checkpoints = sqlite::observe(layout).and_then(|sqlite| sqlite.warning);
    findings
        .extend(unsafe_checkpoints.map(|warning| Finding::warning(layout.data_dir().display().to_string(), warning)));
    let tried = match checked.loaded {
        _ if !online => None,
        Some(loaded) => Some(online::try_all(&loaded, layout, &mut findings)),
        None => {
            let file = layout.runtime_toml().display().to_string();
            findings.push(Finding::warning(file, "no server was asked: see above first"));
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
            tried: tried.as_deref(),
        };
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
        for tried in tried.iter().flatten().filter(|tried| tried.answers()) {
            writeln!(out, "{tried}")?;
        }
        if errors == 0 {
            let but = if warnings == 0 { "" } else { ", but see above" };
            let (links, runtime) = (layout.links_toml(), layout.runtime_toml());
            writeln!(
                out,
                "the configuration is fine{but}: {}, {}",
                links.display(),
                runtime.display()
            )?;
        }
    }
    Ok(if errors == 0 { FINE } else { WRONG })
}

#[cfg(test)]
mod tests;
