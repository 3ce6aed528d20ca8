//! The appliance on a machine, used as an administrator uses it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rusqlite::{Connection, OpenFlags};
use serde::Deserialize;

use crate::artifacts::Artifacts;
use crate::http::Client;
use crate::load::Link;
use crate::machine::{Machine, Output};
use crate::process::eventually;
use crate::stream::Address;
use crate::tree::Tree;

/// The path of the .deb inside the machine.
pub const DEB: &str = "/var/tmp/links-shortener.deb";
/// The directory inside the machine to which [`Appliance::unpack_tarball`] unpacks, without the tarball's top directory.
pub const UNPACKED: &str = "/var/tmp/links";
/// The path of the links' database in the default configuration.
pub const DATABASE: &str = "/var/lib/links/data/links.db";

/// A machine with the appliance, or one on which it is about to be installed. It dereferences to its [`Machine`].
#[derive(Debug)]
pub struct Appliance {
    pub machine: Machine,
    pub artifacts: Artifacts,
}

impl Deref for Appliance {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Appliance {
    /// Boots a machine and copies the package to it, without installing it.
    ///
    /// # Errors
    /// Fails if there are no packages (`make deb` builds them), or if the machine does not boot.
    pub fn prepared(tree: &Tree) -> Result<Self> {
        Self::prepared_on(|| Machine::boot(tree))
    }

    /// Like [`Self::prepared`], on the machine that `boot` returns.
    ///
    /// # Errors
    /// Fails as [`Self::prepared`] does.
    pub fn prepared_on(boot: impl FnOnce() -> Result<Machine>) -> Result<Self> {
        let artifacts = Artifacts::find()?;
        let runtime = artifacts.runtime()?;
        println!("the packages hold {} {}", runtime.kind, runtime.version);
        let machine = boot()?;
        machine.copy_in(&artifacts.deb, DEB)?;
        Ok(Self { machine, artifacts })
    }

    /// Unpacks the tarball to [`UNPACKED`].
    ///
    /// # Errors
    /// Fails if the disk of the machine is full.
    pub fn unpack_tarball(&self) -> Result<()> {
        self.copy_in(&self.artifacts.tarball, "/var/tmp/links.tar.gz")?;
        let unpack = "tar --extract --file /var/tmp/links.tar.gz --strip-components=1 --directory";
        self.shell(&format!("mkdir {UNPACKED}; {unpack} {UNPACKED}"))?;
        Ok(())
    }

    /// Boots a machine with nginx, installs the package with apt, and starts the service.
    ///
    /// # Errors
    /// Fails as [`Self::prepared`] does, or if the installation fails.
    pub fn installed() -> Result<Self> {
        Self::installed_on(&Tree::with_nginx()?)
    }

    /// Like [`Self::installed`], on a tree that contains nginx.
    ///
    /// # Errors
    /// Fails as [`Self::installed`] does.
    pub fn installed_on(tree: &Tree) -> Result<Self> {
        let appliance = Self::prepared(tree)?;
        appliance.apt_install()?;
        appliance.ok(["systemctl", "start", "links"])?;
        Ok(appliance)
    }

    /// Installs the package with apt and returns apt's output.
    ///
    /// # Errors
    /// Fails if apt fails.
    pub fn apt_install(&self) -> Result<String> {
        let output = self.ok(["apt-get", "--yes", "install", DEB])?;
        Ok(output.stdout + &output.stderr)
    }

    /// Installs a package inside with apt, whatever its version: an older one and the installed one are fine too.
    ///
    /// # Errors
    /// Fails if apt takes more than five minutes. A failure of apt itself is not an error but in the [`Output`].
    pub fn apt_install_any(&self, deb: &str) -> Result<Output> {
        let apt = ["apt-get", "--yes", "--allow-downgrades", "--reinstall", "install", deb];
        self.run_within(Duration::from_secs(300), apt)
    }

    /// The admin token.
    ///
    /// # Errors
    /// Fails if `linksctl token` fails.
    pub fn token(&self) -> Result<String> {
        Ok(self.ok(["linksctl", "token"])?.stdout.trim().to_owned())
    }

    /// A client for nginx's port 80 that may shorten.
    ///
    /// # Errors
    /// Fails as [`Self::token`] does.
    pub fn site(&self) -> Result<Client> {
        Ok(self.http().bearer(&self.token()?))
    }

    /// A client for one instance, past nginx, that may shorten.
    ///
    /// # Errors
    /// Fails as [`Self::token`] does.
    pub fn instance(&self, number: u16) -> Result<Client> {
        Ok(self.instance_without_token(number).bearer(&self.token()?))
    }

    /// A client for one instance, past nginx, without a token. It uses the instance's Unix socket, or the TCP port on which
    /// version 0.1.0 and Spin listen.
    pub fn instance_without_token(&self, number: u16) -> Client {
        let socket = self.path_on_host(&format!("/run/links/sockets/{number}.sock"));
        let tcp = (Ipv4Addr::LOCALHOST, 7000 + number).into();
        self.http_through(Address::Either(socket, tcp))
    }

    /// Whether the runtime in the installed package listens on Unix sockets. If not, it listens on TCP ports.
    ///
    /// # Errors
    /// Fails if the package's files cannot be read.
    pub fn is_on_sockets(&self) -> Result<bool> {
        self.exists("/usr/lib/links/bundle/runtime/listens-on-sockets")
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
        let servers = site
            .lines()
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

    /// Shortens a URL through nginx.
    ///
    /// # Errors
    /// Fails unless the answer is the documented one.
    pub fn shorten(&self, url: &str) -> Result<Link> {
        #[derive(Deserialize)]
        struct Shortened {
            slug: String,
            short_url: String,
        }
        let answer = self.site()?.post("/shorten", serde_json::json!({ "url": url }))?;
        ensure!(answer.status == 200, "POST /shorten: {answer}");
        let Shortened { slug, short_url } = answer.json()?;
        ensure!(
            short_url == format!("http://links.example/{slug}"),
            "short_url is {short_url}"
        );
        Ok(Link {
            slug,
            url: url.to_owned(),
        })
    }

    /// Checks through nginx that the link redirects to its URL.
    ///
    /// # Errors
    /// Fails if it does not.
    pub fn follow(&self, link: &Link) -> Result<()> {
        let answer = self.http().get(&format!("/{}", link.slug))?;
        ensure!(
            answer.status == 302 && answer.header("location") == link.url,
            "/{} should lead to {}: {answer}",
            link.slug,
            link.url
        );
        Ok(())
    }

    /// Writes both configuration files, reloads the service, and waits until both instances are in rotation.
    ///
    /// # Errors
    /// Fails if the service refuses the configuration, with the service's journal, or if the instances do not become healthy.
    pub fn configure(&self, links_toml: &str, runtime_toml: &str) -> Result<()> {
        self.write("/etc/links/links.toml", links_toml)?;
        self.write("/etc/links/runtime.toml", runtime_toml)?;
        let reloaded = self.run(["systemctl", "reload", "links"])?;
        ensure!(
            reloaded.status == 0,
            "systemctl reload links: {reloaded}\n{}",
            self.journal("links")?
        );
        self.wait_for_rotation(2)
    }

    /// Everything that the instances have logged, over all boots.
    ///
    /// # Errors
    /// Fails if journalctl fails.
    pub fn instances_journal(&self) -> Result<String> {
        self.journal("links@*")
    }

    /// The "overall exposure level" of a unit by `systemd-analyze security`, from 0 (none) to 10.
    ///
    /// # Errors
    /// Fails if the output contains no level.
    pub fn exposure(&self, unit: &str) -> Result<f64> {
        let report = self.ok(["systemd-analyze", "security", "--no-pager", unit])?.stdout;
        let level = report
            .split("exposure level for ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().nth(1));
        let level = level.with_context(|| format!("no exposure level in:\n{report}"))?;
        println!("{unit}: exposure {level}");
        Ok(level.parse()?)
    }

    /// The `StatusText` of the service, which `systemctl status links` shows.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn status_line(&self) -> Result<String> {
        let shown = self.ok(["systemctl", "show", "--property=StatusText", "--value", "links"])?;
        Ok(shown.stdout.trim().to_owned())
    }

    /// Waits until the status line starts with `beginning`. The line follows the instances with a short delay.
    ///
    /// # Errors
    /// Fails if it does not within 20 s.
    pub fn wait_for_status(&self, beginning: &str) -> Result<String> {
        let mut last = String::new();
        eventually(
            &format!("the status line {beginning:?}"),
            Duration::from_secs(20),
            || {
                last = self.status_line()?;
                Ok(last.starts_with(beginning).then(|| last.clone()))
            },
        )
        .with_context(|| format!("the status line is {last:?}"))
    }

    /// Waits until an instance reports itself healthy.
    ///
    /// # Errors
    /// Fails if it does not within 20 s.
    pub fn wait_until_healthy(&self, instance: u16) -> Result<()> {
        let client = self.instance_without_token(instance);
        eventually(
            &format!("instance {instance} is healthy"),
            Duration::from_secs(20),
            || {
                Ok(client
                    .get("/health")
                    .is_ok_and(|answer| answer.status == 200)
                    .then_some(()))
            },
        )
    }

    /// The numbers of the instances in rotation.
    ///
    /// # Errors
    /// Fails if their flags cannot be read.
    pub fn in_rotation(&self) -> Result<BTreeSet<u16>> {
        let flags = self.ok(["ls", "/run/links/ready"])?.stdout;
        flags.lines().map(|flag| Ok(flag.parse()?)).collect()
    }

    /// Waits until the instances 1 to `count`, and no others, are in rotation and healthy.
    ///
    /// # Errors
    /// Fails if they are not within 30 s.
    pub fn wait_for_rotation(&self, count: u16) -> Result<()> {
        let wanted: BTreeSet<_> = (1..=count).collect();
        let mut last = BTreeSet::new();
        eventually(
            &format!("instances {wanted:?} are in rotation"),
            Duration::from_secs(30),
            || {
                last = self.in_rotation()?;
                Ok((last == wanted).then_some(()))
            },
        )
        .with_context(|| format!("in rotation are {last:?}"))?;
        wanted
            .into_iter()
            .try_for_each(|instance| self.wait_until_healthy(instance))
    }

    /// The names of the releases that the instances 1 to `count` run.
    ///
    /// # Errors
    /// Fails if an instance has no release, or runs another release than its symbolic link names.
    pub fn releases(&self, count: u16) -> Result<Vec<String>> {
        (1..=count)
            .map(|instance| {
                let link = format!("/var/lib/links/instances/{instance}");
                let release = self.ok(["readlink", "--canonicalize-existing", &link])?.stdout;
                let release = release.trim();
                let pid = self.main_pid(&format!("links@{instance}"))?;
                // The runtime is a child of the supervisor, and its path is in the release with which it was started.
                let line = self.shell(&format!("pgrep --list-full --parent {pid}"))?.stdout;
                ensure!(
                    line.contains(release),
                    "instance {instance} should run {release} but runs: {line}"
                );
                let name = release.rsplit('/').next().unwrap_or_default();
                Ok(name.to_owned())
            })
            .collect()
    }

    /// The PID of a unit's main process inside the machine, or 0 if there is none.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn main_pid(&self, unit: &str) -> Result<u32> {
        let shown = self.ok(["systemctl", "show", "--property=MainPID", "--value", unit])?;
        Ok(shown.stdout.trim().parse()?)
    }

    /// systemd's invocation IDs of the instances 1 to `count`. Each start of an instance has a new one.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn invocation_ids(&self, count: u16) -> Result<Vec<String>> {
        let units: Vec<_> = (1..=count).map(|instance| format!("links@{instance}")).collect();
        let show = ["systemctl", "show", "--property=InvocationID", "--value"].map(str::to_owned);
        let shown = self.ok(show.into_iter().chain(units))?.stdout;
        Ok(shown.split_whitespace().map(str::to_owned).collect())
    }

    /// The URLs with this prefix that have more than one link, each with the number of its links.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    pub fn duplicates(&self, prefix: &str) -> Result<Vec<(String, u32)>> {
        self.inside(|| {
            let read = || {
                let database = Connection::open_with_flags(DATABASE, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                database.busy_timeout(Duration::from_secs(10))?;
                let mut query = database.prepare(
                    "SELECT url, count(*) FROM links WHERE substr(url, 1, length(?1)) = ?1 GROUP BY url HAVING count(*) > 1",
                )?;
                let rows = query.query_map([prefix], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            };
            read().with_context(|| format!("Reading {DATABASE}"))
        })
    }

    /// The processes of the appliance's units and programs, one per line.
    ///
    /// # Errors
    /// Fails if ps fails.
    pub fn processes(&self) -> Result<String> {
        let all = self.ok(["ps", "-eo", "pid=,user=,unit=,args="])?.stdout;
        let ours =
            |line: &&str| line.contains(" links ") || line.contains("linksctl") || line.contains("/var/lib/links");
        Ok(all.lines().filter(ours).collect::<Vec<_>>().join("\n"))
    }

    /// Waits until every unit of the appliance is inactive and none of its processes is left.
    ///
    /// # Errors
    /// Fails if this takes more than 20 s.
    pub fn wait_until_stopped(&self) -> Result<()> {
        let units = ["links", "links@1", "links@2"];
        eventually("links has stopped", Duration::from_secs(20), || {
            let states = self.run(["systemctl", "is-active"].into_iter().chain(units))?.stdout;
            let stopped = states == "inactive\n".repeat(units.len()) && self.processes()?.is_empty();
            Ok(stopped.then_some(()))
        })
    }

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

    /// Waits until every request in nginx's journal is counted.
    ///
    /// # Errors
    /// Fails if this takes longer than `deadline`, or if the agent serves no metrics.
    pub fn wait_until_counted(&self, deadline: Duration) -> Result<()> {
        eventually("nothing is left to count", deadline, || {
            let page = self.http_at(9464).get("/metrics")?.text();
            Ok(page.contains("\nlinks_journal_lag_bytes 0\n").then_some(()))
        })
    }

    /// Every path on the machine's disk, and every user and group, except the files that apt, dpkg and systemd maintain.
    ///
    /// # Errors
    /// Fails if find fails.
    pub fn inventory(&self) -> Result<BTreeSet<String>> {
        let prune = [
            "/root",
            "/var/log",
            "/var/lib/apt",
            "/var/lib/dpkg",
            "/var/lib/systemd",
            "/var/cache/apt",
            "/var/backups",
            "/var/tmp",
            "/tmp",
        ];
        let prune = prune.map(|path| format!("-path {path}")).join(" -o ");
        let files = self
            .shell(&format!("find / -xdev \\( {prune} \\) -prune -o -print | sort"))?
            .stdout;
        let accounts = self
            .shell("cat /etc/passwd /etc/shadow /etc/group /etc/gshadow | cut -d: -f1,3,4 | sort")?
            .stdout;
        // Names and numbers of accounts count; the backup files that the account tools leave behind do not.
        let kept = |line: &&str| {
            !matches!(
                *line,
                "/etc/passwd-" | "/etc/shadow-" | "/etc/group-" | "/etc/gshadow-" | "/etc/.pwd.lock"
            )
        };
        Ok(files
            .lines()
            .filter(kept)
            .chain(accounts.lines())
            .map(str::to_owned)
            .collect())
    }
}
