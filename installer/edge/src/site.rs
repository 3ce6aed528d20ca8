//! Installs, restores and removes the nginx site. An installation makes a plan from what it finds on the host, has nginx test a
//! candidate, changes the files, reloads nginx, and checks every address. If a step fails, the change is undone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use ipnet::IpNet;

use crate::candidate::Candidate;
use crate::certificates::{Certificate, Certificates};
use crate::conf::Conf;
use crate::found::{self, Answer, Running, ask_nginx, find, http2, is_live};
use crate::nginx::{self, CacheSize, HostFacts, Http2, Https, Peers};
use crate::plan::{Files, Plan};
use crate::record::Record;
use crate::reload::{Nginx, UNIT};
use crate::verify::{Expected, has_ipv6};
use crate::{cache_size, conflicts, plan, ports, record, socket_group, verify};
use links_base::files;
use links_base::layout::{self, Layout};
use links_base::services::Services;
use links_config::files::ConfigFiles;
use links_config::finding::Finding;
use links_config::links::Config;
use links_config::load::Invalid;
use links_config::proxies;
use links_config::reader::Disk;

/// A description of what [`Edge::install`] does, to be shown in plans.
pub const INSTALL: &str = "write and enable the nginx site, test it, reload nginx, ask every address for /health";

/// Messages for the administrator.
pub type Notices = Vec<String>;

/// How long instances and nginx may take to answer again after a change.
pub(crate) const SERVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How [`Edge::install`] brings the site in line with links.toml.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Whether to replace a site that somebody else has edited.
    pub force: bool,
    /// Whether the change is a part of a rollout and can still be undone together with it.
    pub in_rollout: bool,
}

/// The edge of this host: nginx with the site of links.
#[derive(Clone, Debug)]
pub struct Edge {
    pub(crate) files: Files,
    /// The file of the [`Record`].
    pub(crate) record: PathBuf,
    pub(crate) nginx: Nginx,
    pub certificates: Certificates,
    candidate: Candidate,
    /// The directory of the instances' sockets.
    sockets: PathBuf,
    /// The directory of the run-time files.
    run: PathBuf,
    /// Exists while nginx may serve an outdated site.
    not_loaded: PathBuf,
    /// The configuration that the administrator edits.
    config: ConfigFiles,
    services: Services,
}

/// The site that nginx will run: decided and tested, but not written yet.
struct Decided {
    conf: Conf,
    plan: Plan,
    certificates: Vec<Certificate>,
    /// How long nginx takes to read its configuration.
    took: Duration,
}

impl Decided {
    /// Whether the site listens for clients with TLS.
    fn has_tls(&self) -> bool {
        !self.certificates.is_empty()
    }

    fn expected(&self, health: bool) -> Expected<'_> {
        Expected {
            site: self.plan.site.as_ref(),
            health,
            certificates: &self.certificates,
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

/// nginx's words for two `default_server` of an address.
const DUPLICATE_DEFAULT_SERVER: &str = "a duplicate default server";
const NOT_RUNNING: &str =
    "nginx does not run, so no request reaches links: `systemctl start nginx`, then `linksctl configure`";

impl Edge {
    pub fn new(layout: &Layout, services: Services) -> Self {
        Self {
            files: Files::new(layout),
            record: layout.site_state(),
            nginx: Nginx::new(layout, services),
            certificates: Certificates::new(layout),
            candidate: Candidate::new(layout),
            sockets: layout.sockets_dir(),
            run: layout.run_dir(),
            not_loaded: layout.site_not_loaded(),
            config: ConfigFiles::new(layout),
            services,
        }
    }

    /// Decides on the site and tests it. This changes nothing except the copies of the administrator's certificates.
    ///
    /// # Errors
    /// The site cannot be what links.toml wants.
    fn look_ahead(&self, config: &Config, peers: &Peers, record: &Record, force: bool) -> anyhow::Result<Outlook> {
        let found = find(&self.files, record)?;
        let (conf, took) = match ask_nginx()? {
            Answer::Accepted { conf, took } => (conf, took),
            Answer::Refused(why) if !self.services.running() => {
                return Ok(Outlook::Later(format!(
                    "nginx refuses its configuration here, so the links site was not written; the next start of links \
                     writes it:\n{why}"
                )));
            }
            Answer::Refused(why) => {
                let site = plan::in_force(&found, &self.files);
                let expected = Expected {
                    site: site.as_ref(),
                    health: is_live(self.services)?,
                    // It would take a reload to change those that nginx serves.
                    certificates: &[],
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
        let taken = self.certificates.take(&config.tls).context("HTTPS")?;
        let https = https(taken.certificates)?;
        let proxies = self.trusted_networks(config)?;
        let mut plan = plan::install(&found, &conf, &self.files, config, force, |terms| {
            let facts = HostFacts {
                ipv6: has_ipv6(),
                terms,
                proxies,
                cache_size: cache_size::of_cache(&self.run, &self.nginx, self.services, &conf),
            };
            nginx::site(config, &self.files.named, &facts, peers, &https)
        })?;
        plan.notices.extend(taken.problems);
        let decided = Decided {
            conf,
            plan,
            certificates: https.certificates,
            took,
        };
        if !decided.plan.changes.is_empty() {
            if self.services.running() {
                self.check_ports(config, decided.has_tls())?;
            }
            self.test(&decided)?;
        }
        Ok(Outlook::Decided(Box::new(decided)))
    }

    /// The networks of the trusted proxies.
    ///
    /// # Errors
    /// [`Invalid`]: the file with the networks of Cloudflare is wrong.
    fn trusted_networks(&self, config: &Config) -> Result<Vec<IpNet>, Invalid> {
        proxies::networks(config, &self.config, &Disk).map_err(Invalid)
    }

    /// The site for an administrator who writes it, with the endpoints in `peers`. It fits this host as far as this user may read
    /// nginx's configuration.
    ///
    /// # Errors
    /// The file with the networks of Cloudflare is wrong, no request would reach the site, or the files of the site or a
    /// certificate cannot be read.
    pub fn sample(&self, config: &Config, peers: &Peers) -> anyhow::Result<String> {
        let found = find(&self.files, &Record::read(&self.record)?)?;
        let proxies = self.trusted_networks(config)?;
        let https = https(self.certificates.find(&config.tls)?.certificates)?;
        let mut sample = config.clone();
        sample.nginx.manage = false;
        let facts = match found::conf() {
            Some(conf) => HostFacts {
                ipv6: has_ipv6(),
                terms: plan::around_sample(&found, &conf, &self.files, config)?,
                proxies,
                cache_size: cache_size::of_cache(&self.run, &self.nginx, self.services, &conf),
            },
            None => HostFacts {
                ipv6: has_ipv6(),
                ..HostFacts::alone(CacheSize::MODEST, proxies)
            },
        };
        nginx::site(&sample, &self.files.named, &facts, peers, &https)
    }

    fn check_ports(&self, config: &Config, tls: bool) -> anyhow::Result<()> {
        ports::check(&addresses(config, tls), self.nginx.master())
    }

    /// Checks that nginx can listen for clients with TLS.
    ///
    /// # Errors
    /// Another program holds one of the addresses.
    pub fn check_tls_ports(&self, config: &Config) -> anyhow::Result<()> {
        match self.services.running() {
            true => self.check_ports(config, true),
            false => Ok(()),
        }
    }

    /// Checks that nginx accepts its configuration as it is.
    ///
    /// # Errors
    /// nginx refuses it.
    pub fn check_nginx(&self, config: &Config) -> anyhow::Result<()> {
        if !config.nginx.manage || !self.services.running() {
            return Ok(());
        }
        match ask_nginx()? {
            // A rollout resolves this.
            Answer::Refused(why) if !why.contains(DUPLICATE_DEFAULT_SERVER) => Err(anyhow!(
                "nginx's configuration is broken, so nothing was changed. Correct it (`nginx -t` tests it), then run this \
                 again:\n{why}"
            )),
            Answer::Accepted { .. } | Answer::Refused(_) => Ok(()),
        }
    }

    fn test(&self, decided: &Decided) -> anyhow::Result<()> {
        self.candidate.test(&decided.conf, &decided.plan, &self.files)
    }

    /// Checks that the site can be what links.toml wants, before anything else is changed for it. `peers` are the endpoints that
    /// it lists, and `serves` is whether clients have to reach links afterwards.
    ///
    /// # Errors
    /// The site cannot be what links.toml wants, or nginx is stopped although links has to serve.
    pub fn check(&self, config: &Config, peers: &Peers, force: bool, serves: bool) -> anyhow::Result<()> {
        if !config.nginx.manage {
            return Ok(());
        }
        let record = Record::read(&self.record)?;
        if let Outlook::Decided(_) = self.look_ahead(config, peers, &record, force)?
            && Running::of(self.services)? == Running::Stopped
            && serves
        {
            bail!("{}", NOT_RUNNING);
        }
        Ok(())
    }

    /// Brings the site in line with links.toml, with the endpoints in `peers`, and makes nginx run it.
    ///
    /// # Errors
    /// The site cannot be installed, or links does not answer through nginx afterwards. The site and nginx are then as before,
    /// unless the error says otherwise.
    pub fn install(&self, config: &Config, peers: &Peers, mode: Mode) -> anyhow::Result<Notices> {
        if !config.nginx.manage {
            let mut notices = self.open_sockets_to_a_site_of_others()?;
            notices.extend(self.load_for_others(config)?);
            return Ok(notices);
        }
        let mut record = Record::read(&self.record)?;
        let mut outlook = self.look_ahead(config, peers, &record, mode.force)?;
        // Another site has become the default server.
        if let Outlook::ServesThough(why) = &outlook
            && why.contains(DUPLICATE_DEFAULT_SERVER)
            && self.give_up_default_server(config, &mut record)?
        {
            outlook = self.look_ahead(config, peers, &record, mode.force)?;
        }
        let decided = match outlook {
            Outlook::Decided(decided) => decided,
            Outlook::ServesThough(notice) | Outlook::Later(notice) => return Ok(vec![notice]),
        };
        let mut notices = decided.plan.notices.clone();
        let regrouped = self.open_sockets(&decided.conf, &mut record)?;
        let live = is_live(self.services)?;
        let running = Running::of(self.services)?;
        let serves = |timeout| verify::wait(config, Some(&decided.conf), decided.expected(live), timeout);
        // nginx or an instance may just be restarting, hence the timeout. After a change of their group, the workers that run
        // now reach no instance.
        if decided.plan.changes.is_empty()
            && !regrouped
            && running == Running::Yes
            // No wait makes nginx load a renewed certificate.
            && has_loaded(&decided, config)
            && serves(SERVE_TIMEOUT).is_ok()
        {
            notices.extend(self.set_loaded(&decided.certificates));
            return Ok(notices);
        }
        if running == Running::Stopped && live {
            bail!("{}", NOT_RUNNING);
        }
        if running == Running::Yes || running == Running::Failed {
            self.check_ports(config, decided.has_tls())?;
        }

        let written = match &decided.plan.site {
            Some(site) if !site.edited => Some(record::digest(&site.text)),
            _ => record.written.clone(),
        };
        let changed = record.change(&decided.plan.changes, written);
        let done = changed.and_then(|()| {
            let takes = match running {
                Running::Yes => {
                    let error_log = decided.conf.argument("error_log");
                    self.nginx.reload(Some(config), decided.took, error_log.as_deref())?
                }
                Running::Failed => self.services.act("start", UNIT)?,
                Running::Stopped | Running::Never => return Ok(running == Running::Never),
            };
            if takes {
                serves(SERVE_TIMEOUT).map_err(|wrong| anyhow!("links is not reached through nginx: {wrong}"))?;
            }
            Ok(takes)
        });
        match done {
            Ok(takes) => {
                record.finish(mode.in_rollout)?;
                self.note_whether_loaded(takes || running != Running::Yes)?;
                if takes && matches!(running, Running::Yes | Running::Failed) {
                    notices.extend(self.set_loaded(&decided.certificates));
                }
                if !takes {
                    notices.push(match running {
                        Running::Yes => "nginx was not reloaded, by policy: `systemctl reload nginx`".to_owned(),
                        _ => "nginx does not run; it reads the site at its next start: `systemctl start nginx`"
                            .to_owned(),
                    });
                }
                Ok(notices)
            }
            Err(error) if decided.plan.changes.is_empty() => {
                record.undo_unfinished()?;
                // The notices may give the reason, such as that somebody else has edited the site.
                notices.insert(0, format!("{error:#}"));
                Err(anyhow!(notices.join("\n")))
            }
            Err(error) => Err(match self.undo(Some(config), &mut record, Record::undo_unfinished) {
                Ok(_) => anyhow!("{error:#}\nThe site was taken back: nginx runs the former one again"),
                Err(trouble) => {
                    anyhow!("{error:#}\nThe site could not be taken back; run `linksctl rollout`: {trouble:#}")
                }
            }),
        }
    }

    /// Reloads nginx for certificates that it has not loaded yet, for the administrator's own site.
    fn load_for_others(&self, config: &Config) -> anyhow::Result<Notices> {
        let found = self.certificates.take(&config.tls)?;
        let is_loaded = |certificate: &Certificate| certificate.loaded_argument.is_none();
        if found.certificates.iter().all(is_loaded) || Running::of(self.services)? != Running::Yes {
            return Ok(vec![]);
        }
        let reloaded = self.nginx.reload(Some(config), Duration::ZERO, None)?;
        Ok(match reloaded {
            true => self.set_loaded(&found.certificates).into_iter().collect(),
            false => vec!["nginx was not reloaded, by policy: `systemctl reload nginx`".to_owned()],
        })
    }

    /// Records that nginx has loaded the certificates. A failure becomes a notice, because it costs only a second reload.
    fn set_loaded(&self, certificates: &[Certificate]) -> Option<String> {
        let error = self.certificates.set_loaded(certificates).err()?;
        Some(format!("the next renewal reloads nginx without need: {error:#}"))
    }

    /// Lets nginx's workers reach the instances through a site that links does not write. That is all that nginx needs from links
    /// for such a site, which may not exist yet.
    fn open_sockets_to_a_site_of_others(&self) -> anyhow::Result<Notices> {
        match ask_nginx() {
            Ok(Answer::Accepted { conf, .. }) => {
                self.open_sockets(&conf, &mut Record::read(&self.record)?)?;
                Ok(vec![])
            }
            Ok(Answer::Refused(why)) => Ok(vec![format!(
                "nginx's configuration is broken, so it is unknown as which group its workers reach the instances. Correct it \
                 (`nginx -t` tests it), then run `linksctl rollout`:\n{why}"
            )]),
            // Another web server may be in front of the instances.
            Err(_) => Ok(vec![]),
        }
    }

    /// Lets nginx's workers reach the instances. Returns whether the workers' group has changed.
    fn open_sockets(&self, conf: &Conf, record: &mut Record) -> anyhow::Result<bool> {
        let group = socket_group::of_workers(conf)?;
        let regrouped = record.worker_group().is_some_and(|before| before != group);
        socket_group::give(&self.sockets, &group)?;
        record.set_worker_group(&group)?;
        if regrouped {
            // The cache's directories belong to the workers' former user.
            self.remove_cache()?;
        }
        Ok(regrouped)
    }

    fn remove_cache(&self) -> anyhow::Result<()> {
        let cache = &self.files.named.cache_dir;
        files::remove_directory_if_present(cache).with_context(|| format!("Removing {}", cache.display()))
    }

    /// Empties nginx's cache of redirects, because the links have been replaced by others.
    ///
    /// # Errors
    /// The cache cannot be removed, or nginx cannot be reloaded, which then creates it again.
    pub fn empty_cache(&self, config: &Config) -> anyhow::Result<()> {
        self.remove_cache()?;
        if Running::of(self.services)? == Running::Yes {
            self.nginx.reload(Some(config), Duration::ZERO, None)?;
        }
        Ok(())
    }

    /// Gives the directory of the sockets to the recorded group, at boot and before the first instance starts. nginx is not
    /// asked for the group at that time, because `nginx -T` needs the network and more privileges.
    ///
    /// # Errors
    /// The record cannot be read, or the group no longer exists.
    pub fn restore_sockets(&self) -> anyhow::Result<()> {
        match Record::read(&self.record)?.worker_group() {
            Some(group) => socket_group::give_directory(&self.sockets, group),
            None => Ok(()),
        }
    }

    /// Makes nginx keep connections alive again, even after an interrupted change. The caller must hold the right to change the
    /// site.
    ///
    /// # Errors
    /// The flag cannot be created.
    pub fn keep_connections(&self) -> anyhow::Result<()> {
        self.nginx.keep_connections()
    }

    /// Sets or removes a marker for the instances. While nginx does not run what the files say, they listen on every endpoint.
    fn note_whether_loaded(&self, is_loaded: bool) -> anyhow::Result<()> {
        let path = &self.not_loaded;
        match is_loaded {
            true => files::remove_if_present(path).with_context(|| format!("Removing {}", path.display())),
            false => files::replace(path, b"", 0o644),
        }
    }

    /// Undoes a change and makes nginx run the former site. With `config`, keep-alive connections are drained before the reload.
    fn undo(
        &self,
        config: Option<&Config>,
        record: &mut Record,
        undo: impl FnOnce(&mut Record) -> anyhow::Result<Vec<PathBuf>>,
    ) -> anyhow::Result<Notices> {
        let kept = undo(record)?;
        if Running::of(self.services)? == Running::Yes {
            self.nginx.reload(config, Duration::ZERO, None)?;
        }
        let notice = |path: PathBuf| {
            format!(
                "{} was edited by somebody else meanwhile, so it stays as it is",
                path.display()
            )
        };
        Ok(kept.into_iter().map(notice).collect())
    }

    /// Removes the site, and enables Debian's default site again if links had disabled it. A failure becomes a notice, because
    /// it is no reason to keep the rest.
    pub fn remove(&self) -> Notices {
        let mut notices = vec![];
        let removed = self.remove_files(&mut notices);
        // The cache takes memory, because it is below /run.
        let emptied = self.remove_cache();
        notices.extend(
            [removed, emptied]
                .into_iter()
                .filter_map(|done| Some(format!("{:#}", done.err()?))),
        );
        notices
    }

    fn remove_files(&self, notices: &mut Notices) -> anyhow::Result<()> {
        let mut record = Record::read(&self.record).unwrap_or_else(|_| Record::empty(&self.record));
        record.undo_unfinished()?;
        record.end_rollout()?;
        let found = find(&self.files, &record)?;
        let mut plan = plan::remove(&found, &self.files);
        if plan.changes.is_empty() {
            return Ok(());
        }
        let answer = ask_nginx();
        let mut why_not = None;
        if let Ok(Answer::Accepted { conf, took }) = answer {
            let mut decided = Decided {
                conf,
                plan,
                certificates: vec![],
                took,
            };
            if let Err(error) = self.test(&decided) {
                // Another site may have become the default server meanwhile.
                let default = &self.files.default_enabled;
                decided.plan.changes.retain(|change| change.path != *default);
                why_not = Some(error);
            }
            plan = decided.plan;
        }
        record.change(&plan.changes, None)?;
        record.finish(false)?;
        notices.extend(plan.notices);
        if Running::of(self.services)? == Running::Yes && !self.nginx.reload(None, Duration::ZERO, None)? {
            notices.push("nginx was not reloaded, by policy: `systemctl reload nginx`".to_owned());
        }
        match why_not {
            Some(error) => Err(error.context("Debian's default site stays disabled")),
            None => Ok(()),
        }
    }

    /// Undoes an interrupted change of the site. While nginx does not run, this also undoes what an interrupted rollout has
    /// changed, because the instances will start with what they ran before. `config` is the configuration that was applied last,
    /// if it can be read.
    ///
    /// # Errors
    /// A file cannot be restored.
    pub fn recover(&self, config: Option<&Config>) -> anyhow::Result<Notices> {
        let mut record = Record::read(&self.record)?;
        self.candidate.remove_leftovers()?;
        let mut notices = vec![];
        if record.is_unfinished() {
            notices.push("a change of the nginx site was cut off: the site is as it was before".to_owned());
            let undone = self.undo(config, &mut record, Record::undo_unfinished)?;
            notices.extend(undone);
        }
        if record.has_rollout() {
            match self.nginx.master() {
                None => {
                    notices.push("the nginx site is as it was before the rollout".to_owned());
                    let undone = self.undo(config, &mut record, Record::undo_rollout)?;
                    notices.extend(undone);
                }
                // Some instances may already run what the site was changed for, so the next rollout decides.
                Some(_) => record.end_rollout()?,
            }
        }
        if config.is_none_or(|config| config.nginx.manage) {
            notices.extend(self.drop_missing_ipv6(&mut record)?);
        }
        Ok(notices)
    }

    /// Takes the IPv6 addresses out of the site if nginx is about to start on a host that has lost IPv6: it would not start with
    /// them. The next rollout adds them again once the host has IPv6.
    fn drop_missing_ipv6(&self, record: &mut Record) -> anyhow::Result<Option<String>> {
        if has_ipv6() || self.nginx.master().is_some() {
            return Ok(None);
        }
        let is_dropped = self.rewrite(record, plan::without_ipv6)?;
        Ok(is_dropped
            .then(|| "this host has no IPv6 any more, so the nginx site does not listen on IPv6 addresses".to_owned()))
    }

    /// Takes `default_server` out of the site because another site has it too, and nginx refuses both. Returns whether it did.
    fn give_up_default_server(&self, config: &Config, record: &mut Record) -> anyhow::Result<bool> {
        match nginx::server_names(config) == ["_"] {
            true => Ok(false),
            false => self.rewrite(record, plan::without_default_server),
        }
    }

    /// Changes the site on the disk, without a look at the rest of nginx's configuration. Returns whether the plan changes it.
    fn rewrite(
        &self,
        record: &mut Record,
        plan: impl FnOnce(&plan::Found, &Files) -> Option<Plan>,
    ) -> anyhow::Result<bool> {
        let found = find(&self.files, record)?;
        let Some(plan) = plan(&found, &self.files) else {
            return Ok(false);
        };
        let written = plan.site.as_ref().map(|site| record::digest(&site.text));
        record.change(&plan.changes, written)?;
        record.finish(false)?;
        Ok(true)
    }

    /// Explains what in nginx's configuration is in the way of links, with files and lines. Only root can read all of it.
    ///
    /// # Errors
    /// The files of the site cannot be read.
    pub fn conflicts(&self, config: &Config) -> anyhow::Result<Vec<Finding>> {
        if !config.nginx.manage {
            return Ok(vec![]);
        }
        let links_toml = self.config.links_toml().display().to_string();
        let conf = match ask_nginx() {
            Ok(Answer::Accepted { conf, .. }) => conf,
            Ok(Answer::Refused(why)) => return Ok(vec![conflicts::refused(&why)]),
            Err(error) => return Ok(vec![Finding::error(links_toml, format!("{error:#}"))]),
        };
        let found = find(&self.files, &Record::read(&self.record)?)?;
        let mut findings = conflicts::find(&found, &conf, &self.files, config);
        if self.services.running()
            && let Err(error) = self.check_ports(config, config.tls.is_on())
        {
            findings.push(Finding::error(links_toml, format!("{error:#}")));
        }
        Ok(findings)
    }

    /// Undoes what the current rollout has changed of the site.
    ///
    /// # Errors
    /// A file cannot be restored, or nginx does not take the former site.
    pub fn undo_rollout(&self, config: &Config) -> anyhow::Result<Notices> {
        let mut record = Record::read(&self.record)?;
        if !record.has_rollout() {
            return Ok(vec![]);
        }
        self.undo(Some(config), &mut record, Record::undo_rollout)
    }

    /// Ends the current rollout and keeps its site.
    ///
    /// # Errors
    /// The record cannot be read or written.
    pub fn end_rollout(&self) -> anyhow::Result<()> {
        Record::read(&self.record)?.end_rollout()
    }
}

/// What the site needs to serve these certificates.
///
/// # Errors
/// nginx does not run.
fn https(certificates: Vec<Certificate>) -> anyhow::Result<Https> {
    Ok(Https {
        http2: match certificates.is_empty() {
            true => Http2::default(),
            false => http2()?,
        },
        certificates,
    })
}

/// Whether nginx serves the certificates that the site names. The instances have no part in it.
fn has_loaded(decided: &Decided, config: &Config) -> bool {
    verify::ask_for_certificates(config, Some(&decided.conf), decided.expected(false))
        .iter()
        .all(|(.., answer)| answer.is_ok())
}

/// Every address on which nginx listens for links.
fn addresses(config: &Config, tls: bool) -> Vec<SocketAddr> {
    let mut addresses = nginx::addresses(config, has_ipv6());
    if tls {
        addresses.extend(nginx::tls_addresses(config, has_ipv6()));
    }
    addresses.extend(config.edge_port().map(layout::edge_address));
    addresses
}
