//! Carries out the steps of a restore, and undoes them if one fails.

use std::fmt;

use super::plan::{Plan, Step};

/// What the steps are carried out on.
pub trait Host {
    /// Carries out a step.
    ///
    /// # Errors
    /// It fails, perhaps half done. Only the first step leaves nothing then.
    fn perform(&mut self, step: &Step) -> anyhow::Result<()>;

    /// Puts everything back as it was before the first step.
    ///
    /// # Errors
    /// Something cannot be put back, or links does not serve with it.
    fn take_back(&mut self) -> anyhow::Result<()>;

    /// Whether a signal asks to stop.
    fn is_interrupted(&mut self) -> bool;
}

/// Why a restore has failed, and what the host is like now.
#[derive(Debug)]
pub enum Failure {
    /// Nothing was changed.
    Untouched(anyhow::Error),
    /// Everything is as before.
    TakenBack(anyhow::Error),
    /// Something could not be put back. The second error says what.
    Stuck(anyhow::Error, anyhow::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untouched(error) => write!(f, "{error:#}. Nothing was changed"),
            Self::TakenBack(error) => write!(f, "{error:#}. The restore was undone: everything is as it was before"),
            Self::Stuck(error, trouble) => write!(f, "{error:#}\nNot everything could be put back: {trouble:#}"),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let (Self::Untouched(error) | Self::TakenBack(error) | Self::Stuck(error, _)) = self;
        error.source()
    }
}

/// Carries out the steps in order.
///
/// # Errors
/// A step fails or a signal comes. Everything is put back then.
pub fn apply(plan: &Plan, host: &mut impl Host) -> Result<(), Failure> {
    let mut is_begun = false;
    for step in &plan.steps {
        let done = match host.is_interrupted() {
            true => Err(anyhow::anyhow!("interrupted")),
            false => host
                .perform(step)
                .map_err(|error| error.context(format!("Could not {step}"))),
        };
        if let Err(error) = done {
            return Err(match is_begun {
                false => Failure::Untouched(error),
                true => match host.take_back() {
                    Ok(()) => Failure::TakenBack(error),
                    Err(trouble) => Failure::Stuck(error, trouble),
                },
            });
        }
        is_begun = true;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::plan::plan;
    use super::super::plan::tests::{manifest, observed};
    use super::*;
    use crate::manifest::Kind;

    #[derive(Default)]
    struct Fake {
        did: Vec<String>,
        fails: &'static str,
        interrupted_after: Option<&'static str>,
    }

    impl Fake {
        fn note(&mut self, what: &str) -> anyhow::Result<()> {
            self.did.push(what.to_owned());
            match self.fails.split(' ').any(|fails| fails == what) {
                true => Err(anyhow::anyhow!("{what} failed")),
                false => Ok(()),
            }
        }
    }

    impl Host for Fake {
        fn perform(&mut self, step: &Step) -> anyhow::Result<()> {
            self.note(step.name())
        }

        fn take_back(&mut self) -> anyhow::Result<()> {
            self.note("take_back")
        }

        fn is_interrupted(&mut self) -> bool {
            self.interrupted_after
                .is_some_and(|after| self.did.iter().any(|did| did == after))
                || self.interrupted_after == Some("")
        }
    }

    fn applied(mut fake: Fake) -> (Result<(), Failure>, Vec<String>) {
        let plan = plan(&manifest(Some(Kind::Whole)), &observed(None), 1_900_000_000, false).unwrap();
        let applied = apply(&plan, &mut fake);
        (applied, fake.did)
    }

    #[test]
    fn a_restore_that_succeeds_is_not_undone() {
        let (applied, did) = applied(Fake::default());
        applied.unwrap();
        assert_eq!(did.first().map(String::as_str), Some("begin"));
        assert_eq!(did.last().map(String::as_str), Some("commit"));
    }

    #[test]
    fn a_step_that_fails_is_the_last_one_and_everything_is_put_back() {
        for fails in [
            "stop",
            "swap_database",
            "swap",
            "roll_out",
            "start",
            "soak",
            "site",
            "count_links",
            "commit",
        ] {
            let (applied, did) = applied(Fake {
                fails,
                ..Fake::default()
            });
            assert!(matches!(applied, Err(Failure::TakenBack(_))), "{fails}");
            assert_eq!(did[did.len() - 2..], [fails, "take_back"]);
        }
    }

    #[test]
    fn a_restore_that_cannot_begin_changes_nothing() {
        let (applied, did) = applied(Fake {
            fails: "begin",
            ..Fake::default()
        });
        assert!(matches!(applied, Err(Failure::Untouched(_))));
        assert_eq!(did, ["begin"]);
    }

    #[test]
    fn an_undo_that_fails_is_reported_with_the_first_failure() {
        let (applied, _) = applied(Fake {
            fails: "start take_back",
            ..Fake::default()
        });
        let text = applied.unwrap_err().to_string();
        assert!(
            text.contains("start failed") && text.contains("take_back failed"),
            "{text}"
        );
    }

    #[test]
    fn a_signal_before_the_first_step_changes_nothing_and_a_later_one_undoes() {
        let (first, did) = applied(Fake {
            interrupted_after: Some(""),
            ..Fake::default()
        });
        assert!(matches!(first, Err(Failure::Untouched(_))) && did.is_empty());
        let (later, did) = applied(Fake {
            interrupted_after: Some("start"),
            ..Fake::default()
        });
        assert!(matches!(later, Err(Failure::TakenBack(_))));
        assert_eq!(did[did.len() - 2..], ["start", "take_back"]);
    }
}
