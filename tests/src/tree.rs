//! Debian trees to boot. Each is made once, kept in the user's cache, and never written to afterwards.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::{cache, process};

const SUITE: &str = "bookworm";
/// Packages that the tree contains in addition to the minimal system.
const INSTALLED: &str = "systemd,systemd-sysv,dbus,init-system-helpers,ca-certificates,curl,iproute2,procps";
/// The package that the tree holds ready with its dependencies, so that apt can install it without a network.
const DOWNLOADED: &str = "nginx";

const MAKE_TREE: &str = include_str!("../lab/make-tree.sh");
const INSTALL_LAYER: &str = include_str!("../lab/install-layer.sh");

/// Read-only directories that a machine boots from, the topmost layer first.
#[derive(Clone, Debug)]
pub struct Tree {
    layers: Vec<PathBuf>,
}

impl Tree {
    /// Debian 12 without nginx. apt can install nginx offline.
    ///
    /// The first call on a machine takes a minute or two, and needs the archive that the machine's apt uses.
    ///
    /// # Errors
    /// Fails if the caller is not root, if a needed command is missing, or if debootstrap fails; then the error names the log.
    pub fn plain() -> Result<Self> {
        process::require(&[
            ("debootstrap", "debootstrap"),
            ("unshare", "util-linux"),
            ("ip", "iproute2"),
        ])?;
        let layer = cached(&[SUITE, INSTALLED, DOWNLOADED, MAKE_TREE], |temporary| {
            let mut script = process::isolated(&["--mount", "--pid"], MAKE_TREE);
            script.arg(temporary).args([SUITE, INSTALLED, DOWNLOADED]);
            script
        })?;
        Ok(Self { layers: vec![layer] })
    }

    /// This tree with nginx installed and enabled. nginx's default site listens on port 80.
    ///
    /// # Errors
    /// Fails as [`Self::plain`] does.
    pub fn with_nginx(self) -> Result<Self> {
        self.with(Source::Tree, &["nginx"])
    }

    /// This tree with further Debian packages, from the archive that this computer's apt uses.
    ///
    /// # Errors
    /// Fails as [`Self::plain`] does.
    pub fn with_packages(self, packages: &[&str]) -> Result<Self> {
        self.with(Source::Network, packages)
    }

    fn with(self, source: Source, packages: &[&str]) -> Result<Self> {
        let lower = self.overlay_lower();
        let (key, packages_key) = (lower.to_string_lossy(), packages.join(" "));
        let layer = cached(&[&key, source.name(), &packages_key, INSTALL_LAYER], |temporary| {
            let mut script = process::isolated(source.namespaces(), INSTALL_LAYER);
            script.arg(temporary).arg(&lower).arg(source.name()).args(packages);
            script
        })?;
        Ok(Self {
            layers: [vec![layer], self.layers].concat(),
        })
    }

    /// The layers in the syntax of overlayfs's `lowerdir`.
    pub(crate) fn overlay_lower(&self) -> OsString {
        let layers: Vec<_> = self.layers.iter().map(|layer| layer.as_os_str()).collect();
        layers.join(":".as_ref())
    }
}

/// Where a layer's packages come from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The packages that the tree below holds ready.
    Tree,
    /// The archive that the machine's apt uses.
    Network,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Network => "network",
        }
    }

    fn namespaces(self) -> &'static [&'static str] {
        match self {
            Self::Tree => &["--mount", "--pid", "--net"],
            Self::Network => &["--mount", "--pid"],
        }
    }
}

/// A cached directory that `make` fills. It is made again whenever one of `inputs` changes.
///
/// The command that `make` returns must create the directory at the given path. When it has succeeded, that directory
/// moves into the cache.
fn cached(inputs: &[&str], make: impl FnOnce(&Path) -> Command) -> Result<PathBuf> {
    let directory = cache::directory()?;
    let key = inputs
        .iter()
        .fold(Sha256::new(), |hash, input| hash.chain_update(input).chain_update([0]))
        .finalize();
    let key: String = key.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let made = directory.join(format!("tree-{key}"));
    if made.exists() {
        return Ok(made);
    }

    let _lock = cache::lock(&directory.join(format!("tree-{key}.lock")))?;
    if made.exists() {
        return Ok(made);
    }
    let temporary = directory.join(format!("tree-{key}.making"));
    if temporary.exists() {
        fs::remove_dir_all(&temporary).with_context(|| format!("Removing {}", temporary.display()))?;
    }
    eprintln!("lab: making {} (once; a minute or two)", made.display());
    let begin = Instant::now();
    let log = directory.join(format!("tree-{key}.log"));
    let status = process::run_logged(&mut make(&temporary), &log)?;
    ensure!(
        status.success(),
        "making the lab's Debian tree failed ({status}); the end of {}:\n{}",
        log.display(),
        process::tail(&log)
    );
    fs::rename(&temporary, &made).with_context(|| format!("Renaming {}", temporary.display()))?;
    eprintln!("lab: made in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(made)
}
