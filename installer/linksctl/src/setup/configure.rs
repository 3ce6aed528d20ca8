//! `linksctl configure`: sets up the host after the payload is installed. It can be repeated at any time.

use std::fmt;

use links_base::layout;
use links_base::privileges::require_root;
use links_base::services::OnBehalfOf;
use links_base::{files, sandbox};
use links_config::admin_token;
use links_config::load::{load_as_kept, load_links};
use links_release::Release;
use links_rollout::{Appliance, Force, Goal, Session, Stage, install_site};

use super::output::{print, print_notices};
use super::session;

/// The links.toml of a first installation. It belongs to the administrator afterwards, and is no file of the package: dpkg would
/// ask about it at each upgrade that changes it.
pub const LINKS_TOML: &str = include_str!("../../../../packaging/links.toml");

/// The state of the host on which `configure` decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    has_links_toml: bool,
    has_token: bool,
    /// Whether an installation has succeeded. Since then the administrator decides whether links.service is enabled and runs.
    configured_before: bool,
    /// Whether the release of the payload is already in force.
    is_current: bool,
    /// Whether links.service runs.
    active: bool,
    /// Whether another version wrote the drop-ins of the units.
    has_outdated_drop_ins: bool,
    /// Whether a downgrade was prepared.
    has_downgrade_marker: bool,
}

/// A step of `configure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    RefreshDropIns,
    /// Ends a downgrade that failed, or that this upgrade follows.
    EndDowngrade,
    MakeLinksToml,
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
            Self::RefreshDropIns => write!(f, "bring the drop-ins of the units up to this version"),
            Self::EndDowngrade => write!(f, "end the downgrade that was prepared"),
            Self::MakeLinksToml => write!(f, "create links.toml"),
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
            Self::Site => write!(f, "{}", links_edge::INSTALL),
        }
    }
}

/// The steps of `configure`, in order.
fn plan(observed: &Observed, start: bool) -> Vec<Step> {
    let starts = start && !observed.configured_before;
    let mut steps = vec![];
    if observed.has_outdated_drop_ins {
        steps.push(Step::RefreshDropIns);
    }
    if observed.has_downgrade_marker {
        steps.push(Step::EndDowngrade);
    }
    // Later, a missing file was removed by the administrator.
    if !observed.has_links_toml && !observed.configured_before {
        steps.push(Step::MakeLinksToml);
    }
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
pub fn configure(appliance: &Appliance, how: How) -> anyhow::Result<()> {
    require_root()?;
    let again = match appliance.services.on_behalf_of() {
        OnBehalfOf::Package => "dpkg --configure -a",
        OnBehalfOf::Person => "linksctl configure",
    };
    carry_out(appliance, how).map_err(|error| error.context(format!("not complete; fix the cause, then run `{again}`")))
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

fn carry_out(appliance: &Appliance, how: How) -> anyhow::Result<()> {
    let payload = Release::open(&appliance.bundle)?;
    if how.dry_run {
        print(&plan(&observe(appliance, &payload)?, how.start));
        return Ok(());
    }
    // Observed under the lock, because a rollout that is under way changes what is current and what runs.
    let session = session::begin(appliance)?;
    let steps = plan(&observe(appliance, &payload)?, how.start);
    let mut host = Host {
        appliance,
        payload,
        force: Force {
            restart: false,
            site: how.force,
        },
        session,
        rolled_out: None,
        notices: vec![],
    };
    steps.into_iter().try_for_each(|step| host.apply(step))?;
    print_notices(&host.notices);
    Ok(())
}

/// The host that the steps change.
struct Host<'a> {
    appliance: &'a Appliance,
    payload: Release,
    force: Force,
    session: Session<'a>,
    /// What was rolled out, once it was.
    rolled_out: Option<Goal>,
    notices: Vec<String>,
}

impl Host<'_> {
    fn apply(&mut self, step: Step) -> anyhow::Result<()> {
        let Appliance {
            services,
            store,
            snapshots,
            ..
        } = self.appliance;
        match step {
            Step::RefreshDropIns => self.appliance.drop_ins.refresh()?,
            Step::EndDowngrade => files::remove_if_present(&self.appliance.downgrade_marker)?,
            Step::MakeLinksToml => files::replace(&snapshots.edited().links_toml(), LINKS_TOML.as_bytes(), 0o644)?,
            Step::MakeToken => admin_token::make(snapshots.edited())?,
            Step::CheckConfiguration => load_as_kept(snapshots.edited()).map(drop)?,
            Step::Import => {
                store.remove_leftovers()?;
                store.import(&self.appliance.bundle)?;
            }
            Step::ReloadUnits => {
                services.reload_units()?;
                sandbox::check(*services)?;
            }
            Step::RollOut { site } => {
                let mut goal = self.session.goal(&self.payload, self.force)?;
                // Before anything is started, so that a problem with nginx leaves nothing running.
                let starts = !site && services.running() && services.allowed(layout::SERVICE, "start")?;
                self.session.check_site(&goal, starts)?;
                goal.wanted.site = site;
                self.session.bring_about(&goal)?;
                self.rolled_out = Some(goal);
            }
            Step::EnableService => {
                services.enable(&[layout::SERVICE.to_owned()])?;
                files::replace(&self.appliance.configured_marker, b"", 0o644)?;
            }
            Step::Start => {
                if !services.act("start", layout::SERVICE)? && services.running() {
                    self.notices.push(format!(
                        "not started, by policy: run `systemctl start {}`",
                        layout::SERVICE
                    ));
                }
            }
            Step::Soak => {
                if let Some(goal) = &self.rolled_out
                    && services.is_active(layout::SERVICE)?
                {
                    self.session.soak(goal)?;
                }
            }
            Step::RestartAgent => {
                services.act("restart", layout::SERVICE)?;
            }
            Step::Site => {
                let mode = links_edge::Mode {
                    force: self.force.site,
                    in_rollout: false,
                };
                let config = load_links(snapshots.edited())?;
                let notices = install_site(self.appliance, &config, Stage::Final, mode)?;
                self.notices.extend(notices);
            }
        }
        Ok(())
    }
}

/// Makes root the owner of directories that earlier versions gave to user `links`.
///
/// # Errors
/// There is no user `links`, or a file cannot be changed.
pub fn prepare(appliance: &Appliance) -> anyhow::Result<()> {
    require_root()?;
    print_notices(&Vec::from_iter(appliance.click_journal.take_over()?));
    appliance.drop_ins.refresh()
}

fn observe(appliance: &Appliance, payload: &Release) -> anyhow::Result<Observed> {
    Ok(Observed {
        has_links_toml: appliance.snapshots.edited().links_toml().exists(),
        has_token: admin_token::exists(appliance.snapshots.edited()),
        configured_before: appliance.configured_marker.exists(),
        is_current: appliance.state.current().as_ref() == Some(&payload.id),
        active: appliance.services.is_active(layout::SERVICE)?,
        has_outdated_drop_ins: !appliance.drop_ins.outdated()?.is_empty(),
        has_downgrade_marker: appliance.downgrade_marker.exists(),
    })
}

#[cfg(test)]
mod tests {
    use super::Step::{
        CheckConfiguration, EnableService, EndDowngrade, Import, MakeLinksToml, MakeToken, RefreshDropIns, ReloadUnits,
        RestartAgent, RollOut, Site, Soak, Start,
    };
    use super::*;

    const FRESH: Observed = Observed {
        has_links_toml: false,
        has_token: false,
        configured_before: false,
        is_current: false,
        active: false,
        has_outdated_drop_ins: false,
        has_downgrade_marker: false,
    };

    const UPGRADED: Observed = Observed {
        has_links_toml: true,
        has_token: true,
        configured_before: true,
        is_current: false,
        active: true,
        has_outdated_drop_ins: false,
        has_downgrade_marker: false,
    };

    const BODY: [Step; 4] = [CheckConfiguration, Import, ReloadUnits, RollOut { site: true }];

    fn expect(observed: &Observed, start: bool, expected: &[&[Step]]) {
        assert_eq!(plan(observed, start), expected.concat());
    }

    #[test]
    fn a_first_install_ends_with_a_running_service_and_its_site() {
        let end = [RollOut { site: false }, Start, Soak, Site, EnableService];
        expect(&FRESH, true, &[&[MakeLinksToml, MakeToken], &BODY[..3], &end]);
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
        expect(&FRESH, false, &[&[MakeLinksToml, MakeToken], &BODY, &[EnableService]]);
    }

    #[test]
    fn an_upgrade_rolls_out_and_restarts_the_agent() {
        expect(&UPGRADED, true, &[&BODY, &[RestartAgent]]);
    }

    #[test]
    fn only_a_first_install_creates_links_toml() {
        let removed = Observed {
            has_links_toml: false,
            ..UPGRADED
        };
        expect(&removed, true, &[&BODY, &[RestartAgent]]);
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

    #[test]
    fn what_another_version_left_is_brought_up_first() {
        let left = Observed {
            has_outdated_drop_ins: true,
            has_downgrade_marker: true,
            ..UPGRADED
        };
        expect(&left, true, &[&[RefreshDropIns, EndDowngrade], &BODY, &[RestartAgent]]);
    }
}
