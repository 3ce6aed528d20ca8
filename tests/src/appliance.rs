//! The appliance on a machine, as its user meets it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rusqlite::{Connection, OpenFlags};
use serde::Deserialize;

use crate::http::Client;
use crate::load::Link;
use crate::{Address, Artifacts, Machine, Output, Tree, eventually};

/// Where the .deb lies inside.
pub const DEB: &str = "/var/tmp/links-shortener.deb";
/// Where [`Appliance::unpack_tarball`] unpacks to inside; the tarball's one directory is left out.
pub const UNPACKED: &str = "/var/tmp/links";
/// The links, as a machine has them by default.
pub const DATABASE: &str = "/var/lib/links/data/links.db";

/// A machine that is to have the appliance; everything that a [`Machine`] can, it can.
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
    /// A booted machine with the package on it, not installed.
    ///
    /// # Errors
    /// There are no packages (`make deb` makes them), or the machine does not boot.
    pub fn prepared(tree: &Tree) -> Result<Self> {
        Self::prepared_on(|| Machine::boot(tree))
    }

    /// As [`Self::prepared`], on a machine of its own kind.
    ///
    /// # Errors
    /// As [`Self::prepared`].
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
    /// There is no room.
    pub fn unpack_tarball(&self) -> Result<()> {
        self.copy_in(&self.artifacts.tarball, "/var/tmp/links.tar.gz")?;
        let unpack = "tar --extract --file /var/tmp/links.tar.gz --strip-components=1 --directory";
        self.shell(&format!("mkdir {UNPACKED}; {unpack} {UNPACKED}"))?;
        Ok(())
    }

    /// The package installed by apt beside nginx, and running.
    ///
    /// # Errors
    /// As [`Self::prepared`], or the installation fails.
    pub fn installed() -> Result<Self> {
        Self::installed_on(&Tree::with_nginx()?)
    }

    /// As [`Self::installed`], on a tree that holds nginx.
    ///
    /// # Errors
    /// As [`Self::installed`].
    pub fn installed_on(tree: &Tree) -> Result<Self> {
        let appliance = Self::prepared(tree)?;
        appliance.apt_install()?;
        appliance.ok(["systemctl", "start", "links"])?;
        Ok(appliance)
    }

    /// What apt said.
    ///
    /// # Errors
    /// It failed.
    pub fn apt_install(&self) -> Result<String> {
        let output = self.ok(["apt-get", "--yes", "install", DEB])?;
        Ok(output.stdout + &output.stderr)
    }

    /// `apt install` of a package that lies inside, of whatever version: also an older one, also the same again.
    ///
    /// # Errors
    /// It did not end in five minutes. Its failing is none.
    pub fn apt_install_any(&self, deb: &str) -> Result<Output> {
        let apt = ["apt-get", "--yes", "--allow-downgrades", "--reinstall", "install", deb];
        self.run_within(Duration::from_secs(300), apt)
    }

    /// # Errors
    /// `linksctl token` failed.
    pub fn token(&self) -> Result<String> {
        Ok(self.ok(["linksctl", "token"])?.stdout.trim().to_owned())
    }

    /// nginx's port 80, with the right to shorten.
    ///
    /// # Errors
    /// As [`Self::token`].
    pub fn site(&self) -> Result<Client> {
        Ok(self.http().bearer(&self.token()?))
    }

    /// Straight to one instance, with the right to shorten.
    ///
    /// # Errors
    /// As [`Self::token`].
    pub fn instance(&self, number: u16) -> Result<Client> {
        Ok(self.instance_without_token(number).bearer(&self.token()?))
    }

    /// Straight to one instance, without a token. It listens on a Unix socket, or on TCP as version 0.1.0 and Spin do.
    pub fn instance_without_token(&self, number: u16) -> Client {
        let socket = self.path_on_host(&format!("/run/links/sockets/{number}.sock"));
        let tcp = (Ipv4Addr::LOCALHOST, 7000 + number).into();
        self.http_through(Address::Either(socket, tcp))
    }

    /// Whether the runtime of the package that is there listens on Unix sockets; otherwise on ports.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn is_on_sockets(&self) -> Result<bool> {
        self.exists("/usr/lib/links/bundle/runtime/listens-on-sockets")
    }

    /// Sees that nobody reaches the instances 1 to `count` but root, links and `group`, which nginx's workers have: the site in
    /// force leads to their sockets alone, no program of a runtime has a TCP port, and others may not open the sockets.
    ///
    /// # Errors
    /// What is otherwise.
    pub fn are_on_sockets_alone(&self, count: u16, group: &str) -> Result<()> {
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
        // Which also asks nginx which site it runs.
        self.ok(["linksctl", "status"])?;

        let listening = self
            .ok(["ss", "--listening", "--tcp", "--numeric", "--processes"])?
            .stdout;
        ensure!(listening.contains("\"nginx\""), "ss tells no processes: {listening}");
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
            let ask = [
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
            let asked = self.run(ask)?;
            ensure!(asked.status == 7, "user nobody reaches {socket}: {asked}");
        }
        Ok(())
    }

    /// Where instance 1 listens, as systemd's `ListenStream=` takes it.
    ///
    /// # Errors
    /// As [`Self::is_on_sockets`].
    pub fn first_endpoint(&self) -> Result<&'static str> {
        Ok(match self.is_on_sockets()? {
            true => "/run/links/sockets/1.sock",
            false => "127.0.0.1:7001",
        })
    }

    /// Shortens through nginx.
    ///
    /// # Errors
    /// The answer is not the 200 that the interface promises.
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

    /// Sees through nginx that the link leads where it should.
    ///
    /// # Errors
    /// It does not.
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

    /// Puts these two files of configuration into effect.
    ///
    /// # Errors
    /// They are refused, or the instances do not run on them; the error holds what the service said.
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

    /// What the instances have written to the journal, over all boots.
    ///
    /// # Errors
    /// journalctl failed.
    pub fn instances_said(&self) -> Result<String> {
        self.journal("links@*")
    }

    /// The "overall exposure level" of `systemd-analyze security`: 0 (none) to 10.
    ///
    /// # Errors
    /// It tells none.
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

    /// `StatusText` of the service: the line that `systemctl status links` shows.
    ///
    /// # Errors
    /// systemctl failed.
    pub fn status_line(&self) -> Result<String> {
        let shown = self.ok(["systemctl", "show", "--property=StatusText", "--value", "links"])?;
        Ok(shown.stdout.trim().to_owned())
    }

    /// Waits until the status line starts so; it follows the instances within a moment.
    ///
    /// # Errors
    /// It does not within 20 s.
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

    /// Waits until an instance says that it serves.
    ///
    /// # Errors
    /// It does not within 20 s.
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

    /// The instances in rotation.
    ///
    /// # Errors
    /// Their flags cannot be read.
    pub fn in_rotation(&self) -> Result<BTreeSet<u16>> {
        let flags = self.ok(["ls", "/run/links/ready"])?.stdout;
        flags.lines().map(|flag| Ok(flag.parse()?)).collect()
    }

    /// Waits until exactly the instances 1 to `count` are in rotation and healthy.
    ///
    /// # Errors
    /// They are not within 30 s.
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

    /// The release that each of the instances 1 to `count` is to run, and does since its last start.
    ///
    /// # Errors
    /// One has none.
    pub fn releases(&self, count: u16) -> Result<Vec<String>> {
        (1..=count)
            .map(|instance| {
                let link = format!("/var/lib/links/instances/{instance}");
                let pointed = self.ok(["readlink", "--canonicalize-existing", &link])?.stdout;
                let pointed = pointed.trim();
                let pid = self.main_pid(&format!("links@{instance}"))?;
                // The runtime is the supervisor's child, and runs from the release that it was started with.
                let line = self.shell(&format!("pgrep --list-full --parent {pid}"))?.stdout;
                ensure!(
                    line.contains(pointed),
                    "instance {instance} is to run {pointed}, and runs: {line}"
                );
                let name = pointed.rsplit('/').next().unwrap_or_default();
                Ok(name.to_owned())
            })
            .collect()
    }

    /// The main process of a unit, as the machine counts; 0 without one.
    ///
    /// # Errors
    /// systemctl failed.
    pub fn main_pid(&self, unit: &str) -> Result<u32> {
        let shown = self.ok(["systemctl", "show", "--property=MainPID", "--value", unit])?;
        Ok(shown.stdout.trim().parse()?)
    }

    /// Which start of the instances 1 to `count` runs: another one after each.
    ///
    /// # Errors
    /// systemctl failed.
    pub fn starts(&self, count: u16) -> Result<Vec<String>> {
        let units: Vec<_> = (1..=count).map(|instance| format!("links@{instance}")).collect();
        let show = ["systemctl", "show", "--property=InvocationID", "--value"].map(str::to_owned);
        let shown = self.ok(show.into_iter().chain(units))?.stdout;
        Ok(shown.split_whitespace().map(str::to_owned).collect())
    }

    /// The URLs below `prefix` that have more than one link, with how many.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn made_twice(&self, prefix: &str) -> Result<Vec<(String, u32)>> {
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

    /// The processes that belong to our units or run our programs, one per line.
    ///
    /// # Errors
    /// ps failed.
    pub fn processes(&self) -> Result<String> {
        let all = self.ok(["ps", "-eo", "pid=,user=,unit=,args="])?.stdout;
        let ours =
            |line: &&str| line.contains(" links ") || line.contains("linksctl") || line.contains("/var/lib/links");
        Ok(all.lines().filter(ours).collect::<Vec<_>>().join("\n"))
    }

    /// Waits until every unit of ours is inactive and no process of theirs is left.
    ///
    /// # Errors
    /// They are not within 20 s.
    pub fn wait_until_stopped(&self) -> Result<()> {
        let units = ["links", "links@1", "links@2"];
        eventually("links has stopped", Duration::from_secs(20), || {
            let states = self.run(["systemctl", "is-active"].into_iter().chain(units))?.stdout;
            let stopped = states == "inactive\n".repeat(units.len()) && self.processes()?.is_empty();
            Ok(stopped.then_some(()))
        })
    }

    /// Makes nginx read its configuration, and waits until only workers that know it take connections.
    ///
    /// `systemctl reload nginx` returns at once; the old workers accept beside the new ones for another 100 ms or more.
    ///
    /// # Errors
    /// nginx does not run, refuses, or keeps its old workers for 10 s.
    pub fn reload_nginx(&self) -> Result<()> {
        let workers = || self.shell("pgrep --list-full --parent $(cat /run/nginx.pid)");
        let before = workers()?.stdout;
        self.ok(["systemctl", "reload", "nginx"])?;
        eventually("nginx has new workers", Duration::from_secs(10), || {
            let now = workers()?.stdout;
            // One that only finishes what it has got has another title: "nginx: worker process is shutting down".
            let old = now.lines().any(|worker| before.lines().any(|old| old == worker));
            Ok((!old && !now.is_empty()).then_some(()))
        })
    }

    /// Waits until every request that nginx has written down is counted.
    ///
    /// # Errors
    /// It is not within the deadline, or the agent has no metrics.
    pub fn wait_until_counted(&self, deadline: Duration) -> Result<()> {
        eventually("nothing is left to count", deadline, || {
            let page = self.http_at(9464).get("/metrics")?.text();
            Ok(page.contains("\nlinks_journal_lag_bytes 0\n").then_some(()))
        })
    }

    /// Every path of the machine's disk, and every user and group; without what apt, dpkg and systemd keep for themselves.
    ///
    /// # Errors
    /// find failed.
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
        // Their numbers and names count; the backup copies that the tools leave of them do not.
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
