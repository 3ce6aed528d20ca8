//! Observes what is installed and what runs. No other module of the rollout looks.

use std::path::Path;

use anyhow::Context as _;

use crate::appliance::Appliance;
use crate::endpoints::{self, Stage};
use crate::plan::{Instance, Observed};
use links_base::endpoint::{Endpoint, names, site_text};
use links_base::layout;
use links_base::rotation;
use links_base::services::enabled_instances;
use links_config::links::Config;
use links_config::load::{Invalid, load_links};
use links_edge::Peers;
use links_release::{Journal, Version};

/// Observes everything on which a rollout decides. `database` is the path of the local database, if there is one.
///
/// # Errors
/// systemd does not answer, or a file cannot be read.
pub fn observe(appliance: &Appliance, database: Option<&Path>) -> anyhow::Result<Observed> {
    let Appliance { services, state, .. } = appliance;
    let enabled = enabled_instances(&appliance.wants)?;
    let mut numbers = state.instances()?;
    numbers.extend(&enabled);
    numbers.sort_unstable();
    numbers.dedup();
    let units: Vec<_> = numbers.iter().map(|number| layout::instance_unit(*number)).collect();
    let states = services.states(&units)?;
    let ready = rotation::ready_instances(&appliance.ready).context("Reading the ready flags")?;
    let instances = numbers
        .into_iter()
        .zip(states)
        .map(|(number, unit)| {
            let is_up = unit == "active";
            let points = state.points(number);
            let instance = Instance {
                enabled: enabled.contains(&number),
                has_release: appliance.store.of_instance(number).is_ok(),
                endpoint: points
                    .as_ref()
                    .and_then(|version| endpoint_of(appliance, version, number)),
                points,
                runs: state.runs(number).filter(|_| is_up),
                in_rotation: is_up && ready.contains(&number),
            };
            (number, instance)
        })
        .collect();
    Ok(Observed {
        instances,
        live: is_live(appliance)?,
        current: state.current(),
        schema: database
            .map(|database| appliance.database_work.schema_version(database))
            .transpose()?
            .flatten(),
        network: appliance.drop_ins.network(),
        site: site_text(&appliance.site_places),
        base_port: applied_config(appliance).ok().map(|config| config.base_port),
    })
}

/// Whether instances are to run now.
///
/// # Errors
/// systemctl is missing.
pub fn is_live(appliance: &Appliance) -> anyhow::Result<bool> {
    appliance.services.is_active(layout::SERVICE)
}

/// The configuration that was applied last. links.toml may contain changes that are not applied yet.
///
/// # Errors
/// This version cannot read it.
pub fn applied_config(appliance: &Appliance) -> Result<Config, Invalid> {
    load_links(&appliance.snapshots.of_instance(1).0)
}

/// The endpoint of an instance that runs this version. `None` if the release or the configuration is gone.
fn endpoint_of(appliance: &Appliance, version: &Version, instance: u16) -> Option<Endpoint> {
    let release = appliance.store.open(&version.release).ok()?;
    let config = load_links(&appliance.snapshots.with_digest(&version.config)).ok()?;
    Some(endpoints::of(&release, &config, &appliance.sockets, instance))
}

/// The endpoints for the site that `config` asks for. Each site of a rollout needs a new observation, because the instances
/// have moved since the last one.
pub fn peers(appliance: &Appliance, config: &Config, stage: Stage) -> Peers {
    // If the flags cannot be read, the endpoints from the next start on have to do.
    let ready = rotation::ready_instances(&appliance.ready).unwrap_or_default();
    let sockets = &appliance.sockets;
    // A rollout that fails goes back to the versions in its journal, which exists from before its first change until its end.
    let undo = match stage {
        Stage::Transition => Journal::read(&appliance.journal).ok().flatten(),
        Stage::Final => None,
    };
    let each = (1..=config.instances).map(|instance| {
        let runs = ready.contains(&instance).then(|| {
            let (own, _) = appliance.snapshots.of_instance(instance);
            let base_port = load_links(&own).map_or(config.base_port, |own| own.base_port);
            Endpoint::of_running(sockets, base_port, instance)
        });
        let release = appliance.store.of_instance(instance).ok();
        let next = release.map(|release| endpoints::of(&release, config, sockets, instance));
        let before = undo.as_ref().and_then(|undo| undo.before.get(&instance)?.as_ref());
        let before = before.and_then(|version| endpoint_of(appliance, version, instance));
        let mut listed = endpoints::listed(sockets, config, stage, instance, runs, next);
        listed.extend(before);
        (instance, listed)
    });
    each.collect()
}

/// Whether the current site lists the port of every instance.
pub fn site_lists_ports(appliance: &Appliance, config: &Config) -> bool {
    let site = site_text(&appliance.site_places);
    (1..=config.instances).all(|instance| names(&site, &Endpoint::tcp(config.base_port, instance)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use links_base::layout::{Layout, temporary};
    use links_base::services::Services;
    use links_release::testing::bundle;

    fn version(config: &str) -> Version {
        Version {
            release: "r".to_owned(),
            config: config.to_owned(),
        }
    }

    /// A host with release `r`, which listens on ports, and the configurations `old` and `new`, which differ in their ports.
    /// Instance 1 points to `old`.
    fn host() -> (tempfile::TempDir, Layout, Appliance, [Config; 2]) {
        let (root, layout) = temporary(&[Layout::instances_dir, Layout::releases_dir, Layout::config_dir]);
        bundle(&layout.releases_dir().join("r"), b"");
        let appliance = Appliance::new(&layout, Services::nowhere());
        let configs = [("old", 7000), ("new", 8000)].map(|(name, base_port)| {
            let directory = layout.applied_dir().join(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("links.toml"), format!("base_port = {base_port}\n")).unwrap();
            load_links(&appliance.snapshots.with_digest(name)).unwrap()
        });
        appliance.state.point(1, &version("old")).unwrap();
        (root, layout, appliance, configs)
    }

    #[test]
    fn an_instance_is_observed_with_the_endpoint_of_the_version_that_it_points_to() {
        let (_root, layout, appliance, _) = host();
        fs::create_dir_all(layout.nginx_conf_d_site().parent().unwrap()).unwrap();
        fs::write(layout.nginx_conf_d_site(), "the site").unwrap();
        let observed = observe(&appliance, None).unwrap();
        let one = Instance {
            has_release: true,
            points: Some(version("old")),
            endpoint: Some(Endpoint::tcp(7000, 1)),
            ..Instance::default()
        };
        assert_eq!(observed.instances, [(1, one)].into());
        assert_eq!((observed.site.as_str(), observed.base_port), ("the site", Some(7000)));
        assert!(!observed.live && observed.schema.is_none());
    }

    /// A rollout changes the base port of a release that listens on ports, and fails after nginx has got the new ports.
    #[test]
    fn a_transition_lists_the_endpoints_that_a_failed_rollout_goes_back_to() {
        let (_root, layout, appliance, [_, new]) = host();
        let journal = r#"{"format": 1, "wanted": {"release": "r", "config": "new"},
                          "before": {"1": {"release": "r", "config": "old"}}, "current": "r", "previous": null}"#;
        fs::write(layout.rollout_journal(), journal).unwrap();
        appliance.state.point(1, &version("new")).unwrap();
        let listed = |stage| peers(&appliance, &new, stage)[&1].clone();
        assert_eq!(listed(Stage::Final), BTreeSet::from([Endpoint::tcp(8000, 1)]));
        let both = [
            Endpoint::socket(&layout.sockets_dir(), 1),
            Endpoint::tcp(7000, 1),
            Endpoint::tcp(8000, 1),
        ];
        assert_eq!(listed(Stage::Transition), BTreeSet::from(both));
    }
}
