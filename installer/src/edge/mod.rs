//! The nginx site on a host: what is found becomes a plan, nginx is asked about a candidate of it, the files change, nginx
//! takes them, and every address is asked. What goes wrong on the way is undone.

mod cache_size;
mod conf;
mod plan;
mod ports;
mod record;
mod released;
mod reload;
pub mod socket_group;
mod verify;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};

use crate::config::links::Config;
use crate::config::load::load_links;
use crate::layout::{self, Layout};
use crate::nginx::{self, Surroundings};
use crate::peers::{self, Stage};
use crate::rollout::snapshot;
use crate::services::Services;
use crate::{exec, files};
use plan::{Found, Plan};
use record::{Record, State};
use verify::Expected;

pub use conf::Conf;
pub use reload::{UNIT, keep_connections, master};

/// What [`install`] does, in words.
pub const INSTALL: &str = "write and enable the nginx site, test it, reload nginx, ask every address for /health";

/// What is to be said to the person about it.
pub type Notices = Vec<String>;

/// For instances and nginx to be back after a change that needs a moment.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of `nginx -t`.
const COMPLAINT_LINES: usize = 8;

/// How the site is brought in line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Also over what somebody else has edited.
    pub force: bool,
    /// As a part of a rollout, with which it can still be undone.
    pub in_rollout: bool,
    /// Which endpoints of the instances it lists.
    pub stage: Stage,
}

/// What nginx is asked to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    /// Reload.
    Yes,
    /// It tried and could not: once the cause is gone, it starts.
    Failed,
    /// Nobody wants it to run now.
    Stopped,
    /// systemd does not run here: a chroot, the build of an image.
    Never,
}

impl Running {
    fn of(services: Services) -> anyhow::Result<Self> {
        if !services.running() {
            return Ok(Self::Never);
        }
        let states = services.states(&[UNIT.to_owned()])?;
        Ok(match states.first().map(String::as_str) {
            Some("active" | "activating" | "reloading" | "deactivating") => Self::Yes,
            Some("failed") => Self::Failed,
            _ => Self::Stopped,
        })
    }
}

/// What nginx says of its configuration.
enum Answer {
    Accepted { conf: Conf, took: Duration },
    Refused(String),
}

fn ask_nginx() -> anyhow::Result<Answer> {
    if exec::find("nginx").is_none() {
        bail!("nginx is not installed, so no request reaches links: install it (`apt-get install nginx`)");
    }
    let begun = Instant::now();
    let said = exec::finish("nginx", ["-T", "-q"])?;
    Ok(match Conf::read(&said.stdout).filter(|_| said.success) {
        Some(conf) => Answer::Accepted {
            conf,
            took: begun.elapsed(),
        },
        None => Answer::Refused(exec::tail(&said.stderr, COMPLAINT_LINES)),
    })
}

fn find(layout: &Layout, record: &Record) -> anyhow::Result<Found> {
    Ok(Found {
        has_sites: layout.nginx_site_available().parent().is_some_and(Path::is_dir),
        available: State::of(&layout.nginx_site_available())?,
        enabled: State::of(&layout.nginx_site_enabled())?,
        conf_d: State::of(&layout.nginx_conf_d_site())?,
        default: State::of(&layout.nginx_default_site_enabled())?,
        default_is_pristine: default_is_pristine(layout)?,
        default_is_available: layout.nginx_default_site_available().exists(),
        parked: State::of(&layout.parked_default_site())?,
        written: record.written.clone(),
    })
}

/// The site that nginx is to run, decided and tested, and nothing changed yet.
struct Decided {
    conf: Conf,
    plan: Plan,
    /// How long nginx takes to read its configuration.
    took: Duration,
}

impl Decided {
    fn expected(&self, health: bool) -> Expected<'_> {
        Expected {
            site: self.plan.site.as_ref(),
            health,
        }
    }
}

/// What is found out before a change.
enum Outlook {
    Decided(Box<Decided>),
    /// Somebody else's configuration is broken; what nginx still runs serves.
    ServesThough(String),
    /// The same where nobody can be asked, in a chroot.
    Later(String),
}

/// # Errors
/// The site cannot be what links.toml wants. Nothing was changed.
fn look_ahead(
    layout: &Layout,
    config: &Config,
    services: Services,
    record: &Record,
    force: bool,
    stage: Stage,
) -> anyhow::Result<Outlook> {
    let found = find(layout, record)?;
    let (conf, took) = match ask_nginx()? {
        Answer::Accepted { conf, took } => (conf, took),
        Answer::Refused(why) if !services.running() => {
            return Ok(Outlook::Later(format!(
                "nginx refuses its configuration here, so the site of links was not written; the next start of links does \
                 it:\n{why}"
            )));
        }
        Answer::Refused(why) => {
            let site = plan::in_force(&found, layout);
            let expected = Expected {
                site: site.as_ref(),
                health: is_live(services)?,
            };
            let advice = "Correct it (`nginx -t` tests it)";
            return match site
                .is_some()
                .then(|| verify::wait(config, None, expected, Duration::ZERO))
            {
                Some(Ok(())) => Ok(Outlook::ServesThough(format!(
                    "nginx's configuration is broken, so the site of links stays as nginx still runs it. {advice} before \
                     nginx starts again:\n{why}"
                ))),
                _ => Err(anyhow!(
                    "nginx's configuration is broken, so the site of links was not written and nginx was not reloaded. \
                     {advice}, then run `linksctl configure`:\n{why}"
                )),
            };
        }
    };
    let surroundings = |default_server| Surroundings {
        ipv6: has_ipv6(),
        default_server,
        room: cache_size::of_cache(layout, services, &conf),
    };
    let plan = plan::install(&found, &conf, layout, config, force, |default_server| {
        nginx::site(
            config,
            layout,
            surroundings(default_server),
            &peers::peers(layout, config, stage),
        )
    })?;
    let decided = Decided { conf, plan, took };
    if !decided.plan.changes.is_empty() {
        if services.running() {
            ports::check(&addresses(config), master(layout))?;
        }
        test(layout, &decided)?;
    }
    Ok(Outlook::Decided(Box::new(decided)))
}

/// Whether the site can be what links.toml wants, before anything else is changed for it. `serves`: links is to be reached
/// afterwards.
///
/// # Errors
/// Why not.
pub fn check(layout: &Layout, config: &Config, services: Services, force: bool, serves: bool) -> anyhow::Result<()> {
    if !config.nginx.manage {
        return Ok(());
    }
    let record = Record::read(layout)?;
    if let Outlook::Decided(_) = look_ahead(layout, config, services, &record, force, Stage::Final)?
        && Running::of(services)? == Running::Stopped
        && serves
    {
        bail!("{}", NOT_RUNNING);
    }
    Ok(())
}

const NOT_RUNNING: &str =
    "nginx does not run, so no request reaches links: `systemctl start nginx`, then `linksctl configure`";

/// Brings the site in line with links.toml, and makes nginx run it.
///
/// # Errors
/// It cannot, or links does not answer through nginx then: site and nginx are as they were, unless the error says otherwise.
pub fn install(layout: &Layout, config: &Config, services: Services, mode: Mode) -> anyhow::Result<Notices> {
    if !config.nginx.manage {
        return Ok(vec![]);
    }
    let mut record = Record::read(layout)?;
    let decided = match look_ahead(layout, config, services, &record, mode.force, mode.stage)? {
        Outlook::Decided(decided) => decided,
        Outlook::ServesThough(notice) | Outlook::Later(notice) => return Ok(vec![notice]),
    };
    let mut notices = decided.plan.notices.clone();
    let regrouped = open_sockets(layout, &decided.conf, &mut record)?;
    let live = is_live(services)?;
    let running = Running::of(services)?;
    let serves = |patience| verify::wait(config, Some(&decided.conf), decided.expected(live), patience);
    // nginx, or an instance, may just be starting again. Workers of another group than the configuration's reach no instance.
    if decided.plan.changes.is_empty() && !regrouped && running == Running::Yes && serves(PATIENCE).is_ok() {
        return Ok(notices);
    }
    if running == Running::Stopped && live {
        bail!("{}", NOT_RUNNING);
    }
    if running == Running::Yes || running == Running::Failed {
        ports::check(&addresses(config), master(layout))?;
    }

    let written = match &decided.plan.site {
        Some(site) if !site.edited => Some(record::digest(&site.text)),
        _ => record.written.clone(),
    };
    let changed = record.change(layout, &decided.plan.changes, written);
    let done = changed.and_then(|()| {
        let takes = match running {
            Running::Yes => {
                let error_log = decided.conf.argument("error_log");
                reload::reload(layout, Some(config), services, decided.took, error_log.as_deref())?
            }
            Running::Failed => services.act("start", UNIT)?,
            Running::Stopped | Running::Never => return Ok(running == Running::Never),
        };
        if takes {
            serves(PATIENCE).map_err(|wrong| anyhow!("links is not reached through nginx: {wrong}"))?;
        }
        Ok(takes)
    });
    match done {
        Ok(takes) => {
            record.finish(layout, mode.in_rollout)?;
            note_whether_loaded(layout, takes || running != Running::Yes)?;
            if !takes {
                notices.push(match running {
                    Running::Yes => "nginx was not reloaded, by policy: `systemctl reload nginx`".to_owned(),
                    _ => "nginx does not run; the site counts from its next start: `systemctl start nginx`".to_owned(),
                });
            }
            Ok(notices)
        }
        Err(error) if decided.plan.changes.is_empty() => {
            record.undo_unfinished(layout)?;
            // That the site is somebody else's may be why.
            notices.insert(0, format!("{error:#}"));
            Err(anyhow!(notices.join("\n")))
        }
        Err(error) => Err(
            match undo(layout, Some(config), services, &mut record, Record::undo_unfinished) {
                Ok(_) => anyhow!("{error:#}\nThe site was taken back: nginx has the one that it had before"),
                Err(trouble) => {
                    anyhow!("{error:#}\nThe site could not be taken back, run `linksctl rollout`: {trouble:#}")
                }
            },
        ),
    }
}

/// Lets the workers of nginx reach the instances. Returns whether they are others than before.
fn open_sockets(layout: &Layout, conf: &Conf, record: &mut Record) -> anyhow::Result<bool> {
    let group = socket_group::of_workers(conf)?;
    let regrouped = record.worker_group().is_some_and(|before| before != group);
    socket_group::give(layout, &group)?;
    record.set_worker_group(layout, &group)?;
    if regrouped {
        // The cache's directories belong to the former user.
        let cache = layout.edge_cache_dir();
        files::remove_directory_if_present(&cache).with_context(|| format!("Removing {}", cache.display()))?;
    }
    Ok(regrouped)
}

/// At boot, before the first instance: nginx is not asked then, since it needs the network, and more rights.
///
/// # Errors
/// The record cannot be read, or the group is gone.
pub fn restore_sockets(layout: &Layout) -> anyhow::Result<()> {
    match Record::read(layout)?.worker_group() {
        Some(group) => socket_group::give_directory(layout, group),
        None => Ok(()),
    }
}

/// For the instances: where nginx does not run what the files say, they listen on every endpoint.
fn note_whether_loaded(layout: &Layout, is_loaded: bool) -> anyhow::Result<()> {
    let path = layout.site_not_loaded();
    match is_loaded {
        true => files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display())),
        false => files::replace(&path, b"", 0o644),
    }
}

/// Puts back what was, and makes nginx run that. With `config`, clients hear of it before nginx closes their connections.
fn undo(
    layout: &Layout,
    config: Option<&Config>,
    services: Services,
    record: &mut Record,
    undo: impl FnOnce(&mut Record, &Layout) -> anyhow::Result<Vec<PathBuf>>,
) -> anyhow::Result<Notices> {
    let kept = undo(record, layout)?;
    if Running::of(services)? == Running::Yes {
        reload::reload(layout, config, services, Duration::ZERO, None)?;
    }
    let notice = |path: PathBuf| {
        format!(
            "{} was edited by somebody else meanwhile, so it stays as it is",
            path.display()
        )
    };
    Ok(kept.into_iter().map(notice).collect())
}

/// What nginx would say after the change, without the change.
fn test(layout: &Layout, decided: &Decided) -> anyhow::Result<()> {
    let Decided { conf, plan, .. } = decided;
    let main = conf
        .main()
        .with_file_name(layout.nginx_candidate().file_name().unwrap_or_default());
    let candidate = layout.site_candidate();
    let tested = (|| {
        if let Some(site) = &plan.site {
            files::replace(&candidate, site.text.as_bytes(), 0o644)?;
        }
        files::replace(&main, conf.with(&plan.overrides(&candidate)).as_bytes(), 0o644)?;
        exec::finish("nginx", ["-t".as_ref(), "-q".as_ref(), "-c".as_ref(), main.as_os_str()])
    })();
    for path in [&main, &candidate] {
        files::remove_if_present(path).with_context(|| format!("Removing {}", path.display()))?;
    }
    let finished = tested?;
    if finished.success {
        return Ok(());
    }
    bail!(
        "nginx refuses its configuration with the site of links in it, so nothing was written:\n{}\nChange [nginx] in \
         links.toml (listen, server_name, or manage = false), or what is in {}",
        exec::tail(&finished.stderr, COMPLAINT_LINES),
        layout.nginx_include_dir().display()
    );
}

/// Takes the site away and puts Debian's default site back where it made way for it. What does not work is no reason to
/// keep anything else, so it becomes a notice.
pub fn remove(layout: &Layout, services: Services) -> Notices {
    let mut notices = vec![];
    let removed = remove_files(layout, services, &mut notices);
    // It takes memory.
    let cache = layout.edge_cache_dir();
    let emptied = files::remove_directory_if_present(&cache).with_context(|| format!("Removing {}", cache.display()));
    notices.extend(
        [removed, emptied]
            .into_iter()
            .filter_map(|done| Some(format!("{:#}", done.err()?))),
    );
    notices
}

fn remove_files(layout: &Layout, services: Services, notices: &mut Notices) -> anyhow::Result<()> {
    let mut record = Record::read(layout).unwrap_or_default();
    record.undo_unfinished(layout)?;
    record.end_rollout(layout)?;
    let found = find(layout, &record)?;
    let mut plan = plan::remove(&found, layout);
    if plan.changes.is_empty() {
        return Ok(());
    }
    let answer = ask_nginx();
    let mut why_not = None;
    if let Ok(Answer::Accepted { conf, took }) = answer {
        let mut decided = Decided { conf, plan, took };
        if let Err(error) = test(layout, &decided) {
            // Another site may have become the default server meanwhile.
            let default = layout.nginx_default_site_enabled();
            decided.plan.changes.retain(|change| change.path != default);
            why_not = Some(error);
        }
        plan = decided.plan;
    }
    record.change(layout, &plan.changes, None)?;
    record.finish(layout, false)?;
    notices.extend(plan.notices);
    if Running::of(services)? == Running::Yes && !reload::reload(layout, None, services, Duration::ZERO, None)? {
        notices.push("nginx was not reloaded, by policy: `systemctl reload nginx`".to_owned());
    }
    match why_not {
        Some(error) => Err(error.context("Debian's default site stays disabled")),
        None => Ok(()),
    }
}

/// Undoes what a change that was cut off has left, and, while nginx does not run, what a rollout that was cut off has
/// changed: then its instances start with what they had before.
///
/// # Errors
/// A file cannot be put back.
pub fn recover(layout: &Layout, services: Services) -> anyhow::Result<Notices> {
    let mut record = Record::read(layout)?;
    for left in [layout.site_candidate(), layout.nginx_candidate()] {
        files::remove_if_present(&left).with_context(|| format!("Removing {}", left.display()))?;
    }
    let mut notices = vec![];
    let (applied, _) = snapshot::of_instance(layout, 1);
    // Without it, this is no reason to leave the site as it is.
    let config = load_links(&applied).ok();
    if record.is_unfinished() {
        notices.push("a change of the nginx site was cut off: the site is as it was before".to_owned());
        let undone = undo(layout, config.as_ref(), services, &mut record, Record::undo_unfinished)?;
        notices.extend(undone);
    }
    if record.has_rollout() {
        match master(layout) {
            None => {
                notices.push("the nginx site is as it was before the rollout".to_owned());
                let undone = undo(layout, config.as_ref(), services, &mut record, Record::undo_rollout)?;
                notices.extend(undone);
            }
            // Some instances may run already what the site was changed for. The next rollout decides.
            Some(_) => record.end_rollout(layout)?,
        }
    }
    Ok(notices)
}

/// The site that the rollout under way has changed is again the one before it.
///
/// # Errors
/// It cannot be put back, or nginx does not take it.
pub fn undo_rollout(layout: &Layout, config: &Config, services: Services) -> anyhow::Result<Notices> {
    let mut record = Record::read(layout)?;
    if !record.has_rollout() {
        return Ok(vec![]);
    }
    undo(layout, Some(config), services, &mut record, Record::undo_rollout)
}

/// The rollout under way is over, and its site stays.
///
/// # Errors
/// It cannot be written.
pub fn end_rollout(layout: &Layout) -> anyhow::Result<()> {
    Record::read(layout)?.end_rollout(layout)
}

/// Whether links answers through nginx on every address, with whatever site is in force. Where the site is another
/// program's, that is not known, and nothing is wrong.
///
/// # Errors
/// What is wrong, on which address.
pub fn require_serving(layout: &Layout, config: &Config) -> anyhow::Result<()> {
    if !config.nginx.manage {
        return Ok(());
    }
    let found = find(layout, &Record::read(layout)?)?;
    let site = plan::in_force(&found, layout).context("links has no nginx site: run `linksctl rollout`")?;
    let expected = Expected {
        site: Some(&site),
        health: true,
    };
    verify::wait(config, conf().as_ref(), expected, PATIENCE)
        .map_err(|wrong| anyhow!("links is not reached through nginx: {wrong}"))
}

/// None for a user who may not read it, or where nginx refuses it.
fn conf() -> Option<Conf> {
    match ask_nginx() {
        Ok(Answer::Accepted { conf, .. }) => Some(conf),
        Ok(Answer::Refused(_)) | Err(_) => None,
    }
}

/// What nginx really serves.
#[derive(Debug)]
pub struct Status {
    pub addresses: Vec<(SocketAddr, Result<(), String>)>,
    pub site: Option<PathBuf>,
    pub edited: bool,
    pub since: Option<SystemTime>,
}

/// For anybody, also without root's rights.
///
/// # Errors
/// The site cannot be read.
pub fn status(layout: &Layout, config: &Config) -> anyhow::Result<Status> {
    let site = match config.nginx.manage {
        true => plan::in_force(&find(layout, &Record::read(layout)?)?, layout),
        false => None,
    };
    let expected = Expected {
        site: site.as_ref(),
        health: true,
    };
    Ok(Status {
        addresses: verify::ask(config, conf().as_ref(), expected),
        edited: site.as_ref().is_some_and(|site| site.edited),
        site: site.map(|site| site.path),
        since: reload::running_since(layout),
    })
}

/// Everywhere where nginx listens for links.
fn addresses(config: &Config) -> Vec<SocketAddr> {
    let mut addresses = nginx::addresses(config, has_ipv6());
    addresses.extend(config.edge_port().map(layout::edge_address));
    addresses
}

/// Whether the kernel has IPv6.
fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

/// Whether instances are to answer now.
fn is_live(services: Services) -> anyhow::Result<bool> {
    services.is_active(layout::SERVICE)
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

#[cfg(test)]
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
}
