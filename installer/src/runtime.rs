//! The runtime as a process: how it is called, watched and ended, and whether what it serves answers.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use crate::config::load::load;
use crate::config::telemetry;
use crate::endpoint::Endpoint;
use crate::health::Probe;
use crate::layout::Layout;
use crate::process::{Process, describe};
use crate::release::Release;
use crate::release::manifest::RuntimeKind;
use crate::{exec, files, token};

/// One call of a runtime, Spin's command line.
#[derive(Debug)]
pub struct Call<'a> {
    pub release: &'a Release,
    /// One for Spin.
    pub listen: Vec<Endpoint>,
    /// Rendered for this instance, with its secrets.
    pub runtime_config: PathBuf,
    pub state_dir: PathBuf,
    /// The compiled components of the release, where its runtime made some.
    pub precompiled: Option<PathBuf>,
    /// Compiled components are kept in `wasmtime/` below it.
    pub cache_dir: PathBuf,
    pub temporary_dir: PathBuf,
    /// Names and values that say what it exports where; holds secrets, which a command line must not.
    pub telemetry: Vec<(String, String)>,
}

impl Call<'_> {
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.release.runtime_path());
        // Whatever a person's shell exports by is not meant for the appliance.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with(telemetry::OTLP)) {
                command.env_remove(name);
            }
        }
        command
            .arg("up")
            .arg("--from")
            .arg(self.release.app_path())
            .args(
                self.listen
                    .iter()
                    .flat_map(|endpoint| ["--listen".to_owned(), endpoint.to_string()]),
            )
            .arg("--runtime-config-file")
            .arg(&self.runtime_config)
            .arg("--state-dir")
            .arg(&self.state_dir)
            .args(self.links_host_arguments())
            // What the notification socket is told comes from the supervisor alone.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            // The rendered configuration holds what the runtime needs of them.
            .env_remove("CREDENTIALS_DIRECTORY")
            .env("HOME", &self.cache_dir)
            .env("XDG_CACHE_HOME", &self.cache_dir)
            .env("TMPDIR", &self.temporary_dir)
            .envs(self.links_host_environment())
            .envs(self.telemetry.iter().map(|(name, value)| (name, value)))
            // Spin reads variables from a file `.env` where it is started: that has to be a directory of ours.
            .current_dir(&self.temporary_dir)
            .stdin(Stdio::null());
        command
    }

    fn links_host_environment(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let is_links_host = self.release.manifest.runtime.kind == RuntimeKind::LinksHost;
        // Who runs linksctl may know better.
        let unset = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
        MEMORY.into_iter().filter(move |_| is_links_host).filter(unset)
    }

    /// What Spin does not have, or has by default.
    fn links_host_arguments(&self) -> Vec<OsString> {
        if self.release.manifest.runtime.kind != RuntimeKind::LinksHost {
            return vec![];
        }
        let mut arguments = vec!["--request-timeout".into(), REQUEST_TIMEOUT.into()];
        if let Some(directory) = &self.precompiled {
            arguments.extend(["--precompiled".into(), directory.into()]);
        }
        arguments
    }
}

/// links-host allocates with mimalloc, which reads its options before main begins, and SQLite in it with glibc. mimalloc takes
/// memory from the kernel as it is needed and gives it back at once: 13 MB less at rest. glibc keeps freed memory in two
/// arenas, not in one for each thread.
const MEMORY: [(&str, &str); 3] = [
    ("MIMALLOC_ARENA_EAGER_COMMIT", "0"),
    ("MIMALLOC_PURGE_DELAY", "0"),
    ("MALLOC_ARENA_MAX", "2"),
];

/// Longer than nginx waits for an answer: after that a request only takes up room.
const REQUEST_TIMEOUT: &str = "75s";

/// Checks what a start would stumble over later and less clearly: the files of the release, and that the runtime is
/// the one that its manifest names.
///
/// # Errors
/// What is missing, damaged or of another version, by name.
pub fn check_release(release: &Release) -> anyhow::Result<()> {
    release.verify()?;
    let path = release.runtime_path();
    let said = exec::run(&path.to_string_lossy(), ["--version"])
        .with_context(|| format!("Asking the runtime {} for its version", path.display()))?;
    let expected = release.runtime_name();
    let found: Vec<_> = said.split_whitespace().take(2).collect();
    if found.join(" ") != expected {
        bail!(
            "the runtime {} says it is `{}` where release {} was packed with `{expected}`",
            path.display(),
            said.trim(),
            release.id
        );
    }
    Ok(())
}

/// How long [`smoke`] waits for the first good answer; a cold compile of the components takes well under a second.
const SMOKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two questions while nobody listens yet.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Starts the bundle's runtime on a free loopback port with a database of its own, sees `GET /health` answer 200,
/// and stops it again.
///
/// # Errors
/// The runtime exits or does not answer within 30 s; the error holds the last lines that it wrote.
pub fn smoke(bundle: &Path) -> anyhow::Result<()> {
    let release = Release::open(bundle)?;
    check_release(&release)?;
    let scratch = tempfile::tempdir().context("Making a temporary directory")?;
    let at = |name: &str| scratch.path().join(name);
    let layout = Layout::new(scratch.path());
    fs::create_dir_all(layout.data_dir())?;
    token::make(&layout)?;
    files::replace(&layout.links_toml(), b"", 0o644)?;
    fs::copy(bundle.join(&release.manifest.runtime_config), layout.runtime_toml())?;
    let runtime_config = at("runtime.toml");
    files::replace(&runtime_config, load(&layout)?.render(&layout)?.as_bytes(), 0o600)?;
    let mut listen = vec![Endpoint::Tcp(free_address()?)];
    if release.manifest.listens_on_sockets() {
        listen.push(Endpoint::Socket(at("socket")));
    }
    let call = Call {
        release: &release,
        listen: listen.clone(),
        runtime_config,
        state_dir: at("state"),
        precompiled: None,
        cache_dir: layout.cache_dir(),
        temporary_dir: scratch.path().to_owned(),
        telemetry: vec![],
    };
    fs::create_dir_all(&call.cache_dir)?;
    let output = File::create(at("output")).context("Making a file for the runtime's output")?;
    let (tell, told) = mpsc::channel();
    let mut command = call.command();
    command.stdout(output.try_clone()?).stderr(output);
    let process = Process::start(&mut command, Signal::SIGKILL, move |status| {
        // Nobody listens any more once the verdict is there.
        let _ = tell.send(status);
    })
    .with_context(|| format!("Starting {}", release.runtime_path().display()))?;

    let mut probes = listen
        .into_iter()
        .map(|endpoint| Probe::new(endpoint, Duration::from_secs(5)));
    let verdict = probes.try_for_each(|probe| wait_until_ready(&probe, &told));
    process.terminate();
    // The verdict stands; what is left of the process is killed in any case.
    let _ = told.recv_timeout(Duration::from_secs(5));
    process.kill();
    verdict.map_err(|why| {
        let said = fs::read_to_string(at("output")).unwrap_or_default();
        anyhow::anyhow!(
            "the bundle does not serve: its runtime ({}) {why}\n{}",
            release.runtime_name(),
            exec::tail(&said, 20)
        )
    })
}

fn wait_until_ready(probe: &Probe, ended: &mpsc::Receiver<std::io::Result<ExitStatus>>) -> Result<(), String> {
    let deadline = Instant::now() + SMOKE_TIMEOUT;
    loop {
        let why = match probe.ready() {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if Instant::now() >= deadline {
            return Err(format!(
                "did not become healthy within {} s: {why}",
                SMOKE_TIMEOUT.as_secs()
            ));
        }
        match ended.recv_timeout(ASK_AGAIN) {
            Ok(status) => return Err(describe(status)),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err("ended".to_owned()),
        }
    }
}

/// A loopback port that nobody listened on a moment ago.
///
/// # Errors
/// No port is free.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("Looking for a free port")?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::release::tests::bundle;

    #[test]
    fn only_links_host_gets_flags_that_spin_lacks() {
        let directory = tempfile::tempdir().unwrap();
        let mut release = bundle(directory.path(), b"");
        let arguments = |release: &Release| {
            let call = Call {
                release,
                listen: vec![Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 7001)))],
                runtime_config: "/r".into(),
                state_dir: "/s".into(),
                precompiled: Some("/compiled/1".into()),
                cache_dir: "/c".into(),
                temporary_dir: "/t".into(),
                telemetry: vec![],
            };
            let arguments = call
                .command()
                .get_args()
                .map(|it| it.to_string_lossy().into_owned())
                .collect::<Vec<_>>();
            arguments.join(" ")
        };
        let own = " --request-timeout 75s --precompiled /compiled/1";
        assert!(arguments(&release).ends_with(own), "{}", arguments(&release));
        release.manifest.runtime.kind = RuntimeKind::Spin;
        assert!(!arguments(&release).contains("--request-timeout"));
        assert!(!arguments(&release).contains("--precompiled"));
    }

    #[test]
    fn a_runtime_that_exits_at_once_is_reported_with_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let script =
            b"#!/bin/sh\n[ \"$1\" = --version ] && echo links-host 1.2.3 && exit 0\necho no luck today >&2\nexit 7\n";
        let release = bundle(directory.path(), script);
        fs::set_permissions(
            release.runtime_path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let error = format!("{:#}", smoke(directory.path()).unwrap_err());
        assert!(
            error.contains("exited with status 7") && error.contains("no luck today"),
            "{error}"
        );
    }

    #[test]
    fn a_runtime_of_another_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let release = bundle(directory.path(), b"#!/bin/sh\necho spin 3.0.0\n");
        fs::set_permissions(
            release.runtime_path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let error = format!("{:#}", check_release(&release).unwrap_err());
        assert!(
            error.contains("`spin 3.0.0`") && error.contains("`links-host 1.2.3`"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_runtime_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let release = bundle(directory.path(), b"");
        fs::remove_file(release.runtime_path()).unwrap();
        let error = format!("{:#}", check_release(&release).unwrap_err());
        assert!(error.contains("runtime/links-host"), "{error}");
    }
}
