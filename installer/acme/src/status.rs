//! What is known about a name, from the disk alone.

use crate::record::Record;
use crate::schedule::{Facts, next};
use crate::store::{Issued, Live, Store};
use links_config::acme::{Certificate, Event, NameStatus, State};

/// Prints the status of each name.
///
/// # Errors
/// A file may not be read.
pub fn print(
    store: &Store,
    names: &[String],
    wanted: Option<&Issued>,
    now: u64,
    report: &mut dyn FnMut(Event),
) -> anyhow::Result<()> {
    for name in names {
        let live = store.live(name)?;
        let record = store.record(name)?.with(live.as_ref().map(|live| live.id.as_str()));
        report(Event::Status(of(name, live.as_ref(), &record, wanted, now)));
    }
    Ok(())
}

/// What the decision about a name depends on. Without `wanted`, whatever is in place fits.
pub fn facts(live: Option<&Live>, record: &Record, wanted: Option<&Issued>, now: u64) -> Facts {
    Facts {
        now,
        certificate: live.map(|live| live.certificate.validity()),
        fits_settings: match (live, wanted) {
            (Some(live), Some(wanted)) => live.issued == *wanted,
            _ => true,
        },
        suggested: record.suggested(),
        failures: record.failures(),
    }
}

pub fn of(name: &str, live: Option<&Live>, record: &Record, wanted: Option<&Issued>, now: u64) -> NameStatus {
    let facts = facts(live, record, wanted, now);
    NameStatus {
        name: name.to_owned(),
        id: live.map(|live| live.id.clone()),
        loaded: live.is_some_and(|live| record.loaded.as_ref() == Some(&live.id)),
        certificate: live.map(|live| Certificate {
            directory: Some(live.issued.directory.clone()),
            profile: live.issued.profile.clone(),
            ..live.certificate.facts().clone()
        }),
        state: facts.certificate.map_or(State::Missing, |validity| validity.state(now)),
        next: next(&facts),
        ari: record.ari(),
        attempts: record.attempts,
        last_attempt: record.last_attempt,
        error: record.error.clone(),
    }
}
