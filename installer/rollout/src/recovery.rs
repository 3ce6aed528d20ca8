//! Undoes what an interrupted rollout has left.

use crate::appliance::Appliance;
use crate::observe;
use links_base::layout;
use links_release::{Journal, Outcome, Verdict};

/// Undoes an unfinished rollout and an unfinished change of the site. Passes each message about it to `report`.
///
/// # Errors
/// Something that was changed cannot be restored.
pub fn recover(appliance: &Appliance, mut report: impl FnMut(String)) -> anyhow::Result<()> {
    if let Some(text) = take_back(appliance)? {
        report(text);
    }
    // Observed after the instances point back. A configuration that cannot be read must not prevent the undoing.
    let config = observe::applied_config(appliance).ok();
    appliance.edge.recover(config.as_ref())?.into_iter().for_each(report);
    Ok(())
}

/// Undoes an unfinished rollout, and returns a message about it. `None` if there is none.
fn take_back(appliance: &Appliance) -> anyhow::Result<Option<String>> {
    let Some(journal) = Journal::read(&appliance.journal)? else {
        return Ok(None);
    };
    let new: Vec<_> = journal
        .take_back(&appliance.state, &appliance.journal)?
        .into_iter()
        .map(layout::instance_unit)
        .collect();
    appliance.services.disable(&new)?;
    Outcome::now(Verdict::Interrupted, &journal.wanted.release, None).keep(&appliance.outcome);
    Ok(Some(format!(
        "a rollout to {} was cut off: every instance goes back to what it ran before",
        journal.wanted
    )))
}
