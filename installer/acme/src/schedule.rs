//! When a certificate is renewed: pure decisions. Times and durations are in seconds.

use links_config::acme::{Action, FailureKind, Next, State, Why};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// From the first to the last second of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: u64,
    pub not_after: u64,
}

impl Validity {
    fn lifetime(self) -> u64 {
        self.not_after.saturating_sub(self.not_before)
    }

    pub fn state(self, now: u64) -> State {
        State::at(now, self.not_before, self.not_after)
    }
}

/// The failed attempts since the last success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures {
    pub last: u64,
    /// How long no attempt is made after the last one.
    pub pause: u64,
}

impl Failures {
    /// The end of the pause. `None` if it is over.
    ///
    /// A clock that is behind the last attempt was set back, or was ahead then. How much of the pause has passed is unknown, so
    /// it counts as over.
    fn paused_until(self, now: u64) -> Option<u64> {
        let end = self.last.saturating_add(self.pause);
        (self.last <= now && now < end).then_some(end)
    }
}

/// All that the decision about a name depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    pub now: u64,
    /// `None` if there is no certificate.
    pub certificate: Option<Validity>,
    /// Whether the certificate is from the authority, and of the profile, that are asked for.
    pub fits_settings: bool,
    /// The time that was chosen from the authority's window.
    pub suggested: Option<u64>,
    pub failures: Option<Failures>,
}

/// Who asks for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The timer: what is not due waits, and pauses are kept.
    Timer,
    /// A person: what is not due waits.
    Person,
    /// A person with `--force`: nothing waits.
    Force,
}

/// What is done about a name now, and when it is due if that is later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    pub why: Why,
    pub at: Option<u64>,
}

/// When the certificate should be replaced, whatever happened to earlier attempts.
fn due(facts: &Facts) -> Next {
    let next = |at, why| Next { at, why };
    let Some(validity) = facts.certificate else {
        return next(facts.now, Why::Missing);
    };
    if validity.state(facts.now) == State::Expired {
        return next(validity.not_after, Why::Expired);
    }
    if !facts.fits_settings {
        return next(facts.now, Why::Settings);
    }
    let before_end = |part| validity.not_after.saturating_sub(validity.lifetime() / part);
    match facts.suggested {
        // An authority that suggests the last moments, or a time after the end, leaves no time for a second attempt.
        Some(suggested) => next(suggested.min(before_end(6)), Why::Ari),
        None => next(before_end(3), Why::Lifetime),
    }
}

/// When the next attempt is made, if only the timer asks.
pub fn next(facts: &Facts) -> Next {
    let due = due(facts);
    let paused_until = facts.failures.and_then(|failures| failures.paused_until(facts.now));
    match paused_until {
        Some(end) if end > due.at => Next {
            at: end,
            why: Why::Retry,
        },
        _ => due,
    }
}

pub fn decide(facts: &Facts, asks: Asks) -> Decision {
    let act = |why| Decision {
        action: match facts.certificate {
            None => Action::Issue,
            Some(_) => Action::Renew,
        },
        why,
        at: None,
    };
    let later = |action, next: Next| Decision {
        action,
        why: next.why,
        at: Some(next.at),
    };
    let due = due(facts);
    let next = next(facts);
    match asks {
        Asks::Force => act(Why::Forced),
        _ if due.at > facts.now => later(Action::Keep, due),
        Asks::Timer if next.at > facts.now => later(Action::Pause, next),
        Asks::Timer | Asks::Person => act(due.why),
    }
}

/// The time at which a certificate is renewed, chosen evenly from the authority's window (RFC 9773, section 4.2), so that not
/// all of its customers come at once. `random` is any number.
pub fn choose(start: u64, end: u64, random: u64) -> u64 {
    let length = end.saturating_sub(start);
    start.saturating_add(random % length.saturating_add(1))
}

/// How long to wait until the authority is asked for its window again, in the limits that RFC 9773, section 4.3 suggests.
pub fn ari_wait(retry_after: u64) -> u64 {
    retry_after.clamp(MINUTE, DAY)
}

/// How long to wait if the authority has no windows, or none for this certificate.
pub const ARI_UNSUPPORTED_WAIT: u64 = DAY;
/// How long to wait after the authority has not answered.
pub const ARI_FAILED_WAIT: u64 = HOUR;

/// Whether the authority is asked for its window, which was last done at `asked`. A clock that is behind was set back.
pub fn asks_ari(now: u64, asked: Option<(u64, u64)>) -> bool {
    asked.is_none_or(|(at, wait)| now < at || now >= at.saturating_add(wait))
}

/// How long no attempt is made after the `count`-th failure in a row, which is of this kind.
///
/// The pause doubles with each failure, up to a day. It takes at most a quarter of what is left of a valid certificate, but at
/// least the first pause. An authority that names a time is not asked before.
pub fn pause(kind: FailureKind, count: u32, now: u64, retry_after: Option<u64>, certificate: Option<Validity>) -> u64 {
    use FailureKind as Kind;
    let (first, longest) = match kind {
        // Nobody has counted this attempt.
        Kind::Network | Kind::Tls | Kind::Clock | Kind::Storage | Kind::NotServed => (10 * MINUTE, 6 * HOUR),
        Kind::Server | Kind::BadNonce | Kind::Protocol => (10 * MINUTE, 12 * HOUR),
        // Let's Encrypt allows five failed validations of a name in an hour.
        _ => (HOUR, DAY),
    };
    let doubled = first.saturating_mul(1 << count.saturating_sub(1).min(16)).min(longest);
    let left = certificate
        .map(|validity| validity.not_after.saturating_sub(now) / 4)
        .filter(|left| *left > 0);
    let bounded = left.map_or(doubled, |left| doubled.min(left.max(first)));
    let asked_for = retry_after.map_or(0, |until| until.saturating_sub(now).min(7 * DAY));
    bounded.max(asked_for)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first second of a certificate in these tests.
    const START: u64 = 1_800_000_000;

    fn days(lifetime: u64) -> Validity {
        Validity {
            not_before: START,
            not_after: START + lifetime * DAY,
        }
    }

    fn facts(now: u64, certificate: Validity) -> Facts {
        Facts {
            now,
            certificate: Some(certificate),
            fits_settings: true,
            suggested: None,
            failures: None,
        }
    }

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_lifetime_is_left() {
        for (lifetime, days_later) in [(6, 4), (45, 30), (90, 60)] {
            let due = START + days_later * DAY;
            let decision = |now| decide(&facts(now, days(lifetime)), Asks::Timer);
            assert_eq!(
                decision(due - 1),
                Decision {
                    action: Action::Keep,
                    why: Why::Lifetime,
                    at: Some(due)
                },
                "{lifetime} days"
            );
            assert_eq!(
                decision(due),
                Decision {
                    action: Action::Renew,
                    why: Why::Lifetime,
                    at: None
                },
                "{lifetime} days"
            );
        }
        // 64 days: 42 days and 16 hours.
        assert_eq!(next(&facts(START, days(64))).at, START + 64 * DAY - 64 * DAY / 3);
    }

    #[test]
    fn the_time_that_the_authority_suggests_counts_instead() {
        for lifetime in [6, 45, 64, 90] {
            let validity = days(lifetime);
            let at = |suggested| {
                next(&Facts {
                    suggested: Some(suggested),
                    ..facts(START, validity)
                })
            };
            let early = START + DAY;
            assert_eq!(
                at(early),
                Next {
                    at: early,
                    why: Why::Ari
                }
            );
            // After a revocation, the window is in the past.
            assert!(at(START - DAY).at < START);
            // Too late is not believed.
            let last = validity.not_after - lifetime * DAY / 6;
            assert_eq!(at(validity.not_after + DAY).at, last);
        }
    }

    #[test]
    fn a_time_is_chosen_from_the_whole_window() {
        assert_eq!(choose(100, 200, 0), 100);
        assert_eq!(choose(100, 200, 100), 200);
        assert_eq!(choose(100, 200, 101), 100);
        assert_eq!(choose(100, 100, u64::MAX), 100);
        assert_eq!(choose(200, 100, 7), 200, "a window that ends before it starts");
    }

    #[test]
    fn a_missing_expired_or_unfitting_certificate_is_due_at_once() {
        let missing = Facts {
            certificate: None,
            ..facts(START, days(90))
        };
        assert_eq!(decide(&missing, Asks::Timer).action, Action::Issue);
        assert_eq!(decide(&missing, Asks::Timer).why, Why::Missing);
        let expired = facts(START + 90 * DAY + 1, days(90));
        assert_eq!(decide(&expired, Asks::Timer).why, Why::Expired);
        let other = Facts {
            fits_settings: false,
            ..facts(START, days(90))
        };
        assert_eq!(decide(&other, Asks::Timer).why, Why::Settings);
        assert_eq!(decide(&other, Asks::Timer).action, Action::Renew);
    }

    #[test]
    fn a_run_that_comes_too_early_after_a_failure_waits() {
        let due = START + 80 * DAY;
        let failed = |now| Facts {
            failures: Some(Failures { last: due, pause: HOUR }),
            ..facts(now, days(90))
        };
        let soon = failed(due + HOUR - 1);
        assert_eq!(
            decide(&soon, Asks::Timer),
            Decision {
                action: Action::Pause,
                why: Why::Retry,
                at: Some(due + HOUR)
            }
        );
        assert_eq!(next(&soon).why, Why::Retry);
        assert_eq!(decide(&soon, Asks::Person).action, Action::Renew);
        assert_eq!(decide(&failed(due + HOUR), Asks::Timer).action, Action::Renew);
    }

    #[test]
    fn a_clock_that_is_set_back_holds_up_nothing_and_renews_nothing() {
        // A failure that lies in the future.
        let missing = Facts {
            certificate: None,
            failures: Some(Failures {
                last: START + 30 * DAY,
                pause: DAY,
            }),
            ..facts(START, days(90))
        };
        assert_eq!(decide(&missing, Asks::Timer).action, Action::Issue);
        // A certificate that is not valid yet.
        assert_eq!(
            decide(&facts(START - 30 * DAY, days(6)), Asks::Timer).action,
            Action::Keep
        );
        assert!(asks_ari(START, Some((START + DAY, HOUR))));
    }

    #[test]
    fn force_waits_for_nothing() {
        let fresh = facts(START, days(90));
        assert_eq!(decide(&fresh, Asks::Person).action, Action::Keep);
        assert_eq!(
            decide(&fresh, Asks::Force),
            Decision {
                action: Action::Renew,
                why: Why::Forced,
                at: None
            }
        );
    }

    #[test]
    fn the_authority_is_asked_for_its_window_when_it_says_so() {
        assert!(asks_ari(START, None));
        assert!(!asks_ari(START + HOUR - 1, Some((START, HOUR))));
        assert!(asks_ari(START + HOUR, Some((START, HOUR))));
        assert_eq!(ari_wait(0), MINUTE);
        assert_eq!(ari_wait(6 * HOUR), 6 * HOUR);
        assert_eq!(ari_wait(u64::MAX), DAY);
    }

    #[test]
    fn pauses_grow_to_a_day() {
        let of = |count| pause(FailureKind::Dns, count, START, None, None);
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 7].map(of),
            [1, 2, 4, 8, 16, 24, 24].map(|hours| hours * HOUR)
        );
        assert_eq!(of(u32::MAX), DAY);
        let network = |count| pause(FailureKind::Network, count, START, None, None);
        assert_eq!([1, 2, 3].map(network), [10, 20, 40].map(|minutes| minutes * MINUTE));
        assert_eq!(network(9), 6 * HOUR);
    }

    #[test]
    fn a_pause_leaves_time_before_a_certificate_expires() {
        let left = |left| {
            let now = START + 6 * DAY - left;
            pause(FailureKind::Dns, 9, now, None, Some(days(6)))
        };
        assert_eq!(left(2 * DAY), 12 * HOUR);
        assert_eq!(left(8 * HOUR), 2 * HOUR);
        assert_eq!(left(HOUR), HOUR, "not less than the first pause");
        assert_eq!(
            pause(FailureKind::Dns, 9, START + 7 * DAY, None, Some(days(6))),
            DAY,
            "an expired one is not saved by asking more often"
        );
    }

    #[test]
    fn an_authority_that_names_a_time_is_not_asked_before() {
        let limited = |until| pause(FailureKind::RateLimited, 1, START, Some(until), Some(days(6)));
        assert_eq!(limited(START + 3 * DAY), 3 * DAY);
        assert_eq!(limited(START - DAY), HOUR);
        assert_eq!(limited(u64::MAX), 7 * DAY, "but not for ever");
    }
}
