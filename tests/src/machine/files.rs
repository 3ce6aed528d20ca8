//! Files inside a machine.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use super::Machine;

impl Machine {
    /// Writes a file with mode 0644, owned by root, and creates the directories above it.
    ///
    /// # Errors
    /// Fails if a directory or the file cannot be written.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
        self.ok([OsStr::new("mkdir"), OsStr::new("-p"), parent.as_os_str()])?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let write = || self.open(path, flags)?.write_all(contents.as_ref());
        write().with_context(|| format!("Writing {path} inside"))
    }

    /// Writes a file that only root can read, at every moment.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write_secret(&self, path: &str, contents: &str) -> Result<()> {
        self.ok(["install", "-D", "-m", "600", "/dev/null", path])?;
        self.write(path, contents)
    }

    /// The contents of a text file.
    ///
    /// # Errors
    /// Fails if the file is missing or is not UTF-8.
    pub fn read(&self, path: &str) -> Result<String> {
        let read = || io::read_to_string(self.open(path, OFlag::O_RDONLY)?);
        read().with_context(|| format!("Reading {path} inside"))
    }

    /// Whether a path exists, even as a dangling symbolic link.
    ///
    /// # Errors
    /// Fails if a parent of the path is a file, a loop of symbolic links, or the like.
    pub fn exists(&self, path: &str) -> Result<bool> {
        match self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("Looking for {path} inside")),
        }
    }

    /// Copies a file from this computer, with its permissions.
    ///
    /// # Errors
    /// Fails if the file cannot be read or written.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        let mut contents = Vec::new();
        let mut read = || -> io::Result<_> {
            let mut file = File::open(from)?;
            file.read_to_end(&mut contents)?;
            file.metadata()
        };
        let mode = read()
            .with_context(|| format!("Reading {}", from.display()))?
            .permissions()
            .mode()
            & 0o7777;
        self.write(to, contents)?;
        let file = self
            .open(to, OFlag::O_RDONLY)
            .with_context(|| format!("Opening {to} inside"))?;
        file.set_permissions(fs::Permissions::from_mode(mode))
            .with_context(|| format!("Setting the mode of {to} inside"))
    }

    /// The path outside of a file inside, until the next boot. The path must not contain an absolute symbolic link.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    #[allow(
        clippy::expect_used,
        reason = "reading a machine after its shutdown is a bug of the test"
    )]
    pub fn path_outside(&self, path: &str) -> PathBuf {
        let init = self.running().expect("the machine is running").init;
        PathBuf::from(format!("/proc/{init}/root{path}"))
    }

    /// Every path on the machine's disk, and every user and group, except the files that apt, dpkg and systemd maintain.
    ///
    /// # Errors
    /// Fails if find fails.
    pub fn inventory(&self) -> Result<BTreeSet<String>> {
        let prune = [
            "/root",
            "/var/log",
            "/var/lib/apt",
            "/var/lib/dpkg",
            "/var/lib/systemd",
            "/var/cache/apt",
            "/var/backups",
            "/var/tmp",
            "/tmp",
        ];
        let prune = prune.map(|path| format!("-path {path}")).join(" -o ");
        let files = self
            .shell(&format!("find / -xdev \\( {prune} \\) -prune -o -print | sort"))?
            .stdout;
        let accounts = self
            .shell("cat /etc/passwd /etc/shadow /etc/group /etc/gshadow | cut -d: -f1,3,4 | sort")?
            .stdout;
        // Names and numbers of accounts count; the backup files that the account tools leave behind do not.
        let kept = |line: &&str| {
            !matches!(
                *line,
                "/etc/passwd-" | "/etc/shadow-" | "/etc/group-" | "/etc/gshadow-" | "/etc/.pwd.lock"
            )
        };
        Ok(files
            .lines()
            .filter(kept)
            .chain(accounts.lines())
            .map(str::to_owned)
            .collect())
    }

    /// Opens a path inside. Symbolic links stay inside, absolute ones too.
    fn open(&self, path: &str, flags: OFlag) -> io::Result<File> {
        let init = self.running().map_err(io::Error::other)?.init;
        let root = File::open(format!("/proc/{init}/root"))?;
        // openat2(2) accepts a mode only together with O_CREAT.
        let mode = if flags.contains(OFlag::O_CREAT) { 0o644 } else { 0 };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(mode))
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let file: OwnedFd = openat2(&root, path, how)?;
        Ok(file.into())
    }
}
