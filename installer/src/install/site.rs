//! The nginx site on a host: written only when its bytes change, tested before nginx hears of it, taken back when it is
//! what nginx refuses.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::room;
use super::services::Services;
use crate::config::links::Config;
use crate::layout::Layout;
use crate::nginx::{self, Surroundings};
use crate::{connections, exec, files};

pub(super) const UNIT: &str = "nginx.service";
/// From the signal to new workers; nginx needs about a tenth of a second.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// For clients to hear that their connection ends with its next answer. Who is silent for longer may meet a connection
/// that is closed, as after any `keepalive_timeout`.
const ANNOUNCEMENT: Duration = Duration::from_secs(1);

/// What is to be said to the person about it.
pub type Notices = Vec<String>;

/// One file or link as it was, to be put back.
struct Before {
    path: PathBuf,
    was: Was,
}

enum Was {
    Absent,
    File(Vec<u8>),
    Link(PathBuf),
}

impl Before {
    fn of(path: PathBuf) -> anyhow::Result<Self> {
        let read = || -> io::Result<Was> {
            Ok(match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Was::Absent,
                Err(error) => return Err(error),
                Ok(metadata) if metadata.is_symlink() => Was::Link(fs::read_link(&path)?),
                Ok(_) => Was::File(fs::read(&path)?),
            })
        };
        let was = read().with_context(|| format!("Reading {}", path.display()))?;
        Ok(Self { path, was })
    }

    fn is_link(&self) -> bool {
        matches!(self.was, Was::Link(_))
    }

    fn put_back(&self) -> anyhow::Result<()> {
        match &self.was {
            Was::Absent => {
                files::remove_if_present(&self.path).with_context(|| format!("Removing {}", self.path.display()))
            }
            Was::File(bytes) => files::replace(&self.path, bytes, 0o644),
            Was::Link(target) => files::replace_link(&self.path, target),
        }
    }
}

/// The three names that the site touches.
struct Places {
    available: Before,
    enabled: Before,
    default: Before,
}

impl Places {
    fn read(layout: &Layout) -> anyhow::Result<Self> {
        Ok(Self {
            available: Before::of(layout.nginx_site_available())?,
            enabled: Before::of(layout.nginx_site_enabled())?,
            default: Before::of(layout.nginx_default_site_enabled())?,
        })
    }

    fn put_back(&self) -> anyhow::Result<()> {
        self.available.put_back()?;
        self.enabled.put_back()?;
        self.default.put_back()
    }
}

/// Writes and enables the site, moves Debian's untouched default site aside, and makes nginx use it.
///
/// # Errors
/// nginx refuses its configuration because of the site: everything is as it was then. Where nginx refused it before
/// already, the site stays, and the notices say so.
pub fn install(layout: &Layout, config: &Config, services: Services) -> anyhow::Result<Notices> {
    if !config.nginx.manage {
        return Ok(vec![]);
    }
    if !present(layout) {
        return Ok(vec![format!(
            "nginx with {} is not installed: nothing listens for clients yet. Install nginx, then `linksctl configure`",
            parent(&layout.nginx_site_available())
        )]);
    }
    let before = Places::read(layout)?;
    let broken_before = test().err();
    let default_gone = match before.default.was {
        Was::Absent => true,
        Was::Link(_) | Was::File(_) => {
            config.nginx.replace_default_site && before.default.is_link() && default_is_pristine(layout)?
        }
    };
    let surroundings = Surroundings {
        ipv6: Path::new("/proc/net/if_inet6").exists(),
        default_server: default_gone && !other_default_server(layout)?,
        room: room::of_cache(layout, services),
    };
    let text = nginx::site(config, layout, surroundings)?;

    let mut changed = false;
    if !matches!(&before.available.was, Was::File(bytes) if bytes == text.as_bytes()) {
        files::replace(&layout.nginx_site_available(), text.as_bytes(), 0o644)?;
        changed = true;
    }
    if matches!(before.enabled.was, Was::Absent) {
        files::replace_link(&layout.nginx_site_enabled(), &layout.nginx_site_available())?;
        changed = true;
    }
    if default_gone && let Was::Link(target) = &before.default.was {
        files::replace(
            &layout.parked_default_site(),
            target.as_os_str().as_encoded_bytes(),
            0o644,
        )?;
        files::remove_if_present(&layout.nginx_default_site_enabled())?;
        changed = true;
    }
    let mut notices = vec![];
    if !surroundings.default_server && config.nginx.server_name == ["_"] && config.public_url.is_none() {
        notices.push(
            "another nginx site answers first: set public_url, or server_name of [nginx], in links.toml, then \
             `linksctl configure`"
                .to_owned(),
        );
    }
    match (test(), broken_before) {
        (Ok(()), _) => {
            if changed {
                let _announced = Announcement::make(layout, config)?;
                notices.extend(reload(layout, services)?);
            }
        }
        (Err(why), Some(_)) => notices.push(format!(
            "nginx's configuration was broken before links came, so nginx was not reloaded:\n{why}\nMend it, check it with \
             `nginx -t`, then `systemctl reload-or-restart nginx`; the site of links is in place"
        )),
        (Err(why), None) => {
            before.put_back()?;
            files::remove_if_present(&layout.parked_default_site())?;
            bail!(
                "nginx refuses its configuration with the site of links in it, so the site was taken back and nginx \
                 was not reloaded:\n{why}\nChange [nginx] in links.toml (listen, server_name, or manage = false)"
            );
        }
    }
    Ok(notices)
}

/// Takes the site away and puts Debian's default site back where it made way for it.
///
/// # Errors
/// A file cannot be removed.
pub fn remove(layout: &Layout, services: Services) -> anyhow::Result<Notices> {
    let before = Places::read(layout)?;
    for path in [layout.nginx_site_enabled(), layout.nginx_site_available()] {
        files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display()))?;
    }
    let parked = layout.parked_default_site();
    match fs::read(&parked) {
        Ok(target) => {
            // A person may have put something else there, or removed the site for good.
            if matches!(before.default.was, Was::Absent) && layout.nginx_default_site_available().exists() {
                let target = String::from_utf8(target).with_context(|| format!("Reading {}", parked.display()))?;
                files::replace_link(&layout.nginx_default_site_enabled(), Path::new(&target))?;
            }
            files::remove_if_present(&parked)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("Reading {}", parked.display())),
    }
    if matches!(before.enabled.was, Was::Absent) || !present(layout) {
        return Ok(vec![]);
    }
    let notices = match test() {
        Ok(()) => reload(layout, services)?,
        Err(why) => vec![format!(
            "nginx's configuration is broken, so nginx was not reloaded:\n{why}"
        )],
    };
    // It takes memory.
    let kept = layout.edge_cache_dir();
    files::remove_directory_if_present(&kept).with_context(|| format!("Removing {}", kept.display()))?;
    Ok(notices)
}

/// Debian's nginx: its directory for sites is there.
fn present(layout: &Layout) -> bool {
    layout.nginx_site_available().parent().is_some_and(Path::is_dir) && exec::find("nginx").is_some()
}

fn parent(path: &Path) -> std::path::Display<'_> {
    path.parent().unwrap_or(path).display()
}

/// `nginx -t`; what it complains of.
fn test() -> Result<(), String> {
    match exec::finish("nginx", ["-t", "-q"]) {
        Ok(finished) if finished.success => Ok(()),
        Ok(finished) => Err(exec::tail(&finished.stderr, 8)),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// `systemctl reload nginx` returns when the master has the signal; its old workers go on accepting for a while. Done is
/// when none of them takes new connections any more, so that whoever asks next is answered by the new site.
fn reload(layout: &Layout, services: Services) -> anyhow::Result<Notices> {
    if !services.is_active(UNIT)? {
        return Ok(match services.running() {
            true => vec!["nginx does not run: `systemctl start nginx`".to_owned()],
            false => vec![],
        });
    }
    let old = workers(layout)?;
    Ok(match services.act("reload", UNIT)? {
        true => {
            wait_until_retired(&old)?;
            vec![]
        }
        false => vec!["nginx was not reloaded, by policy: `systemctl reload nginx`".to_owned()],
    })
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
        // The kernel tells nobody when a connection ends.
        while Instant::now() < deadline && !clients(&ports).is_disjoint(&before) {
            std::thread::sleep(Duration::from_millis(5));
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

/// The PID of nginx's first process; none while it does not run.
pub(super) fn master(layout: &Layout) -> Option<String> {
    let pid = fs::read_to_string(layout.nginx_pid()).ok()?;
    Some(pid.trim().to_owned())
}

/// The processes that accept connections now: the children of the master.
fn workers(layout: &Layout) -> anyhow::Result<Vec<PathBuf>> {
    let Some(master) = master(layout) else {
        return Ok(vec![]);
    };
    // The master has one thread.
    let path = format!("/proc/{master}/task/{master}/children");
    let children = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        children => children.with_context(|| format!("Reading {path}"))?,
    };
    Ok(children
        .split_whitespace()
        .map(|pid| Path::new("/proc").join(pid))
        .collect())
}

/// Waits until each is gone or says in its title that it shuts down, which no event announces.
fn wait_until_retired(workers: &[PathBuf]) -> anyhow::Result<()> {
    let deadline = Instant::now() + RELOAD_TIMEOUT;
    let serves = |worker: &PathBuf| {
        let title = fs::read(worker.join("cmdline")).unwrap_or_default();
        title.starts_with(b"nginx: worker process") && !String::from_utf8_lossy(&title).contains("shutting down")
    };
    while workers.iter().any(serves) {
        if Instant::now() >= deadline {
            bail!(
                "nginx does not take its new configuration: its old workers still serve {} s after the reload; \
                 `journalctl -u nginx` and /var/log/nginx/error.log say why",
                RELOAD_TIMEOUT.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether dpkg knows the default site with the contents that it has.
fn default_is_pristine(layout: &Layout) -> anyhow::Result<bool> {
    let path = layout.nginx_default_site_available();
    if exec::find("dpkg-query").is_none()
        || fs::canonicalize(layout.nginx_default_site_enabled()).ok() != Some(path.clone())
    {
        return Ok(false);
    }
    let conffiles = exec::finish("dpkg-query", ["--show", "--showformat=${Conffiles}\n", "nginx-common"])?.stdout;
    let sum = exec::run("md5sum", [&path])?;
    Ok(lists_conffile(
        &conffiles,
        &path,
        sum.split_whitespace().next().unwrap_or_default(),
    ))
}

/// dpkg-query(1): each line is a path and its digest.
fn lists_conffile(conffiles: &str, path: &Path, md5: &str) -> bool {
    conffiles.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next().map(Path::new) == Some(path) && words.next() == Some(md5)
    })
}

/// Whether another site says that it answers for unknown names. `nginx -t` has the last word; this spares it.
fn other_default_server(layout: &Layout) -> anyhow::Result<bool> {
    let ours = layout.nginx_site_enabled();
    let default = layout.nginx_default_site_enabled();
    let mut directories = vec![layout.nginx_conf_d()];
    directories.extend(ours.parent().map(Path::to_owned));
    for directory in directories {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("Reading {}", directory.display()))?,
        };
        for entry in entries {
            let path = entry?.path();
            if path == ours || path == default {
                continue;
            }
            // A dangling link or a directory is nginx's to complain of.
            let text = fs::read(&path).unwrap_or_default();
            if String::from_utf8_lossy(&text).lines().any(says_default_server) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn says_default_server(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default();
    line.contains("listen") && line.contains("default_server")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_conffile_is_pristine_with_the_digest_that_dpkg_has() {
        let listed = "\n /etc/nginx/sites-available/default abc\n /etc/nginx/nginx.conf def\n";
        let path = Path::new("/etc/nginx/sites-available/default");
        assert!(lists_conffile(listed, path, "abc"));
        assert!(!lists_conffile(listed, path, "def"));
        assert!(!lists_conffile("", path, ""));
    }

    #[test]
    fn a_comment_is_no_default_server() {
        assert!(says_default_server("\tlisten 80 default_server;"));
        assert!(!says_default_server("\t# listen 80 default_server;"));
        assert!(!says_default_server("\tlisten 80;"));
    }

    #[test]
    fn what_was_there_is_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), b"old").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let before: Vec<_> = ["file", "link", "absent"]
            .map(|name| Before::of(at(name)).unwrap())
            .into();
        for name in ["file", "link", "absent"] {
            files::remove_if_present(&at(name)).unwrap();
            fs::write(at(name), b"new").unwrap();
        }
        before.iter().for_each(|before| before.put_back().unwrap());
        assert_eq!(fs::read(at("file")).unwrap(), b"old");
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("file"));
        assert!(!at("absent").exists());
    }
}
