//! The runtime as a process: its command line, its checks, and a smoke test.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;

use super::manifest::RuntimeKind;
use super::store::Release;
use links_base::emulator::Emulator;
use links_base::endpoint::Endpoint;
use links_base::health::Probe;
use links_base::layout::Layout;
use links_base::process::{Process, describe};
use links_base::{exec, files};
use links_config::admin_token;
use links_config::files::ConfigFiles;
use links_config::load::load;
use links_config::telemetry;

/// The command line of a runtime, which is Spin's.
#[derive(Debug)]
pub struct Call<'a> {
    pub release: &'a Release,
    /// The endpoints to listen on. Spin takes only one.
    pub listen: Vec<Endpoint>,
    /// The path of the configuration rendered for this instance, with its secrets.
    pub runtime_config: PathBuf,
    pub state_dir: PathBuf,
    /// The directory of the release's compiled components, if its runtime compiled them.
    pub precompiled: Option<PathBuf>,
    /// The directory of the code cache, which is in `wasmtime/` below it.
    pub cache_dir: PathBuf,
    pub temporary_dir: PathBuf,
    /// Environment variables that configure the export of telemetry. They may contain secrets, so they are not arguments.
    pub telemetry: Vec<(String, String)>,
}

impl Call<'_> {
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.release.runtime_path());
        // OTLP variables from a person's shell are not meant for the runtime.
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
            // Only the supervisor notifies systemd.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            // The rendered configuration contains the credentials that the runtime needs.
            .env_remove("CREDENTIALS_DIRECTORY")
            .env("HOME", &self.cache_dir)
            .env("XDG_CACHE_HOME", &self.cache_dir)
            .env("TMPDIR", &self.temporary_dir)
            .envs(self.links_host_environment())
            .envs(self.telemetry.iter().map(|(name, value)| (name, value)))
            // Spin reads variables from `.env` in its working directory, so start it in a private directory.
            .current_dir(&self.temporary_dir)
            .stdin(Stdio::null());
        command
    }

    fn links_host_environment(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let is_links_host = self.release.manifest.runtime.kind == RuntimeKind::LinksHost;
        // The user's own settings take precedence.
        let unset = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
        MEMORY.into_iter().filter(move |_| is_links_host).filter(unset)
    }

    /// The arguments that only links-host has.
    fn links_host_arguments(&self) -> Vec<OsString> {
        if self.release.manifest.runtime.kind != RuntimeKind::LinksHost {
            return vec![];
        }
        let mut arguments = vec![
            "--request-timeout".into(),
            REQUEST_TIMEOUT.into(),
            "--max-instance-reuse-count".into(),
            REUSE_COUNT.into(),
        ];
        if let Some(directory) = &self.precompiled {
            arguments.extend(["--precompiled".into(), directory.into()]);
        }
        arguments
    }
}

/// The allocator options of links-host, which uses mimalloc, except for its SQLite, which uses glibc. mimalloc reads its
/// options before `main`. With these it allocates lazily and returns memory to the kernel at once, which saves 13 MB when
/// idle. glibc uses two arenas instead of one per thread.
const MEMORY: [(&str, &str); 3] = [
    ("MIMALLOC_ARENA_EAGER_COMMIT", "0"),
    ("MIMALLOC_PURGE_DELAY", "0"),
    ("MALLOC_ARENA_MAX", "2"),
];

/// The time limit of a request. It is longer than nginx waits for a response, after which the request is useless.
const REQUEST_TIMEOUT: &str = "75s";
/// How many requests an instance of a component handles. With the default of Spin, 128, a redirect takes 3 % more CPU time.
const REUSE_COUNT: &str = "1000";

/// Checks the files of a release, and that the runtime has the version from the manifest. Starting a broken release would
/// fail later and with a less clear error.
///
/// # Errors
/// A file is missing or damaged, or the runtime has another version. The error names it.
pub fn check_release(release: &Release) -> anyhow::Result<()> {
    check_emulated(release, &Emulator::None)
}

fn check_emulated(release: &Release, emulator: &Emulator) -> anyhow::Result<()> {
    release.verify()?;
    let path = release.runtime_path();
    let mut version = Command::new(&path);
    version.arg("--version");
    let output = exec::run_command(emulator.wrap(version))
        .with_context(|| format!("Asking the runtime {} for its version", path.display()))?;
    let expected = release.runtime_name();
    let found: Vec<_> = output.split_whitespace().take(2).collect();
    if found.join(" ") != expected {
        bail!(
            "the runtime {} reports `{}`, but release {} was packed with `{expected}`",
            path.display(),
            output.trim(),
            release.id
        );
    }
    Ok(())
}

/// How long [`smoke`] waits for the first healthy answer. Compiling the components takes well under a second.
const SMOKE_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval of health probes while the runtime does not listen yet.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// Tests a bundle: starts its runtime on a free loopback port with an empty database, waits until `GET /health` answers 200,
/// and stops the runtime.
///
/// # Errors
/// The runtime exits, or is not healthy within 30 s, or a multiple of that under an emulator. The error contains the last lines
/// of its output.
pub fn smoke(bundle: &Path, emulator: &Emulator) -> anyhow::Result<()> {
    let release = Release::open(bundle)?;
    check_emulated(&release, emulator)?;
    let scratch = tempfile::tempdir().context("Making a temporary directory")?;
    let at = |name: &str| scratch.path().join(name);
    let layout = Layout::new(scratch.path());
    fs::create_dir_all(layout.data_dir())?;
    let config = ConfigFiles::new(&layout);
    admin_token::make(&config)?;
    files::replace(&layout.links_toml(), b"", 0o644)?;
    fs::copy(bundle.join(&release.manifest.runtime_config), layout.runtime_toml())?;
    let runtime_config = at("runtime.toml");
    files::replace(
        &runtime_config,
        load(&config)?.render(config.places())?.as_bytes(),
        0o600,
    )?;
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
    let (exit, exited) = mpsc::channel();
    let mut command = emulator.wrap(call.command());
    command.stdout(output.try_clone()?).stderr(output);
    let process = Process::start(&mut command, Signal::SIGKILL, move |status| {
        // This fails once the verdict is known, when the receiver is gone.
        let _ = exit.send(status);
    })
    .with_context(|| format!("Starting {}", release.runtime_path().display()))?;

    let mut probes = listen
        .into_iter()
        .map(|endpoint| Probe::new(endpoint, Duration::from_secs(5)));
    let timeout = emulator.timeout(SMOKE_TIMEOUT);
    let verdict = probes.try_for_each(|probe| wait_until_ready(&probe, &exited, timeout));
    process.terminate();
    // The verdict does not depend on how the runtime exits. Any remaining process is killed next.
    let _ = exited.recv_timeout(Duration::from_secs(5));
    process.kill();
    verdict.map_err(|why| {
        let output = fs::read_to_string(at("output")).unwrap_or_default();
        anyhow::anyhow!(
            "the bundle does not serve: its runtime ({}) {why}\n{}",
            release.runtime_name(),
            exec::tail(&output, 20)
        )
    })
}

fn wait_until_ready(
    probe: &Probe,
    exited: &mpsc::Receiver<std::io::Result<ExitStatus>>,
    timeout: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    loop {
        let why = match probe.ready() {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if Instant::now() >= deadline {
            return Err(format!("did not become healthy within {} s: {why}", timeout.as_secs()));
        }
        match exited.recv_timeout(PROBE_INTERVAL) {
            Ok(status) => return Err(describe(status)),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err("ended".to_owned()),
        }
    }
}

/// A loopback address with a port that was free a moment ago.
///
/// # Errors
/// No port is free.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("Looking for a free port")?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use crate::testing::bundle;

    #[test]
    fn only_links_host_gets_the_flags_that_spin_lacks() {
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
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect::<Vec<_>>();
            arguments.join(" ")
        };
        let own = " --request-timeout 75s --max-instance-reuse-count 1000 --precompiled /compiled/1";
        assert!(arguments(&release).ends_with(own), "{}", arguments(&release));
        release.manifest.runtime.kind = RuntimeKind::Spin;
        assert!(!arguments(&release).contains("--request-timeout"));
        assert!(!arguments(&release).contains("--precompiled"));
    }

    #[test]
    fn the_error_about_a_runtime_that_exits_contains_its_output() {
        let directory = tempfile::tempdir().unwrap();
        let script =
            b"#!/bin/sh\n[ \"$1\" = --version ] && echo links-host 1.2.3 && exit 0\necho no luck today >&2\nexit 7\n";
        let release = bundle(directory.path(), script);
        fs::set_permissions(
            release.runtime_path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let error = format!("{:#}", smoke(directory.path(), &Emulator::None).unwrap_err());
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
    fn the_error_names_a_missing_runtime() {
        let directory = tempfile::tempdir().unwrap();
        let release = bundle(directory.path(), b"");
        fs::remove_file(release.runtime_path()).unwrap();
        let error = format!("{:#}", check_release(&release).unwrap_err());
        assert!(error.contains("runtime/links-host"), "{error}");
    }
}
