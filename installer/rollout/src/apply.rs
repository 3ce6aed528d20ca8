//! Carries out a plan, and undoes it if a step fails. All decisions are made in [`super::plan`].

use std::fmt;

use super::plan::{Observed, Plan, Step, Touched, undo};
use super::report::{Event, Reporter};
use links_config::network::Network;
use links_release::Version;

/// The host that a rollout changes.
pub trait Host {
    /// Writes the journal before the first change. It survives a crash and says how to undo the changes.
    fn begin(&mut self) -> anyhow::Result<()>;
    /// Removes the journal: everything is as wanted, or as before.
    fn finish(&mut self) -> anyhow::Result<()>;
    /// # Errors
    /// The disk is full, or the database is damaged.
    fn back_up(&mut self, from: u32) -> anyhow::Result<()>;
    fn network(&mut self, network: Network) -> anyhow::Result<()>;
    fn enable(&mut self, instance: u16) -> anyhow::Result<()>;
    fn point(&mut self, instance: u16, version: &Version) -> anyhow::Result<()>;
    /// # Errors
    /// The instance does not become ready. The error quotes its last log lines.
    fn restart(&mut self, instance: u16) -> anyhow::Result<()>;
    /// # Errors
    /// The instance does not stay healthy. The error quotes its last log lines.
    fn soak(&mut self, instance: u16) -> anyhow::Result<()>;
    /// # Errors
    /// nginx refuses the site, which is then unchanged.
    fn transition(&mut self) -> anyhow::Result<()>;
    /// # Errors
    /// The same as [`Self::transition`].
    fn site(&mut self) -> anyhow::Result<()>;
    /// # Errors
    /// The site cannot be restored.
    fn take_site_back(&mut self) -> anyhow::Result<()>;
    fn set_current(&mut self, release: &str) -> anyhow::Result<()>;
    fn restore_current(&mut self) -> anyhow::Result<()>;
    fn remove(&mut self, instance: u16) -> anyhow::Result<()>;
    /// Whether instances are still to run. False if somebody has stopped the service meanwhile.
    fn is_live(&mut self) -> bool;
    /// Whether somebody wants the rollout to end.
    fn is_interrupted(&mut self) -> bool;
}

/// Why a rollout failed.
#[derive(Debug)]
pub enum Failure {
    /// A signal interrupted it.
    Interrupted(Undone),
    /// A step failed.
    Step { error: anyhow::Error, undone: Undone },
    /// A step after the commit failed. The rollout itself had succeeded, so nothing was undone.
    Afterwards { error: anyhow::Error },
}

/// The outcome of undoing a rollout.
#[derive(Debug, Default)]
pub struct Undone {
    /// Whether nothing had been changed yet.
    pub nothing: bool,
    /// The errors of the steps that undo the rollout.
    pub troubles: Vec<String>,
}

impl fmt::Display for Undone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.troubles.is_empty() {
            return f.write_str(match self.nothing {
                true => "nothing was changed",
                false => "every instance is back on what it ran before",
            });
        }
        f.write_str("not everything could be put back:")?;
        self.troubles.iter().try_for_each(|trouble| write!(f, "\n  {trouble}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted(undone) => write!(f, "interrupted: {undone}"),
            Self::Step { error, undone } => {
                write!(f, "{error:#}\nThe rollout failed; {undone}.")?;
                if undone.troubles.is_empty() {
                    write!(f, " Fix the error above, then run it again")
                } else {
                    write!(
                        f,
                        "\nFix it, then run `linksctl rollout`; `linksctl status` shows what runs"
                    )
                }
            }
            Self::Afterwards { error } => write!(
                f,
                "{error:#}\nThe rollout itself is done; `linksctl rollout` tries the rest again"
            ),
        }
    }
}

impl std::error::Error for Failure {}

/// Carries out the plan.
///
/// # Errors
/// A step failed or a signal came ([`Failure`]). Everything was undone, unless the error says otherwise.
pub fn apply(plan: &Plan, before: &Observed, host: &mut impl Host, reporter: &mut Reporter) -> Result<(), Failure> {
    let mut touched = Touched::default();
    let mut committed = !plan.steps.iter().any(|step| matches!(step, Step::Commit(_)));
    let mut begun = false;
    for step in &plan.steps {
        // The commit itself is not interrupted: once nginx has the new site, only the commit is missing.
        if !committed && !matches!(step, Step::Commit(_)) && host.is_interrupted() {
            return Err(Failure::Interrupted(take_back(
                plan, before, &touched, begun, host, reporter,
            )));
        }
        reporter.report(&Event::step(step));
        let done = (|| {
            if !committed && !begun {
                host.begin()?;
                begun = true;
            }
            if !committed {
                touched.note(step);
            }
            perform(step, host)
        })();
        match done {
            Ok(()) => committed |= matches!(step, Step::Commit(_)),
            // A plan that only changes the site has no commit. A site that fails is undone by the edge itself.
            Err(error) if committed && matches!(step, Step::Site) => {
                reporter.report(&Event::failed(step, &error));
                let undone = Undone {
                    nothing: plan.steps.first() == Some(step),
                    ..Undone::default()
                };
                return Err(Failure::Step { error, undone });
            }
            Err(error) if committed => {
                return Err(Failure::Afterwards { error });
            }
            Err(error) => {
                // A signal may have ended what the step waited for.
                let interrupted = host.is_interrupted();
                reporter.report(&Event::failed(step, &error));
                let undone = take_back(plan, before, &touched, begun, host, reporter);
                return Err(match interrupted {
                    true => Failure::Interrupted(undone),
                    false => Failure::Step { error, undone },
                });
            }
        }
    }
    Ok(())
}

fn perform(step: &Step, host: &mut impl Host) -> anyhow::Result<()> {
    match step {
        Step::BackUp(from, _) => host.back_up(*from),
        Step::Network(network) => host.network(*network),
        Step::Enable(instance) => host.enable(*instance),
        Step::Point(instance, version) => host.point(*instance, version),
        Step::Restart(instance) => host.restart(*instance),
        Step::Soak(instance) => host.soak(*instance),
        Step::Transition => host.transition(),
        Step::Site => host.site(),
        Step::TakeSiteBack => host.take_site_back(),
        Step::Commit(release) => {
            host.set_current(release)?;
            host.finish()
        }
        Step::Uncommit => host.restore_current(),
        Step::Remove(instance) => host.remove(*instance),
    }
}

/// Undoes what was touched. Every step is tried, even if others fail.
fn take_back(
    plan: &Plan,
    before: &Observed,
    touched: &Touched,
    begun: bool,
    host: &mut impl Host,
    reporter: &mut Reporter,
) -> Undone {
    let mut undone = Undone {
        nothing: touched.is_nothing(),
        troubles: vec![],
    };
    let mut pointed = true;
    let live = host.is_live();
    for step in undo(before, touched, plan.moves_endpoints, live) {
        // An instance that could not be pointed back may need the network.
        if matches!(step, Step::Network(_)) && !pointed {
            continue;
        }
        reporter.report(&Event::undoing(&step));
        // Somebody may stop the service while the rollout is undone.
        if matches!(step, Step::Restart(_) | Step::Soak(_)) && !host.is_live() {
            continue;
        }
        if let Err(error) = perform(&step, host) {
            pointed &= !matches!(step, Step::Point(..));
            undone.troubles.push(format!("{step}: {error:#}"));
        }
    }
    // If an instance could not be pointed back, the journal stays for the next rollout.
    if begun
        && pointed
        && let Err(error) = host.finish()
    {
        undone.troubles.push(format!("{error:#}"));
    }
    undone
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::{Host as Setting, wanted, wanted_on_sockets, wanted_open};
    use super::super::plan::{Instance, plan};
    use super::*;
    use links_release::testing::version;

    /// A host that records its calls as text, and fails those in `fails`.
    #[derive(Default)]
    struct Fake {
        did: Vec<String>,
        fails: Vec<&'static str>,
        interrupted_after: Option<&'static str>,
        stopped_after: Option<&'static str>,
    }

    impl Fake {
        fn failing(fails: &'static str) -> Self {
            Self {
                fails: vec![fails],
                ..Self::default()
            }
        }

        /// Each failure happens once.
        fn note(&mut self, what: String) -> anyhow::Result<()> {
            let fails = self.fails.iter().position(|fails| *fails == what);
            self.did.push(what);
            match fails {
                Some(index) => anyhow::bail!("{} failed", self.fails.remove(index)),
                None => Ok(()),
            }
        }

        fn has_done(&self, what: Option<&'static str>) -> bool {
            what.is_some_and(|what| self.did.iter().any(|did| did == what))
        }
    }

    impl Host for Fake {
        fn begin(&mut self) -> anyhow::Result<()> {
            self.note("begin".into())
        }
        fn finish(&mut self) -> anyhow::Result<()> {
            self.note("finish".into())
        }
        fn back_up(&mut self, from: u32) -> anyhow::Result<()> {
            self.note(format!("back up {from}"))
        }
        fn network(&mut self, network: Network) -> anyhow::Result<()> {
            self.note(format!("network {:?}", network.instances))
        }
        fn enable(&mut self, instance: u16) -> anyhow::Result<()> {
            self.note(format!("enable {instance}"))
        }
        fn point(&mut self, instance: u16, version: &Version) -> anyhow::Result<()> {
            self.note(format!("point {instance} {}", version.release))
        }
        fn restart(&mut self, instance: u16) -> anyhow::Result<()> {
            self.note(format!("restart {instance}"))
        }
        fn soak(&mut self, instance: u16) -> anyhow::Result<()> {
            self.note(format!("soak {instance}"))
        }
        fn transition(&mut self) -> anyhow::Result<()> {
            self.note("transition".into())
        }
        fn site(&mut self) -> anyhow::Result<()> {
            self.note("site".into())
        }
        fn take_site_back(&mut self) -> anyhow::Result<()> {
            self.note("take site back".into())
        }
        fn set_current(&mut self, release: &str) -> anyhow::Result<()> {
            self.note(format!("current {release}"))
        }
        fn restore_current(&mut self) -> anyhow::Result<()> {
            self.note("restore current".into())
        }
        fn remove(&mut self, instance: u16) -> anyhow::Result<()> {
            self.note(format!("remove {instance}"))
        }
        fn is_live(&mut self) -> bool {
            !self.has_done(self.stopped_after)
        }
        fn is_interrupted(&mut self) -> bool {
            self.has_done(self.interrupted_after)
        }
    }

    fn run(setting: &Setting, name: &str, instances: u16, fake: &mut Fake) -> Result<(), Failure> {
        let plan = plan(&setting.0, &wanted(name, instances));
        apply(&plan, &setting.0, fake, &mut Reporter::silent())
    }

    fn two_to_new(mut fake: Fake) -> (Result<(), Failure>, Vec<String>) {
        let outcome = run(&Setting::running(2, "old"), "new", 2, &mut fake);
        (outcome, fake.did)
    }

    const FIRST: [&str; 4] = ["begin", "point 1 new", "restart 1", "soak 1"];
    const FIRST_BACK: [&str; 4] = ["point 1 old", "restart 1", "soak 1", "finish"];

    #[test]
    fn a_successful_rollout_moves_instances_then_site_then_current() {
        let (outcome, did) = two_to_new(Fake::default());
        assert!(outcome.is_ok());
        let rest = ["point 2 new", "restart 2", "soak 2", "site", "current new", "finish"];
        assert_eq!(did, [&FIRST[..], &rest].concat());
    }

    #[test]
    fn the_first_instance_fails_and_the_second_is_never_touched() {
        let (outcome, did) = two_to_new(Fake::failing("restart 1"));
        assert_eq!(did, [&FIRST[..3], &FIRST_BACK].concat());
        let text = outcome.map_err(|failure| failure.to_string());
        assert!(text.is_err_and(|text| text.contains("restart 1 failed") && text.contains("back on what it ran")));
    }

    #[test]
    fn the_second_instance_fails_and_both_go_back_the_last_first() {
        for fails in ["restart 2", "soak 2"] {
            let (outcome, did) = two_to_new(Fake::failing(fails));
            let text = outcome.map_err(|failure| failure.to_string());
            assert!(text.is_err_and(|text| text.contains(&format!("{fails} failed"))));
            let back = [&["point 2 old", "restart 2", "soak 2"][..], &FIRST_BACK].concat();
            assert!(
                did.ends_with(&back.iter().map(|did| (*did).to_owned()).collect::<Vec<_>>()),
                "{did:?}"
            );
            assert!(!did.contains(&"current new".to_owned()));
        }
    }

    #[test]
    fn a_refused_site_takes_the_instances_back() {
        let (outcome, did) = two_to_new(Fake::failing("site"));
        assert!(outcome.is_err());
        assert!(did.contains(&"point 1 old".to_owned()) && did.contains(&"point 2 old".to_owned()));
        assert_eq!(did.last().map(String::as_str), Some("finish"));
    }

    /// `current` is already the new release when removing the journal fails.
    #[test]
    fn a_commit_that_fails_is_undone_completely() {
        for fails in ["current new", "finish"] {
            let (outcome, did) = two_to_new(Fake::failing(fails));
            assert!(matches!(outcome, Err(Failure::Step { .. })));
            let back = ["take site back", "restore current", "finish"];
            assert_eq!(did[did.len() - 3..], back, "{fails}");
            assert!(did.contains(&"point 1 old".to_owned()) && did.contains(&"point 2 old".to_owned()));
        }
    }

    /// nginx already has the new site, and must also find the instances on the endpoints that they go back to.
    #[test]
    fn after_a_move_a_failed_commit_lists_both_endpoints_before_an_instance_goes_back() {
        let setting = Setting::running(2, "old");
        let plan = plan(&setting.0, &wanted_on_sockets("new", 2));
        let mut fake = Fake::failing("current new");
        let outcome = apply(&plan, &setting.0, &mut fake, &mut Reporter::silent());
        assert!(matches!(outcome, Err(Failure::Step { .. })));
        let failed = fake.did.iter().position(|did| did == "current new");
        let back = &fake.did[failed.map_or(0, |at| at + 1)..];
        assert_eq!(back[..3], ["transition", "point 2 old", "restart 2"]);
        assert_eq!(back[back.len() - 3..], ["take site back", "restore current", "finish"]);
    }

    #[test]
    fn without_a_journal_nothing_is_touched() {
        let (outcome, did) = two_to_new(Fake::failing("begin"));
        assert!(outcome.is_err_and(|failure| failure.to_string().contains("nothing was changed")));
        assert_eq!(did, ["begin"]);
    }

    #[test]
    fn a_database_that_cannot_be_copied_is_left_alone() {
        let setting = Setting::running(2, "old");
        let mut wanted = wanted("new", 2);
        wanted.schema += 1;
        let plan = plan(&setting.0, &wanted);
        let mut fake = Fake::failing("back up 1");
        let outcome = apply(&plan, &setting.0, &mut fake, &mut Reporter::silent());
        assert!(outcome.is_err_and(|failure| failure.to_string().contains("nothing was changed")));
        assert_eq!(fake.did, ["begin", "back up 1", "finish"]);
    }

    fn two_to_elsewhere(mut fake: Fake) -> Vec<String> {
        let setting = Setting::running(2, "old/a");
        let plan = plan(&setting.0, &wanted_open("new/b", 2));
        // The tests look at the calls instead of the result.
        let _ = apply(&plan, &setting.0, &mut fake, &mut Reporter::silent());
        fake.did
    }

    #[test]
    fn an_opened_network_is_closed_again_after_all_instances_are_back() {
        let did = two_to_elsewhere(Fake::failing("soak 2"));
        assert_eq!(did[..3], ["begin", "network Open", "point 1 new"]);
        assert_eq!(did[did.len() - 3..], ["soak 1", "network Loopback", "finish"]);
        let did = two_to_elsewhere(Fake::failing("network Open"));
        assert_eq!(did, ["begin", "network Open", "network Loopback", "finish"]);
    }

    #[test]
    fn the_network_stays_open_for_an_instance_that_cannot_be_pointed_back() {
        let did = two_to_elsewhere(Fake {
            fails: vec!["soak 1", "point 1 old"],
            ..Fake::default()
        });
        assert!(!did.contains(&"network Loopback".to_owned()), "{did:?}");
    }

    #[test]
    fn failing_to_close_the_network_undoes_nothing() {
        let setting = Setting::running(2, "old/a").open();
        let plan = plan(&setting.0, &wanted("new/b", 2));
        let mut fake = Fake::failing("network Loopback");
        let outcome = apply(&plan, &setting.0, &mut fake, &mut Reporter::silent());
        assert!(matches!(outcome, Err(Failure::Afterwards { .. })));
        assert_eq!(fake.did[fake.did.len() - 2..], ["finish", "network Loopback"]);
    }

    #[test]
    fn a_signal_undoes_the_rollout_after_the_current_step() {
        let (outcome, did) = two_to_new(Fake {
            interrupted_after: Some("restart 1"),
            ..Fake::default()
        });
        assert!(matches!(outcome, Err(Failure::Interrupted(_))));
        assert_eq!(did, [&FIRST[..3], &FIRST_BACK].concat());
    }

    #[test]
    fn a_signal_after_the_commit_changes_nothing() {
        let (outcome, did) = two_to_new(Fake {
            interrupted_after: Some("current new"),
            ..Fake::default()
        });
        assert!(outcome.is_ok());
        assert_eq!(did.last().map(String::as_str), Some("finish"));
    }

    #[test]
    fn a_signal_after_the_site_comes_too_late() {
        let (outcome, did) = two_to_new(Fake {
            interrupted_after: Some("site"),
            ..Fake::default()
        });
        assert!(outcome.is_ok());
        assert_eq!(did[did.len() - 2..], ["current new", "finish"]);
    }

    #[test]
    fn a_service_that_was_stopped_meanwhile_is_not_started_again() {
        let (outcome, did) = two_to_new(Fake {
            stopped_after: Some("restart 1"),
            ..Fake::failing("soak 1")
        });
        assert!(outcome.is_err());
        assert_eq!(did, [&FIRST[..], &["point 1 old", "finish"]].concat());
    }

    #[test]
    fn errors_while_undoing_are_reported_and_stop_nothing() {
        let (outcome, did) = two_to_new(Fake {
            fails: vec!["soak 2", "point 2 old"],
            ..Fake::default()
        });
        let text = outcome.map_err(|failure| failure.to_string());
        assert!(text.is_err_and(|text| text.contains("not everything could be put back")));
        assert_eq!(did[did.len() - 3..], FIRST_BACK[..3], "the journal stays: {did:?}");
    }

    #[test]
    fn nothing_to_do_leaves_no_journal() {
        let mut fake = Fake::default();
        assert!(run(&Setting::running(2, "old"), "old", 2, &mut fake).is_ok());
        assert_eq!(fake.did, ["site"]);
    }

    #[test]
    fn a_site_that_fails_alone_is_not_in_effect() {
        let mut fake = Fake::failing("site");
        let outcome = run(&Setting::running(3, "old"), "old", 2, &mut fake);
        assert!(
            matches!(&outcome, Err(Failure::Step { undone, .. }) if undone.nothing),
            "{outcome:?}"
        );
        assert_eq!(fake.did, ["site"]);
    }

    #[test]
    fn a_new_instance_that_fails_is_removed() {
        let mut fake = Fake::failing("restart 3");
        assert!(run(&Setting::running(2, "old"), "old", 3, &mut fake).is_err());
        assert_eq!(
            fake.did,
            ["begin", "enable 3", "point 3 old", "restart 3", "remove 3", "finish"]
        );
    }

    #[test]
    fn failing_to_stop_a_surplus_instance_undoes_nothing() {
        let mut fake = Fake::failing("remove 3");
        let outcome = run(&Setting::running(3, "old"), "old", 2, &mut fake);
        assert!(matches!(outcome, Err(Failure::Afterwards { .. })));
        assert_eq!(fake.did, ["site", "remove 3"]);
    }

    #[test]
    fn undo_does_not_wait_for_the_health_of_an_instance_that_was_down() {
        let down = |is: &mut Instance| (is.runs, is.in_rotation) = (None, false);
        let mut fake = Fake::failing("restart 1");
        assert!(run(&Setting::running(2, "old").with(1, down), "new", 2, &mut fake).is_err());
        assert_eq!(fake.did[3..], ["point 1 old", "restart 1", "finish"]);
        assert_eq!(version("new").release, "new");
    }
}
