//! Where the runtime comes from: a decision first, a program second.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use super::bundle::Program;
use super::download::{self, Release};
use super::interface::Interface;
use crate::exec;
use crate::process::{Process, describe};
use crate::release::manifest::RuntimeKind;

/// What it says of itself it says at once.
const VERSION_TIMEOUT: Duration = Duration::from_secs(20);
/// What `--runtime` is given for the runtime of this project, and the name of its program.
const LINKS_HOST: &str = "links-host";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Any,
    LinksHost,
    Program(PathBuf),
}

impl Wanted {
    /// From the value of `--runtime`.
    pub fn new(runtime: Option<&Path>) -> Self {
        match runtime {
            None => Self::Any,
            Some(word) if word == Path::new(LINKS_HOST) => Self::LinksHost,
            Some(path) => Self::Program(path.to_owned()),
        }
    }
}

/// What there is to choose from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `$SPIN`.
    pub spin_variable: Option<PathBuf>,
    pub spin_on_path: Option<PathBuf>,
    /// The links-host beside linksctl.
    pub links_host: Option<PathBuf>,
    /// The pinned release has been downloaded before.
    pub release_cached: bool,
    /// Download nothing.
    pub offline: bool,
}

impl Surroundings {
    /// Looks around on this machine.
    ///
    /// # Errors
    /// The operating system does not say where linksctl itself is.
    pub fn look(offline: bool, release_cached: bool) -> anyhow::Result<Self> {
        let linksctl = std::env::current_exe().context("Finding linksctl itself")?;
        Ok(Self {
            spin_variable: std::env::var_os("SPIN")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            spin_on_path: std::env::var_os("PATH").and_then(|path| on_path(&path, "spin")),
            links_host: Some(linksctl.with_file_name(LINKS_HOST)).filter(|path| path.is_file()),
            release_cached,
            offline,
        })
    }
}

/// The first executable file of that name, as a shell finds it.
fn on_path(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(|file| executable(file).is_ok())
}

/// Where the runtime will be taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A program on this machine, and who named it.
    Program { path: PathBuf, origin: &'static str },
    /// The pinned Spin release; where it cannot be had, this links-host.
    Release { otherwise: Option<PathBuf> },
    /// links-host for want of a Spin.
    Fallback { path: PathBuf, why: String },
}

/// The order: `--runtime`, `$SPIN`, `spin` on PATH, the pinned release, links-host.
///
/// # Errors
/// Nothing to choose, with what to do about it.
pub fn choose(wanted: &Wanted, around: &Surroundings) -> anyhow::Result<Choice> {
    const BUILD: &str = "build it (cargo build --release -p links-host)";
    match wanted {
        Wanted::Program(path) => {
            return Ok(Choice::Program {
                path: path.clone(),
                origin: "given by --runtime",
            });
        }
        Wanted::LinksHost => {
            let path = around
                .links_host
                .clone()
                .with_context(|| format!("--runtime links-host: there is none beside linksctl; {BUILD}"))?;
            return Ok(Choice::Program {
                path,
                origin: "built with linksctl, chosen by --runtime",
            });
        }
        Wanted::Any => {}
    }
    if let Some(path) = &around.spin_variable {
        return Ok(Choice::Program {
            path: path.clone(),
            origin: "given by $SPIN",
        });
    }
    if let Some(path) = &around.spin_on_path {
        return Ok(Choice::Program {
            path: path.clone(),
            origin: "found on PATH",
        });
    }
    if around.release_cached || !around.offline {
        return Ok(Choice::Release {
            otherwise: around.links_host.clone(),
        });
    }
    let why = "--offline was given, and there is no Spin in $SPIN, on PATH or in the cache".to_owned();
    match &around.links_host {
        Some(path) => Ok(Choice::Fallback {
            path: path.clone(),
            why,
        }),
        None => {
            anyhow::bail!("no runtime to pack: {why}, nor a links-host beside linksctl; {BUILD}, or give --runtime")
        }
    }
}

/// A choice that has been followed: a program that can be run.
#[derive(Clone, Debug)]
pub struct Found {
    pub program: Program,
    pub executable: PathBuf,
    /// What a person should know about the choice.
    pub notice: Option<String>,
}

/// Downloads where that was chosen (into `cache`, unpacked into `scratch`), and asks the program what it is.
///
/// # Errors
/// The program is missing, not executable, silent, or neither a supported Spin nor a links-host; the download broke
/// off or was not what it should be.
pub fn obtain(choice: &Choice, release: &Release, cache: &Path, scratch: &Path) -> anyhow::Result<Found> {
    let fallback = |path: &Path, why: &str| -> anyhow::Result<Found> {
        let program = identify(path, "built with linksctl, because no Spin could be had")?;
        let notice = format!(
            "packing {} {} instead of Spin, because {why}. It serves the same components; to pack Spin, \
             give --runtime PATH or SPIN=PATH",
            program.kind, program.version
        );
        Ok(Found {
            program,
            executable: path.to_owned(),
            notice: Some(notice),
        })
    };
    match choice {
        Choice::Program { path, origin } => Ok(Found {
            program: identify(path, origin).with_context(|| format!("the runtime {origin}"))?,
            executable: path.clone(),
            notice: None,
        }),
        Choice::Fallback { path, why } => fallback(path, why),
        Choice::Release { otherwise } => match download::fetch(release, cache) {
            Ok(archive) => {
                let executable = scratch.join("spin");
                download::unpack(&archive, "spin", &executable)?;
                Ok(Found {
                    program: identify(&executable, &release.origin())?,
                    executable,
                    notice: None,
                })
            }
            Err(download::Failure::Unreachable(error)) => match otherwise {
                Some(path) => fallback(path, &format!("{} cannot be reached ({error:#})", release.what())),
                None => Err(error.context(format!(
                    "{} cannot be reached, and there is no links-host beside linksctl; give --runtime PATH or \
                     SPIN=PATH, or build links-host (cargo build --release -p links-host)",
                    release.what()
                ))),
            },
            Err(download::Failure::Refused(error)) => Err(error),
        },
    }
}

/// The choice as a `--dry-run` shows it: nothing is downloaded.
///
/// # Errors
/// As [`obtain`] for a program on this machine.
pub fn foresee(choice: &Choice, release: &Release) -> anyhow::Result<Program> {
    let (path, origin) = match choice {
        Choice::Program { path, origin } => (path, *origin),
        Choice::Fallback { path, .. } => (path, "built with linksctl, because no Spin could be had"),
        Choice::Release { .. } => {
            return Ok(Program {
                kind: RuntimeKind::Spin,
                version: release.version.to_owned(),
                origin: release.origin(),
                interface: Interface::of(RuntimeKind::Spin, release.version)?,
                listens_on_sockets: false,
            });
        }
    };
    identify(path, origin).with_context(|| format!("the runtime {origin}"))
}

/// Asks the program itself.
///
/// # Errors
/// As [`obtain`].
fn identify(path: &Path, origin: &str) -> anyhow::Result<Program> {
    executable(path)?;
    let answer = ask(path, &["--version"]).with_context(|| format!("Running {} --version", path.display()))?;
    let identified = parse_version(&answer).and_then(|(kind, version)| {
        let interface = Interface::of(kind, &version)?;
        Ok((kind, version, interface))
    });
    let (kind, version, interface) = identified.with_context(|| format!("{} cannot be packed", path.display()))?;
    let listens_on_sockets = kind == RuntimeKind::LinksHost
        && ask(path, &["up", "--help"])
            .with_context(|| format!("Running {} up --help", path.display()))?
            .contains("unix:/");
    Ok(Program {
        kind,
        version,
        origin: origin.to_owned(),
        interface,
        listens_on_sockets,
    })
}

fn executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(path).with_context(|| format!("Looking at {}", path.display()))?;
    anyhow::ensure!(metadata.is_file(), "{} is not a file", path.display());
    anyhow::ensure!(
        metadata.permissions().mode() & 0o111 != 0,
        "{} is not executable; chmod +x it if it is the runtime's program",
        path.display()
    );
    Ok(())
}

fn ask(path: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    // Absolute: a name without a slash would be looked up on PATH.
    let mut command = Command::new(std::path::absolute(path)?);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let (tell, told) = mpsc::channel();
    let process = Process::start(&mut command, Signal::SIGKILL, move |status| {
        // Nobody listens any more after the deadline.
        let _ = tell.send(status);
    })?;
    let Ok(status) = told.recv_timeout(VERSION_TIMEOUT) else {
        process.kill();
        anyhow::bail!("no answer after {VERSION_TIMEOUT:?}");
    };
    let status = status?;
    anyhow::ensure!(
        status.success(),
        "it {}: {}",
        describe(Ok(status)),
        exec::tail(&written(&mut stderr)?, 12)
    );
    Ok(written(&mut stdout)?)
}

fn written(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(1 << 16).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads `spin 4.0.2 (abc 2026-01-01)` or `links-host 0.1.0`.
///
/// # Errors
/// Another program.
fn parse_version(answer: &str) -> anyhow::Result<(RuntimeKind, String)> {
    let mut words = answer.split_whitespace();
    let (kind, version) = match (words.next(), words.next()) {
        (Some("spin"), Some(version)) => (RuntimeKind::Spin, version),
        (Some(LINKS_HOST), Some(version)) => (RuntimeKind::LinksHost, version),
        _ => anyhow::bail!(
            "it is neither Spin nor links-host: `--version` says {:?}",
            answer.lines().next().unwrap_or_default()
        ),
    };
    anyhow::ensure!(
        version.starts_with(|c: char| c.is_ascii_digit()),
        "`--version` names no version: {:?}",
        answer.lines().next().unwrap_or_default()
    );
    Ok((kind, version.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::interface::SUPPORTED_SPIN;
    use super::*;

    fn everything() -> Surroundings {
        Surroundings {
            spin_variable: Some("/env/spin".into()),
            spin_on_path: Some("/path/spin".into()),
            links_host: Some("/beside/links-host".into()),
            release_cached: false,
            offline: false,
        }
    }

    fn chosen(wanted: &Wanted, around: &Surroundings) -> String {
        match choose(wanted, around) {
            Ok(Choice::Program { path, .. }) => path.display().to_string(),
            Ok(Choice::Release { otherwise }) => {
                format!("release, else {}", otherwise.unwrap_or_default().display())
            }
            Ok(Choice::Fallback { path, .. }) => format!("fallback to {}", path.display()),
            Err(error) => format!("error: {error:#}"),
        }
    }

    #[test]
    fn each_source_is_taken_when_those_before_it_are_missing() {
        let mut around = everything();
        let given = Wanted::new(Some(Path::new("./links-host")));
        assert_eq!(chosen(&given, &around), "./links-host");
        assert_eq!(chosen(&Wanted::Any, &around), "/env/spin");
        around.spin_variable = None;
        assert_eq!(chosen(&Wanted::Any, &around), "/path/spin");
        around.spin_on_path = None;
        assert_eq!(chosen(&Wanted::Any, &around), "release, else /beside/links-host");
        around.offline = true;
        assert_eq!(chosen(&Wanted::Any, &around), "fallback to /beside/links-host");
        around.release_cached = true;
        assert_eq!(chosen(&Wanted::Any, &around), "release, else /beside/links-host");
        around.release_cached = false;
        around.links_host = None;
        assert!(chosen(&Wanted::Any, &around).starts_with("error: no runtime to pack: --offline"));
    }

    #[test]
    fn the_word_links_host_means_the_one_beside_linksctl() {
        let wanted = Wanted::new(Some(Path::new("links-host")));
        assert_eq!(wanted, Wanted::LinksHost);
        assert_eq!(chosen(&wanted, &everything()), "/beside/links-host");
        let missing = chosen(
            &wanted,
            &Surroundings {
                links_host: None,
                ..everything()
            },
        );
        assert!(missing.contains("cargo build"), "{missing}");
    }

    #[test]
    fn versions_are_read_and_other_programs_refused() {
        let read = |answer| parse_version(answer).map_err(|error| error.to_string());
        assert_eq!(
            read("spin 4.0.2 (98a2dba 2026-05-01)\n"),
            Ok((RuntimeKind::Spin, "4.0.2".to_owned()))
        );
        assert_eq!(
            read("links-host 0.1.0\n"),
            Ok((RuntimeKind::LinksHost, "0.1.0".to_owned()))
        );
        for (answer, part) in [
            ("spin", "neither"),
            ("SPIN Version 6.5.2 -- model checker", "neither"),
            ("spin frobnicates", "no version"),
            ("", "neither"),
        ] {
            let error = read(answer).unwrap_err();
            assert!(error.contains(part), "{answer}: {error}");
        }
    }

    /// A script in `dir`. Another process writes it: a descriptor of this one could be inherited by a program that
    /// another test starts, and running the script would then fail with ETXTBSY.
    fn script(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        let status = Command::new("sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod "$3" "$1""#, "sh"])
            .arg(&path)
            .args([text, &format!("{mode:o}")])
            .status()
            .unwrap();
        assert!(status.success());
        path
    }

    #[test]
    fn a_program_is_asked_and_a_bad_one_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let good = script(dir.path(), "good", "echo links-host 0.1.0", 0o755);
        let program = identify(&good, "a test").unwrap();
        assert_eq!((program.version.as_str(), program.listens_on_sockets), ("0.1.0", false));
        let plain = script(dir.path(), "plain", "echo links-host 0.1.0", 0o644);
        let failing = script(dir.path(), "failing", "echo broken >&2; exit 3", 0o755);
        let old = script(dir.path(), "old", "echo spin 3.6.3", 0o755);
        for (path, part) in [
            (old, SUPPORTED_SPIN),
            (plain, "not executable"),
            (failing, "broken"),
            (dir.path().join("missing"), "No such file"),
            (dir.path().to_owned(), "not a file"),
        ] {
            let error = format!("{:#}", identify(&path, "a test").unwrap_err());
            assert!(
                error.contains(part) && error.contains(path.to_str().unwrap()),
                "{error}"
            );
        }
    }

    #[test]
    fn an_unreachable_release_falls_back_with_a_notice_and_a_refused_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let host = script(dir.path(), "links-host", "echo links-host 0.1.0", 0o755);
        // A port that was free a moment ago: the connection is refused.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/spin.tar.gz", listener.local_addr().unwrap());
        drop(listener);
        let release = Release::at(url, "0".repeat(64));
        let choice = Choice::Release { otherwise: Some(host) };
        let found = obtain(&choice, &release, &dir.path().join("cache"), dir.path()).unwrap();
        assert_eq!(found.program.kind, RuntimeKind::LinksHost);
        let notice = found.notice.unwrap();
        assert!(
            notice.contains("links-host 0.1.0") && notice.contains("SPIN=PATH"),
            "{notice}"
        );
        let choice = Choice::Release { otherwise: None };
        let error = obtain(&choice, &release, &dir.path().join("cache"), dir.path()).unwrap_err();
        assert!(format!("{error:#}").contains("--runtime PATH"), "{error:#}");
    }

    #[test]
    fn path_is_searched_in_order_for_an_executable() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["a", "b", "c"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        script(&dir.path().join("a"), "spin", "", 0o644);
        let second = script(&dir.path().join("b"), "spin", "", 0o755);
        script(&dir.path().join("c"), "spin", "", 0o755);
        let path = std::env::join_paths(["a", "b", "c"].map(|sub| dir.path().join(sub))).unwrap();
        assert_eq!(on_path(&path, "spin"), Some(second));
        assert_eq!(on_path(&path, "absent"), None);
    }
}
