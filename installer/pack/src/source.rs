//! Where the runtime comes from. The choice is made first and carried out later.

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
use links_base::exec;
use links_base::process::{Process, describe};
use links_release::manifest::RuntimeKind;

/// How long a runtime may take to print its version or help.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The value of `--runtime` for this project's own runtime, and the name of its program.
const LINKS_HOST: &str = "links-host";
/// The origin of a links-host that is packed for lack of a Spin.
const FALLBACK_ORIGIN: &str = "built with links-pack, because no Spin was available";

/// The runtime that the command line requests.
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

/// What this machine offers to choose from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// `$SPIN`.
    pub spin_variable: Option<PathBuf>,
    pub spin_on_path: Option<PathBuf>,
    /// The links-host beside this program.
    pub links_host: Option<PathBuf>,
    /// Whether the pinned release has been downloaded before.
    pub release_cached: bool,
    /// Whether downloads are forbidden.
    pub offline: bool,
}

impl HostFacts {
    /// Gathers the facts about this machine.
    ///
    /// # Errors
    /// Fails if the operating system does not report the path of this program.
    pub fn gather(offline: bool, release_cached: bool) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("Finding the path of this program")?;
        Ok(Self {
            spin_variable: std::env::var_os("SPIN")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            spin_on_path: std::env::var_os("PATH").and_then(|path| on_path(&path, "spin")),
            links_host: Some(own.with_file_name(LINKS_HOST)).filter(|path| path.is_file()),
            release_cached,
            offline,
        })
    }
}

/// The first executable file of this name on PATH, as a shell would find it.
fn on_path(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(|file| executable(file).is_ok())
}

/// Where the runtime comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A program on this machine. `origin` is how it was found, in words.
    Program { path: PathBuf, origin: &'static str },
    /// The pinned Spin release, or this links-host if the release cannot be downloaded.
    Release { otherwise: Option<PathBuf> },
    /// links-host, because there is no Spin.
    Fallback { path: PathBuf, why: String },
}

/// Chooses the first of `--runtime`, `$SPIN`, `spin` on PATH, the pinned release and links-host.
///
/// # Errors
/// Fails if there is none of them. The message names the next step.
pub fn choose(wanted: &Wanted, facts: &HostFacts) -> anyhow::Result<Choice> {
    const BUILD: &str = "build it (cargo build --release -p links-host)";
    match wanted {
        Wanted::Program(path) => {
            return Ok(Choice::Program {
                path: path.clone(),
                origin: "given by --runtime",
            });
        }
        Wanted::LinksHost => {
            let path = facts
                .links_host
                .clone()
                .with_context(|| format!("--runtime links-host: there is no links-host beside links-pack; {BUILD}"))?;
            return Ok(Choice::Program {
                path,
                origin: "built with links-pack, chosen by --runtime",
            });
        }
        Wanted::Any => {}
    }
    if let Some(path) = &facts.spin_variable {
        return Ok(Choice::Program {
            path: path.clone(),
            origin: "given by $SPIN",
        });
    }
    if let Some(path) = &facts.spin_on_path {
        return Ok(Choice::Program {
            path: path.clone(),
            origin: "found on PATH",
        });
    }
    if facts.release_cached || !facts.offline {
        return Ok(Choice::Release {
            otherwise: facts.links_host.clone(),
        });
    }
    let why = "--offline was given, and there is no Spin in $SPIN, on PATH or in the cache".to_owned();
    match &facts.links_host {
        Some(path) => Ok(Choice::Fallback {
            path: path.clone(),
            why,
        }),
        None => {
            anyhow::bail!(
                "no runtime to pack: {why}, and there is no links-host beside links-pack; {BUILD}, or give --runtime"
            )
        }
    }
}

/// A runtime that is ready to be packed.
#[derive(Clone, Debug)]
pub struct Found {
    pub program: Program,
    pub executable: PathBuf,
    /// A notice for the user about the choice.
    pub notice: Option<String>,
}

/// Carries out the choice and asks the program for its version. A download is kept in `cache` and unpacked into `scratch`.
///
/// # Errors
/// Fails if the program is missing, is not executable, does not answer, or is neither a supported Spin nor a links-host. Fails
/// as well if the download was interrupted or has the wrong digest.
pub fn obtain(choice: &Choice, release: &Release, cache: &Path, scratch: &Path) -> anyhow::Result<Found> {
    let fallback = |path: &Path, why: &str| -> anyhow::Result<Found> {
        let program = identify(path, FALLBACK_ORIGIN)?;
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
                Some(path) => fallback(
                    path,
                    &format!("{} cannot be reached ({error:#})", release.description()),
                ),
                None => Err(error.context(format!(
                    "{} cannot be reached, and there is no links-host beside links-pack; give --runtime PATH or \
                     SPIN=PATH, or build links-host (cargo build --release -p links-host)",
                    release.description()
                ))),
            },
            Err(download::Failure::Refused(error)) => Err(error),
        },
    }
}

/// The runtime that the choice leads to, for `--dry-run`. Nothing is downloaded.
///
/// # Errors
/// Fails like [`obtain`] for a program on this machine.
pub fn preview(choice: &Choice, release: &Release) -> anyhow::Result<Program> {
    let (path, origin) = match choice {
        Choice::Program { path, origin } => (path, *origin),
        Choice::Fallback { path, .. } => (path, FALLBACK_ORIGIN),
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

/// Runs the program to learn what it is.
fn identify(path: &Path, origin: &str) -> anyhow::Result<Program> {
    executable(path)?;
    let answer = output(path, &["--version"]).with_context(|| format!("Running {} --version", path.display()))?;
    let identified = parse_version(&answer).and_then(|(kind, version)| {
        let interface = Interface::of(kind, &version)?;
        Ok((kind, version, interface))
    });
    let (kind, version, interface) = identified.with_context(|| format!("Cannot pack {}", path.display()))?;
    let listens_on_sockets = kind == RuntimeKind::LinksHost
        && output(path, &["up", "--help"])
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
    let metadata = std::fs::metadata(path).with_context(|| format!("Checking {}", path.display()))?;
    anyhow::ensure!(metadata.is_file(), "{} is not a file", path.display());
    anyhow::ensure!(
        metadata.permissions().mode() & 0o111 != 0,
        "{} is not executable; run chmod +x on it if it is the runtime",
        path.display()
    );
    Ok(())
}

/// The standard output of a program.
///
/// # Errors
/// Fails if the program does not end in time, or ends with an error.
fn output(path: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    // The path is absolute, because a name without a slash would be looked up on PATH.
    let mut command = Command::new(std::path::absolute(path)?);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let (sender, receiver) = mpsc::channel();
    let process = Process::start(&mut command, Signal::SIGKILL, move |status| {
        // Sending fails after the timeout, when the receiver is gone.
        let _ = sender.send(status);
    })?;
    let Ok(status) = receiver.recv_timeout(ANSWER_TIMEOUT) else {
        process.kill();
        anyhow::bail!("no answer after {ANSWER_TIMEOUT:?}");
    };
    let status = status?;
    anyhow::ensure!(
        status.success(),
        "the program {}: {}",
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
/// Fails for the output of another program.
fn parse_version(answer: &str) -> anyhow::Result<(RuntimeKind, String)> {
    let mut words = answer.split_whitespace();
    let (kind, version) = match (words.next(), words.next()) {
        (Some("spin"), Some(version)) => (RuntimeKind::Spin, version),
        (Some(LINKS_HOST), Some(version)) => (RuntimeKind::LinksHost, version),
        _ => anyhow::bail!(
            "it is neither Spin nor links-host: `--version` prints {:?}",
            answer.lines().next().unwrap_or_default()
        ),
    };
    anyhow::ensure!(
        version.starts_with(|c: char| c.is_ascii_digit()),
        "`--version` prints no version: {:?}",
        answer.lines().next().unwrap_or_default()
    );
    Ok((kind, version.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::interface::SUPPORTED_SPIN;
    use super::*;

    fn all_available() -> HostFacts {
        HostFacts {
            spin_variable: Some("/env/spin".into()),
            spin_on_path: Some("/path/spin".into()),
            links_host: Some("/beside/links-host".into()),
            release_cached: false,
            offline: false,
        }
    }

    fn chosen(wanted: &Wanted, facts: &HostFacts) -> String {
        match choose(wanted, facts) {
            Ok(Choice::Program { path, .. }) => path.display().to_string(),
            Ok(Choice::Release { otherwise }) => {
                format!("release, else {}", otherwise.unwrap_or_default().display())
            }
            Ok(Choice::Fallback { path, .. }) => format!("fallback to {}", path.display()),
            Err(error) => format!("error: {error:#}"),
        }
    }

    #[test]
    fn each_source_is_used_when_those_before_it_are_missing() {
        let mut facts = all_available();
        let given = Wanted::new(Some(Path::new("./links-host")));
        assert_eq!(chosen(&given, &facts), "./links-host");
        assert_eq!(chosen(&Wanted::Any, &facts), "/env/spin");
        facts.spin_variable = None;
        assert_eq!(chosen(&Wanted::Any, &facts), "/path/spin");
        facts.spin_on_path = None;
        assert_eq!(chosen(&Wanted::Any, &facts), "release, else /beside/links-host");
        facts.offline = true;
        assert_eq!(chosen(&Wanted::Any, &facts), "fallback to /beside/links-host");
        facts.release_cached = true;
        assert_eq!(chosen(&Wanted::Any, &facts), "release, else /beside/links-host");
        facts.release_cached = false;
        facts.links_host = None;
        assert!(chosen(&Wanted::Any, &facts).starts_with("error: no runtime to pack: --offline"));
    }

    #[test]
    fn the_word_links_host_means_the_one_beside_this_program() {
        let wanted = Wanted::new(Some(Path::new("links-host")));
        assert_eq!(wanted, Wanted::LinksHost);
        assert_eq!(chosen(&wanted, &all_available()), "/beside/links-host");
        let missing = chosen(
            &wanted,
            &HostFacts {
                links_host: None,
                ..all_available()
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

    /// Writes a script to `dir`. A separate process does the writing: a program started by another test could inherit a
    /// descriptor of this process, and running the script would then fail with ETXTBSY.
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
    fn a_program_is_identified_and_a_bad_one_is_refused_by_name() {
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
        // Nothing listens on this port any more, so the connection is refused.
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
