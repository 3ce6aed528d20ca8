//! Reads a backup: a file or an object, decrypted and decompressed by links-backup.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};

use anyhow::Context as _;
use nix::libc;

use crate::archive::{self, Sink};
use crate::child::Child;
use crate::manifest::Manifest;
use links_base::digest;
use links_base::layout::Layout;
use links_config::backup::{Location, Problem};

/// A backup that is to be read.
#[derive(Clone, Debug)]
pub struct Source {
    root: PathBuf,
    pub location: Location,
    /// The file with the secret keys.
    identity: Option<PathBuf>,
}

/// The sealed bytes of a backup.
enum Sealed {
    File(File),
    Download(Child, ChildStdout),
}

impl Source {
    pub fn new(layout: &Layout, location: Location, identity: Option<PathBuf>) -> Self {
        Self {
            root: layout.root().to_owned(),
            location,
            identity,
        }
    }

    fn sealed(&self) -> anyhow::Result<Sealed> {
        match &self.location {
            Location::Path(path) => {
                // Opening a FIFO would wait for a writer.
                let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
                let file = file.with_context(|| format!("Opening {}", path.display()))?;
                if !file.metadata()?.is_file() {
                    return Err(Problem::Damaged.error(format!("{} is not a file", path.display())));
                }
                Ok(Sealed::File(file))
            }
            Location::S3(object) => {
                let arguments = ["get", &object.to_string()].map(OsString::from);
                let mut child = Child::start(&self.root, arguments, Stdio::null(), Stdio::piped())?;
                let output = child.output()?;
                Ok(Sealed::Download(child, output))
            }
        }
    }

    /// Reads the whole backup, and returns its manifest.
    ///
    /// # Errors
    /// The backup cannot be reached, opened or believed, or the sink fails.
    pub fn read(&self, sink: &mut dyn Sink) -> anyhow::Result<Manifest> {
        self.try_read(sink)
            .with_context(|| format!("Reading {}", self.location))
    }

    fn try_read(&self, sink: &mut dyn Sink) -> anyhow::Result<Manifest> {
        let (stdin, download) = match self.sealed()? {
            Sealed::File(file) => (Stdio::from(file), None),
            Sealed::Download(child, output) => (Stdio::from(output), Some(child)),
        };
        let mut arguments: Vec<OsString> = vec!["open".into()];
        if let Some(identity) = &self.identity {
            arguments.extend([OsString::from("--identity"), identity.into()]);
        }
        let mut opening = Child::start(&self.root, arguments, stdin, Stdio::piped())?;
        let read = archive::read(opening.output()?, sink);
        match read {
            Ok(manifest) => {
                opening.finish()?;
                download.map_or(Ok(()), Child::finish)?;
                Ok(manifest)
            }
            // A stream that ends too early has its reason in the program that wrote it. A program whose reader has gone away has
            // none to tell.
            Err(error) if Problem::of(&error) == Problem::Damaged => {
                for child in [download, Some(opening)].into_iter().flatten() {
                    child.finish().or_else(|reason| match Problem::of(&reason) {
                        Problem::Other => Ok(()),
                        _ => Err(reason),
                    })?;
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The SHA-256 of the sealed bytes.
    ///
    /// # Errors
    /// The backup cannot be reached.
    pub fn sha256(&self) -> anyhow::Result<String> {
        let read = || -> anyhow::Result<String> {
            match self.sealed()? {
                Sealed::File(mut file) => Ok(digest::of(&mut file)?.1),
                Sealed::Download(child, mut output) => {
                    let (_, sha256) = digest::of(&mut output)?;
                    child.finish()?;
                    Ok(sha256)
                }
            }
        };
        read().with_context(|| format!("Reading {}", self.location))
    }
}

/// The path of a file with secret keys, as an absolute one.
///
/// # Errors
/// There is no such file.
pub fn identity(path: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    std::fs::metadata(&absolute).with_context(|| format!("Opening the key in {}", absolute.display()))?;
    Ok(absolute)
}
