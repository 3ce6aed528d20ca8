//! Debian trees to boot. Each is made once, kept in the user's cache, and never written to afterwards.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::suite::Suite;
use crate::{cache, process};

/// The directory of the scripts that make trees and layers. Each explains itself.
const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/lab");

/// Read-only directories that a machine boots from, the topmost layer first.
#[derive(Clone, Debug)]
pub struct Tree {
    suite: Suite,
    layers: Vec<PathBuf>,
}

impl Tree {
    /// A minimal Debian without nginx. apt can install nginx offline.
    ///
    /// The first call on a machine takes a minute or two, and needs the archive that the machine's apt uses.
    ///
    /// # Errors
    /// Fails if the caller is not root, if a needed command is missing, or if the tree cannot be made; then the error contains
    /// the end of the log.
    pub fn plain(suite: Suite) -> Result<Self> {
        process::require(&[
            ("mmdebstrap", "mmdebstrap"),
            ("unshare", "util-linux"),
            ("ip", "iproute2"),
        ])?;
        let layer = cached("mount,pid", "make-tree.sh", [suite.name()])?;
        Ok(Self {
            suite,
            layers: vec![layer],
        })
    }

    /// This tree with nginx installed and enabled. nginx's default site listens on port 80.
    ///
    /// # Errors
    /// Fails as [`Self::plain`] does.
    pub fn with_nginx(self) -> Result<Self> {
        self.with_layer("mount,pid,net", "install-layer.sh", &["tree", "nginx"])
    }

    /// This tree with further Debian packages, from the archive that this computer's apt uses.
    ///
    /// # Errors
    /// Fails as [`Self::plain`] does.
    pub fn with_packages(self, packages: &[&str]) -> Result<Self> {
        self.with_layer("mount,pid", "install-layer.sh", &[&["network"], packages].concat())
    }

    /// This tree with everything that apt needs to upgrade it to another suite without a network. The sources of that suite are in
    /// `/etc/apt/sources.list.SUITE`.
    ///
    /// # Errors
    /// Fails as [`Self::plain`] does.
    pub fn with_upgrade(self, to: Suite) -> Result<Self> {
        let names = [self.suite.name(), to.name()];
        self.with_layer("mount,pid", "upgrade-layer.sh", &names)
    }

    fn with_layer(self, namespaces: &str, script: &str, arguments: &[&str]) -> Result<Self> {
        let lower = self.overlay_lower();
        let arguments = arguments.iter().map(OsStr::new);
        let layer = cached(namespaces, script, [lower.as_os_str()].into_iter().chain(arguments))?;
        Ok(Self {
            suite: self.suite,
            layers: [vec![layer], self.layers].concat(),
        })
    }

    /// The layers in the syntax of overlayfs's `lowerdir`.
    pub(crate) fn overlay_lower(&self) -> OsString {
        let layers: Vec<_> = self.layers.iter().map(|layer| layer.as_os_str()).collect();
        layers.join(":".as_ref())
    }
}

/// The path of what `script` makes with these arguments in these namespaces. It is made if the cache lacks it.
fn cached<S: AsRef<OsStr>>(namespaces: &str, script: &str, arguments: impl IntoIterator<Item = S>) -> Result<PathBuf> {
    let mut command = Command::new("bash");
    command
        .arg(Path::new(LAB).join("cached.sh"))
        .arg(cache::directory()?)
        .args([namespaces, script])
        .args(arguments)
        .stdin(Stdio::null());
    // SAFETY: prctl(2) is async-signal-safe and allocates nothing.
    unsafe { command.pre_exec(|| prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
    let output = command.output().context("Starting bash")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "making the lab's Debian tree failed ({}):\n{messages}",
        output.status
    );
    eprint!("{messages}");
    let mut path = output.stdout;
    ensure!(
        path.pop() == Some(b'\n') && !path.is_empty(),
        "cached.sh printed no path"
    );
    Ok(OsString::from_vec(path).into())
}
