//! Installs, restores and removes the nginx site. An installation makes a plan from what it finds on the host, has nginx test a
//! candidate, changes the files, reloads nginx, and checks every address. If a step fails, the change is undone.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};

use crate::conf::Conf;
use crate::nginx::{self, HostFacts};
use crate::peers::{self, Stage};
use crate::plan::{Found, Plan};
use crate::record::{Record, State};
use crate::reload::{UNIT, master};
use crate::verify::{Expected, has_ipv6};
use crate::{cache_size, plan, ports, record, reload, socket_group, verify};
use links_base::layout::{self, Layout};
use links_base::services::Services;
use links_base::{exec, files};
use links_config::links::Config;
use links_config::load::load_links;
use links_release::Snapshots;

/// A description of what [`install`] does, to be shown in plans.
pub const INSTALL: &str = "write and enable the nginx site, test it, reload nginx, ask every address for /health";

/// Messages for the administrator.
pub type Notices = Vec<String>;

/// How long instances and nginx may take to answer again after a change.
const SERVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of lines of nginx's error output that are quoted.
const ERROR_LINES: usize = 8;

/// How [`install`] brings the site in line with links.toml.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Whether to replace a site that somebody else has edited.
    pub force: bool,
    /// Whether the change is a part of a rollout and can still be undone together with it.
    pub in_rollout: bool,
    /// Which endpoints of the instances the site lists.
    pub stage: Stage,
}

/// Whether nginx runs, and so how it gets its new configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    /// It runs and has to be reloaded.
    Yes,
    /// It failed to start, and may start once the cause is gone.
    Failed,
    /// It was stopped on purpose.
    Stopped,
    /// systemd does not run here, as in a chroot or an image build.
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

/// nginx's verdict on its current configuration.
enum Answer {
    Accepted { conf: Conf, took: Duration },
    Refused(String),
}

fn ask_nginx() -> anyhow::Result<Answer> {
    if exec::find("nginx").is_none() {
        bail!("nginx is not installed, so no request reaches links: install it (`apt-get install nginx`)");
    }
    let begun = Instant::now();
    let dump = exec::finish("nginx", ["-T", "-q"])?;
    Ok(match Conf::read(&dump.stdout).filter(|_| dump.success) {
        Some(conf) => Answer::Accepted {
            conf,
            took: begun.elapsed(),
        },
        None => Answer::Refused(exec::tail(&dump.stderr, ERROR_LINES)),
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

/// The site that nginx will run: decided and tested, but not written yet.
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

/// The result of the checks before a change.
enum Outlook {
    Decided(Box<Decided>),
    /// Somebody else has broken nginx's configuration, but what nginx still runs serves links.
    ServesThough(String),
    /// The configuration is broken, and systemd does not run here, so nobody can check whether nginx serves.
    Later(String),
}

/// Decides on the site and tests it, without changing anything.
///
/// # Errors
/// The site cannot be what links.toml wants.
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
                "nginx refuses its configuration here, so the links site was not written; the next start of links \
                 writes it:\n{why}"
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
                    "nginx's configuration is broken, so the links site stays as nginx still runs it. {advice} before \
                     nginx starts again:\n{why}"
                ))),
                _ => Err(anyhow!(
                    "nginx's configuration is broken, so the links site was not written and nginx was not reloaded. \
                     {advice}, then run `linksctl configure`:\n{why}"
                )),
            };
        }
    };
    let facts = |default_server| HostFacts {
        ipv6: has_ipv6(),
        default_server,
        cache_size: cache_size::of_cache(layout, services, &conf),
    };
    let plan = plan::install(&found, &conf, layout, config, force, |default_server| {
        nginx::site(
            config,
            layout,
            facts(default_server),
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

/// Checks that the site can be what links.toml wants, before anything else is changed for it. `serves` is whether clients have
/// to reach links afterwards.
///
/// # Errors
/// The site cannot be what links.toml wants, or nginx is stopped although links has to serve.
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

/// Brings the site in line with links.toml and makes nginx run it.
///
/// # Errors
/// The site cannot be installed, or links does not answer through nginx afterwards. The site and nginx are then as before,
/// unless the error says otherwise.
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
    let serves = |timeout| verify::wait(config, Some(&decided.conf), decided.expected(live), timeout);
    // nginx or an instance may just be restarting, hence the timeout. After a change of their group, the workers that run now
    // reach no instance.
    if decided.plan.changes.is_empty() && !regrouped && running == Running::Yes && serves(SERVE_TIMEOUT).is_ok() {
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
            serves(SERVE_TIMEOUT).map_err(|wrong| anyhow!("links is not reached through nginx: {wrong}"))?;
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
                    _ => "nginx does not run; it reads the site at its next start: `systemctl start nginx`".to_owned(),
                });
            }
            Ok(notices)
        }
        Err(error) if decided.plan.changes.is_empty() => {
            record.undo_unfinished(layout)?;
            // The notices may give the reason, such as that somebody else has edited the site.
            notices.insert(0, format!("{error:#}"));
            Err(anyhow!(notices.join("\n")))
        }
        Err(error) => Err(
            match undo(layout, Some(config), services, &mut record, Record::undo_unfinished) {
                Ok(_) => anyhow!("{error:#}\nThe site was taken back: nginx runs the former one again"),
                Err(trouble) => {
                    anyhow!("{error:#}\nThe site could not be taken back; run `linksctl rollout`: {trouble:#}")
                }
            },
        ),
    }
}

/// Lets nginx's workers reach the instances. Returns whether the workers' group has changed.
fn open_sockets(layout: &Layout, conf: &Conf, record: &mut Record) -> anyhow::Result<bool> {
    let group = socket_group::of_workers(conf)?;
    let regrouped = record.worker_group().is_some_and(|before| before != group);
    socket_group::give(layout, &group)?;
    record.set_worker_group(layout, &group)?;
    if regrouped {
        // The cache's directories belong to the workers' former user.
        let cache = layout.edge_cache_dir();
        files::remove_directory_if_present(&cache).with_context(|| format!("Removing {}", cache.display()))?;
    }
    Ok(regrouped)
}

/// Gives the directory of the sockets to the recorded group, at boot and before the first instance starts. nginx is not asked
/// for the group at that time, because `nginx -T` needs the network and more privileges.
///
/// # Errors
/// The record cannot be read, or the group no longer exists.
pub fn restore_sockets(layout: &Layout) -> anyhow::Result<()> {
    match Record::read(layout)?.worker_group() {
        Some(group) => socket_group::give_directory(layout, group),
        None => Ok(()),
    }
}

/// Sets or removes a marker for the instances. While nginx does not run what the files say, they listen on every endpoint.
fn note_whether_loaded(layout: &Layout, is_loaded: bool) -> anyhow::Result<()> {
    let path = layout.site_not_loaded();
    match is_loaded {
        true => files::remove_if_present(&path).with_context(|| format!("Removing {}", path.display())),
        false => files::replace(&path, b"", 0o644),
    }
}

/// Undoes a change and makes nginx run the former site. With `config`, keep-alive connections are drained before the reload.
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

/// Has nginx test the configuration as it would be after the change.
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
        "nginx refuses its configuration with the links site in it, so nothing was written:\n{}\nChange [nginx] in \
         links.toml (listen, server_name, or manage = false), or what is in {}",
        exec::tail(&finished.stderr, ERROR_LINES),
        layout.nginx_include_dir().display()
    );
}

/// Removes the site, and enables Debian's default site again if links had disabled it. A failure becomes a notice, because it
/// is no reason to keep the rest.
pub fn remove(layout: &Layout, services: Services) -> Notices {
    let mut notices = vec![];
    let removed = remove_files(layout, services, &mut notices);
    // The cache takes memory, because it is below /run.
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

/// Undoes an interrupted change of the site. While nginx does not run, this also undoes what an interrupted rollout has
/// changed, because the instances will start with what they ran before.
///
/// # Errors
/// A file cannot be restored.
pub fn recover(layout: &Layout, services: Services) -> anyhow::Result<Notices> {
    let mut record = Record::read(layout)?;
    for left in [layout.site_candidate(), layout.nginx_candidate()] {
        files::remove_if_present(&left).with_context(|| format!("Removing {}", left.display()))?;
    }
    let mut notices = vec![];
    let (applied, _) = Snapshots::new(layout).of_instance(1);
    // A configuration that cannot be read must not prevent the undoing.
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
            // Some instances may already run what the site was changed for, so the next rollout decides.
            Some(_) => record.end_rollout(layout)?,
        }
    }
    Ok(notices)
}

/// Undoes what the current rollout has changed of the site.
///
/// # Errors
/// A file cannot be restored, or nginx does not take the former site.
pub fn undo_rollout(layout: &Layout, config: &Config, services: Services) -> anyhow::Result<Notices> {
    let mut record = Record::read(layout)?;
    if !record.has_rollout() {
        return Ok(vec![]);
    }
    undo(layout, Some(config), services, &mut record, Record::undo_rollout)
}

/// Ends the current rollout and keeps its site.
///
/// # Errors
/// The record cannot be read or written.
pub fn end_rollout(layout: &Layout) -> anyhow::Result<()> {
    Record::read(layout)?.end_rollout(layout)
}

/// Requires that links answers through nginx on every address, with whatever site is in force. If links does not manage the
/// site, this checks nothing.
///
/// # Errors
/// An address does not answer as expected. The error says which and why.
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
    verify::wait(config, conf().as_ref(), expected, SERVE_TIMEOUT)
        .map_err(|wrong| anyhow!("links is not reached through nginx: {wrong}"))
}

/// nginx's configuration. `None` if the user may not read it or nginx refuses it.
fn conf() -> Option<Conf> {
    match ask_nginx() {
        Ok(Answer::Accepted { conf, .. }) => Some(conf),
        Ok(Answer::Refused(_)) | Err(_) => None,
    }
}

/// What nginx really serves.
#[derive(Debug)]
pub struct Status {
    /// Every address of the site with what is wrong there.
    pub addresses: Vec<(SocketAddr, Result<(), String>)>,
    pub site: Option<PathBuf>,
    /// Whether somebody else has edited the site.
    pub edited: bool,
    /// When nginx took its current configuration.
    pub since: Option<SystemTime>,
}

/// Finds out what nginx really serves. This needs no root privileges.
///
/// # Errors
/// The site or its record cannot be read.
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

/// Every address on which nginx listens for links.
fn addresses(config: &Config) -> Vec<SocketAddr> {
    let mut addresses = nginx::addresses(config, has_ipv6());
    addresses.extend(config.edge_port().map(layout::edge_address));
    addresses
}

/// Whether instances are supposed to answer now.
fn is_live(services: Services) -> anyhow::Result<bool> {
    services.is_active(layout::SERVICE)
}

/// Whether Debian's default site has the contents that its package installed.
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

/// Whether dpkg's list of conffiles has the path with this digest. Each line is a path and its digest (dpkg-query(1)).
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
