//! How old a kept value may be. There are two bounds: up to the first the value is used as it is, up to the second it is used
//! only while its source does not answer.

/// The largest tolerated difference between the clocks of two machines, in seconds. A value from further in the future was
/// written by a wrong clock, so its age is unknown.
const SKEW: i64 = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// As good as a new answer.
    Fresh,
    /// Has to be asked for again, but may be used while there is no answer.
    Stale,
    /// Too old to be used.
    Gone,
}

impl Age {
    /// The age of a value that was asked for at `asked_at`. It is fresh for less than `fresh` seconds and usable for less than
    /// `usable` seconds. `asked_at` and `now` are in Unix seconds.
    pub fn of(asked_at: i64, now: i64, fresh: i64, usable: i64) -> Age {
        let age = now.saturating_sub(asked_at);
        if (0..fresh).contains(&age) {
            Age::Fresh
        } else if (-SKEW..usable).contains(&age) && usable > 0 {
            Age::Stale
        } else {
            Age::Gone
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600;

    #[test]
    fn is_fresh_then_stale_then_gone() {
        for (age, wanted) in [
            (0, Age::Fresh),
            (59, Age::Fresh),
            (60, Age::Stale),
            (899, Age::Stale),
            (900, Age::Gone),
        ] {
            assert_eq!(Age::of(NOW - age, NOW, 60, 900), wanted, "after {age} s");
        }
    }

    #[test]
    fn without_a_second_bound_nothing_outlives_the_first() {
        assert_eq!(Age::of(NOW - 59, NOW, 60, 0), Age::Fresh);
        assert_eq!(Age::of(NOW - 60, NOW, 60, 0), Age::Gone);
        assert_eq!(Age::of(NOW + 1, NOW, 60, 0), Age::Gone);
        assert_eq!(Age::of(NOW, NOW, 0, 0), Age::Gone);
    }

    #[test]
    fn values_from_the_future_are_never_fresh_and_usable_only_within_the_skew() {
        assert_eq!(Age::of(NOW + 1, NOW, 60, 900), Age::Stale);
        assert_eq!(Age::of(NOW + SKEW, NOW, 60, 900), Age::Stale);
        assert_eq!(Age::of(NOW + SKEW + 1, NOW, 60, 900), Age::Gone);
        assert_eq!(Age::of(i64::MAX, -1, 60, 900), Age::Gone);
        assert_eq!(Age::of(i64::MIN, NOW, 60, 900), Age::Gone);
    }
}
