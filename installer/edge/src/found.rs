//! What is found on the host before the site changes: whether nginx runs, what it reads, and the files of the site.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::conf::Conf;
use crate::nginx::Http2;
use crate::plan::{Files, Found};
use crate::record::{Record, State};
use crate::reload::UNIT;
use links_base::exec;
use links_base::layout;
use links_base::services::Services;

/// The maximum number of lines of nginx's error output that are quoted.
pub const ERROR_LINES: usize = 8;

/// Whether nginx runs, and so how it gets its new configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// It runs and has to be reloaded.
    Yes,
    /// It failed to start, and may start once the cause is gone.
    Failed,
    /// It was stopped on purpose.
    Stopped,
    /// systemd does not run here, as in a chroot or an image build.
    Never,
}

impl Running {
    /// # Errors
    /// systemctl is missing.
    pub fn of(services: Services) -> anyhow::Result<Self> {
        if !services.running() {
            return Ok(Self::Never);
        }
        let states = services.states(&[UNIT.to_owned()])?;
        Ok(match states.first().map(String::as_str) {
            Some("active" | "activating" | "reloading" | "deactivating") => Self::Yes,
            Some("failed") => Self::Failed,
            _ => Self::Stopped,
        })
    }
}

/// nginx's verdict on its current configuration.
pub enum Answer {
    Accepted { conf: Conf, took: Duration },
    Refused(String),
}

/// Asks nginx for its configuration.
///
/// # Errors
/// nginx is not installed, or does not run.
pub fn ask_nginx() -> anyhow::Result<Answer> {
    if exec::find("nginx").is_none() {
        bail!("nginx is not installed, so no request reaches links: install it (`apt-get install nginx`)");
    }
    let begun = Instant::now();
    let dump = exec::finish("nginx", ["-T", "-q"])?;
    Ok(match Conf::read(&dump.stdout).filter(|_| dump.success) {
        Some(conf) => Answer::Accepted {
            conf,
            took: begun.elapsed(),
        },
        None => Answer::Refused(exec::tail(&dump.stderr, ERROR_LINES)),
    })
}

/// How the installed nginx is told to speak HTTP/2.
///
/// # Errors
/// nginx does not run.
pub fn http2() -> anyhow::Result<Http2> {
    Ok(Http2::of(&exec::finish("nginx", ["-V"])?.stderr))
}

/// nginx's configuration. `None` if the user may not read it or nginx refuses it.
pub fn conf() -> Option<Conf> {
    match ask_nginx() {
        Ok(Answer::Accepted { conf, .. }) => Some(conf),
        Ok(Answer::Refused(_)) | Err(_) => None,
    }
}

/// The current state of the files.
///
/// # Errors
/// A file cannot be read.
pub fn find(files: &Files, record: &Record) -> anyhow::Result<Found> {
    Ok(Found {
        has_sites: files.available.parent().is_some_and(Path::is_dir),
        available: State::of(&files.available)?,
        enabled: State::of(&files.enabled)?,
        conf_d: State::of(&files.conf_d)?,
        default: State::of(&files.default_enabled)?,
        default_is_pristine: default_is_pristine(files)?,
        default_is_available: files.default_available.exists(),
        parked: State::of(&files.parked)?,
        replaced: State::of(&files.replaced)?,
        written: record.written.clone(),
    })
}

/// Whether instances are supposed to answer now.
///
/// # Errors
/// systemctl is missing.
pub fn is_live(services: Services) -> anyhow::Result<bool> {
    services.is_active(layout::SERVICE)
}

/// Whether Debian's default site has the contents that its package installed.
fn default_is_pristine(files: &Files) -> anyhow::Result<bool> {
    let path = &files.default_available;
    if exec::find("dpkg-query").is_none() || fs::canonicalize(&files.default_enabled).ok().as_ref() != Some(path) {
        return Ok(false);
    }
    let conffiles = exec::finish("dpkg-query", ["--show", "--showformat=${Conffiles}\n", "nginx-common"])?.stdout;
    let sum = exec::run("md5sum", [path])?;
    Ok(lists_conffile(
        &conffiles,
        path,
        sum.split_whitespace().next().unwrap_or_default(),
    ))
}

/// Whether dpkg's list of conffiles has the path with this digest. Each line is a path and its digest (dpkg-query(1)).
fn lists_conffile(conffiles: &str, path: &Path, md5: &str) -> bool {
    conffiles.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next().map(Path::new) == Some(path) && words.next() == Some(md5)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conffile_is_pristine_with_the_digest_that_dpkg_has() {
        let listed = "\n /etc/nginx/sites-available/default abc\n /etc/nginx/nginx.conf def\n";
        let path = Path::new("/etc/nginx/sites-available/default");
        assert!(lists_conffile(listed, path, "abc"));
        assert!(!lists_conffile(listed, path, "def"));
        assert!(!lists_conffile("", path, ""));
    }
}
