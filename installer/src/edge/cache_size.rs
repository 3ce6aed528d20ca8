//! What nginx may take for the redirects that it keeps.

use std::fs;

use nix::sys::statvfs::statvfs;

use super::{self as edge, Conf};
use crate::exec;
use crate::layout::Layout;
use crate::nginx::Room;
use crate::services::Services;

/// What nginx's unit gets from links.
const DROP_IN: &str = include_str!("../../../systemd/nginx.service.d/10-links.conf");

const MEBIBYTE: u64 = 1024 * 1024;
/// Of the file system that the directory is in.
const SHARE: u64 = 2;
/// For 262,144 answers of a block each.
const MOST_MEBIBYTES: u64 = 1024;

/// By Zipf's law, nine of ten requests for 100,000 links are for these.
const MOST_FILES: u64 = 10_000;
/// What a worker has open beside connections and the cache.
const OTHERS: u64 = 56;

/// Linux's, unless somebody asks for more.
const LIMIT: u64 = 1024;
/// Of Debian's nginx.conf.
const CONNECTIONS: u64 = 768;

pub fn of_cache(layout: &Layout, services: Services, conf: &Conf) -> Room {
    Room {
        mebibytes: mebibytes(layout).unwrap_or(Room::MODEST.mebibytes),
        open_files: open_files(layout, services, conf),
    }
}

/// systemd gives a fifth of the memory to /run, Debian's initramfs a tenth.
fn mebibytes(layout: &Layout) -> Option<u64> {
    let found = statvfs(&layout.run_dir()).ok()?;
    let bytes = found.blocks() * found.fragment_size();
    Some((bytes / SHARE / MEBIBYTE).clamp(1, MOST_MEBIBYTES))
}

/// For each worker. What is not open costs a redirect twice as much.
fn open_files(layout: &Layout, services: Services, conf: &Conf) -> u64 {
    let number = |directive| conf.argument(directive).and_then(|value| value.parse().ok());
    let limit = number("worker_rlimit_nofile").unwrap_or_else(|| {
        // By the unit, whether or not nginx runs at the moment: the site must not depend on that.
        let unit = services.property(edge::UNIT, "LimitNOFILESoft");
        let unit = unit.and_then(|value| value.parse().ok());
        let wanted = unit.or_else(|| wanted(DROP_IN)).unwrap_or(LIMIT);
        raised(layout, wanted)
    });
    beside(limit, number("worker_connections").unwrap_or(CONNECTIONS))
}

/// Half of what is left: a worker that can open nothing more is deaf.
fn beside(limit: u64, connections: u64) -> u64 {
    (limit.saturating_sub(connections + OTHERS) / 2).min(MOST_FILES)
}

/// `LimitNOFILE=` of a unit file.
fn wanted(unit: &str) -> Option<u64> {
    unit.lines()
        .find_map(|line| line.strip_prefix("LimitNOFILE="))?
        .trim()
        .parse()
        .ok()
}

/// What the workers of nginx may open: as much as its unit wants. A first process that was started with less, before the
/// drop-in came, is given the rest, so that no restart is needed.
fn raised(layout: &Layout, wanted: u64) -> u64 {
    let Some(pid) = edge::master(layout) else {
        return wanted;
    };
    let now = || limits(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?);
    if let Some((soft, hard)) = now()
        && soft < wanted.min(hard)
    {
        // If it is refused, the site has to do with what there is.
        let limit = format!("--nofile={}:", wanted.min(hard));
        let _ = exec::run("prlimit", ["--pid", &pid.to_string(), &limit]);
    }
    now().map_or(wanted, |(soft, _)| soft)
}

/// The soft and the hard one (proc_pid_limits(5)).
fn limits(of_process: &str) -> Option<(u64, u64)> {
    let line = of_process
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_whitespace().map_while(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn connections_come_first() {
        assert_eq!(beside(LIMIT, CONNECTIONS), 100);
        assert_eq!(beside(1024, 4096), 0);
        assert_eq!(beside(4096, 1024), 1508);
        assert_eq!(beside(65_536, 768), MOST_FILES);
        assert_eq!(beside(u64::MAX, 768), MOST_FILES);
    }

    #[test]
    fn without_a_running_nginx_its_unit_decides() {
        let (_root, layout) = crate::layout::temporary(&[]);
        let conf = |text: &str| Conf::read(&format!("# configuration file /etc/nginx/nginx.conf:\n{text}\n")).unwrap();
        let files = |text: &str| open_files(&layout, Services::nowhere(), &conf(text));
        assert_eq!(wanted(DROP_IN), Some(65_536));
        assert_eq!(files("events { worker_connections 768; }"), MOST_FILES);
        assert_eq!(
            files("worker_rlimit_nofile 1024; events { worker_connections 768; }"),
            100
        );
        assert_eq!(files("events { worker_connections 60000; }"), 2740);
    }

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             95693                95693                processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(limits(text), Some((1024, 524_288)));
        assert_eq!(limits(&text.replace("524288", "unlimited")), Some((1024, u64::MAX)));
        let (soft, hard) = limits(&fs::read_to_string("/proc/self/limits").unwrap()).unwrap();
        assert!(0 < soft && soft <= hard);
    }
}
