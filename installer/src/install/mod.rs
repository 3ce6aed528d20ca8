//! The host: what is done to it when the payload has come, and undone before it goes.

pub mod payload;
mod services;
mod site;

use std::fmt;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};

use anyhow::{Context as _, bail};

pub use services::{OnBehalfOf, Services, await_stop};

use crate::config::load::{load, load_links};
use crate::config::render;
use crate::layout::{self, Layout};
use crate::release::{Release, Store};
use crate::{exec, files, token};

/// What `configure` found out about the host before it decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    has_token: bool,
    /// links.service was enabled by us once: whether it is now is the administrator's business.
    configured_before: bool,
    /// The release of the payload.
    payload: String,
    /// The instances that are wanted.
    wanted: Vec<Wanted>,
    /// Enabled instances that are not wanted.
    surplus: Vec<u16>,
    /// links.service runs.
    active: bool,
}

/// One wanted instance, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    instance: u16,
    /// Where its link leads.
    release: Option<String>,
    /// It runs with another configuration than the one that is on the disk.
    outdated: bool,
}

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    MakeToken,
    /// Before anything that an instance would notice.
    CheckConfiguration,
    Import,
    /// From the next start on.
    Point(u16),
    ReloadUnits,
    EnableInstances(Vec<u16>),
    Site,
    EnableService,
    /// With the instances, which it wants.
    Start,
    /// Those that do not run yet; nothing for the others.
    StartInstances(Vec<u16>),
    /// links.service alone, for it to run the new linksctl.
    RestartAgent,
    /// One after the other; if one fails, all go back to what they ran.
    Move(Vec<u16>),
    Retire(Vec<u16>),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |numbers: &[u16]| numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::MakeToken => write!(f, "make the admin token"),
            Self::CheckConfiguration => write!(f, "check the configuration"),
            Self::Import => write!(f, "copy the release into the store, verifying every file"),
            Self::Point(instance) => write!(f, "let instance {instance} run it"),
            Self::ReloadUnits => write!(f, "make systemd read the unit files"),
            Self::EnableInstances(numbers) => write!(f, "enable instance {}", list(numbers)),
            Self::Site => write!(
                f,
                "write and enable the nginx site, test it, reload nginx if it changed"
            ),
            Self::EnableService => write!(f, "enable {} at boot", layout::SERVICE),
            Self::Start => write!(f, "start {}", layout::SERVICE),
            Self::StartInstances(numbers) => write!(f, "start instance {} where it does not run", list(numbers)),
            Self::RestartAgent => write!(f, "restart the agent"),
            Self::Move(numbers) => write!(
                f,
                "move instance {} to the release and the configuration, one at a time",
                list(numbers)
            ),
            Self::Retire(numbers) => write!(f, "stop and disable instance {}", list(numbers)),
        }
    }
}

/// What is to be done, in order.
fn plan(observed: &Observed, start: bool) -> Vec<Step> {
    let select = |filter: &dyn Fn(&Wanted) -> bool| -> Vec<u16> {
        observed
            .wanted
            .iter()
            .filter(|wanted| filter(wanted))
            .map(|wanted| wanted.instance)
            .collect()
    };
    let is_behind = |wanted: &Wanted| wanted.release.as_ref() != Some(&observed.payload);
    let mut steps = vec![];
    if !observed.has_token {
        steps.push(Step::MakeToken);
    }
    steps.push(Step::CheckConfiguration);
    steps.push(Step::Import);
    if !observed.active {
        steps.extend(select(&is_behind).into_iter().map(Step::Point));
    }
    steps.push(Step::ReloadUnits);
    steps.push(Step::EnableInstances(select(&|_| true)));
    if observed.active {
        let moving = select(&|wanted| wanted.outdated || is_behind(wanted));
        if !moving.is_empty() {
            steps.push(Step::Move(moving));
        }
        steps.push(Step::StartInstances(select(&|_| true)));
        if !select(&is_behind).is_empty() {
            steps.push(Step::RestartAgent);
        }
    }
    if !observed.surplus.is_empty() {
        steps.push(Step::Retire(observed.surplus.clone()));
    }
    if !observed.configured_before {
        steps.push(Step::EnableService);
        if start && !observed.active {
            steps.push(Step::Start);
        }
    }
    // Last, so that clients are led to instances that serve.
    steps.push(Step::Site);
    steps
}

/// Brings the host in line with the payload and the configuration: the work of postinst, `install` and `systemctl reload
/// links`. Can be repeated at any time.
///
/// # Errors
/// The configuration is wrong, the disk is full, an instance does not become ready, nginx refuses the site: what was
/// there before goes on serving.
pub fn configure(layout: &Layout, on_behalf_of: OnBehalfOf, start: bool, dry_run: bool) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(on_behalf_of);
    let store = Store::new(layout);
    let payload = Release::open(&layout.bundle())?;
    let config = load_links(layout)?;
    let observed = observe(layout, &payload, config.instances, services)?;
    let steps = plan(&observed, start);
    if dry_run {
        steps.iter().for_each(|step| println!("{step}"));
        return Ok(());
    }
    let mut notices = vec![];
    for step in &steps {
        match step {
            Step::MakeToken => token::make(layout)?,
            Step::CheckConfiguration => load(layout)?.log_warnings(),
            Step::Import => {
                store.remove_leftovers()?;
                store.import(&layout.bundle())?;
            }
            Step::Point(instance) => store.point(*instance, &payload.id)?,
            Step::ReloadUnits => services.reload_units()?,
            Step::EnableInstances(numbers) => services.enable(&units(numbers))?,
            Step::EnableService => {
                services.enable(&[layout::SERVICE.to_owned()])?;
                files::replace(&layout.configured_marker(), b"", 0o644)?;
            }
            Step::Start => {
                if !services.act("start", &[layout::SERVICE.to_owned()])? && services.running() {
                    notices.push(format!("not started, by policy: `systemctl start {}`", layout::SERVICE));
                }
            }
            Step::StartInstances(numbers) => {
                services.act("start", &units(numbers))?;
            }
            Step::RestartAgent => {
                services.act("restart", &[layout::SERVICE.to_owned()])?;
            }
            Step::Move(numbers) => {
                if !move_instances(&store, services, numbers, &payload.id)? {
                    notices.push("not restarted, by policy: `systemctl restart 'links@*'`".to_owned());
                }
            }
            Step::Retire(numbers) => {
                services.act("stop", &units(numbers))?;
                services.disable(&units(numbers))?;
            }
            Step::Site => notices.extend(site::install(layout, &config, services)?),
        }
    }
    for notice in notices {
        eprintln!("linksctl: {notice}");
    }
    Ok(())
}

fn observe(layout: &Layout, payload: &Release, instances: u16, services: Services) -> anyhow::Result<Observed> {
    let store = Store::new(layout);
    // Without a good configuration nothing will be moved: the check that is a step says what is wrong.
    let digest = load(layout)
        .ok()
        .and_then(|loaded| Some(render::digest(&loaded.render(layout).ok()?, &loaded.config)));
    let wanted = |instance| Wanted {
        instance,
        release: store.of_instance(instance).ok().map(|release| release.id),
        outdated: fs::read_to_string(layout.instance_digest(instance)).is_ok_and(|runs| Some(runs) != digest),
    };
    Ok(Observed {
        has_token: token::exists(layout),
        configured_before: layout.configured_marker().exists(),
        payload: payload.id.clone(),
        wanted: (1..=instances).map(wanted).collect(),
        surplus: enabled_instances(layout)?
            .into_iter()
            .filter(|instance| *instance > instances)
            .collect(),
        active: services.is_active(layout::SERVICE)?,
    })
}

/// By the links that `systemctl enable links@N` makes.
fn enabled_instances(layout: &Layout) -> anyhow::Result<Vec<u16>> {
    let directory = layout.service_wants_dir();
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.with_context(|| format!("Reading {}", directory.display()))?,
    };
    let mut numbers = vec![];
    for entry in entries {
        numbers.extend(entry?.file_name().to_str().and_then(layout::instance_of_unit));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn units(instances: &[u16]) -> Vec<String> {
    instances
        .iter()
        .map(|instance| layout::instance_unit(*instance))
        .collect()
}

/// Moves running instances to `release`, one after the other; back, if one of them fails. False where the policy forbids
/// restarts: then they run it from their next start on.
fn move_instances(store: &Store<'_>, services: Services, instances: &[u16], release: &str) -> anyhow::Result<bool> {
    let mut moved: Vec<(u16, Option<String>)> = vec![];
    let mut restarted = true;
    for &instance in instances {
        let before = store.of_instance(instance).ok().map(|release| release.id);
        store.point(instance, release)?;
        moved.push((instance, before));
        let error = match services.act("restart", &units(&[instance])) {
            Ok(done) => {
                restarted &= done;
                continue;
            }
            Err(error) => error,
        };
        for (instance, before) in &moved {
            let Some(before) = before else { continue };
            store.point(*instance, before)?;
            services
                .act("restart", &units(&[*instance]))
                .with_context(|| format!("Putting instance {instance} back to release {before}, after: {error:#}"))?;
        }
        return Err(error).with_context(|| {
            format!("instance {instance} does not run release {release}; every instance is back on what it ran")
        });
    }
    Ok(restarted)
}

/// Stops what runs and takes the host's integration away: prerm's and `uninstall`'s work. The data stays.
///
/// # Errors
/// systemd or the file system refuses.
pub fn deconfigure(layout: &Layout, on_behalf_of: OnBehalfOf, dry_run: bool) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(on_behalf_of);
    let mut all = vec![layout::SERVICE.to_owned()];
    all.extend(units(&enabled_instances(layout)?));
    if dry_run {
        println!("take the nginx site away, put the default site back, reload nginx");
        println!("stop and disable {}", all.join(", "));
        return Ok(());
    }
    // First, so that clients get nginx's own answer rather than an error of a proxy without a backend.
    for notice in site::remove(layout, services)? {
        eprintln!("linksctl: {notice}");
    }
    if services.running() {
        let mut patterns = all.clone();
        // Instances that were started by hand are ours too.
        patterns.push("links@*.service".to_owned());
        exec::run(
            "systemctl",
            ["stop"].into_iter().chain(patterns.iter().map(String::as_str)),
        )?;
    }
    services.disable(&all)?;
    files::remove_if_present(&layout.configured_marker())?;
    Ok(())
}

/// Makes a directory with exactly this mode, or gives it that mode.
///
/// # Errors
/// It cannot be made.
pub fn make_directory(path: &std::path::Path, mode: u32) -> anyhow::Result<()> {
    let made = || -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    made().with_context(|| format!("Making {}", path.display()))
}

/// The command needs root; said before anything is done.
#[derive(Debug)]
pub struct NeedsRoot;

impl fmt::Display for NeedsRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line: Vec<_> = std::env::args().collect();
        write!(f, "this needs root: `sudo {}`", line.join(" "))
    }
}

impl std::error::Error for NeedsRoot {}

/// # Errors
/// [`NeedsRoot`]
pub fn require_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(NeedsRoot);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Step::{
        CheckConfiguration, EnableInstances, EnableService, Import, MakeToken, Move, Point, ReloadUnits, RestartAgent,
        Retire, Site, Start, StartInstances,
    };
    use super::*;

    fn both(release: Option<&str>) -> Vec<Wanted> {
        let wanted = |instance| Wanted {
            instance,
            release: release.map(str::to_owned),
            outdated: false,
        };
        vec![wanted(1), wanted(2)]
    }

    fn fresh() -> Observed {
        Observed {
            has_token: false,
            configured_before: false,
            payload: "2-new".into(),
            wanted: both(None),
            surplus: vec![],
            active: false,
        }
    }

    fn upgraded() -> Observed {
        Observed {
            has_token: true,
            configured_before: true,
            wanted: both(Some("1-old")),
            active: true,
            ..fresh()
        }
    }

    fn unchanged() -> Observed {
        Observed {
            payload: "1-old".into(),
            ..upgraded()
        }
    }

    fn enable() -> Step {
        EnableInstances(vec![1, 2])
    }

    fn start() -> Step {
        StartInstances(vec![1, 2])
    }

    #[test]
    fn a_first_install_ends_with_a_running_service_and_its_site() {
        let steps = [
            MakeToken,
            CheckConfiguration,
            Import,
            Point(1),
            Point(2),
            ReloadUnits,
            enable(),
            EnableService,
            Start,
            Site,
        ];
        assert_eq!(plan(&fresh(), true), steps);
    }

    #[test]
    fn no_start_means_no_start() {
        assert!(!plan(&fresh(), false).contains(&Start));
    }

    #[test]
    fn an_upgrade_moves_running_instances() {
        let steps = [
            CheckConfiguration,
            Import,
            ReloadUnits,
            enable(),
            Move(vec![1, 2]),
            start(),
            RestartAgent,
            Site,
        ];
        assert_eq!(plan(&upgraded(), true), steps);
    }

    #[test]
    fn an_upgrade_of_a_stopped_service_leaves_it_stopped() {
        let stopped = Observed {
            active: false,
            ..upgraded()
        };
        let steps = [
            CheckConfiguration,
            Import,
            Point(1),
            Point(2),
            ReloadUnits,
            enable(),
            Site,
        ];
        assert_eq!(plan(&stopped, true), steps);
    }

    #[test]
    fn a_repetition_moves_nothing() {
        let steps = [CheckConfiguration, Import, ReloadUnits, enable(), start(), Site];
        assert_eq!(plan(&unchanged(), true), steps);
    }

    #[test]
    fn a_changed_configuration_moves_the_instances_that_lack_it() {
        let mut changed = unchanged();
        changed.wanted[1].outdated = true;
        let steps = [
            CheckConfiguration,
            Import,
            ReloadUnits,
            enable(),
            Move(vec![2]),
            start(),
            Site,
        ];
        assert_eq!(plan(&changed, true), steps);
    }

    #[test]
    fn fewer_instances_retire_the_surplus() {
        let fewer = Observed {
            surplus: vec![3],
            ..unchanged()
        };
        let steps = [
            CheckConfiguration,
            Import,
            ReloadUnits,
            enable(),
            start(),
            Retire(vec![3]),
            Site,
        ];
        assert_eq!(plan(&fewer, true), steps);
    }
}
