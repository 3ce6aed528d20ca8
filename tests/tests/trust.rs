//! User `links` runs the processes that strangers talk to. An attacker who takes it over must not become root: root works in
//! no directory that this user can write, and follows nothing that this user has put there.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::{DATABASE, DEB, Host, Output, RELEASED, eventually};

/// Directories in which root's programs open, create, rename, chown or delete: linksctl and the maintainer scripts, systemd
/// and systemd-tmpfiles, nginx's master and logrotate.
const ROOTS: [&str; 34] = [
    "/etc",
    "/etc/links",
    "/etc/links/credentials",
    "/etc/needrestart/conf.d",
    "/etc/nginx",
    "/etc/nginx/conf.d",
    "/etc/nginx/sites-available",
    "/etc/nginx/sites-enabled",
    "/etc/systemd/system",
    "/etc/systemd/system/links.service.wants",
    "/run",
    "/run/links",
    "/run/links/credentials",
    "/run/links/secrets",
    "/usr/bin",
    "/usr/lib/links",
    "/usr/lib/links/bin",
    "/usr/lib/links/bundle",
    "/usr/lib/systemd/system",
    "/usr/lib/sysusers.d",
    "/usr/lib/tmpfiles.d",
    "/usr/share/doc/links-shortener",
    "/var/cache",
    "/var/lib",
    "/var/lib/links",
    "/var/lib/links/applied",
    "/var/lib/links/backups",
    "/var/lib/links/instances",
    "/var/lib/links/journal",
    "/var/lib/links/releases",
    "/var/lib/links/tls",
    "/var/lib/links/tls/challenges",
    "/var/log",
    "/var/log/nginx",
];

/// Directories that user links may write. Only its own processes work in them.
const OF_LINKS: [&str; 9] = [
    "/run/links/1",
    "/run/links/2",
    "/run/links/limits",
    "/run/links/metrics",
    "/run/links/ready",
    "/run/links/sockets",
    "/var/cache/links",
    "/var/lib/links/agent",
    "/var/lib/links/data",
];

/// Directories that every user may write, which the sticky bit protects, and /proc.
const OF_ALL: [&str; 6] = ["/dev/mqueue", "/dev/shm", "/run/lock", "/tmp", "/var/tmp", "/proc"];

const JOURNAL: &str = "/var/lib/links/journal/clicks.log";
const RUNS: &str = "/run/links/1/runs.json";
/// A directory that only root may enter. No sandbox hides it, as ProtectHome= would hide the home of root.
const PRIVATE: &str = "/srv/private";
/// A file that belongs to root. The attacks try to change or expose it.
const TARGET: &str = "/srv/private/target";

#[test]
fn user_links_can_write_no_directory_that_root_works_in() -> Result<()> {
    let host = Host::builder().serving()?;
    host.ok(["mkdir", "--parents", "--mode=0700", "/var/lib/links/backups"])?;
    for directory in ROOTS {
        ensure!(host.exists(directory)?, "{directory} is missing");
    }
    // find asks the kernel, so rights of the owner, of a group and of an access control list all count.
    let writable = as_links(&host, "find / -type d -writable -print 2>/dev/null || true")?.stdout;
    let writable: BTreeSet<_> = writable
        .lines()
        .filter(|path| !OF_ALL.iter().any(|all| is_beneath(path, all)))
        .collect();
    let roots: Vec<_> = ROOTS
        .iter()
        .filter(|directory| writable.contains(**directory))
        .collect();
    ensure!(
        roots.is_empty(),
        "user links can write directories in which root works: {roots:?}"
    );
    // A new directory has to be added to one of the lists above. No root program may work in those of `OF_LINKS`.
    let unknown: Vec<_> = writable
        .iter()
        .filter(|path| !OF_LINKS.iter().any(|own| is_beneath(path, own)))
        .collect();
    ensure!(
        unknown.is_empty(),
        "user links can write unlisted directories: {unknown:?}"
    );

    // On SIGUSR1, nginx's master reopens by name every file that it has open for writing.
    let open = host
        .shell(
            "pid=$(cat /run/nginx.pid); for file in /proc/$pid/fd/*; do \
             grep --quiet '^flags:.*[12]$' /proc/$pid/fdinfo/${file##*/} && readlink $file; done || true",
        )?
        .stdout;
    ensure!(open.contains("/var/lib/links/journal/clicks.log"), "{open}");
    for path in open
        .lines()
        .filter(|path| path.starts_with('/') && !path.starts_with("/dev/"))
    {
        let directory = path.rsplit_once('/').map_or("/", |(directory, _)| directory);
        ensure!(
            !writable.contains(directory),
            "nginx's master opens {path}, whose directory user links can write"
        );
    }
    // Only root may own these directories, or root could not rely on the names in them.
    let owners = host
        .shell(&format!("stat --format='%U %n' {}", ROOTS.join(" ")))?
        .stdout;
    let others: Vec<_> = owners
        .lines()
        .filter(|line| !line.starts_with("root ") && *line != "www-data /var/log/nginx")
        .collect();
    ensure!(others.is_empty(), "root does not own these directories: {others:?}");
    Ok(())
}

/// Shell commands that put something else in the place of the file `$1`.
const TRICKS: [(&str, &str); 4] = [
    ("a symbolic link", "ln --symbolic /srv/private/target \"$1\""),
    ("a FIFO", "mkfifo \"$1\""),
    ("a hard link", "touch \"$1.other\"; ln \"$1.other\" \"$1\""),
    (
        "a directory of symbolic links",
        "mkdir \"$1\"; ln --symbolic /srv/private/target \"$1/links.db\"; ln --symbolic /srv/private \"$1/x\"",
    ),
];

#[test]
fn an_attacker_with_the_rights_of_user_links_gains_nothing_from_root() -> Result<()> {
    let attack = Attack::on_the_released_version()?;
    let host = &attack.host;
    let link = host.shorten("https://example.com/counted")?;
    let mut followed = 0;
    let mut follow = || {
        followed += 1;
        host.follow(&link)
    };
    for (number, (what, trick)) in TRICKS.into_iter().enumerate() {
        // No click is lost when the journal is replaced, because nginx still has the old file open.
        follow()?;
        eventually("nginx has logged the request", Duration::from_secs(10), || {
            let found = host.shell(&format!("grep --quiet {} {JOURNAL}", link.slug));
            Ok(found.ok().map(drop))
        })?;
        attack.replace(JOURNAL, trick)?;
        follow()?;
        // dpkg runs the first upgrade, from the released version. The later ones run the script as dpkg would.
        let upgrade = match number {
            0 => host.apt_install_any(DEB)?,
            _ => host.run(["/var/lib/dpkg/info/links-shortener.postinst", "configure", "0.1.0"])?,
        };
        ensure!(
            upgrade.status == 0,
            "the upgrade with {what} as journal failed: {upgrade}"
        );
        ensure!(upgrade.to_string().contains("clicks.log.unsafe-1"), "{what}: {upgrade}");
        attack.nothing_happened(&format!("the upgrade with {what} as journal"))?;
        let kind = host.ok(["stat", "--format=%F %h %G %a", JOURNAL])?.stdout;
        ensure!(
            ["regular empty file 1 links 660\n", "regular file 1 links 660\n"].contains(&kind.as_str()),
            "{what}: {kind}"
        );
        host.wait_for_rotation(2)?;
        host.wait_until_counted(Duration::from_secs(60))?;
        // Before the upgrade, the journal's directory belonged to links.
        host.shell(&format!("rm -rf {JOURNAL}.unsafe-1; chown links $(dirname {JOURNAL})"))?;
    }
    host.ok(["linksctl", "configure"])?;
    attack.cannot_touch_the_journal()?;
    attack.rotates_logs()?;
    follow()?;
    host.wait_until_counted(Duration::from_secs(60))?;
    eventually("every click is counted", Duration::from_secs(60), || {
        let stats: serde_json::Value = host.ok(["linksctl", "stats", &link.slug, "--json"])?.json()?;
        let counted = stats["clicks"].as_u64().unwrap_or(0) + stats["bots"].as_u64().unwrap_or(0);
        ensure!(
            counted <= followed,
            "{counted} clicks were counted, but only {followed} were made"
        );
        Ok((counted == followed).then_some(()))
    })?;

    attack.replaces_each_file_that_root_reads()?;
    attack.replaces_files_during_each_command()?;
    attack.replaces_the_database()?;
    attack.purges_across_a_mount_point()
}

struct Attack {
    host: Host,
}

impl Attack {
    /// Starts from the released version, in which user links owns the directory of the journal.
    fn on_the_released_version() -> Result<Self> {
        let attack = Self {
            host: Host::builder().first_release(RELEASED).serving()?,
        };
        attack.host.wait_for_rotation(2)?;
        attack.host.ok(["mkdir", "--mode=0700", PRIVATE])?;
        attack.host.write(TARGET, "root's\n")?;
        attack.host.ok(["chmod", "600", TARGET])?;
        Ok(attack)
    }

    fn replace(&self, path: &str, trick: &str) -> Result<()> {
        as_links(
            &self.host,
            &format!(
                "set -e; set -- {path}; mv --backup=numbered --no-target-directory {path} {path}.moved 2>/dev/null || true; {trick}"
            ),
        )?;
        Ok(())
    }

    fn put_back(&self, path: &str) -> Result<()> {
        as_links(
            &self.host,
            &format!(
                "set -e; rm -rf {path} {path}.other; mv --no-target-directory {path}.moved {path} 2>/dev/null || true"
            ),
        )?;
        Ok(())
    }

    /// Checks that root's file is unchanged, that nothing was created in root's directory, and that user links owns no file
    /// outside its directories.
    fn nothing_happened(&self, during: &str) -> Result<()> {
        let state = self
            .host
            .shell(&format!(
                "stat --format='%U:%G %a' {TARGET}; cat {TARGET}; find {PRIVATE} -newer {TARGET} -type f -name 'x*'; \
                 find / -xdev \\( -path /proc -o -path /tmp -o -path /var/tmp -o -path /var/lib/links -o -path /var/cache/links \\) -prune \
                 -o -user links -print"
            ))?
            .stdout;
        ensure!(state == "root:root 600\nroot's\n", "{during}: {state}");
        Ok(())
    }

    fn cannot_touch_the_journal(&self) -> Result<()> {
        for attempt in [
            "rm -f clicks.log",
            "mv clicks.log moved",
            "touch new",
            "mkdir new",
            "ln --symbolic --force /srv/private/target clicks.log",
            "chmod 777 .",
        ] {
            let script = format!("cd /var/lib/links/journal && {attempt}");
            let tried = self.host.run(as_user(&script))?;
            ensure!(tried.status != 0, "{attempt}: {tried}");
        }
        Ok(())
    }

    /// Rotates nginx's logs as /etc/logrotate.d/nginx does.
    fn rotates_logs(&self) -> Result<()> {
        self.host.shell("kill -USR1 $(cat /run/nginx.pid)")?;
        eventually("nginx has reopened the journal", Duration::from_secs(10), || {
            let owner = self.host.ok(["stat", "--format=%U", JOURNAL])?;
            Ok((owner.stdout.trim() == "www-data").then_some(()))
        })?;
        self.nothing_happened("the rotation of logs")
    }

    /// Runs commands, which may fail, but have to end by themselves and must not harm root.
    fn run_all(&self, commands: &[&str], what: &str) -> Result<Vec<Output>> {
        commands
            .iter()
            .map(|command| {
                let output = self
                    .host
                    .run_within(Duration::from_secs(100), command.split(' '))
                    .with_context(|| format!("`{command}` with {what}"))?;
                println!("{command} with {what}: {}", output.status);
                self.nothing_happened(&format!("`{command}` with {what}"))?;
                Ok(output)
            })
            .collect()
    }

    fn replaces_each_file_that_root_reads(&self) -> Result<()> {
        self.host
            .write("/etc/links/links.toml", "[rollout]\nmin_healthy = \"500ms\"\n")?;
        self.host.ok(["linksctl", "rollout"])?;
        let commands = [
            "linksctl status",
            "linksctl releases",
            "linksctl rollout --dry-run",
            "linksctl recover",
            "linksctl prepare",
            "systemd-tmpfiles --create links.conf",
        ];
        for (what, trick) in TRICKS {
            for path in [RUNS, "/run/links/metrics/1.json", "/run/links/ready/7"] {
                self.replace(path, trick)?;
                self.run_all(&commands, &format!("{what} as {path}"))?;
                self.put_back(path)?;
            }
            // A rollout gives the sockets to the group of nginx's workers.
            let socket = "/run/links/sockets/7.sock";
            self.replace(socket, trick)?;
            self.host.ok(["chgrp", "root", "/run/links/sockets"])?;
            self.run_all(&["linksctl rollout"], &format!("{what} as {socket}"))?;
            let group = self.host.ok(["stat", "--format=%G", "/run/links/sockets"])?.stdout;
            ensure!(
                group == "www-data\n",
                "with {what} as {socket}, the group of the directory is {group}"
            );
            self.put_back(socket)?;
            // A rollout restarts an instance that does not report what it runs.
            self.replace(RUNS, trick)?;
            self.run_all(&["linksctl rollout"], &format!("{what} as {RUNS}"))?;
            self.host.wait_for_rotation(2)?;
        }
        Ok(())
    }

    /// Plays all tricks at once, each in the place of a different file.
    fn replaces_files_during_each_command(&self) -> Result<()> {
        let places = [
            RUNS,
            "/run/links/2/runs.json",
            "/run/links/metrics/1.json",
            "/run/links/ready/7",
        ];
        let commands = [
            "linksctl token",
            "linksctl stats",
            "linksctl check",
            "linksctl restart",
            "linksctl scale 3",
            "linksctl scale 2",
            "linksctl configure",
            "linksctl rollback",
            "linksctl rollout",
            "linksctl prepare-downgrade",
            "linksctl abort-downgrade",
            "linksctl uninstall",
            "systemctl restart links",
        ];
        for command in commands {
            for (place, (_, trick)) in places.into_iter().zip(TRICKS) {
                self.replace(place, trick)?;
            }
            self.run_all(&[command], "each trick in a different place")?;
            for place in places {
                self.put_back(place)?;
            }
            let instances = if command == "linksctl scale 3" { 3 } else { 2 };
            self.host.wait_for_rotation(instances)?;
        }
        Ok(())
    }

    fn replaces_the_database(&self) -> Result<()> {
        let host = &self.host;
        host.ok(["linksctl", "scale", "3"])?;
        host.ok(["linksctl", "scale", "2"])?;
        host.ok(["systemctl", "stop", "links"])?;
        host.wait_until_stopped()?;
        for (what, trick) in TRICKS {
            self.replace(DATABASE, trick)?;
            self.run_all(
                &[
                    "linksctl status",
                    "linksctl check",
                    "linksctl rollout",
                    "linksctl db copy --to sqlite:/var/lib/links/data/copy.db",
                ],
                &format!("{what} as the database"),
            )?;
            self.put_back(DATABASE)?;
        }
        for (what, trick) in TRICKS {
            for path in ["/var/lib/links/data/copy.db", "/var/lib/links/data/copy.db-wal"] {
                self.replace(path, trick)?;
                self.run_all(
                    &["linksctl db copy --to sqlite:/var/lib/links/data/copy.db"],
                    &format!("{what} as {path}"),
                )?;
                self.put_back(path)?;
                as_links(host, "rm -rf /var/lib/links/data/copy.db*")?;
            }
        }
        // Otherwise a copy into a directory of root's would read the database with root's rights.
        let copied = host.run(["linksctl", "db", "copy", "--to", "sqlite:/srv/private/x.db"])?;
        ensure!(
            copied.status == 1 && copied.stderr.contains("user links"),
            "the error should name the user: {copied}"
        );
        host.ok(["systemctl", "start", "links"])?;
        host.wait_for_rotation(2)
    }

    fn purges_across_a_mount_point(&self) -> Result<()> {
        let host = &self.host;
        host.shell("mkdir /srv/private/kept; touch /srv/private/kept/file; systemctl stop links")?;
        host.wait_until_stopped()?;
        host.shell("mount -t tmpfs tmpfs /var/lib/links/data && chown links /var/lib/links/data")?;
        as_links(
            host,
            "cd /var/lib/links/data && touch x && mkdir d && ln --symbolic /srv/private/kept d/out && ln --symbolic /srv/private/kept out",
        )?;
        let purged = host.ok(["apt-get", "--yes", "purge", "links-shortener"])?;
        ensure!(
            purged.printed().contains("links-shortener: /var/lib/links "),
            "apt should name the directory that stays: {purged}"
        );
        let left = host.ok(["find", "/var/lib/links", "/srv/private/kept"])?.stdout;
        assert_eq!(
            left,
            "/var/lib/links\n/var/lib/links/data\n/srv/private/kept\n/srv/private/kept/file\n"
        );
        ensure!(
            !host
                .shell("getent passwd links || echo gone")?
                .stdout
                .contains("links:"),
            "user links still exists"
        );
        Ok(())
    }
}

fn is_beneath(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A command of user links outside every sandbox, as if a process had escaped from its own.
fn as_user(script: &str) -> [&str; 7] {
    [
        "setpriv",
        "--reuid=links",
        "--regid=links",
        "--clear-groups",
        "bash",
        "-c",
        script,
    ]
}

fn as_links(host: &Host, script: &str) -> Result<Output> {
    host.ok(as_user(script))
}
