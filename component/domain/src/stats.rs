//! The statistics of one link or of all links: the range that is asked for, and the report.

use serde::{Deserialize, Serialize};

use crate::clicks::Kind;
use crate::error::Refused;
use crate::timestamp;
use crate::visit::Visit;
use crate::visitors::Sketch;

const HOUR: i64 = 3600;
const HOURS_A_DAY: i64 = 24;

/// The longest span by hour. Hours are not kept for longer.
pub const MOST_HOURS: i64 = 90 * HOURS_A_DAY;

/// The longest span by day.
pub const MOST_DAYS: i64 = 731;

const DEFAULT_HOURS: i64 = 48;
const DEFAULT_DAYS: i64 = 30;

/// The maximum number of referrers that a report names. The rest is summed up, as in the database.
const MOST_REFERRERS: usize = 50;

/// The maximum number of links that the statistics of all links list.
pub const TOP: i64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    Hour,
    Day,
}

impl Granularity {
    fn seconds(self) -> i64 {
        match self {
            Granularity::Hour => HOUR,
            Granularity::Day => HOUR * HOURS_A_DAY,
        }
    }
}

/// A range of hours or days, numbered since 1970, from `start` up to but not including `stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub granularity: Granularity,
    pub start: i64,
    pub stop: i64,
}

impl Span {
    /// The span from the hour or day of `from` to that of `to`, both included. Without `to` the span ends now; without `from`
    /// it has the default length. All times are in Unix seconds.
    ///
    /// # Errors
    /// The span is empty, too long, or outside the years 0000 to 9999.
    pub fn new(from: Option<i64>, to: Option<i64>, granularity: Granularity, now: i64) -> Result<Span, Refused> {
        let (most, default) = match granularity {
            Granularity::Hour => (MOST_HOURS, DEFAULT_HOURS),
            Granularity::Day => (MOST_DAYS, DEFAULT_DAYS),
        };
        let bucket = |moment: i64| moment.div_euclid(granularity.seconds());
        let stop = bucket(to.unwrap_or(now)) + 1;
        let start = from.map_or(stop - default, bucket);
        if start >= stop {
            return Err(Refused::new("The range ends before it begins."));
        }
        if stop - start > most {
            return Err(Refused::new(match granularity {
                Granularity::Hour => {
                    format!("The range is longer than {most} hours. Ask for a shorter one, or by day.")
                }
                Granularity::Day => format!("The range is longer than {most} days. Ask for a shorter one."),
            }));
        }
        let span = Span {
            granularity,
            start,
            stop,
        };
        if [start, stop].into_iter().any(|bucket| span.text_of(bucket).is_none()) {
            return Err(Refused::new(
                "The range must begin in the year 0000 or later, and end before 9999-12-31.",
            ));
        }
        Ok(span)
    }

    /// The days that the span touches, from the first up to but not including the second.
    pub fn days(self) -> (i64, i64) {
        match self.granularity {
            Granularity::Day => (self.start, self.stop),
            Granularity::Hour => (
                self.start.div_euclid(HOURS_A_DAY),
                (self.stop - 1).div_euclid(HOURS_A_DAY) + 1,
            ),
        }
    }

    fn text_of(self, bucket: i64) -> Option<String> {
        timestamp::to_text(bucket * self.granularity.seconds())
    }

    /// The start of an hour or a day. [`Span::new`] only accepts those that have a text.
    fn moment(self, bucket: i64) -> String {
        self.text_of(bucket).unwrap_or_default()
    }
}

/// The statistics as a client gets them. Referrers, devices, browsers, systems and countries are those of all days that the
/// range touches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The slug of the link; `None` for all links.
    pub slug: Option<String>,
    /// The first moment of the range.
    pub from: String,
    /// The first moment after the range.
    pub until: String,
    pub granularity: Granularity,
    pub clicks: u64,
    /// The clicks of bots, which are not included in `clicks`.
    pub bots: u64,
    /// The estimated visitors of each day, added up: somebody who comes on two days counts twice. `None` in a report by hour.
    pub visitors: Option<u64>,
    /// Every hour or day of the range, including those without a click.
    pub series: Vec<Bar>,
    /// The hosts that referred. The name is empty where no referrer was sent, and "*" stands for the rest.
    pub referrers: Vec<Share>,
    pub devices: Vec<Share>,
    pub browsers: Vec<Share>,
    pub systems: Vec<Share>,
    pub countries: Vec<Share>,
    /// The links with the most clicks; only in a report about all links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<Vec<Link>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    pub start: String,
    pub clicks: u64,
    pub bots: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visitors: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub name: String,
    pub clicks: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub slug: String,
    pub clicks: u64,
    pub bots: u64,
}

/// What the database has for a span.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Hour or day, clicks, clicks of bots.
    pub clicks: Vec<(i64, u64, u64)>,
    /// Day, and the sketch of its visitors.
    pub visitors: Vec<(i64, Sketch)>,
    /// Kind, name, clicks; the most frequent come first.
    pub details: Vec<(i64, String, u64)>,
    pub links: Option<Vec<Link>>,
}

impl Report {
    pub fn new(slug: Option<&str>, span: Span, found: Found) -> Report {
        let by_day = span.granularity == Granularity::Day;
        let mut series: Vec<Bar> = (span.start..span.stop)
            .map(|bucket| Bar {
                start: span.moment(bucket),
                clicks: 0,
                bots: 0,
                visitors: by_day.then_some(0),
            })
            .collect();
        let index = |bucket: i64| usize::try_from(bucket.checked_sub(span.start)?).ok();
        for (bucket, clicks, bots) in found.clicks {
            if let Some(bar) = index(bucket).and_then(|index| series.get_mut(index)) {
                (bar.clicks, bar.bots) = (clicks, bots);
            }
        }
        for (day, sketch) in found.visitors.iter().filter(|_| by_day) {
            if let Some(bar) = index(*day).and_then(|index| series.get_mut(index)) {
                bar.visitors = Some(sketch.estimate());
            }
        }
        let mut report = Report {
            slug: slug.map(str::to_owned),
            from: span.moment(span.start),
            until: span.moment(span.stop),
            granularity: span.granularity,
            clicks: series.iter().map(|bar| bar.clicks).sum(),
            bots: series.iter().map(|bar| bar.bots).sum(),
            visitors: by_day.then(|| series.iter().filter_map(|bar| bar.visitors).sum()),
            series,
            referrers: vec![],
            devices: vec![],
            browsers: vec![],
            systems: vec![],
            countries: vec![],
            links: found.links,
        };
        for (kind, name, clicks) in found.details {
            report.add(kind, &name, clicks);
        }
        report.sort();
        report
    }

    fn add(&mut self, kind: i64, name: &str, clicks: u64) {
        // A later release may have written other kinds.
        let Some(kind) = u8::try_from(kind).ok().and_then(|kind| Kind::try_from(kind).ok()) else {
            return;
        };
        match kind {
            Kind::Referrer if self.referrers.len() < MOST_REFERRERS => add(&mut self.referrers, name, clicks),
            Kind::Referrer => add(&mut self.referrers, crate::clicks::OTHER, clicks),
            Kind::Country => add(&mut self.countries, name, clicks),
            Kind::Visit => {
                if let Some(visit) = Visit::from_code(name) {
                    add(&mut self.devices, visit.device.name(), clicks);
                    add(&mut self.browsers, visit.browser.name(), clicks);
                    add(&mut self.systems, visit.system.name(), clicks);
                }
            }
        }
    }

    fn sort(&mut self) {
        let lists = [
            &mut self.referrers,
            &mut self.devices,
            &mut self.browsers,
            &mut self.systems,
            &mut self.countries,
        ];
        for list in lists {
            sort(list);
        }
    }
}

/// Puts the most frequent first; names with the same count keep their order. The lists are short and nearly sorted already, and
/// the standard library's stable sort is 3.5 KB of Wasm.
fn sort(list: &mut [Share]) {
    for end in 1..list.len() {
        let (sorted, [share, ..]) = list.split_at(end) else {
            return;
        };
        let place = sorted.partition_point(|other| other.clicks >= share.clicks);
        if let Some(moved) = list.get_mut(place..=end) {
            moved.rotate_right(1);
        }
    }
}

fn add(list: &mut Vec<Share>, name: &str, clicks: u64) {
    match list.iter_mut().find(|share| share.name == name) {
        Some(share) => share.clicks += clicks,
        None => list.push(Share {
            name: name.to_owned(),
            clicks,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// 2026-01-31T18:30:00Z
    const NOW: i64 = 1_769_884_200;
    const TODAY: i64 = NOW / 86_400;

    fn days(start: i64, stop: i64) -> Span {
        Span {
            granularity: Granularity::Day,
            start,
            stop,
        }
    }

    #[test]
    fn the_default_span_is_the_last_thirty_days_including_today() {
        assert_eq!(
            Span::new(None, None, Granularity::Day, NOW),
            Ok(days(TODAY - 29, TODAY + 1))
        );
        let hours = Span::new(None, None, Granularity::Hour, NOW).unwrap();
        assert_eq!((hours.start, hours.stop), (NOW / 3600 - 47, NOW / 3600 + 1));
    }

    #[test]
    fn the_ends_of_the_latest_range_have_a_text() {
        let last = Span::new(None, timestamp::parse_day("9999-12-30"), Granularity::Day, NOW).unwrap();
        let report = Report::new(None, last, Found::default());
        assert_eq!(
            (report.from.as_str(), report.until.as_str()),
            ("9999-12-01T00:00:00Z", "9999-12-31T00:00:00Z")
        );
    }

    fn share(name: &str, clicks: u64) -> Share {
        Share {
            name: name.into(),
            clicks,
        }
    }

    #[test]
    fn a_report_has_every_day_and_the_totals() {
        let mut sketch = Sketch::default();
        sketch.join(0, 1);
        sketch.join(2, 1 << 63);
        let found = Found {
            clicks: vec![(TODAY - 1, 5, 2), (TODAY, 7, 0)],
            visitors: vec![(TODAY, sketch)],
            details: vec![
                (1, String::new(), 8),
                (1, "news.example".into(), 4),
                (2, "pca".into(), 6),
                (2, "dcw".into(), 5),
                (2, "dfw".into(), 1),
                (3, "DE".into(), 12),
                (9, "of a later release".into(), 1),
            ],
            links: None,
        };
        let report = Report::new(Some("abc"), days(TODAY - 2, TODAY + 1), found);
        assert_eq!((report.clicks, report.bots, report.visitors), (12, 2, Some(2)));
        assert_eq!(
            (report.from.as_str(), report.until.as_str()),
            ("2026-01-29T00:00:00Z", "2026-02-01T00:00:00Z")
        );
        let clicks: Vec<_> = report.series.iter().map(|bar| (bar.clicks, bar.visitors)).collect();
        assert_eq!(clicks, [(0, Some(0)), (5, Some(0)), (7, Some(2))]);
        assert_eq!(report.referrers, [share("", 8), share("news.example", 4)]);
        assert_eq!(report.devices, [share("phone", 6), share("desktop", 6)]);
        assert_eq!(report.browsers, [share("Chrome", 11), share("Firefox", 1)]);
        assert_eq!(report.systems, [share("Android", 6), share("Windows", 6)]);
        assert_eq!(report.countries, [share("DE", 12)]);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn surplus_referrers_are_summed_up() {
        let details = (0..200).map(|n| (1, format!("{n}.example"), 3)).collect();
        let found = Found {
            details,
            ..Found::default()
        };
        let report = Report::new(None, days(TODAY, TODAY + 1), found);
        assert_eq!(report.referrers.len(), MOST_REFERRERS + 1);
        assert_eq!(report.referrers[0], share("*", 450));
    }

    #[test]
    fn a_report_by_hour_has_no_visitors() {
        let hours = Span::new(None, None, Granularity::Hour, NOW).unwrap();
        let report = Report::new(None, hours, Found::default());
        assert_eq!((report.visitors, report.series.len()), (None, 48));
        assert!(!serde_json::to_string(&report).unwrap().contains("\"visitors\":0"));
    }
}
