//! The endpoints of the instances that nginx's site lists.

use std::collections::{BTreeMap, BTreeSet};

use links_base::endpoint::{Endpoint, names, site_text};
use links_base::layout::Layout;
use links_base::rotation;
use links_config::links::Config;
use links_config::load::load_links;
use links_release::{Journal, Release, Snapshots, State, Store, Version};

/// The endpoints of each instance.
pub type Peers = BTreeMap<u16, BTreeSet<Endpoint>>;

/// Which endpoints of each instance a site lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Sockets and ports, so that instances can move from one to the other without a failed request.
    Transition,
    /// Only the endpoints on which the instances listen, because any program can take a port that no instance holds.
    #[default]
    Final,
}

/// The endpoints for the site that `config` asks for.
pub fn peers(layout: &Layout, config: &Config, stage: Stage) -> Peers {
    // If the flags cannot be read, the endpoints from the next start on have to do.
    let ready = rotation::ready_instances(&layout.ready_dir()).unwrap_or_default();
    let (store, snapshots) = (Store::new(layout), Snapshots::new(layout));
    let sockets = layout.sockets_dir();
    // A rollout that fails goes back to the versions in its journal, which exists from before its first change until its end.
    let undo = match stage {
        Stage::Transition => Journal::read(&layout.rollout_journal()).ok().flatten(),
        Stage::Final => None,
    };
    let each = (1..=config.instances).map(|instance| {
        let runs = ready.contains(&instance).then(|| {
            let (own, _) = snapshots.of_instance(instance);
            let base_port = load_links(&own).map_or(config.base_port, |own| own.base_port);
            Endpoint::of_running(&sockets, base_port, instance)
        });
        let release = store.of_instance(instance).ok();
        let next = release.map(|release| endpoint(&release, layout, config, instance));
        let before = undo.as_ref().and_then(|undo| undo.before.get(&instance)?.as_ref());
        let before = before.and_then(|version| endpoint_of(version, layout, instance));
        let mut listed = listed(layout, config, stage, instance, runs, next);
        listed.extend(before);
        (instance, listed)
    });
    each.collect()
}

/// The endpoint of an instance that runs this release.
fn endpoint(release: &Release, layout: &Layout, config: &Config, instance: u16) -> Endpoint {
    match release.can_listen_on_socket(&layout.instance_socket(instance)) {
        true => Endpoint::socket(&layout.sockets_dir(), instance),
        false => Endpoint::tcp(config.base_port, instance),
    }
}

/// The endpoint of an instance that runs this version. `None` if the release or the configuration is gone.
fn endpoint_of(version: &Version, layout: &Layout, instance: u16) -> Option<Endpoint> {
    let release = Store::new(layout).open(&version.release).ok()?;
    let config = load_links(&Snapshots::new(layout).with_digest(&version.config)).ok()?;
    Some(endpoint(&release, layout, &config, instance))
}

/// The endpoints that the site lists for one instance. `runs` is its current endpoint, `next` the one from its next start on.
fn listed(
    layout: &Layout,
    config: &Config,
    stage: Stage,
    instance: u16,
    runs: Option<Endpoint>,
    next: Option<Endpoint>,
) -> BTreeSet<Endpoint> {
    let tcp = Endpoint::tcp(config.base_port, instance);
    let planned = match stage {
        Stage::Transition => vec![Endpoint::socket(&layout.sockets_dir(), instance), tcp],
        Stage::Final => vec![next.unwrap_or(tcp)],
    };
    runs.into_iter().chain(planned).collect()
}

/// Whether any instance will listen on an endpoint that the current site does not list, once it runs `release`.
pub fn need_transition(layout: &Layout, config: &Config, release: &Release) -> bool {
    let site = site_text(&layout.nginx_site_places());
    let store = Store::new(layout);
    !site.is_empty()
        && (1..=config.instances)
            .filter(|instance| store.of_instance(*instance).is_ok())
            .any(|instance| !names(&site, &endpoint(release, layout, config, instance)))
}

/// Whether any instance will listen on another endpoint once it runs `release` instead of the version it is pointed at.
pub fn move_by(layout: &Layout, config: &Config, release: &Release) -> bool {
    let state = State::new(layout);
    (1..=config.instances)
        .filter_map(|instance| endpoint_of(&state.points(instance)?, layout, instance).map(|now| (instance, now)))
        .any(|(instance, now)| now != endpoint(release, layout, config, instance))
}

/// Whether the current site lists the port of every instance.
pub fn lead_to_ports(layout: &Layout, config: &Config) -> bool {
    let site = site_text(&layout.nginx_site_places());
    (1..=config.instances).all(|instance| names(&site, &Endpoint::tcp(config.base_port, instance)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;

    use super::*;
    use links_base::layout::temporary;
    use links_release::testing::bundle;

    /// A rollout changes the base port of a release that listens on ports, and fails after nginx has got the new ports.
    #[test]
    fn a_transition_lists_the_endpoints_that_a_failed_rollout_goes_back_to() {
        let (_root, layout) = temporary(&[Layout::instances_dir, Layout::releases_dir, Layout::config_dir]);
        let release = bundle(&layout.releases_dir().join("r"), b"");
        let config_of = |name: &str, base_port: u16| {
            let directory = layout.applied_dir().join(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("links.toml"), format!("base_port = {base_port}\n")).unwrap();
            load_links(&Snapshots::new(&layout).with_digest(name)).unwrap()
        };
        let version = |config: &str| Version {
            release: "r".to_owned(),
            config: config.to_owned(),
        };
        let (old, new) = (config_of("old", 7000), config_of("new", 8000));
        let state = State::new(&layout);
        state.point(1, &version("old")).unwrap();
        assert!(move_by(&layout, &new, &release) && !move_by(&layout, &old, &release));

        let journal = r#"{"format": 1, "wanted": {"release": "r", "config": "new"},
                          "before": {"1": {"release": "r", "config": "old"}}, "current": "r", "previous": null}"#;
        fs::write(layout.rollout_journal(), journal).unwrap();
        state.point(1, &version("new")).unwrap();
        let listed = |stage| peers(&layout, &new, stage)[&1].clone();
        assert_eq!(listed(Stage::Final), BTreeSet::from([Endpoint::tcp(8000, 1)]));
        let both = [
            Endpoint::socket(&layout.sockets_dir(), 1),
            Endpoint::tcp(7000, 1),
            Endpoint::tcp(8000, 1),
        ];
        assert_eq!(listed(Stage::Transition), BTreeSet::from(both));
    }

    #[test]
    fn a_transition_lists_both_endpoints_and_the_final_site_only_those_in_use() {
        let (layout, config) = (Layout::new("/"), Config::default());
        let (socket, tcp) = (
            Endpoint::socket(&layout.sockets_dir(), 1),
            Endpoint::tcp(config.base_port, 1),
        );
        let old_port = Endpoint::tcp(8000, 1);
        let list = |stage, runs: Option<&Endpoint>, next: Option<&Endpoint>| -> Vec<Endpoint> {
            let listed = listed(&layout, &config, stage, 1, runs.cloned(), next.cloned());
            listed.into_iter().collect()
        };
        let both = [socket.clone(), tcp.clone()];
        assert_eq!(list(Stage::Transition, Some(&tcp), Some(&tcp)), both);
        assert_eq!(list(Stage::Transition, Some(&socket), Some(&tcp)), both);
        assert_eq!(
            list(Stage::Transition, Some(&old_port), Some(&tcp)),
            [socket.clone(), tcp.clone(), old_port]
        );
        assert_eq!(
            list(Stage::Final, Some(&socket), Some(&socket)),
            std::slice::from_ref(&socket)
        );
        assert_eq!(list(Stage::Final, None, Some(&socket)), std::slice::from_ref(&socket));
        assert_eq!(list(Stage::Final, None, None), std::slice::from_ref(&tcp));
        // An instance that may not be restarted keeps its endpoint.
        assert_eq!(list(Stage::Final, Some(&tcp), Some(&socket)), both);
    }
}
