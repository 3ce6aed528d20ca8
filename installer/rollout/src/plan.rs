//! Decides the steps of a rollout from what is observed and what is wanted. It does no I/O: [`super::apply`] carries out the
//! steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use links_base::endpoint::{Endpoint, names};
use links_config::network::Network;
use links_release::Version;

/// The observed state of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Whether the instance belongs to links.service.
    pub enabled: bool,
    /// The version that it runs from its next start on.
    pub points: Option<Version>,
    /// Whether the release of that version is in the store.
    pub has_release: bool,
    /// Where the instance listens if it runs that version. `None` if its release or its configuration is gone.
    pub endpoint: Option<Endpoint>,
    /// The version that it runs now. `None` if its unit is not up.
    pub runs: Option<Version>,
    pub in_rotation: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The instances that belong to links.service or have something to run.
    pub instances: BTreeMap<u16, Instance>,
    /// Whether instances are to run now. Otherwise links.service is stopped or starts are forbidden, and the wanted version
    /// takes effect at the next start.
    pub live: bool,
    pub current: Option<String>,
    /// The version of the local database's tables. `None` if there is no such database.
    pub schema: Option<u32>,
    /// What the units let the appliance reach.
    pub network: Network,
    /// The text of links' site that nginx reads at its next start. Empty if there is none.
    pub site: String,
    /// The base port that was configured last. `None` if that configuration cannot be read.
    pub base_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub version: Version,
    /// The version to which the release brings the tables.
    pub schema: u32,
    /// The number of instances: they are 1 up to this number.
    pub instances: u16,
    /// Whether to restart instances that already run the wanted version, too.
    pub force: bool,
    /// Whether to bring nginx's site in line.
    pub site: bool,
    /// Whether links manages the site. Otherwise the administrator does.
    pub manages_site: bool,
    /// Where each instance will listen.
    pub endpoints: BTreeMap<u16, Endpoint>,
    pub base_port: u16,
    /// What the wanted configuration needs to reach.
    pub network: Network,
}

/// One step of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Copies the local database, whose tables the release changes from the first version to the second.
    BackUp(u32, u32),
    /// Sets what the instances and the agent may reach, including those that run.
    Network(Network),
    /// Makes the instance belong to links.service.
    Enable(u16),
    /// Sets the version that the instance runs from its next start on.
    Point(u16, Version),
    /// Restarts or starts the instance, and waits until it is READY.
    Restart(u16),
    /// Waits until the instance has been healthy and in rotation for rollout.min_healthy.
    Soak(u16),
    /// Installs a site that lists both the sockets and the ports of the instances, so that each can move to the endpoint that
    /// the next site lists.
    Transition,
    /// Installs the site with the final endpoints.
    Site,
    /// Restores the site from before the rollout.
    TakeSiteBack,
    /// Makes this release the current one. The rollout has then succeeded, and is not undone any more.
    Commit(String),
    /// Restores `current` and `previous` from before the rollout.
    Uncommit,
    /// Drains, stops and disables the instance, which then has nothing to run any more.
    Remove(u16),
}

impl Step {
    pub fn instance(&self) -> Option<u16> {
        match self {
            Self::Enable(instance)
            | Self::Point(instance, _)
            | Self::Restart(instance)
            | Self::Soak(instance)
            | Self::Remove(instance) => Some(*instance),
            Self::BackUp(..)
            | Self::Network(_)
            | Self::Transition
            | Self::Site
            | Self::TakeSiteBack
            | Self::Commit(_)
            | Self::Uncommit => None,
        }
    }

    /// The name of the step for scripts. Since 0.1.0 they know a soak as `settle` and a removal as `retire`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BackUp(..) => "back_up",
            Self::Network(_) => "network",
            Self::Enable(_) => "enable",
            Self::Point(..) => "point",
            Self::Restart(_) => "restart",
            Self::Soak(_) => "settle",
            Self::Transition => "transition",
            Self::Site => "site",
            Self::TakeSiteBack => "take_site_back",
            Self::Commit(_) => "commit",
            Self::Uncommit => "uncommit",
            Self::Remove(_) => "retire",
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
            Self::Soak(instance) => write!(f, "instance {instance}: stays healthy for rollout.min_healthy"),
            Self::Transition => write!(
                f,
                "make nginx try both the sockets and the ports of the instances while they move"
            ),
            Self::Site => write!(f, "{}", links_edge::INSTALL),
            Self::TakeSiteBack => write!(f, "put the nginx site back, reload nginx"),
            Self::Commit(release) => write!(f, "make release {release} current"),
            Self::Uncommit => write!(f, "make the former release current again"),
            Self::Remove(instance) => write!(f, "instance {instance}: drain, stop, disable"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// The instances that change, in the order in which they change.
    pub moving: Vec<u16>,
    /// Whether no instance serves for a moment.
    pub interrupts: bool,
    /// Whether an endpoint that an instance would go back to is missing in the new site.
    pub moves_endpoints: bool,
}

/// Plans the steps, in order. Instances that do not serve come first, so that more of them serve while the others are
/// restarted.
pub fn plan(observed: &Observed, wanted: &Wanted) -> Plan {
    let none = Instance::default();
    let of = |instance: u16| observed.instances.get(&instance).unwrap_or(&none);
    let mut order: Vec<u16> = (1..=wanted.instances).collect();
    order.sort_by_key(|instance| of(*instance).in_rotation);

    let mut plan = Plan {
        moves_endpoints: wanted.site && moves_endpoints(observed, wanted),
        ..Plan::default()
    };
    // Whether an instance goes on with another configuration, which may need the network.
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
            steps.extend([Step::Restart(instance), Step::Soak(instance)]);
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
    if wanted.site
        && needs_transition(observed, wanted)
        && plan.steps.iter().any(|step| matches!(step, Step::Restart(_)))
    {
        plan.steps.insert(0, Step::Transition);
    }
    let widened = observed.network.widened(wanted.network);
    if widened != observed.network {
        plan.steps.insert(0, Step::Network(widened));
    }
    // The old release can go on with the changed tables, because releases only add to them. The copy is for the unforeseen.
    if let Some(is) = observed.schema
        && is < wanted.schema
        && !plan.moving.is_empty()
    {
        plan.steps.insert(0, Step::BackUp(is, wanted.schema));
    }
    plan.interrupts |=
        has_new_ports(observed, wanted) && plan.steps.iter().any(|step| matches!(step, Step::Restart(_)));
    // The site changes after the instances that it adds serve, and before those that it drops stop.
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
            .map(|instance| Step::Remove(*instance)),
    );
    // The network is closed last, when no instance needs it any more. This also closes what an interrupted rollout has opened.
    if widened != wanted.network && !lags_behind {
        plan.steps.push(Step::Network(wanted.network));
    }
    plan
}

/// Whether the instances will listen on new ports that nginx does not know until the administrator changes its configuration.
fn has_new_ports(observed: &Observed, wanted: &Wanted) -> bool {
    !wanted.manages_site && observed.base_port.is_some_and(|before| before != wanted.base_port)
}

/// Whether any instance will listen on an endpoint that the current site does not list.
fn needs_transition(observed: &Observed, wanted: &Wanted) -> bool {
    let has_release = |instance: &u16| observed.instances.get(instance).is_some_and(|is| is.has_release);
    let mut moving = wanted.endpoints.iter().filter(|(instance, _)| has_release(instance));
    wanted.manages_site && !observed.site.is_empty() && moving.any(|(_, endpoint)| !names(&observed.site, endpoint))
}

/// Whether the endpoint of any instance's present version will be missing in the new site.
fn moves_endpoints(observed: &Observed, wanted: &Wanted) -> bool {
    let present = |instance: &u16| observed.instances.get(instance)?.endpoint.as_ref();
    let mut endpoints = wanted.endpoints.iter();
    wanted.manages_site
        && endpoints.any(|(instance, endpoint)| present(instance).is_some_and(|present| present != endpoint))
}

/// What a rollout has begun to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub instances: Vec<u16>,
    pub network: bool,
    /// Whether the site that lists sockets and ports was installed.
    pub transition: bool,
    pub site: bool,
    /// Whether `current` and `previous` were changed.
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

/// Plans the steps back to what was observed before, for whatever was touched: the instances, the last one first, and then the
/// site that lists them. `moves_endpoints` is the plan's ([`Plan`]). `live` is whether instances are still to run, because a
/// service that is stopped while a rollout is undone is not started again.
pub fn undo(before: &Observed, touched: &Touched, moves_endpoints: bool, live: bool) -> Vec<Step> {
    let mut steps = vec![];
    // nginx has to find an instance as soon as it is back.
    if touched.site && (touched.transition || moves_endpoints) {
        steps.push(Step::Transition);
    }
    for &instance in touched.instances.iter().rev() {
        let was = before.instances.get(&instance);
        match was.and_then(|was| was.points.clone()) {
            // The instance had nothing to run before the rollout.
            None if before.live => steps.push(Step::Remove(instance)),
            None => {}
            Some(version) => {
                steps.push(Step::Point(instance, version));
                if live && before.live {
                    steps.push(Step::Restart(instance));
                    if was.is_some_and(|was| was.in_rotation) {
                        steps.push(Step::Soak(instance));
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
    use super::Step::{BackUp, Commit, Enable, Point, Remove, Restart, Site, Soak, TakeSiteBack, Transition};
    use std::path::Path;

    use super::*;
    use links_config::network::Reach;
    use links_release::testing::version;

    /// A builder for the observed state of a host.
    #[derive(Clone)]
    pub struct Host(pub Observed);

    impl Host {
        /// A host on which links.service runs, with `count` instances of version `name` in rotation.
        pub fn running(count: u16, name: &str) -> Self {
            let instance = Instance {
                enabled: true,
                points: Some(version(name)),
                has_release: true,
                endpoint: None,
                runs: Some(version(name)),
                in_rotation: true,
            };
            let on_port = |number| Instance {
                endpoint: Some(Endpoint::tcp(7000, number)),
                ..instance.clone()
            };
            let listed = (1..=count).map(|number| format!("server {};\n", Endpoint::tcp(7000, number)));
            Self(Observed {
                instances: (1..=count).map(|number| (number, on_port(number))).collect(),
                live: true,
                current: Some(version(name).release),
                schema: Some(1),
                network: Network::default(),
                site: listed.collect(),
                base_port: Some(7000),
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
            manages_site: true,
            endpoints: (1..=instances)
                .map(|number| (number, Endpoint::tcp(7000, number)))
                .collect(),
            base_port: 7000,
            network: Network::default(),
        }
    }

    /// The release listens on sockets, unlike the one before.
    pub fn wanted_on_sockets(name: &str, instances: u16) -> Wanted {
        let socket = |number| (number, Endpoint::socket(Path::new("/run/links/sockets"), number));
        Wanted {
            endpoints: (1..=instances).map(socket).collect(),
            ..wanted(name, instances)
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
        [Point(instance, version(name)), Restart(instance), Soak(instance)]
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
    fn instances_that_already_run_the_version_are_left_alone() {
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
    fn a_new_configuration_moves_instances_like_a_new_release() {
        let plan = Host::running(2, "old/a").to("old/b", 2);
        assert_eq!(plan.moving, [1, 2]);
    }

    #[test]
    fn an_instance_that_still_runs_another_version_is_restarted() {
        let behind = Host::running(2, "new").with(2, |is| is.runs = Some(version("old")));
        assert_eq!(
            behind.to("new", 2).steps,
            [Restart(2), Soak(2), Site, commit("new")],
            "pointed to by an upgrade that was not allowed to restart"
        );
    }

    #[test]
    fn instances_that_do_not_serve_come_first() {
        let plan = Host::running(3, "old").down(2).to("new", 3);
        assert_eq!(plan.moving, [2, 1, 3]);
        let plan = Host::running(2, "old").down(2).to("old", 2);
        assert_eq!(plan.steps[..2], [Restart(2), Soak(2)], "a stopped one is started");
    }

    #[test]
    fn restarting_the_only_serving_instance_interrupts() {
        assert!(Host::running(1, "old").to("new", 1).interrupts);
        assert!(!Host::running(1, "old").to("old", 1).interrupts);
        assert!(!Host::running(2, "old").down(1).to("new", 2).interrupts);
        assert!(!Host::stopped(1, "old").to("new", 1).interrupts);
    }

    #[test]
    fn new_ports_interrupt() {
        let mut wanted = wanted("old/b", 2);
        (wanted.manages_site, wanted.base_port) = (false, 8000);
        assert!(plan(&Host::running(2, "old/a").0, &wanted).interrupts);
        assert!(!plan(&Host::stopped(2, "old/a").0, &wanted).interrupts);
        // A site of ours lists both ports while the instances move.
        wanted.manages_site = true;
        assert!(!plan(&Host::running(2, "old/a").0, &wanted).interrupts);
    }

    #[test]
    fn the_site_lists_sockets_and_ports_while_instances_move_between_them() {
        let moves = |host: &Host, site| {
            let wanted = Wanted {
                site,
                ..wanted_on_sockets("new", 2)
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
        let mut other = running.clone();
        // The site that does not exist yet will list the sockets.
        other.0.site.clear();
        assert!(!moves(&other, true).contains(&Transition));
        // A site that lists the sockets already needs no change before the move.
        other.0.site = "server unix:/run/links/sockets/1.sock;\nserver unix:/run/links/sockets/2.sock;\n".to_owned();
        assert!(!moves(&other, true).contains(&Transition));
        // The administrator's site is not ours to change.
        let wanted = Wanted {
            manages_site: false,
            ..wanted_on_sockets("new", 2)
        };
        assert!(!plan(&running.0, &wanted).steps.contains(&Transition));
    }

    #[test]
    fn undo_lists_sockets_and_ports_again_before_an_instance_moves_back() {
        let before = Host::running(2, "old");
        let mut touched = Touched {
            instances: vec![1],
            transition: true,
            ..Touched::default()
        };
        let back = moved(1, "old");
        let undone = |touched: &Touched, moves| undo(&before.0, touched, moves, true);
        let through_both = joined(&[&[Transition], &back, &[TakeSiteBack]]);
        // The transition site is still in force and lists both.
        assert_eq!(undone(&touched, true), joined(&[&back, &[TakeSiteBack]]));
        touched.site = true;
        assert_eq!(undone(&touched, true), through_both);
        // A site that listed both from the beginning needed no transition site before the move.
        touched.transition = false;
        assert_eq!(undone(&touched, true), through_both);
        assert_eq!(undone(&touched, false), joined(&[&back, &[TakeSiteBack]]));
    }

    #[test]
    fn the_plan_records_whether_undo_needs_a_transition_site() {
        let moves = |site, wanted: Wanted| {
            let wanted = Wanted { site, ..wanted };
            plan(&Host::running(2, "old").0, &wanted).moves_endpoints
        };
        assert!(moves(true, wanted_on_sockets("new", 2)) && !moves(true, wanted("new", 2)));
        assert!(!moves(false, wanted_on_sockets("new", 2)), "the site stays as it is");
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
            [Restart(1), Soak(1), Restart(2), Soak(2), Site, commit("old")]
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
        // There is nothing to copy without a local database, or if the tables are new enough or newer.
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
    fn the_network_is_open_for_the_agent_and_the_instances_while_they_change() {
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
        // A stopped service needs it from the next start on.
        assert_eq!(
            plan(&Host::stopped(2, "old/a").0, &wanted_open("old/b", 2)).steps[0],
            OPEN
        );
    }

    #[test]
    fn the_network_is_closed_after_the_last_instance_has_left_it() {
        let steps = Host::running(3, "old/a").open().to("old/b", 2).steps;
        assert_eq!(steps[steps.len() - 2..], [Remove(3), CLOSE]);
        let steps = Host::stopped(2, "old/a").open().to("old/b", 2).steps;
        assert_eq!(steps.last(), Some(&CLOSE), "no instance runs");
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
    fn a_wrong_network_setting_is_corrected_without_a_restart() {
        assert_eq!(Host::running(2, "old").open().to("old", 2).steps, [Site, CLOSE]);
        assert_eq!(
            plan(&Host::running(2, "old").0, &wanted_open("old", 2)).steps,
            [OPEN, Site]
        );
    }

    #[test]
    fn undo_closes_the_network_when_all_instances_are_back() {
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
        // With a changed configuration too, the new instance comes first, so that more serve while the others restart.
        assert_eq!(Host::running(2, "old/a").to("old/b", 3).moving, [3, 1, 2]);
    }

    #[test]
    fn surplus_instances_stop_after_nginx_has_dropped_them() {
        let plan = Host::running(4, "old").to("old", 2);
        assert_eq!(plan.steps, [Site, Remove(4), Remove(3)]);
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
    fn undo_restores_the_site_and_current_after_the_instances() {
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
    fn undo_removes_a_new_instance() {
        assert_eq!(
            undo(&Host::running(2, "old").0, &moving(&[3]), false, true),
            [Remove(3)]
        );
    }

    #[test]
    fn undo_does_not_wait_for_the_health_of_an_instance_that_was_down() {
        let before = Host::running(2, "old").down(1);
        assert_eq!(
            undo(&before.0, &moving(&[1]), false, true),
            [Point(1, version("old")), Restart(1)],
            "it was down before"
        );
    }
}
