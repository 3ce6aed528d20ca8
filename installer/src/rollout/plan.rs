//! What a rollout does: (observed, wanted) to steps, purely. [`super::apply`] carries them out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::network::Network;

/// What an instance runs: a release of the store, and a snapshot of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub release: String,
    pub config: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell two configurations apart.
        let config = self.config.get(..8).unwrap_or(&self.config);
        write!(f, "release {} with configuration {config}", self.release)
    }
}

/// One instance as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Belongs to links.service.
    pub enabled: bool,
    /// What it runs from its next start on.
    pub points: Option<Version>,
    /// What it runs; none where its unit is not up.
    pub runs: Option<Version>,
    pub in_rotation: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Those that belong to links.service or have something to run.
    pub instances: BTreeMap<u16, Instance>,
    /// Instances are to run now. Otherwise links.service is stopped, or starts are forbidden: what is wanted counts from
    /// the next start on.
    pub live: bool,
    pub current: Option<String>,
    /// Version of the local database's tables; none where there is no such database.
    pub schema: Option<u32>,
    /// What the units let the appliance reach.
    pub network: Network,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub version: Version,
    /// Version of the tables that the release brings about.
    pub schema: u32,
    /// Instances 1 to this one.
    pub instances: u16,
    /// Restart also those that run the wanted version already.
    pub force: bool,
    /// Whether nginx's site is brought in line.
    pub site: bool,
    /// The instances listen elsewhere than before: until nginx knows, it finds nobody where it looks.
    pub new_ports: bool,
    /// The instances will listen where the site in force does not look.
    pub transition: bool,
    /// The new site will not lead to where they listen now.
    pub moves_endpoints: bool,
    /// What it needs to reach.
    pub network: Network,
}

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Copies the local database, whose tables the release changes from the first version to the second.
    BackUp(u32, u32),
    /// What the instances and the agent may reach, those that run too.
    Network(Network),
    /// It belongs to links.service from now on.
    Enable(u16),
    /// From its next start on.
    Point(u16, Version),
    /// Or start; done when it is READY.
    Restart(u16),
    /// Stays healthy and in rotation for rollout.min_healthy.
    Settle(u16),
    /// A site that leads to the instances on their sockets and on their ports, so that each can move to where the next one
    /// leads.
    Transition,
    Site,
    /// The site as it was before the rollout.
    TakeSiteBack,
    /// `current` leads to this release: the rollout has succeeded, and nothing is undone any more.
    Commit(String),
    /// `current` and `previous` lead where they did before the rollout.
    Uncommit,
    /// Drain, stop, disable; it has nothing to run any more.
    Retire(u16),
}

impl Step {
    pub fn instance(&self) -> Option<u16> {
        match self {
            Self::Enable(instance)
            | Self::Point(instance, _)
            | Self::Restart(instance)
            | Self::Settle(instance)
            | Self::Retire(instance) => Some(*instance),
            Self::BackUp(..)
            | Self::Network(_)
            | Self::Transition
            | Self::Site
            | Self::TakeSiteBack
            | Self::Commit(_)
            | Self::Uncommit => None,
        }
    }

    /// For scripts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BackUp(..) => "back_up",
            Self::Network(_) => "network",
            Self::Enable(_) => "enable",
            Self::Point(..) => "point",
            Self::Restart(_) => "restart",
            Self::Settle(_) => "settle",
            Self::Transition => "transition",
            Self::Site => "site",
            Self::TakeSiteBack => "take_site_back",
            Self::Commit(_) => "commit",
            Self::Uncommit => "uncommit",
            Self::Retire(_) => "retire",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackUp(from, to) => write!(f, "copy the database, whose tables change from version {from} to {to}"),
            Self::Network(network) => write!(f, "let {network}"),
            Self::Enable(instance) => write!(f, "instance {instance}: enable"),
            Self::Point(instance, version) => write!(f, "instance {instance}: point to {version}"),
            Self::Restart(instance) => write!(f, "instance {instance}: drain, restart, wait until it is ready"),
            Self::Settle(instance) => write!(f, "instance {instance}: stays healthy for rollout.min_healthy"),
            Self::Transition => write!(
                f,
                "make nginx look for the instances on their sockets and on their ports while they move"
            ),
            Self::Site => write!(f, "{}", crate::edge::INSTALL),
            Self::TakeSiteBack => write!(f, "put the nginx site back, reload nginx"),
            Self::Commit(release) => write!(f, "current is release {release}"),
            Self::Uncommit => write!(f, "the current release is the one before again"),
            Self::Retire(instance) => write!(f, "instance {instance}: drain, stop, disable"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// The instances that change, in the order in which they do.
    pub moving: Vec<u16>,
    /// For a moment nobody serves.
    pub interrupts: bool,
    /// Once nginx has the new site, it does not look where an instance goes back to.
    pub moves_endpoints: bool,
}

/// What is to be done, in order. An instance that does not serve comes first: then one more serves when it is the turn
/// of those that do.
pub fn plan(observed: &Observed, wanted: &Wanted) -> Plan {
    let none = Instance::default();
    let of = |instance: u16| observed.instances.get(&instance).unwrap_or(&none);
    let mut order: Vec<u16> = (1..=wanted.instances).collect();
    order.sort_by_key(|instance| of(*instance).in_rotation);

    let mut plan = Plan {
        moves_endpoints: wanted.site && wanted.moves_endpoints,
        ..Plan::default()
    };
    // One that goes on with another configuration, which may need the network.
    let mut lags_behind = false;
    let mut serving: BTreeSet<u16> = (1..=wanted.instances)
        .filter(|instance| of(*instance).in_rotation)
        .collect();
    for instance in order {
        let is = of(instance);
        let restart = observed.live && (wanted.force || is.runs.as_ref() != Some(&wanted.version));
        let mut steps = vec![];
        if !is.enabled {
            steps.push(Step::Enable(instance));
        }
        if is.points.as_ref() != Some(&wanted.version) {
            steps.push(Step::Point(instance, wanted.version.clone()));
        }
        if restart {
            steps.extend([Step::Restart(instance), Step::Settle(instance)]);
            plan.interrupts |= serving.remove(&instance) && serving.is_empty();
            serving.insert(instance);
        } else {
            lags_behind |= is.runs.as_ref().is_some_and(|runs| *runs != wanted.version);
        }
        if !steps.is_empty() {
            plan.moving.push(instance);
        }
        plan.steps.extend(steps);
    }
    if wanted.site && wanted.transition && plan.steps.iter().any(|step| matches!(step, Step::Restart(_))) {
        plan.steps.insert(0, Step::Transition);
    }
    let widened = observed.network.widened(wanted.network);
    if widened != observed.network {
        plan.steps.insert(0, Step::Network(widened));
    }
    // The old release goes on with the changed tables, which only gain something; the copy is for whatever nobody foresaw.
    if let Some(is) = observed.schema
        && is < wanted.schema
        && !plan.moving.is_empty()
    {
        plan.steps.insert(0, Step::BackUp(is, wanted.schema));
    }
    plan.interrupts |= wanted.new_ports && plan.steps.iter().any(|step| matches!(step, Step::Restart(_)));
    // After those that it names serve, and before those that it names no longer stop.
    if wanted.site {
        plan.steps.push(Step::Site);
    }
    if observed.current.as_ref() != Some(&wanted.version.release) || !plan.moving.is_empty() {
        plan.steps.push(Step::Commit(wanted.version.release.clone()));
    }
    let surplus = observed.instances.keys().rev();
    plan.steps.extend(
        surplus
            .filter(|instance| **instance > wanted.instances)
            .map(|instance| Step::Retire(*instance)),
    );
    // When nobody needs it any more: the last step of all, which also closes what a rollout that was cut off has opened.
    if widened != wanted.network && !lags_behind {
        plan.steps.push(Step::Network(wanted.network));
    }
    plan
}

/// What a rollout has begun to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub instances: Vec<u16>,
    pub network: bool,
    /// The site leads to sockets and ports.
    pub transition: bool,
    pub site: bool,
    /// `current` and `previous`.
    pub current: bool,
}

impl Touched {
    pub fn note(&mut self, step: &Step) {
        self.network |= matches!(step, Step::Network(_));
        self.transition |= matches!(step, Step::Transition);
        self.site |= matches!(step, Step::Site);
        self.current |= matches!(step, Step::Commit(_));
        if let Some(instance) = step.instance()
            && !self.instances.contains(&instance)
        {
            self.instances.push(instance);
        }
    }

    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Back to what was observed before, for what was touched: the instances, the last one first, then the site that leads to
/// them. `moves_endpoints` as in [`Plan`]. `live`: whether instances are still to run; a service that is stopped while a
/// rollout is undone is not started again.
pub fn undo(before: &Observed, touched: &Touched, moves_endpoints: bool, live: bool) -> Vec<Step> {
    let mut steps = vec![];
    // nginx has to find an instance as soon as it is back.
    if touched.site && (touched.transition || moves_endpoints) {
        steps.push(Step::Transition);
    }
    for &instance in touched.instances.iter().rev() {
        let was = before.instances.get(&instance);
        match was.and_then(|was| was.points.clone()) {
            // The first thing that it was ever to run.
            None if before.live => steps.push(Step::Retire(instance)),
            None => {}
            Some(version) => {
                steps.push(Step::Point(instance, version));
                if live && before.live {
                    steps.push(Step::Restart(instance));
                    if was.is_some_and(|was| was.in_rotation) {
                        steps.push(Step::Settle(instance));
                    }
                }
            }
        }
    }
    if touched.transition || touched.site {
        steps.push(Step::TakeSiteBack);
    }
    if touched.current {
        steps.push(Step::Uncommit);
    }
    if touched.network {
        steps.push(Step::Network(before.network));
    }
    steps
}

#[cfg(test)]
pub mod tests {
    use super::Step::{BackUp, Commit, Enable, Point, Restart, Retire, Settle, Site, TakeSiteBack, Transition};
    use super::*;
    use crate::config::network::Reach;

    pub fn version(name: &str) -> Version {
        let (release, config) = name.split_once('/').unwrap_or((name, "a"));
        Version {
            release: release.to_owned(),
            config: config.to_owned(),
        }
    }

    /// A host, as sentences about it.
    #[derive(Clone)]
    pub struct Host(pub Observed);

    impl Host {
        /// links.service runs, with `count` instances in rotation that run `name`.
        pub fn running(count: u16, name: &str) -> Self {
            let instance = Instance {
                enabled: true,
                points: Some(version(name)),
                runs: Some(version(name)),
                in_rotation: true,
            };
            Self(Observed {
                instances: (1..=count).map(|number| (number, instance.clone())).collect(),
                live: true,
                current: Some(version(name).release),
                schema: Some(1),
                network: Network::default(),
            })
        }

        pub fn open(mut self) -> Self {
            self.0.network = OPENED;
            self
        }

        pub fn stopped(count: u16, name: &str) -> Self {
            let mut host = Self::running(count, name);
            host.0.live = false;
            for instance in host.0.instances.values_mut() {
                (instance.runs, instance.in_rotation) = (None, false);
            }
            host
        }

        pub fn with(mut self, instance: u16, change: impl FnOnce(&mut Instance)) -> Self {
            change(self.0.instances.entry(instance).or_default());
            self
        }

        fn down(self, instance: u16) -> Self {
            self.with(instance, |is| (is.runs, is.in_rotation) = (None, false))
        }

        fn to(&self, name: &str, instances: u16) -> Plan {
            plan(&self.0, &wanted(name, instances))
        }
    }

    pub fn wanted(name: &str, instances: u16) -> Wanted {
        Wanted {
            version: version(name),
            schema: 1,
            instances,
            force: false,
            site: true,
            new_ports: false,
            transition: false,
            moves_endpoints: false,
            network: Network::default(),
        }
    }

    pub fn wanted_open(name: &str, instances: u16) -> Wanted {
        Wanted {
            network: OPENED,
            ..wanted(name, instances)
        }
    }

    fn commit(name: &str) -> Step {
        Commit(name.to_owned())
    }

    fn moved(instance: u16, name: &str) -> [Step; 3] {
        [Point(instance, version(name)), Restart(instance), Settle(instance)]
    }

    fn joined(parts: &[&[Step]]) -> Vec<Step> {
        parts.concat()
    }

    #[test]
    fn a_new_release_moves_one_instance_after_the_other() {
        let plan = Host::running(2, "old").to("new", 2);
        assert_eq!(
            plan.steps,
            joined(&[&moved(1, "new"), &moved(2, "new"), &[Site, commit("new")]])
        );
        assert!(!plan.interrupts);
    }

    #[test]
    fn what_runs_it_already_is_left_alone() {
        let same = Host::running(2, "old").to("old", 2);
        assert_eq!((same.steps, same.moving), (vec![Site], vec![]));
        let half = Host::running(2, "old").with(1, |is| {
            (is.points, is.runs) = (Some(version("new")), Some(version("new")));
        });
        assert_eq!(
            half.to("new", 2).steps,
            joined(&[&moved(2, "new"), &[Site, commit("new")]])
        );
    }

    #[test]
    fn another_configuration_counts_like_another_release() {
        let plan = Host::running(2, "old/a").to("old/b", 2);
        assert_eq!(plan.moving, [1, 2]);
    }

    #[test]
    fn what_runs_counts_and_not_only_what_is_pointed_to() {
        let behind = Host::running(2, "new").with(2, |is| is.runs = Some(version("old")));
        assert_eq!(
            behind.to("new", 2).steps,
            [Restart(2), Settle(2), Site, commit("new")],
            "pointed to by an upgrade that was not allowed to restart"
        );
    }

    #[test]
    fn who_does_not_serve_comes_first() {
        let plan = Host::running(3, "old").down(2).to("new", 3);
        assert_eq!(plan.moving, [2, 1, 3]);
        let plan = Host::running(2, "old").down(2).to("old", 2);
        assert_eq!(plan.steps[..2], [Restart(2), Settle(2)], "a stopped one is started");
    }

    #[test]
    fn one_instance_interrupts_and_two_do_not() {
        assert!(Host::running(1, "old").to("new", 1).interrupts);
        assert!(!Host::running(1, "old").to("old", 1).interrupts);
        assert!(!Host::running(2, "old").down(1).to("new", 2).interrupts);
        assert!(!Host::stopped(1, "old").to("new", 1).interrupts);
    }

    #[test]
    fn new_ports_interrupt() {
        let mut wanted = wanted("old/b", 2);
        wanted.new_ports = true;
        assert!(plan(&Host::running(2, "old/a").0, &wanted).interrupts);
        assert!(!plan(&Host::stopped(2, "old/a").0, &wanted).interrupts);
    }

    #[test]
    fn the_site_leads_to_sockets_and_ports_while_instances_move_between_them() {
        let moves = |host: &Host, site| {
            let wanted = Wanted {
                transition: true,
                site,
                ..wanted("new", 2)
            };
            plan(&host.0, &wanted).steps
        };
        let running = Host::running(2, "old");
        assert_eq!(
            moves(&running, true),
            joined(&[
                &[Transition],
                &moved(1, "new"),
                &moved(2, "new"),
                &[Site, commit("new")]
            ])
        );
        for steps in [moves(&running, false), moves(&Host::stopped(2, "old"), true)] {
            assert!(!steps.contains(&Transition), "{steps:?}");
        }
    }

    #[test]
    fn undo_leads_to_sockets_and_ports_again_before_an_instance_moves_back() {
        let before = Host::running(2, "old");
        let mut touched = Touched {
            instances: vec![1],
            transition: true,
            ..Touched::default()
        };
        let back = moved(1, "old");
        let undone = |touched: &Touched, moves| undo(&before.0, touched, moves, true);
        let through_both = joined(&[&[Transition], &back, &[TakeSiteBack]]);
        // The site of the way there still leads to both.
        assert_eq!(undone(&touched, true), joined(&[&back, &[TakeSiteBack]]));
        touched.site = true;
        assert_eq!(undone(&touched, true), through_both);
        // A site that led to both from the beginning needed no other one on the way there.
        touched.transition = false;
        assert_eq!(undone(&touched, true), through_both);
        assert_eq!(undone(&touched, false), joined(&[&back, &[TakeSiteBack]]));
    }

    #[test]
    fn the_plan_keeps_whether_there_is_a_way_back_to_prepare() {
        let moves = |site, moves_endpoints| {
            let wanted = Wanted {
                site,
                moves_endpoints,
                ..wanted("new", 2)
            };
            plan(&Host::running(2, "old").0, &wanted).moves_endpoints
        };
        assert!(moves(true, true) && !moves(true, false));
        assert!(!moves(false, true), "the site stays as it is");
    }

    #[test]
    fn force_restarts_all() {
        let force = Wanted {
            force: true,
            ..wanted("old", 2)
        };
        let plan = plan(&Host::running(2, "old").0, &force);
        assert_eq!(
            plan.steps,
            [Restart(1), Settle(1), Restart(2), Settle(2), Site, commit("old")]
        );
    }

    #[test]
    fn before_tables_change_the_database_is_copied() {
        let running = Host::running(2, "old");
        let mut new = Wanted {
            schema: 2,
            ..wanted("new", 2)
        };
        let first = |host: &Host, wanted: &Wanted| plan(&host.0, wanted).steps[0].clone();
        assert_eq!(first(&running, &new), BackUp(1, 2));
        assert_eq!(first(&Host::stopped(2, "old"), &new), BackUp(1, 2));
        // No local database, or one that has changed already: the release before goes on with what a newer one left.
        let mut other = running.clone();
        for schema in [None, Some(2), Some(3)] {
            other.0.schema = schema;
            assert_ne!(first(&other, &new), BackUp(1, 2));
        }
        new.version = version("old");
        assert_eq!(first(&running, &new), Site, "nothing moves");
    }

    const OPENED: Network = Network {
        instances: Reach::Open,
        agent: Reach::Loopback,
    };
    const CLOSED: Network = Network {
        instances: Reach::Loopback,
        agent: Reach::Loopback,
    };
    const OPEN: Step = Step::Network(OPENED);
    const CLOSE: Step = Step::Network(CLOSED);

    #[test]
    fn who_gains_and_who_loses_the_network_overlap() {
        let agent = Network {
            agent: Reach::Open,
            ..CLOSED
        };
        let mut wanted = wanted("old/b", 2);
        wanted.network = agent;
        let steps = plan(&Host::running(2, "old/a").open().0, &wanted).steps;
        assert_eq!(steps.first(), Some(&Step::Network(OPENED.widened(agent))));
        assert_eq!(steps.last(), Some(&Step::Network(agent)));
        assert_eq!(
            steps[0].to_string(),
            "let the instances and the agent reach other machines, which the configuration names"
        );
    }

    #[test]
    fn the_network_is_open_before_the_first_instance_needs_it() {
        let running = Host::running(2, "old/a");
        let steps = plan(&running.0, &wanted_open("old/b", 2)).steps;
        assert_eq!((&steps[0], &steps[2]), (&OPEN, &Restart(1)));
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Network(_))).count(), 1);
        let mut new_tables = wanted_open("new/b", 2);
        new_tables.schema = 2;
        assert_eq!(plan(&running.0, &new_tables).steps[..2], [BackUp(1, 2), OPEN]);
        // From the next start on it is needed as well.
        assert_eq!(
            plan(&Host::stopped(2, "old/a").0, &wanted_open("old/b", 2)).steps[0],
            OPEN
        );
    }

    #[test]
    fn the_network_is_closed_after_the_last_instance_has_left_it() {
        let steps = Host::running(3, "old/a").open().to("old/b", 2).steps;
        assert_eq!(steps[steps.len() - 2..], [Retire(3), CLOSE]);
        let steps = Host::stopped(2, "old/a").open().to("old/b", 2).steps;
        assert_eq!(steps.last(), Some(&CLOSE), "nobody runs");
    }

    #[test]
    fn the_network_stays_open_for_an_instance_that_may_not_be_restarted() {
        let mut host = Host::running(2, "old/a").open();
        host.0.live = false;
        assert!(!host.to("old/b", 2).steps.contains(&CLOSE));
    }

    #[test]
    fn a_network_that_is_as_it_should_be_is_left_alone() {
        let steps = [
            plan(&Host::running(2, "old/a").open().0, &wanted_open("old/b", 2)).steps,
            plan(&Host::running(2, "old/a").0, &wanted("old/b", 2)).steps,
        ]
        .concat();
        assert!(!steps.iter().any(|step| matches!(step, Step::Network(_))), "{steps:?}");
    }

    #[test]
    fn what_was_left_open_or_was_closed_by_hand_is_mended_without_a_restart() {
        assert_eq!(Host::running(2, "old").open().to("old", 2).steps, [Site, CLOSE]);
        assert_eq!(
            plan(&Host::running(2, "old").0, &wanted_open("old", 2)).steps,
            [OPEN, Site]
        );
    }

    #[test]
    fn undo_closes_the_network_when_everybody_is_back() {
        let before = Host::running(2, "old");
        let steps = undo(&before.0, &opening(&[1]), false, true);
        assert_eq!(steps, joined(&[&moved(1, "old"), &[CLOSE]]));
    }

    #[test]
    fn a_stopped_service_stays_stopped() {
        let plan = Host::stopped(2, "old").to("new", 2);
        assert_eq!(
            plan.steps,
            [Point(1, version("new")), Point(2, version("new")), Site, commit("new")]
        );
    }

    #[test]
    fn a_first_install_points_and_enables() {
        let plan = Host(Observed::default()).to("new", 2);
        assert_eq!(
            plan.steps,
            [
                Enable(1),
                Point(1, version("new")),
                Enable(2),
                Point(2, version("new")),
                Site,
                commit("new")
            ]
        );
    }

    #[test]
    fn more_instances_serve_before_nginx_knows_them() {
        let plan = Host::running(2, "old").to("old", 3);
        assert_eq!(
            plan.steps,
            joined(&[&[Enable(3)], &moved(3, "old"), &[Site, commit("old")]])
        );
        // A changed configuration with it: the new one first, so that more serve during the rest.
        assert_eq!(Host::running(2, "old/a").to("old/b", 3).moving, [3, 1, 2]);
    }

    #[test]
    fn fewer_instances_stop_after_nginx_has_forgotten_them() {
        let plan = Host::running(4, "old").to("old", 2);
        assert_eq!(plan.steps, [Site, Retire(4), Retire(3)]);
    }

    fn moving(instances: &[u16]) -> Touched {
        Touched {
            instances: instances.to_vec(),
            ..Touched::default()
        }
    }

    fn opening(instances: &[u16]) -> Touched {
        Touched {
            network: true,
            ..moving(instances)
        }
    }

    #[test]
    fn undo_takes_site_and_current_back_after_the_instances() {
        let before = Host::running(1, "old");
        let mut touched = Touched::default();
        Host::running(1, "old")
            .to("new", 1)
            .steps
            .iter()
            .for_each(|step| touched.note(step));
        let back = [TakeSiteBack, Step::Uncommit];
        assert_eq!(
            undo(&before.0, &touched, false, true),
            joined(&[&moved(1, "old"), &back])
        );
        assert!(!touched.is_nothing() && Touched::default().is_nothing());
    }

    #[test]
    fn undo_goes_backwards() {
        let before = Host::running(2, "old");
        assert_eq!(
            undo(&before.0, &moving(&[1, 2]), false, true),
            joined(&[&moved(2, "old"), &moved(1, "old")])
        );
    }

    #[test]
    fn undo_of_a_service_that_stops_meanwhile_starts_nothing() {
        let before = Host::running(2, "old");
        assert_eq!(undo(&before.0, &moving(&[1]), false, false), [Point(1, version("old"))]);
    }

    #[test]
    fn undo_takes_a_new_instance_away_again() {
        assert_eq!(
            undo(&Host::running(2, "old").0, &moving(&[3]), false, true),
            [Retire(3)]
        );
    }

    #[test]
    fn undo_does_not_ask_more_of_an_instance_than_it_did_before() {
        let before = Host::running(2, "old").down(1);
        assert_eq!(
            undo(&before.0, &moving(&[1]), false, true),
            [Point(1, version("old")), Restart(1)],
            "it was down before"
        );
    }
}
