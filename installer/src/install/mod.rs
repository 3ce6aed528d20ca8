//! The host: what is done to it when the payload has come, and undone before it goes.

pub mod payload;

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;

use crate::cli::ConfigureArgs;
use crate::config::load::{load_as_kept, load_links};
use crate::config::network::Network;
use crate::layout::{self, Layout};
use crate::peers::Stage;
use crate::privileges::require_root;
use crate::release::{Release, Store};
use crate::rollout::{Force, Goal, Patience, Session, State, Style};
use crate::services::{OnBehalfOf, Services, enabled_instances};
use crate::{click_journal, edge, exec, files, network, sandbox, token};

/// For a rollout that is under way when a package manager comes; longer than one takes that fails in every way.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// What `configure` found out about the host before it decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    has_token: bool,
    /// An installation has succeeded: whether links.service is enabled or runs is the administrator's business since.
    configured_before: bool,
    /// The release of the payload is the one in force already.
    is_current: bool,
    /// links.service runs.
    active: bool,
}

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    MakeToken,
    /// Before anything that an instance would notice.
    CheckConfiguration,
    Import,
    ReloadUnits,
    /// Release and configuration to the instances, and the site, where `site` says so.
    RollOut {
        site: bool,
    },
    EnableService,
    /// With the instances, which it wants.
    Start,
    /// Where it was started: every instance stays healthy for a while.
    Settle,
    /// links.service alone, for it to run the new linksctl.
    RestartAgent,
    Site,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeToken => write!(f, "make the admin token"),
            Self::CheckConfiguration => write!(f, "check the configuration"),
            Self::Import => write!(f, "copy the release into the store, verifying every file"),
            Self::ReloadUnits => write!(f, "make systemd read the unit files"),
            Self::RollOut { .. } => write!(
                f,
                "roll out the release and the configuration, one instance at a time; back, if one fails"
            ),
            Self::EnableService => write!(f, "enable {} at boot", layout::SERVICE),
            Self::Start => write!(f, "start {}", layout::SERVICE),
            Self::Settle => write!(f, "wait until every instance stays healthy for rollout.min_healthy"),
            Self::RestartAgent => write!(f, "restart the agent"),
            Self::Site => write!(f, "{}", edge::INSTALL),
        }
    }
}

/// What is to be done, in order.
fn plan(observed: &Observed, start: bool) -> Vec<Step> {
    let starts = start && !observed.configured_before;
    let mut steps = vec![];
    if !observed.has_token {
        steps.push(Step::MakeToken);
    }
    steps.extend([
        Step::CheckConfiguration,
        Step::Import,
        Step::ReloadUnits,
        Step::RollOut { site: !starts },
    ]);
    if starts {
        // The site after them, so that clients are led to instances that serve.
        steps.extend([Step::Start, Step::Settle, Step::Site]);
    }
    if observed.active && !observed.is_current {
        steps.push(Step::RestartAgent);
    }
    // Last: an installation that failed is tried again from its beginning.
    if !observed.configured_before {
        steps.push(Step::EnableService);
    }
    steps
}

/// Brings the host in line with the payload and the configuration: the work of postinst and `install`. Can be repeated at
/// any time.
///
/// # Errors
/// The configuration is wrong, the disk is full, an instance does not become ready, links does not answer through nginx:
/// what was there before goes on serving.
pub fn configure(layout: &Layout, on_behalf_of: OnBehalfOf, how: How) -> anyhow::Result<()> {
    require_root()?;
    let again = match on_behalf_of {
        OnBehalfOf::Package => "dpkg --configure -a",
        OnBehalfOf::Person => "linksctl configure",
    };
    carry_out(layout, on_behalf_of, how)
        .map_err(|error| error.context(format!("not complete; when this is corrected, run `{again}`")))
}

/// How [`configure`] goes about it.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Start the service, where nobody has decided about that before.
    pub start: bool,
    /// Replace a site that somebody else has edited.
    pub force: bool,
    pub dry_run: bool,
}

impl From<ConfigureArgs> for How {
    fn from(args: ConfigureArgs) -> Self {
        Self {
            start: true,
            force: args.force,
            dry_run: args.dry_run,
        }
    }
}

fn carry_out(layout: &Layout, on_behalf_of: OnBehalfOf, how: How) -> anyhow::Result<()> {
    let How { start, force, dry_run } = how;
    let services = Services::of_host(on_behalf_of);
    let force = Force {
        restart: false,
        site: force,
    };
    let store = Store::new(layout);
    let payload = Release::open(&layout.bundle())?;
    if dry_run {
        plan(&observe(layout, &payload, services)?, start)
            .iter()
            .for_each(|step| println!("{step}"));
        return Ok(());
    }
    let mut session = Session::begin(layout, services, Patience::Until(PATIENCE), Style::Text)?;
    let mut notices = vec![];
    let mut rolled_out: Option<Goal> = None;
    network::refresh(layout)?;
    // A downgrade that was given up, or that this version comes after.
    files::remove_if_present(&layout.downgrade_marker())?;
    for step in plan(&observe(layout, &payload, services)?, start) {
        match step {
            Step::MakeToken => token::make(layout)?,
            Step::CheckConfiguration => load_as_kept(layout).map(drop)?,
            Step::Import => {
                store.remove_leftovers()?;
                store.import(&layout.bundle())?;
            }
            Step::ReloadUnits => {
                services.reload_units()?;
                sandbox::check(services)?;
            }
            Step::RollOut { site } => {
                let mut goal = session.goal(&payload, force)?;
                // Before anything starts for it.
                let starts = !site && services.running() && services.allowed(layout::SERVICE, "start")?;
                edge::check(layout, goal.config(), services, force.site, starts)?;
                goal.wanted.site = site;
                session.bring_about(&goal)?;
                rolled_out = Some(goal);
            }
            Step::EnableService => {
                services.enable(&[layout::SERVICE.to_owned()])?;
                files::replace(&layout.configured_marker(), b"", 0o644)?;
            }
            Step::Start => {
                if !services.act("start", layout::SERVICE)? && services.running() {
                    notices.push(format!("not started, by policy: `systemctl start {}`", layout::SERVICE));
                }
            }
            Step::Settle => {
                if let Some(goal) = &rolled_out
                    && services.is_active(layout::SERVICE)?
                {
                    session.settle(goal)?;
                }
            }
            Step::RestartAgent => {
                services.act("restart", layout::SERVICE)?;
            }
            Step::Site => {
                let mode = edge::Mode {
                    force: force.site,
                    in_rollout: false,
                    stage: Stage::Final,
                };
                notices.extend(edge::install(layout, &load_links(layout)?, services, mode)?);
            }
        }
    }
    for notice in notices {
        eprintln!("linksctl: {notice}");
    }
    Ok(())
}

/// Makes root the owner of what earlier versions left to user `links`.
///
/// # Errors
/// There is no user `links`, or the file system refuses.
pub fn prepare(layout: &Layout) -> anyhow::Result<()> {
    require_root()?;
    if let Some(notice) = click_journal::take_over(layout)? {
        eprintln!("linksctl: {notice}");
    }
    network::refresh(layout)
}

fn observe(layout: &Layout, payload: &Release, services: Services) -> anyhow::Result<Observed> {
    Ok(Observed {
        has_token: token::exists(layout),
        configured_before: layout.configured_marker().exists(),
        is_current: State::new(layout).current().as_ref() == Some(&payload.id),
        active: services.is_active(layout::SERVICE)?,
    })
}

fn units(instances: &[u16]) -> Vec<String> {
    instances
        .iter()
        .map(|instance| layout::instance_unit(*instance))
        .collect()
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
        for drop_in in [layout.instances_network(), layout.agent_network()] {
            if drop_in.exists() {
                println!("remove {}", drop_in.display());
            }
        }
        return Ok(());
    }
    // Never in the middle of a rollout.
    let _session = Session::begin(layout, services, Patience::Until(PATIENCE), Style::Text)?;
    // First, so that clients get nginx's own answer rather than an error of a proxy without a backend.
    let mut notices = edge::remove(layout, services);
    if services.running() {
        let mut patterns = all.clone();
        // Instances that were started by hand are ours too.
        patterns.push(layout::INSTANCES.to_owned());
        patterns.push(layout::RECOVER.to_owned());
        exec::run(
            "systemctl",
            ["stop"].into_iter().chain(patterns.iter().map(String::as_str)),
        )?;
    }
    // Nothing of links runs any more. What is left behind is no reason to keep the package.
    let marker = layout.configured_marker();
    let rest = [
        services.disable(&all),
        network::set(layout, Network::default(), services),
        files::remove_if_present(&marker).with_context(|| format!("Removing {}", marker.display())),
    ];
    notices.extend(rest.into_iter().filter_map(|done| Some(format!("{:#}", done.err()?))));
    for notice in notices {
        eprintln!("linksctl: {notice}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Step::{
        CheckConfiguration, EnableService, Import, MakeToken, ReloadUnits, RestartAgent, RollOut, Settle, Site, Start,
    };
    use super::*;

    const FRESH: Observed = Observed {
        has_token: false,
        configured_before: false,
        is_current: false,
        active: false,
    };

    const UPGRADED: Observed = Observed {
        has_token: true,
        configured_before: true,
        is_current: false,
        active: true,
    };

    const BODY: [Step; 4] = [CheckConfiguration, Import, ReloadUnits, RollOut { site: true }];

    fn expect(observed: &Observed, start: bool, expected: &[&[Step]]) {
        assert_eq!(plan(observed, start), expected.concat());
    }

    #[test]
    fn a_first_install_ends_with_a_running_service_and_its_site() {
        let end = [RollOut { site: false }, Start, Settle, Site, EnableService];
        expect(&FRESH, true, &[&[MakeToken], &BODY[..3], &end]);
    }

    #[test]
    fn an_installation_that_failed_begins_again_whatever_runs_already() {
        let failed = Observed {
            configured_before: false,
            is_current: true,
            ..UPGRADED
        };
        let end = [RollOut { site: false }, Start, Settle, Site, EnableService];
        expect(&failed, true, &[&BODY[..3], &end]);
    }

    #[test]
    fn no_start_means_no_start() {
        expect(&FRESH, false, &[&[MakeToken], &BODY, &[EnableService]]);
    }

    #[test]
    fn an_upgrade_rolls_and_renews_the_agent() {
        expect(&UPGRADED, true, &[&BODY, &[RestartAgent]]);
    }

    #[test]
    fn an_upgrade_of_a_stopped_service_leaves_it_stopped() {
        let stopped = Observed {
            active: false,
            ..UPGRADED
        };
        expect(&stopped, true, &[&BODY]);
    }

    #[test]
    fn a_repetition_leaves_the_agent_alone() {
        let same = Observed {
            is_current: true,
            ..UPGRADED
        };
        expect(&same, true, &[&BODY]);
    }
}
