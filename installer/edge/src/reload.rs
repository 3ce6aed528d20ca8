//! nginx as a running program: its processes, and how it takes a new configuration without closing a connection in use.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use procfs::ProcError;
use procfs::process::Process;

use links_base::layout::Layout;
use links_base::services::Services;
use links_base::{connections, files};
use links_config::links::{Config, TLS_PORT};

pub const UNIT: &str = "nginx.service";
/// How long a reload may take, besides reading the configuration. nginx needs about a tenth of a second, or 2.5 seconds if it
/// cannot listen on an address, because it tries five times.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a keep-alive drain waits for clients to learn that their connection ends with its next answer. A client that is
/// idle for longer may find its connection closed, as after any `keepalive_timeout`.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The time between two checks. Nothing announces that a worker or a connection has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Debian's error log, used if nginx.conf does not set another.
const ERROR_LOG: &str = "/var/log/nginx/error.log";

/// The files by which nginx is found and controlled.
#[derive(Clone, Debug)]
pub struct Nginx {
    pid_file: PathBuf,
    keepalive_flag: PathBuf,
    services: Services,
}

impl Nginx {
    pub fn new(layout: &Layout, services: Services) -> Self {
        Self {
            pid_file: layout.nginx_pid(),
            keepalive_flag: layout.keepalive_flag(),
            services,
        }
    }

    /// Makes nginx read its configuration, which takes `read_time`. If nginx refuses it, the error quotes `error_log`. Returns
    /// false if the host's policy forbids the reload.
    ///
    /// # Errors
    /// The reload failed, and nginx goes on with its old configuration.
    pub fn reload(
        &self,
        config: Option<&Config>,
        read_time: Duration,
        error_log: Option<&str>,
    ) -> anyhow::Result<bool> {
        let _drain = config.map(|config| KeepAliveDrain::make(self, config)).transpose()?;
        let log = LogEnd::of(Path::new(error_log.unwrap_or(ERROR_LOG)));
        let old = self.workers()?;
        let reloaded = self.services.act("reload", UNIT).and_then(|reloaded| {
            if reloaded {
                wait_until_retired(&old, RELOAD_TIMEOUT + 3 * read_time)?;
            }
            Ok(reloaded)
        });
        reloaded.map_err(|error| match log.emergencies().as_str() {
            "" => error,
            emergencies => anyhow!("{error:#}\nnginx reports:\n{emergencies}{}", advice(emergencies)),
        })
    }

    /// Makes nginx keep connections alive again, even after an interrupted change. The caller must hold the right to change the
    /// site.
    ///
    /// # Errors
    /// The flag cannot be created.
    pub fn keep_connections(&self) -> anyhow::Result<()> {
        let path = &self.keepalive_flag;
        fs::write(path, b"").with_context(|| format!("Creating {}", path.display()))
    }

    /// The process id of nginx's master. `None` while nginx does not run.
    pub fn master(&self) -> Option<u32> {
        let in_file = fs::read_to_string(&self.pid_file).ok();
        // nginx.conf may name another file, which the unit has to know.
        let of_unit = || master(&self.services.property(UNIT, "MainPID")?);
        in_file.and_then(|pid| master(&pid)).or_else(of_unit)
    }

    /// The workers that accept connections: children of the master that are not shutting down.
    fn workers(&self) -> anyhow::Result<Vec<u32>> {
        let Some(master) = self.master() else {
            return Ok(vec![]);
        };
        // The master has a single thread, so all its children are those of its main thread.
        let children = Process::new(master.cast_signed()).and_then(|master| master.task_main_thread()?.children());
        let children = match children {
            Err(ProcError::NotFound(_)) => return Ok(vec![]),
            children => children.context("Listing the workers of nginx")?,
        };
        Ok(children.into_iter().filter(|pid| accepts(*pid)).collect())
    }

    /// When nginx took its current configuration, by the start of its oldest worker. `None` while nginx does not run.
    pub fn running_since(&self) -> Option<SystemTime> {
        let pids = self.workers().ok()?;
        pids.into_iter().filter_map(started).min()
    }
}

/// The process id in a file or a property, if that process is a master of nginx. `nginx -t` leaves an empty file behind. After a
/// crash, the file may name another process.
fn master(pid: &str) -> Option<u32> {
    let pid = pid.trim().parse().ok()?;
    title(pid).starts_with("nginx: master process").then_some(pid)
}

/// A hint for a failed bind(): while nginx holds port 80 of all addresses, it cannot also listen on 127.0.0.1:80, nor the other
/// way round.
fn advice(emergencies: &str) -> &'static str {
    match emergencies.contains("bind()") {
        true => {
            "\nIf nginx itself holds that port on another address, only a restart can change that: `systemctl stop links \
             nginx`, `linksctl rollout`, `systemctl start nginx links`"
        }
        false => "",
    }
}

/// A mark at the current end of a log file.
struct LogEnd<'a> {
    path: &'a Path,
    length: u64,
}

impl<'a> LogEnd<'a> {
    fn of(path: &'a Path) -> Self {
        Self {
            path,
            length: fs::metadata(path).map(|found| found.len()).unwrap_or(0),
        }
    }

    /// The `[emerg]` lines that nginx has written since, without repetitions. Empty if the log cannot be read.
    fn emergencies(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = fs::File::open(self.path)?;
            file.seek(SeekFrom::Start(self.length))?;
            let mut text = String::new();
            file.take(64 * 1024).read_to_string(&mut text)?;
            Ok(text)
        };
        let text = read().unwrap_or_default();
        let mut lines: Vec<_> = text.lines().filter(|line| line.contains("[emerg]")).collect();
        // nginx writes the same line for each attempt.
        lines.dedup_by_key(|line| line.split_once("[emerg]").map(|(_, what)| what.to_owned()));
        lines.join("\n")
    }
}

/// A guard that keeps the keep-alive flag away while it lives. Without the flag, nginx ends each connection with its next
/// answer.
struct KeepAliveDrain<'a>(&'a Nginx);

impl<'a> KeepAliveDrain<'a> {
    /// Removes the flag and waits until every current connection has ended, or for [`DRAIN_TIMEOUT`].
    fn make(nginx: &'a Nginx, config: &Config) -> anyhow::Result<Self> {
        let drain = Self(nginx);
        let path = &nginx.keepalive_flag;
        files::remove_if_present(path).with_context(|| format!("Removing {}", path.display()))?;
        let plain = config.nginx.listen.iter().map(|listen| listen.address().port());
        // HTTP/2 has no `Connection: close`. nginx ends such a connection by a GOAWAY at the reload: it answers the requests that
        // it has got, and clients repeat the others over a new connection (RFC 9113, section 6.8).
        let ports: Vec<_> = plain.chain(config.tls.is_on().then_some(TLS_PORT)).collect();
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let before = clients(&ports);
        while Instant::now() < deadline && !clients(&ports).is_disjoint(&before) {
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(drain)
    }
}

impl Drop for KeepAliveDrain<'_> {
    fn drop(&mut self) {
        // Without the flag, clients need a connection per request until the next change.
        if let Err(error) = self.0.keep_connections() {
            links_base::log::error!("{error:#}");
        }
    }
}

/// The clients' connections to these ports. Empty if they cannot be read, which is no reason to fail a reload.
fn clients(ports: &[u16]) -> BTreeSet<SocketAddr> {
    match connections::sockets() {
        Ok(sockets) => connections::clients(&sockets, ports),
        Err(error) => {
            links_base::log::error!("reading the connections of nginx: {error}");
            BTreeSet::new()
        }
    }
}

fn title(pid: u32) -> String {
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&title).into_owned()
}

/// Whether the process is a worker that accepts connections. nginx marks a worker that only finishes its requests in its title.
fn accepts(pid: u32) -> bool {
    let title = title(pid);
    title.starts_with("nginx: worker process") && !title.contains("shutting down")
}

/// Waits until none of the old workers accepts connections, so that the next request gets the new site. `systemctl reload
/// nginx` returns earlier, when the master has the signal.
fn wait_until_retired(workers: &[u32], timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while workers.iter().any(|pid| accepts(*pid)) {
        if Instant::now() >= deadline {
            bail!(
                "nginx did not take its new configuration: its old workers still accept connections {} s after the reload",
                timeout.as_secs()
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

fn started(pid: u32) -> Option<SystemTime> {
    // In clock ticks after the boot (proc_pid_stat(5)).
    let ticks = Process::new(pid.cast_signed()).ok()?.stat().ok()?.starttime;
    let since_boot = Duration::from_millis((ticks * 1000).checked_div(procfs::ticks_per_second())?);
    let booted = Duration::from_secs(procfs::boot_time_secs().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(booted + since_boot)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::temporary;

    #[test]
    fn only_a_process_of_nginx_is_its_master() {
        let (root, layout) = temporary(&[]);
        fs::create_dir_all(root.path().join("run")).unwrap();
        let nginx = Nginx::new(&layout, Services::nowhere());
        assert_eq!(nginx.master(), None);
        for text in ["", "\n", "no number\n", &format!("{}\n", std::process::id())] {
            fs::write(layout.nginx_pid(), text).unwrap();
            assert_eq!(nginx.master(), None, "{text:?}");
        }
        assert_eq!(nginx.workers().unwrap(), Vec::<u32>::new());
    }

    #[test]
    fn a_process_has_started_in_the_past() {
        let age = started(std::process::id()).unwrap().elapsed().unwrap();
        assert!(age < Duration::from_secs(3600), "{age:?}");
        assert_eq!(started(u32::MAX), None);
    }

    #[test]
    fn only_new_emergencies_of_the_log_are_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("error.log");
        assert_eq!(LogEnd::of(&path).emergencies(), "");
        fs::write(&path, "1 [emerg] 1#1: old\n").unwrap();
        let end = LogEnd::of(&path);
        let new =
            "2 [emerg] 1#1: bind() failed\n2 [error] other\n3 [emerg] 1#1: bind() failed\n3 [emerg] 1#1: giving up\n";
        fs::write(&path, format!("1 [emerg] 1#1: old\n{new}")).unwrap();
        assert_eq!(
            end.emergencies(),
            "2 [emerg] 1#1: bind() failed\n3 [emerg] 1#1: giving up"
        );
    }
}
