//! How old what is kept may be. Two bounds: until the first it is used without a question, until the second while nobody
//! answers the question.

/// Instances on other machines have other clocks. Something from further ahead than this was written by a clock that is
/// wrong: there is no telling how old it is.
const SKEW: i64 = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// As good as asked for now.
    Fresh,
    /// To be asked for again; good enough while there is no answer.
    Stale,
    /// As good as none.
    Gone,
}

impl Age {
    /// The age of what was asked for at `asked_at`, both times in Unix seconds: fresh for less than `fresh` seconds,
    /// usable for less than `usable` seconds.
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
    fn what_comes_from_the_future_is_never_fresh_and_not_trusted_far() {
        assert_eq!(Age::of(NOW + 1, NOW, 60, 900), Age::Stale);
        assert_eq!(Age::of(NOW + SKEW, NOW, 60, 900), Age::Stale);
        assert_eq!(Age::of(NOW + SKEW + 1, NOW, 60, 900), Age::Gone);
        assert_eq!(Age::of(i64::MAX, -1, 60, 900), Age::Gone);
        assert_eq!(Age::of(i64::MIN, NOW, 60, 900), Age::Gone);
    }
}
