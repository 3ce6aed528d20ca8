//! `linksctl deconfigure`: stops links and removes it from systemd and nginx, before its files are removed. The data stays.

use std::fmt;
use std::path::PathBuf;

use anyhow::Context as _;

use links_base::layout;
use links_base::privileges::require_root;
use links_base::services::enabled_instances;
use links_base::{exec, files};
use links_config::network::Network;
use links_rollout::Appliance;

use super::output::{print, print_notices};
use super::session;

/// The state of the host on which `deconfigure` decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The instances that belong to links.service.
    pub enabled: Vec<u16>,
    /// Whether systemd runs.
    pub has_systemd: bool,
    /// What the units let the appliance reach.
    pub network: Network,
    /// The file that records that links was configured, if it exists.
    pub marker: Option<PathBuf>,
}

/// A step of `deconfigure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Comes first, so that clients get nginx's own answer and not a 502.
    RemoveSite,
    /// Stops units, given by name or pattern.
    Stop(Vec<String>),
    Disable(Vec<String>),
    /// Turns off the timer that makes backups.
    StopBackups,
    /// Sets what the units let the appliance reach.
    Network(Network),
    /// Removes the record that links was configured, so that the next `configure` is a first one.
    RemoveMarker(PathBuf),
}

impl Step {
    /// Whether a failure ends the command. Once nothing of links runs, a failure must not prevent the package's removal.
    fn is_required(&self) -> bool {
        matches!(self, Self::Stop(_))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveSite => write!(f, "remove the nginx site, restore the default site, reload nginx"),
            Self::Stop(units) => write!(f, "stop {}", units.join(", ")),
            Self::Disable(units) => write!(f, "disable {}", units.join(", ")),
            Self::StopBackups => write!(f, "turn off {}", layout::BACKUP_TIMER),
            Self::Network(network) => write!(f, "let {network}"),
            Self::RemoveMarker(path) => write!(f, "remove {}", path.display()),
        }
    }
}

/// The steps of `deconfigure`, in order.
pub fn plan(observed: &Observed) -> Vec<Step> {
    let instances = observed.enabled.iter().map(|instance| layout::instance_unit(*instance));
    let units: Vec<_> = [layout::SERVICE.to_owned()].into_iter().chain(instances).collect();
    let mut steps = vec![Step::RemoveSite];
    if observed.has_systemd {
        // The pattern also matches instances that were started by hand.
        let others = [layout::INSTANCES, layout::RECOVER].map(str::to_owned);
        // A renewal that is under way is cut off, which it survives.
        let renewal = [layout::TLS_TIMER, layout::TLS_SERVICE].map(str::to_owned);
        steps.push(Step::Stop([&units[..], &others, &renewal].concat()));
    }
    steps.extend([Step::Disable(units), Step::StopBackups]);
    if observed.network != Network::default() {
        steps.push(Step::Network(Network::default()));
    }
    steps.extend(observed.marker.clone().map(Step::RemoveMarker));
    steps
}

/// Stops links and removes it from systemd and nginx, for prerm. The data stays.
///
/// # Errors
/// A unit cannot be stopped, or a rollout is still running.
pub fn deconfigure(appliance: &Appliance, dry_run: bool) -> anyhow::Result<()> {
    require_root()?;
    if dry_run {
        print(&plan(&observe(appliance)?));
        return Ok(());
    }
    // Never in the middle of a rollout, which may also change what is enabled. So this observes under the lock.
    let _session = session::begin_removal(appliance)?;
    let mut notices = vec![];
    for step in plan(&observe(appliance)?) {
        notices.extend(apply(&step, appliance)?);
    }
    print_notices(&notices);
    Ok(())
}

/// # Errors
/// The enabled instances cannot be listed.
pub fn observe(appliance: &Appliance) -> anyhow::Result<Observed> {
    Ok(Observed {
        enabled: enabled_instances(&appliance.wants)?,
        has_systemd: appliance.services.running(),
        network: appliance.drop_ins.network(),
        marker: Some(appliance.configured_marker.clone()).filter(|marker| marker.exists()),
    })
}

/// Applies one step, and returns messages for the administrator.
///
/// # Errors
/// A unit cannot be stopped. Every other failure is a message.
pub fn apply(step: &Step, appliance: &Appliance) -> anyhow::Result<Vec<String>> {
    let services = appliance.services;
    let applied = match step {
        Step::RemoveSite => Ok(appliance.edge.remove()),
        Step::Stop(units) => {
            let arguments = ["stop"].into_iter().chain(units.iter().map(String::as_str));
            exec::run("systemctl", arguments).map(|_| vec![])
        }
        Step::Disable(units) => services.disable(units).map(|()| vec![]),
        Step::StopBackups => appliance.backup_timer.turn_off(services).map(|()| vec![]),
        Step::Network(network) => appliance.drop_ins.set(*network, services).map(|()| vec![]),
        Step::RemoveMarker(path) => {
            let removed = files::remove_if_present(path).with_context(|| format!("Removing {}", path.display()));
            removed.map(|()| vec![])
        }
    };
    match applied {
        Err(error) if !step.is_required() => Ok(vec![format!("{error:#}")]),
        applied => applied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use links_config::network::Reach;

    fn shown(observed: &Observed) -> Vec<String> {
        plan(observed).iter().map(Step::to_string).collect()
    }

    #[test]
    fn nginx_stops_sending_requests_before_the_instances_stop() {
        let observed = Observed {
            enabled: vec![1, 2],
            has_systemd: true,
            network: Network {
                instances: Reach::Open,
                agent: Reach::Loopback,
            },
            marker: Some("/var/lib/links/configured".into()),
        };
        assert_eq!(
            shown(&observed),
            [
                "remove the nginx site, restore the default site, reload nginx",
                "stop links.service, links@1.service, links@2.service, links@*.service, links-recover.service, \
                 links-tls.timer, links-tls.service",
                "disable links.service, links@1.service, links@2.service",
                "turn off links-backup.timer",
                "let the instances and the agent reach this machine only",
                "remove /var/lib/links/configured",
            ]
        );
    }

    #[test]
    fn without_systemd_nothing_is_stopped() {
        assert_eq!(
            plan(&Observed::default()),
            [
                Step::RemoveSite,
                Step::Disable(vec![layout::SERVICE.to_owned()]),
                Step::StopBackups
            ]
        );
    }

    #[test]
    fn only_an_instance_that_cannot_be_stopped_ends_the_command() {
        let observed = Observed {
            has_systemd: true,
            ..Observed::default()
        };
        let required: Vec<_> = plan(&observed).iter().map(Step::is_required).collect();
        assert_eq!(required, [false, true, false, false]);
    }
}
