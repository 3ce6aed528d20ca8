//! Query parameters.

use links_domain::clicks::is_journal_name;
use links_domain::stats::{Granularity, Span};
use links_domain::timestamp;
use url::form_urlencoded;

use crate::problem::Problem;

/// Parses `?from=&to=&granularity=`, each of which may be missing. `now` is in Unix seconds.
///
/// # Errors
/// 400 for an unknown parameter, an invalid value or an invalid range.
pub fn span(query: Option<&str>, now: i64) -> Result<Span, Problem> {
    let (mut from, mut to, mut granularity) = (None, None, Granularity::Day);
    for (name, value) in form_urlencoded::parse(query.unwrap_or("").as_bytes()) {
        match name.as_ref() {
            "from" => from = Some(moment("from", &value)?),
            "to" => to = Some(moment("to", &value)?),
            "granularity" => {
                granularity = match value.as_ref() {
                    "hour" => Granularity::Hour,
                    "day" => Granularity::Day,
                    _ => return Err(Problem::new(400, "The granularity must be \"hour\" or \"day\".")),
                }
            }
            _ => {
                return Err(Problem::new(
                    400,
                    format!("Unknown parameter \"{name}\"; expected from, to or granularity."),
                ));
            }
        }
    }
    Span::new(from, to, granularity, now).map_err(Problem::bad_request)
}

fn moment(name: &'static str, value: &str) -> Result<i64, Problem> {
    let moment = timestamp::parse_day(value).or_else(|| timestamp::parse(value));
    moment.ok_or_else(|| {
        Problem::new(
            400,
            format!("The value of {name} must be a day like 2030-01-31, or a time like 2030-01-31T18:00:00Z."),
        )
    })
}

/// The journal's name in `GET /internal/clicks?journal=NAME`.
///
/// # Errors
/// 400 for any other query.
pub fn journal_of(query: Option<&str>) -> Result<String, Problem> {
    let journal = query
        .and_then(|query| query.strip_prefix("journal="))
        .filter(|journal| is_journal_name(journal));
    journal.map(str::to_owned).ok_or_else(|| {
        Problem::new(
            400,
            "The query must be journal= and the journal's name, 32 lower-case hexadecimal digits.",
        )
    })
}

/// The number in `POST /internal/clicks?reuses=NUMBER`: the latest reuse of a slug that the batch takes into account. `None` if
/// its sender knows of none.
///
/// # Errors
/// 400 for any other query.
pub fn heeded_reuses(query: Option<&str>) -> Result<Option<i64>, Problem> {
    let Some(query) = query else { return Ok(None) };
    let number = query
        .strip_prefix("reuses=")
        .and_then(|number| number.parse().ok())
        .filter(|number| *number >= 0);
    number
        .map(Some)
        .ok_or_else(|| Problem::new(400, "The query must be reuses= and a number."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// 2026-01-31T18:30:00Z
    const NOW: i64 = 1_769_884_200;
    const TODAY: i64 = NOW / 86_400;

    fn span(query: &str) -> Result<Span, Problem> {
        super::span(Some(query), NOW)
    }

    fn days(start: i64, stop: i64) -> Span {
        Span {
            granularity: Granularity::Day,
            start,
            stop,
        }
    }

    #[test]
    fn both_ends_are_included() {
        assert_eq!(span("from=2026-01-30&to=2026-01-31"), Ok(days(TODAY - 1, TODAY + 1)));
        assert_eq!(
            span("from=2026-01-31T23:30:00%2B01:00&to=2026-01-31T23:59:59Z"),
            Ok(days(TODAY, TODAY + 1))
        );
        let hours = span("from=2026-01-31&to=2026-01-31T01:00:00Z&granularity=hour").unwrap();
        assert_eq!((hours.start, hours.stop), (TODAY * 24, TODAY * 24 + 2));
        assert_eq!(hours.days(), (TODAY, TODAY + 1));
    }

    #[test]
    fn a_range_that_cannot_be_reported_is_refused() {
        for (query, hint) in [
            ("from=yesterday", "from must be"),
            ("to=2026-02-30", "to must be"),
            ("granularity=week", "hour"),
            ("form=2026-01-01", "Unknown parameter \"form\""),
            ("from=2026-02-01&to=2026-01-01", "ends before"),
            ("from=2020-01-01", "731 days"),
            ("from=2025-10-01&granularity=hour", "2160 hours"),
            ("from=9999-12-30&to=0001-01-01", "ends before"),
            // One end of these ranges would have no RFC 3339 text.
            ("to=9999-12-31", "before 9999-12-31"),
            ("to=9999-12-31T23:30:00Z&granularity=hour", "before 9999-12-31"),
            ("to=0000-01-01", "year 0000"),
            ("from=2030-01-31Q18:00:00Z", "from must be"),
        ] {
            let problem = span(query).unwrap_err();
            assert_eq!(problem.status, 400, "{query}");
            assert!(problem.detail.contains(hint), "{query}: {}", problem.detail);
        }
    }

    #[test]
    fn without_a_query_the_span_is_the_default() {
        assert_eq!(super::span(None, NOW), Ok(days(TODAY - 29, TODAY + 1)));
    }

    #[test]
    fn a_journal_is_named_in_the_query() {
        let name = "0123456789abcdef0123456789abcdef";
        assert_eq!(journal_of(Some(&format!("journal={name}"))), Ok(name.to_owned()));
        for query in [None, Some(""), Some("journal="), Some("journal=x"), Some(name)] {
            assert_eq!(journal_of(query).unwrap_err().status, 400, "{query:?}");
        }
    }

    #[test]
    fn heeded_reuses_are_a_number_or_absent() {
        assert_eq!(heeded_reuses(None), Ok(None));
        assert_eq!(heeded_reuses(Some("reuses=7")), Ok(Some(7)));
        for query in ["", "reuses=", "reuses=-1", "reuses=x", "reuse=7"] {
            assert_eq!(heeded_reuses(Some(query)).unwrap_err().status, 400, "{query:?}");
        }
    }
}
