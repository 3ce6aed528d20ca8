//! How much memory and how many open files nginx may use for its cache of redirects.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use procfs::process::{LimitValue, Process};

use super::conf::Conf;
use super::reload::{self, Nginx};
use crate::nginx::CacheSize;
use links_base::exec;
use links_base::services::Services;

/// The drop-in that links adds to nginx's unit.
const DROP_IN: &str = include_str!("../../../systemd/nginx.service.d/10-links.conf");

const MEBIBYTE: u64 = 1024 * 1024;
/// The cache gets one part in this many of the file system below /run.
const SHARE: u64 = 2;
/// The maximum size of the cache: 262,144 answers of one 4 KiB block each.
const MAX_MEBIBYTES: u64 = 1024;

/// The maximum number of open files. By Zipf's law, four in five requests for 100,000 links are for the 10,000 most popular.
const MAX_FILES: u64 = 10_000;
/// The number of files that a worker has open besides connections and the cache.
const OTHERS: u64 = 56;

/// Linux's default for the soft limit of open files.
const LIMIT: u64 = 1024;
/// `worker_connections` in Debian's nginx.conf.
const CONNECTIONS: u64 = 768;

/// The limits of the cache below `run`, the directory of the run-time files.
pub fn of_cache(run: &Path, nginx: &Nginx, services: Services, conf: &Conf) -> CacheSize {
    CacheSize {
        mebibytes: mebibytes(run).unwrap_or(CacheSize::MODEST.mebibytes),
        open_files: open_files(nginx, services, conf),
    }
}

/// The maximum size of the cache. /run has a fifth of the memory if systemd mounts it, a tenth if Debian's initramfs does.
fn mebibytes(run: &Path) -> Option<u64> {
    let found = statvfs(run).ok()?;
    let bytes = found.blocks() * found.fragment_size();
    Some((bytes / SHARE / MEBIBYTE).clamp(1, MAX_MEBIBYTES))
}

/// The number of cached files that each worker keeps open. A redirect from a file that is not open costs twice as much.
fn open_files(nginx: &Nginx, services: Services, conf: &Conf) -> u64 {
    let number = |directive| conf.argument(directive).and_then(|value| value.parse().ok());
    let limit = number("worker_rlimit_nofile").unwrap_or_else(|| {
        // Ask the unit, not the process: the site must not depend on whether nginx runs at the moment.
        let unit = services.property(reload::UNIT, "LimitNOFILESoft");
        let unit = unit.and_then(|value| value.parse().ok());
        let wanted = unit.or_else(|| wanted(DROP_IN)).unwrap_or(LIMIT);
        raised(nginx, wanted)
    });
    beside(limit, number("worker_connections").unwrap_or(CONNECTIONS))
}

/// Half of the files that connections leave over. A worker that can open no more files cannot accept connections.
fn beside(limit: u64, connections: u64) -> u64 {
    (limit.saturating_sub(connections + OTHERS) / 2).min(MAX_FILES)
}

/// The value of `LimitNOFILE=` in a unit file.
fn wanted(unit: &str) -> Option<u64> {
    unit.lines()
        .find_map(|line| line.strip_prefix("LimitNOFILE="))?
        .trim()
        .parse()
        .ok()
}

/// The number of files that nginx's workers may open, which is what its unit wants. A master that was started before the
/// drop-in was installed has a lower limit; it is raised here, so that nginx needs no restart.
fn raised(nginx: &Nginx, wanted: u64) -> u64 {
    let Some(pid) = nginx.master() else {
        return wanted;
    };
    let now = || limits(pid);
    if let Some((soft, hard)) = now()
        && soft < wanted.min(hard)
    {
        // If prlimit is refused, the site makes do with the current limit.
        let limit = format!("--nofile={}:", wanted.min(hard));
        let _ = exec::run("prlimit", ["--pid", &pid.to_string(), &limit]);
    }
    now().map_or(wanted, |(soft, _)| soft)
}

/// The soft and the hard limit of open files.
fn limits(pid: u32) -> Option<(u64, u64)> {
    let limits = Process::new(pid.cast_signed()).ok()?.limits().ok()?;
    let number = |limit| match limit {
        LimitValue::Unlimited => u64::MAX,
        LimitValue::Value(number) => number,
    };
    let files = limits.max_open_files;
    Some((number(files.soft_limit), number(files.hard_limit)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn connections_take_precedence_over_cached_files() {
        assert_eq!(beside(LIMIT, CONNECTIONS), 100);
        assert_eq!(beside(1024, 4096), 0);
        assert_eq!(beside(4096, 1024), 1508);
        assert_eq!(beside(65_536, 768), MAX_FILES);
        assert_eq!(beside(u64::MAX, 768), MAX_FILES);
    }

    #[test]
    fn without_a_running_nginx_its_unit_decides() {
        let (_root, layout) = links_base::layout::temporary(&[]);
        let conf = |text: &str| Conf::read(&format!("# configuration file /etc/nginx/nginx.conf:\n{text}\n")).unwrap();
        let files = |text: &str| {
            open_files(
                &Nginx::new(&layout, Services::nowhere()),
                Services::nowhere(),
                &conf(text),
            )
        };
        assert_eq!(wanted(DROP_IN), Some(65_536));
        assert_eq!(files("events { worker_connections 768; }"), MAX_FILES);
        assert_eq!(
            files("worker_rlimit_nofile 1024; events { worker_connections 768; }"),
            100
        );
        assert_eq!(files("events { worker_connections 60000; }"), 2740);
    }

    #[test]
    fn the_limits_of_this_process_are_read() {
        let (soft, hard) = limits(std::process::id()).unwrap();
        let own = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(
            (soft, hard),
            (own.current.unwrap_or(u64::MAX), own.maximum.unwrap_or(u64::MAX))
        );
        assert_eq!(limits(u32::MAX), None);
    }
}
