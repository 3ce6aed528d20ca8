//! nginx on a host, in front of the instances.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Host;
use crate::process::eventually;

impl Host {
    /// Makes nginx reload its configuration, and waits until only workers with the new configuration accept connections.
    ///
    /// `systemctl reload nginx` returns at once, while the old workers accept connections for another 100 ms or more.
    ///
    /// # Errors
    /// Fails if nginx does not run, refuses the configuration, or keeps its old workers for 10 s.
    pub fn reload_nginx(&self) -> Result<()> {
        let workers = || self.shell("pgrep --list-full --parent $(cat /run/nginx.pid)");
        let before = workers()?.stdout;
        self.ok(["systemctl", "reload", "nginx"])?;
        eventually("nginx has new workers", Duration::from_secs(10), || {
            let now = workers()?.stdout;
            // A worker that only finishes its open requests has another title: "nginx: worker process is shutting down".
            let old = now.lines().any(|worker| before.lines().any(|old| old == worker));
            Ok((!old && !now.is_empty()).then_some(()))
        })
    }

    /// Whether the runtime in the installed package listens on Unix sockets. If not, it listens on TCP ports.
    ///
    /// # Errors
    /// Fails if the package's files cannot be read.
    pub fn is_on_sockets(&self) -> Result<bool> {
        self.exists("/usr/lib/links/bundle/runtime/listens-on-sockets")
    }

    /// Where instance 1 listens, in the syntax of systemd's `ListenStream=`.
    ///
    /// # Errors
    /// Fails as [`Self::is_on_sockets`] does.
    pub fn first_endpoint(&self) -> Result<&'static str> {
        Ok(match self.is_on_sockets()? {
            true => "/run/links/sockets/1.sock",
            false => "127.0.0.1:7001",
        })
    }

    /// Checks that the instances 1 to `count` can be reached only by root, links and `group`, the group of nginx's workers: the
    /// active site leads only to their sockets, no runtime process has a TCP port, and other users may not open the sockets.
    ///
    /// # Errors
    /// Fails with what differs.
    pub fn serve_only_sockets(&self, count: u16, group: &str) -> Result<()> {
        let sockets: BTreeSet<_> = (1..=count)
            .map(|instance| format!("/run/links/sockets/{instance}.sock"))
            .collect();
        let site = self.read("/etc/nginx/sites-enabled/links")?;
        // nginx asks itself for what its cache does not have.
        let pools = site
            .split("\nupstream ")
            .filter(|pool| !pool.starts_with("links_nothing "));
        let servers = pools
            .flat_map(str::lines)
            .filter_map(|line| line.trim_start().strip_prefix("server "));
        let servers: BTreeSet<_> = servers
            .filter_map(|server| server.split([' ', ';']).next())
            .filter(|server| *server != "{")
            .map(str::to_owned)
            .collect();
        let expected: BTreeSet<_> = sockets.iter().map(|socket| format!("unix:{socket}")).collect();
        ensure!(servers == expected, "the site leads to {servers:?}");
        // This also checks that nginx runs this very site.
        self.ok(["linksctl", "status"])?;

        let listening = self
            .ok(["ss", "--listening", "--tcp", "--numeric", "--processes"])?
            .stdout;
        ensure!(listening.contains("\"nginx\""), "ss lists no processes: {listening}");
        let is_instance = |line: &&str| {
            let ports = (1..=count).map(|instance| format!(":{} ", 7000 + instance));
            line.contains("\"links-host\"") || ports.into_iter().any(|port| line.contains(&port))
        };
        let instances: Vec<_> = listening.lines().filter(is_instance).collect();
        ensure!(instances.is_empty(), "an instance has a port: {instances:?}");

        let modes = self.ok(["stat", "--format=%a %U:%G %n", "/run/links/sockets"]
            .into_iter()
            .chain(sockets.iter().map(String::as_str)))?;
        let of_sockets = sockets.iter().map(|socket| format!("660 links:{group} {socket}\n"));
        let expected: String = std::iter::once(format!("2710 links:{group} /run/links/sockets\n"))
            .chain(of_sockets)
            .collect();
        ensure!(modes.stdout == expected, "{modes}");
        for socket in &sockets {
            let curl = [
                "runuser",
                "-u",
                "nobody",
                "--",
                "curl",
                "--silent",
                "--unix-socket",
                socket,
                "http://x/health",
            ];
            let answer = self.run(curl)?;
            ensure!(answer.status == 7, "user nobody can reach {socket}: {answer}");
        }
        Ok(())
    }
}
