//! `linksctl configure` and `deconfigure`: set up the host after the payload is installed, and undo that before it is removed.

pub mod payload;

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;

use links_base::layout::{self, Layout};
use links_base::privileges::require_root;
use links_base::services::{OnBehalfOf, Services, enabled_instances};
use links_base::{exec, files, sandbox};
use links_config::admin_token;
use links_config::load::{load_as_kept, load_links};
use links_config::network::Network;
use links_edge as edge;
use links_edge::click_journal;
use links_edge::peers::Stage;
use links_release::{Release, State, Store};
use links_rollout::network;
use links_rollout::{Force, Goal, LockWait, Session, Style};

/// How long a package manager waits for a rollout that is running: longer than a rollout takes in the worst case.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The state of the host on which `configure` decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    has_token: bool,
    /// Whether an installation has succeeded. Since then the administrator decides whether links.service is enabled and runs.
    configured_before: bool,
    /// Whether the release of the payload is already in force.
    is_current: bool,
    /// Whether links.service runs.
    active: bool,
}

/// A step of `configure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    MakeToken,
    /// Comes before any step that affects an instance.
    CheckConfiguration,
    Import,
    ReloadUnits,
    /// Rolls out the release and the configuration, and the nginx site if `site`.
    RollOut {
        site: bool,
    },
    EnableService,
    /// Starts links.service and with it the instances, which it wants.
    Start,
    /// Waits until every instance has stayed healthy for a while, if the service was started.
    Soak,
    /// Restarts links.service without the instances, so that it runs the new links-agent.
    RestartAgent,
    Site,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeToken => write!(f, "create the admin token"),
            Self::CheckConfiguration => write!(f, "check the configuration"),
            Self::Import => write!(f, "copy the release into the store and verify every file"),
            Self::ReloadUnits => write!(f, "make systemd reload the unit files"),
            Self::RollOut { .. } => write!(
                f,
                "roll out the release and the configuration, one instance at a time; go back if one fails"
            ),
            Self::EnableService => write!(f, "enable {} at boot", layout::SERVICE),
            Self::Start => write!(f, "start {}", layout::SERVICE),
            Self::Soak => write!(
                f,
                "wait until every instance has stayed healthy for rollout.min_healthy"
            ),
            Self::RestartAgent => write!(f, "restart the agent"),
            Self::Site => write!(f, "{}", edge::INSTALL),
        }
    }
}

/// The steps of `configure`, in order.
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
        // The site comes after the instances, so that nginx sends clients to instances that serve.
        steps.extend([Step::Start, Step::Soak, Step::Site]);
    }
    if observed.active && !observed.is_current {
        steps.push(Step::RestartAgent);
    }
    // Last, because this step records the success: an installation that fails earlier starts from the beginning again.
    if !observed.configured_before {
        steps.push(Step::EnableService);
    }
    steps
}

/// Brings the host in line with the payload and the configuration, for postinst and `install`. It can be repeated at any time.
///
/// # Errors
/// The configuration is wrong, the disk is full, an instance does not become ready, or links does not answer through nginx.
/// What served before still serves then.
pub fn configure(layout: &Layout, on_behalf_of: OnBehalfOf, how: How) -> anyhow::Result<()> {
    require_root()?;
    let again = match on_behalf_of {
        OnBehalfOf::Package => "dpkg --configure -a",
        OnBehalfOf::Person => "linksctl configure",
    };
    carry_out(layout, on_behalf_of, how)
        .map_err(|error| error.context(format!("not complete; fix the cause, then run `{again}`")))
}

/// The options of [`configure`].
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Whether a first installation starts the service.
    pub start: bool,
    /// Whether to replace a site that somebody else has edited.
    pub force: bool,
    pub dry_run: bool,
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
    let mut session = Session::begin(layout, services, LockWait::Until(LOCK_TIMEOUT), Style::Text)?;
    let mut notices = vec![];
    let mut rolled_out: Option<Goal> = None;
    network::refresh(layout)?;
    // The marker may be left from a downgrade that failed, or that this upgrade follows.
    files::remove_if_present(&layout.downgrade_marker())?;
    for step in plan(&observe(layout, &payload, services)?, start) {
        match step {
            Step::MakeToken => admin_token::make(layout)?,
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
                // Before anything is started, so that a problem with nginx leaves nothing running.
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
                    notices.push(format!(
                        "not started, by policy: run `systemctl start {}`",
                        layout::SERVICE
                    ));
                }
            }
            Step::Soak => {
                if let Some(goal) = &rolled_out
                    && services.is_active(layout::SERVICE)?
                {
                    session.soak(goal)?;
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

/// Makes root the owner of directories that earlier versions gave to user `links`.
///
/// # Errors
/// There is no user `links`, or a file cannot be changed.
pub fn prepare(layout: &Layout) -> anyhow::Result<()> {
    require_root()?;
    if let Some(notice) = click_journal::take_over(layout)? {
        eprintln!("linksctl: {notice}");
    }
    network::refresh(layout)
}

fn observe(layout: &Layout, payload: &Release, services: Services) -> anyhow::Result<Observed> {
    Ok(Observed {
        has_token: admin_token::exists(layout),
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

/// Stops links and removes it from systemd and nginx, for prerm and `uninstall`. The data stays.
///
/// # Errors
/// A unit cannot be stopped, or a rollout is still running.
pub fn deconfigure(layout: &Layout, on_behalf_of: OnBehalfOf, dry_run: bool) -> anyhow::Result<()> {
    require_root()?;
    let services = Services::of_host(on_behalf_of);
    let mut all = vec![layout::SERVICE.to_owned()];
    all.extend(units(&enabled_instances(layout)?));
    if dry_run {
        println!("remove the nginx site, restore the default site, reload nginx");
        println!("stop and disable {}", all.join(", "));
        for drop_in in [layout.instances_network(), layout.agent_network()] {
            if drop_in.exists() {
                println!("remove {}", drop_in.display());
            }
        }
        return Ok(());
    }
    // Never in the middle of a rollout.
    let _session = Session::begin(layout, services, LockWait::Until(LOCK_TIMEOUT), Style::Text)?;
    // First, so that clients get nginx's own answer and not a 502.
    let mut notices = edge::remove(layout, services);
    if services.running() {
        let mut patterns = all.clone();
        // These also match instances that were started by hand.
        patterns.push(layout::INSTANCES.to_owned());
        patterns.push(layout::RECOVER.to_owned());
        exec::run(
            "systemctl",
            ["stop"].into_iter().chain(patterns.iter().map(String::as_str)),
        )?;
    }
    // Nothing of links runs now. A failure to clean up the rest must not block the package's removal.
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
        CheckConfiguration, EnableService, Import, MakeToken, ReloadUnits, RestartAgent, RollOut, Site, Soak, Start,
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
        let end = [RollOut { site: false }, Start, Soak, Site, EnableService];
        expect(&FRESH, true, &[&[MakeToken], &BODY[..3], &end]);
    }

    #[test]
    fn an_installation_that_failed_starts_from_the_beginning_again() {
        let failed = Observed {
            configured_before: false,
            is_current: true,
            ..UPGRADED
        };
        let end = [RollOut { site: false }, Start, Soak, Site, EnableService];
        expect(&failed, true, &[&BODY[..3], &end]);
    }

    #[test]
    fn a_first_install_without_start_starts_nothing() {
        expect(&FRESH, false, &[&[MakeToken], &BODY, &[EnableService]]);
    }

    #[test]
    fn an_upgrade_rolls_out_and_restarts_the_agent() {
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
    fn running_it_again_leaves_the_agent_alone() {
        let same = Observed {
            is_current: true,
            ..UPGRADED
        };
        expect(&same, true, &[&BODY]);
    }
}
