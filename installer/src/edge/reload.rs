//! nginx as a running program: its processes, and how it takes a new configuration without closing a connection that
//! somebody is using.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use nix::unistd::{SysconfVar, sysconf};

use crate::config::links::Config;
use crate::layout::Layout;
use crate::services::Services;
use crate::{connections, files};

pub const UNIT: &str = "nginx.service";
/// From the signal to new workers, beside the time that reading the configuration takes. nginx needs about a tenth of a
/// second, and two and a half where it cannot listen on an address, which it tries five times.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For clients to hear that their connection ends with its next answer. A client that is silent for longer may meet a
/// connection that is closed, as after any `keepalive_timeout`.
const ANNOUNCEMENT: Duration = Duration::from_secs(1);
/// Neither the end of a worker nor that of a connection is announced to others.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Debian's, unless nginx.conf says otherwise.
const ERROR_LOG: &str = "/var/log/nginx/error.log";

/// Makes nginx read its configuration. `slow`: how long reading it takes. `error_log` is quoted where nginx refuses.
/// Returns false where the policy forbids it.
///
/// # Errors
/// nginx goes on with what it had.
pub fn reload(
    layout: &Layout,
    config: Option<&Config>,
    services: Services,
    slow: Duration,
    error_log: Option<&str>,
) -> anyhow::Result<bool> {
    let _announced = config.map(|config| Announcement::make(layout, config)).transpose()?;
    let log = LogEnd::of(Path::new(error_log.unwrap_or(ERROR_LOG)));
    let old = workers(layout)?;
    let reloaded = services.act("reload", UNIT).and_then(|reloaded| {
        if reloaded {
            wait_until_retired(&old, RELOAD_TIMEOUT + 3 * slow)?;
        }
        Ok(reloaded)
    });
    reloaded.map_err(|error| match log.emergencies().as_str() {
        "" => error,
        emergencies => anyhow!("{error:#}\nnginx reports:\n{emergencies}{}", advice(emergencies)),
    })
}

/// Where nginx has port 80 of all addresses, it cannot listen on 127.0.0.1:80 too, nor the other way round.
fn advice(emergencies: &str) -> &'static str {
    match emergencies.contains("bind()") {
        true => {
            "\nIf nginx itself has that port under another address, only a restart can change it: `systemctl stop links \
             nginx`, `linksctl rollout`, `systemctl start nginx links`"
        }
        false => "",
    }
}

/// A log file up to now.
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

    /// What nginx has written since of why it cannot go on; empty where the log cannot be read.
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
        // The same, for each attempt.
        lines.dedup_by_key(|line| line.split_once("[emerg]").map(|(_, what)| what.to_owned()));
        lines.join("\n")
    }
}

/// Without its flag nginx ends each connection with its next answer; this lives as long as the flag is away.
struct Announcement<'a>(&'a Layout);

impl<'a> Announcement<'a> {
    /// Returns when every client that has a connection has heard it, or after [`ANNOUNCEMENT`].
    fn make(layout: &'a Layout, config: &Config) -> anyhow::Result<Self> {
        let announcement = Self(layout);
        let path = layout.keepalive_flag();
        files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display()))?;
        let ports: Vec<_> = config
            .nginx
            .listen
            .iter()
            .map(|listen| listen.address().port())
            .collect();
        let deadline = Instant::now() + ANNOUNCEMENT;
        let before = clients(&ports);
        while Instant::now() < deadline && !clients(&ports).is_disjoint(&before) {
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(announcement)
    }
}

impl Drop for Announcement<'_> {
    fn drop(&mut self) {
        // Without it, clients need a connection per request until the next change.
        if let Err(error) = keep_connections(self.0) {
            crate::log::error!("{error:#}");
        }
    }
}

/// nginx keeps connections, also after an interrupted change; to be called by whoever alone may change the site.
///
/// # Errors
/// The flag cannot be made.
pub fn keep_connections(layout: &Layout) -> anyhow::Result<()> {
    let path = layout.keepalive_flag();
    fs::write(&path, b"").with_context(|| format!("Making {}", path.display()))
}

/// None where the kernel does not say: then a reload is not worth failing for.
fn clients(ports: &[u16]) -> BTreeSet<String> {
    let found = connections::tables().and_then(|tables| {
        let each = tables.iter().map(|table| connections::clients(table, ports));
        each.collect::<Result<Vec<_>, _>>()
    });
    match found {
        Ok(clients) => clients.into_iter().flatten().collect(),
        Err(error) => {
            crate::log::error!("reading the connections of nginx: {error}");
            BTreeSet::new()
        }
    }
}

/// nginx's first process; none while it does not run.
pub fn master(layout: &Layout) -> Option<u32> {
    // `nginx -t` leaves an empty file behind, a crash one that names another process.
    let pid = fs::read_to_string(layout.nginx_pid()).ok()?.trim().parse().ok()?;
    title(pid).starts_with("nginx: master process").then_some(pid)
}

fn title(pid: u32) -> String {
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&title).into_owned()
}

/// The processes that accept connections now: children of the master that are not about to end.
fn workers(layout: &Layout) -> anyhow::Result<Vec<u32>> {
    let Some(master) = master(layout) else {
        return Ok(vec![]);
    };
    // The master has one thread.
    let path = PathBuf::from(format!("/proc/{master}/task/{master}/children"));
    let children = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        children => children.with_context(|| format!("Reading {}", path.display()))?,
    };
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    Ok(children.filter(|pid| accepts(*pid)).collect())
}

/// A worker that only finishes what it has says in its title that it shuts down.
fn accepts(pid: u32) -> bool {
    let title = title(pid);
    title.starts_with("nginx: worker process") && !title.contains("shutting down")
}

/// `systemctl reload nginx` returns when the master has the signal; its old workers go on accepting for a while. The reload
/// is over when none of them takes new connections any more, so that the next request is answered by the new site.
fn wait_until_retired(workers: &[u32], timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while workers.iter().any(|pid| accepts(*pid)) {
        if Instant::now() >= deadline {
            bail!(
                "nginx does not take its new configuration: its old workers still serve {} s after the reload",
                timeout.as_secs()
            );
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// When nginx took the configuration that it runs: the start of its oldest worker. None while it does not run.
pub fn running_since(layout: &Layout) -> Option<SystemTime> {
    let pids = workers(layout).ok()?;
    let ticks = pids
        .into_iter()
        .filter_map(|pid| started(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?));
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let booted = booted(&fs::read_to_string("/proc/stat").ok()?)?;
    let since_boot = Duration::from_millis(ticks.min()? * 1000 / per_second.max(1));
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(booted) + since_boot)
}

/// In ticks after the boot (proc_pid_stat(5), the 22nd field; the second is in parentheses and may hold blanks).
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// In seconds since 1970 (proc_stat(5)).
fn booted(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::layout::temporary;

    #[test]
    fn only_a_process_of_nginx_is_its_master() {
        let (root, layout) = temporary(&[]);
        fs::create_dir_all(root.path().join("run")).unwrap();
        assert_eq!(master(&layout), None);
        for text in ["", "\n", "no number\n", &format!("{}\n", std::process::id())] {
            fs::write(layout.nginx_pid(), text).unwrap();
            assert_eq!(master(&layout), None, "{text:?}");
        }
        assert_eq!(workers(&layout).unwrap(), Vec::<u32>::new());
    }

    #[test]
    fn a_process_has_a_start() {
        let stat = "7 (nginx: (x) y) S 1 7 7 0 -1 4194624 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 2 3\n";
        assert_eq!(started(stat), Some(4711));
        assert_eq!(booted("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000));
        assert!(started(&fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }

    #[test]
    fn of_the_log_only_new_emergencies_are_quoted() {
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
