//! What nginx may take for the redirects that it keeps.

use std::fs;

use nix::sys::statvfs::statvfs;

use super::services::Services;
use super::site;
use crate::exec;
use crate::layout::Layout;
use crate::nginx::Room;

const MEBIBYTE: u64 = 1024 * 1024;
/// Of the file system that the directory is in.
const SHARE: u64 = 2;
/// For 262,144 answers of a block each.
const MOST_MEBIBYTES: u64 = 1024;

/// By Zipf's law, nine of ten requests for 100,000 links are for these.
const MOST_FILES: u64 = 10_000;
/// What a worker has open beside connections and the cache.
const OTHERS: u64 = 56;

/// Linux's, for who does not ask for more.
const LIMIT: u64 = 1024;
/// Of Debian's nginx.conf.
const CONNECTIONS: u64 = 768;

pub fn of_cache(layout: &Layout, services: Services) -> Room {
    Room {
        mebibytes: mebibytes(layout).unwrap_or(Room::MODEST.mebibytes),
        open_files: open_files(layout, services),
    }
}

/// systemd gives a fifth of the memory to /run, Debian's initramfs a tenth.
fn mebibytes(layout: &Layout) -> Option<u64> {
    let found = statvfs(&layout.run_dir()).ok()?;
    let bytes = found.blocks() * found.fragment_size();
    Some((bytes / SHARE / MEBIBYTE).clamp(1, MOST_MEBIBYTES))
}

/// For each worker. What is not open costs a redirect twice as much. Before nginx is asked, it is given the room that its
/// unit has for it, so that no restart is needed.
fn open_files(layout: &Layout, services: Services) -> u64 {
    let config = exec::finish("nginx", ["-T", "-q"]).map_or_else(|_| String::new(), |said| said.stdout);
    let limit = said(&config, "worker_rlimit_nofile").or_else(|| of_master(layout, services));
    beside(
        limit.unwrap_or(LIMIT),
        said(&config, "worker_connections").unwrap_or(CONNECTIONS),
    )
}

/// Half of what is left: a worker that can open nothing more is deaf.
fn beside(limit: u64, connections: u64) -> u64 {
    (limit.saturating_sub(connections + OTHERS) / 2).min(MOST_FILES)
}

/// The number that nginx's configuration gives for a directive.
fn said(config: &str, directive: &str) -> Option<u64> {
    let lines = config.lines().filter_map(|line| line.split('#').next());
    lines
        .flat_map(|line| line.split([';', '{', '}']))
        .find_map(|statement| {
            let mut words = statement.split_whitespace();
            (words.next()? == directive).then(|| words.next()?.parse().ok())?
        })
}

/// Of nginx's first process, from which the workers have theirs.
fn of_master(layout: &Layout, services: Services) -> Option<u64> {
    let pid = site::master(layout)?;
    let now = || limits(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?);
    let wanted: Option<u64> = services
        .property(site::UNIT, "LimitNOFILESoft")
        .and_then(|value| value.parse().ok());
    if let (Some((soft, hard)), Some(wanted)) = (now(), wanted)
        && soft < wanted.min(hard)
    {
        // If it is refused, the site has to do with what there is.
        let _ = exec::run("prlimit", ["--pid", &pid, &format!("--nofile={}:", wanted.min(hard))]);
    }
    now().map(|(soft, _)| soft)
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
    fn the_configuration_is_read_as_nginx_does() {
        let config = "user www-data;\nevents { worker_connections 768; # worker_rlimit_nofile 7;\n}\n";
        assert_eq!(said(config, "worker_connections"), Some(768));
        assert_eq!(said(config, "worker_rlimit_nofile"), None);
        assert_eq!(
            said("events {\n\tworker_connections\t1024;\n}", "worker_connections"),
            Some(1024)
        );
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
