//! Decides whether a backup is due. links-backup.timer asks every quarter of an hour.

use std::time::Duration;

use links_release::backups::Attempt;

/// The pause after the first failed attempt. It doubles with each further one, up to the time between two backups.
const FIRST_PAUSE: u64 = 15 * 60;
/// A timer is late or early by less than this.
const SLACK: u64 = 60;

/// What is known about the past.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past<'a> {
    /// When the last backup was begun, in seconds since 1970.
    pub latest: Option<u64>,
    pub last: Option<&'a Attempt>,
    /// How many attempts have failed since.
    pub failures: u32,
}

/// Whether a backup is due at `now`, in seconds since 1970. They are made `every` so often, counted from `at` after midnight in
/// UTC. One that was missed is made as soon as possible.
pub fn is_due(every: Duration, at: Duration, past: Past<'_>, now: u64) -> bool {
    let every = every.as_secs().max(1);
    let at = at.as_secs();
    let slot = now - (now + every - at % every) % every;
    // A time in the future means that the clock was set back.
    let is_missing = past.latest.is_none_or(|begun| begun < slot || begun > now + SLACK);
    is_missing && !pauses(every, past, now)
}

/// Whether the last attempt failed so recently that the next one would only repeat the failure.
fn pauses(every: u64, past: Past<'_>, now: u64) -> bool {
    let Some(last) = past.last.filter(|last| last.error.is_some()) else {
        return false;
    };
    let doublings = past.failures.saturating_sub(1).min(16);
    let pause = (FIRST_PAUSE << doublings).min(every).saturating_sub(SLACK);
    (last.ended..last.ended + pause).contains(&now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;
    /// A midnight.
    const MIDNIGHT: u64 = 20_000 * DAY;
    const HALF_PAST_THREE: u64 = 12_600;

    fn daily(latest: Option<u64>, now: u64) -> bool {
        let past = Past {
            latest,
            ..Past::default()
        };
        is_due(
            Duration::from_secs(DAY),
            Duration::from_secs(HALF_PAST_THREE),
            past,
            now,
        )
    }

    #[test]
    fn the_first_backup_is_due_at_once() {
        assert!(daily(None, MIDNIGHT));
    }

    #[test]
    fn a_backup_is_due_once_a_day_from_its_time_on() {
        let due = MIDNIGHT + HALF_PAST_THREE;
        let yesterday = Some(due - DAY + 5);
        assert!(!daily(yesterday, due - 1));
        assert!(daily(yesterday, due));
        assert!(daily(yesterday, due + 900));
        assert!(!daily(Some(due), due + 900));
        // The host was off for a week.
        assert!(daily(Some(due - 7 * DAY), due - 1));
    }

    #[test]
    fn other_intervals_are_counted_from_the_same_time() {
        let six_hours = |latest, now| {
            let past = Past {
                latest: Some(latest),
                ..Past::default()
            };
            let (every, at) = (Duration::from_secs(6 * 3600), Duration::from_secs(HALF_PAST_THREE));
            is_due(every, at, past, now)
        };
        let slot = MIDNIGHT + HALF_PAST_THREE + 6 * 3600;
        assert!(six_hours(slot - 1, slot) && !six_hours(slot, slot + 6 * 3600 - 1));
        assert!(six_hours(slot, slot + 6 * 3600));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_end_the_backups() {
        let due = MIDNIGHT + HALF_PAST_THREE;
        assert!(daily(Some(due + 300 * DAY), due));
        assert!(!daily(Some(due + 10), due));
    }

    #[test]
    fn the_pauses_between_failed_attempts_grow() {
        let now = MIDNIGHT + DAY / 2;
        let failed = |failures, ago: u64| {
            let last = Attempt {
                location: "/b".to_owned(),
                begun: now - ago - 1,
                ended: now - ago,
                error: Some("the disk is full".to_owned()),
            };
            let past = Past {
                latest: None,
                last: Some(&last),
                failures,
            };
            is_due(Duration::from_secs(DAY), Duration::ZERO, past, now)
        };
        assert!(!failed(1, 600) && failed(1, 900));
        assert!(!failed(3, 3000) && failed(3, 3600));
        assert!(!failed(40, DAY - 120) && failed(40, DAY));
        // The failure is in the future, because the clock was set back.
        let last = Attempt {
            location: "/b".to_owned(),
            begun: now + DAY,
            ended: now + DAY,
            error: Some("the disk is full".to_owned()),
        };
        let past = Past {
            latest: None,
            last: Some(&last),
            failures: 1,
        };
        assert!(is_due(Duration::from_secs(DAY), Duration::ZERO, past, now));
    }
}
