//! The other programs of links. They hold what linksctl does without: a database, an HTTP server, TLS.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// Name of the program that supervises one instance.
pub const RUN: &str = "links-run";
/// Name of the program that watches all instances and counts clicks.
pub const AGENT: &str = "links-agent";
/// Name of the program that works on databases.
pub const DATABASE: &str = "links-db";
/// Name of the program that gets certificates.
pub const ACME: &str = "links-acme";
/// Name of the program that compresses, encrypts and transfers backups.
pub const BACKUP: &str = "links-backup";
/// Where the packages put these programs, relative to the directory of linksctl.
const INSTALLED: &str = "../lib/links/bin";

/// The path of a program: beside this one, where cargo puts it, or where the packages install it.
///
/// # Errors
/// The program is in neither place.
pub fn path(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("Looking for this program's own path")?;
    find(own.parent().unwrap_or(Path::new("/")), name)
}

fn find(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let candidates = [directory.join(name), directory.join(INSTALLED).join(name)];
    let found = candidates.iter().find(|path| path.is_file()).cloned();
    found.with_context(|| {
        let searched = candidates.map(|path| path.display().to_string()).join(" and ");
        format!("{name} is missing (searched {searched}); reinstall links")
    })
}

/// Replaces this process by the program (execve(2)). Returns only if that fails.
pub fn become_program<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> anyhow::Error {
    let path = match path(name) {
        Ok(path) => path,
        Err(error) => return error,
    };
    let error = Command::new(&path).args(arguments).exec();
    anyhow::Error::new(error).context(format!("Starting {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_program_is_beside_this_one_or_where_the_packages_install_it() {
        let root = tempfile::tempdir().unwrap();
        let (bin, lib) = (root.path().join("bin"), root.path().join("lib/links/bin"));
        for directory in [&bin, &lib] {
            fs::create_dir_all(directory).unwrap();
        }
        let error = find(&bin, RUN).unwrap_err().to_string();
        assert!(error.contains("links-run is missing"), "{error}");
        fs::write(lib.join(RUN), "").unwrap();
        assert!(find(&bin, RUN).unwrap().ends_with("lib/links/bin/links-run"));
        fs::write(bin.join(RUN), "").unwrap();
        assert_eq!(find(&bin, RUN).unwrap(), bin.join(RUN));
    }
}
