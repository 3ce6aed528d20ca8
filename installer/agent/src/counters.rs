//! The instances' counters, summed over their restarts. A runtime counts from zero whenever it starts, but the exposed
//! counters show what an instance has done in total.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use super::families::{self, Family};
use links_base::files;
use links_base::layout::Layout;

/// The maximum number of series per instance, so that a runtime that invents names cannot fill the memory. Normally there is a
/// handful for each component.
const MAX_SERIES: usize = 100;
/// How long a series must be silent before another one may replace it, in seconds. Runtimes send every series once a minute.
const STALE: u64 = 600;
/// The maximum number of earlier runs that are remembered for each series.
const MAX_PAST_RUNS: usize = 8;

/// One received value of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub family: &'static Family,
    pub component: String,
    /// All attributes in canonical form, so that equal attributes give equal strings.
    pub attributes: String,
    pub temporality: Temporality,
    /// When the runtime began to count, in nanoseconds since 1970; 0 if the sender does not say.
    pub start: u64,
    /// When the value was taken, in nanoseconds since 1970.
    pub time: u64,
    pub amount: Amount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temporality {
    /// The total since `start`, which stays the same while the runtime runs.
    Cumulative,
    /// The increase since the previous point.
    Delta,
}

/// The value of a counter, or the sum and the number of measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Amount {
    pub sum: f64,
    /// 0 for a counter.
    pub count: f64,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count + other.count,
        }
    }

    fn is_below(self, other: Self) -> bool {
        self.sum < other.sum || self.count < other.count
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Key {
    instance: u16,
    family: String,
    component: String,
    attributes: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Series {
    /// The total of earlier runs and of all deltas.
    done: Amount,
    /// The latest cumulative value of the current run.
    current: Amount,
    start: u64,
    time: u64,
    /// The start times of earlier runs.
    over: Vec<u64>,
    /// When the last point arrived, in Unix seconds of this host.
    #[serde(default)]
    seen: u64,
}

impl Series {
    fn new(point: &Point) -> Self {
        Self {
            done: Amount::default(),
            current: Amount::default(),
            start: point.start,
            // Earlier than every point.
            time: 0,
            over: vec![],
            seen: 0,
        }
    }

    fn take(&mut self, point: &Point) {
        match point.temporality {
            Temporality::Cumulative if point.start == self.start => {
                // A late or repeated point.
                if point.time <= self.time {
                    return;
                }
                // A decrease means a new run that does not announce itself by another start time.
                if point.amount.is_below(self.current) {
                    self.done = self.done.plus(self.current);
                }
                self.current = point.amount;
            }
            Temporality::Cumulative => {
                // Comparing the start times would be wrong, because the clock may have been set back in between.
                if self.over.contains(&point.start) {
                    return;
                }
                self.over.push(self.start);
                if self.over.len() > MAX_PAST_RUNS {
                    self.over.remove(0);
                }
                self.done = self.done.plus(self.current);
                self.current = point.amount;
            }
            Temporality::Delta => {
                // A sender that missed the response sends the same point again.
                if (point.start, point.time) == (self.start, self.time) {
                    return;
                }
                self.done = self.done.plus(point.amount);
            }
        }
        (self.start, self.time) = (point.start, point.time);
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    series: BTreeMap<Key, Series>,
    /// The number of points that were ignored because there were too many series.
    pub ignored: u64,
    changed: bool,
}

impl Counters {
    /// Adds a point. `now` is in Unix seconds.
    pub fn take(&mut self, instance: u16, point: &Point, now: u64) {
        let key = Key {
            instance,
            family: point.family.name.to_owned(),
            component: point.component.clone(),
            attributes: point.attributes.clone(),
        };
        if !self.series.contains_key(&key) && !self.make_room(instance, now) {
            self.ignored += 1;
            return;
        }
        let series = self.series.entry(key).or_insert_with(|| Series::new(point));
        series.take(point);
        series.seen = now;
        self.changed = true;
    }

    /// Makes room for one more series of the instance, if necessary in place of the one that has been silent longest. The room
    /// that invented series take is therefore free again some time after they end.
    fn make_room(&mut self, instance: u16, now: u64) -> bool {
        let of_instance = self.series.iter().filter(|(key, _)| key.instance == instance);
        if of_instance.clone().count() < MAX_SERIES {
            return true;
        }
        let oldest = of_instance.min_by_key(|(_, series)| series.seen);
        let stale = oldest
            .filter(|(_, series)| series.seen.abs_diff(now) >= STALE)
            .map(|(key, _)| key.clone());
        stale.is_some_and(|key| self.series.remove(&key).is_some())
    }

    /// The totals by family, instance and component.
    pub fn totals(&self) -> BTreeMap<(&'static str, u16, &str), (&'static Family, Amount)> {
        let mut totals = BTreeMap::new();
        for (key, series) in &self.series {
            let Some(family) = families::RUNTIME.iter().find(|family| family.name == key.family) else {
                continue;
            };
            let (_, total) = totals
                .entry((family.name, key.instance, key.component.as_str()))
                .or_insert((*family, Amount::default()));
            *total = total.plus(series.done).plus(series.current);
        }
        totals
    }

    /// Loads what an earlier agent has saved. Starts empty if there is no such file or it cannot be parsed.
    pub fn load(layout: &Layout) -> Self {
        let saved = fs::read(layout.agent_counters())
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Vec<(Key, Series)>>(&bytes).ok());
        Self {
            series: saved.unwrap_or_default().into_iter().collect(),
            ..Self::default()
        }
    }

    /// All series as JSON, to be saved. Returns `None` if nothing has changed since the last call.
    pub fn take_changes(&mut self) -> Option<Vec<u8>> {
        let series: Vec<_> = self.series.iter().collect();
        // Numbers and strings can always be serialized.
        std::mem::take(&mut self.changed).then(|| serde_json::to_vec(&series).unwrap_or_default())
    }

    /// Saves what [`Self::take_changes`] returned.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn save(layout: &Layout, changes: &[u8]) -> anyhow::Result<()> {
        files::replace(&layout.agent_counters(), changes, 0o600)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::families::{CPU, REQUESTS};
    use super::*;
    use links_base::layout::temporary;

    fn point(temporality: Temporality, start: u64, time: u64, sum: f64) -> Point {
        Point {
            family: &REQUESTS,
            component: "links".to_owned(),
            attributes: String::new(),
            temporality,
            start,
            time,
            amount: Amount { sum, count: 0.0 },
        }
    }

    /// The total after each of these points.
    fn totals(points: &[Point]) -> Vec<f64> {
        let mut counters = Counters::default();
        points
            .iter()
            .map(|point| {
                counters.take(1, point, 0);
                total(&counters)
            })
            .collect()
    }

    fn total(counters: &Counters) -> f64 {
        counters.totals().values().map(|(_, amount)| amount.sum).sum()
    }

    fn cumulative(start: u64, time: u64, sum: f64) -> Point {
        point(Temporality::Cumulative, start, time, sum)
    }

    fn delta(start: u64, time: u64, sum: f64) -> Point {
        point(Temporality::Delta, start, time, sum)
    }

    #[test]
    fn a_run_reports_its_total() {
        let points = [
            cumulative(10, 20, 5.0),
            cumulative(10, 30, 8.0),
            cumulative(10, 40, 8.0),
        ];
        assert_eq!(totals(&points), [5.0, 8.0, 8.0]);
    }

    #[test]
    fn a_new_run_adds_to_the_old_one() {
        // This holds even if the first value of the new run exceeds the last one of the old run.
        let points = [
            cumulative(10, 20, 5.0),
            cumulative(30, 40, 9.0),
            cumulative(30, 50, 10.0),
        ];
        assert_eq!(totals(&points), [5.0, 14.0, 15.0]);
    }

    #[test]
    fn late_and_repeated_points_are_ignored() {
        let points = [
            cumulative(10, 20, 5.0),
            cumulative(10, 20, 5.0),
            cumulative(10, 15, 3.0),
            cumulative(30, 40, 1.0),
            cumulative(10, 25, 6.0),
            cumulative(30, 50, 2.0),
        ];
        assert_eq!(totals(&points), [5.0, 5.0, 5.0, 6.0, 6.0, 7.0]);
    }

    #[test]
    fn a_clock_that_was_set_back_does_no_harm() {
        let points = [
            cumulative(1000, 2000, 5.0),
            cumulative(10, 20, 2.0),
            cumulative(10, 30, 3.0),
        ];
        assert_eq!(totals(&points), [5.0, 7.0, 8.0]);
    }

    #[test]
    fn without_a_start_time_a_new_run_shows_by_a_decrease() {
        let points = [cumulative(0, 20, 5.0), cumulative(0, 30, 2.0), cumulative(0, 40, 4.0)];
        assert_eq!(totals(&points), [5.0, 7.0, 9.0]);
    }

    #[test]
    fn deltas_add_up_and_count_once() {
        let points = [
            delta(10, 20, 5.0),
            delta(20, 30, 3.0),
            delta(20, 30, 3.0),
            // A new run.
            delta(45, 50, 1.0),
        ];
        assert_eq!(totals(&points), [5.0, 8.0, 8.0, 9.0]);
    }

    #[test]
    fn totals_are_by_instance_and_component_only() {
        let mut counters = Counters::default();
        let mut second = cumulative(10, 20, 3.0);
        second.attributes = "trigger_type=redis".to_owned();
        let mut other = cumulative(10, 20, 7.0);
        other.component = "admin".to_owned();
        for point in [&cumulative(10, 20, 1.0), &second, &other] {
            counters.take(1, point, 0);
        }
        counters.take(2, &cumulative(10, 20, 9.0), 0);
        let name = REQUESTS.name;
        let sums: Vec<_> = counters
            .totals()
            .into_iter()
            .map(|(key, (_, amount))| (key, amount.sum))
            .collect();
        assert_eq!(
            sums,
            [
                ((name, 1, "admin"), 7.0),
                ((name, 1, "links"), 4.0),
                ((name, 2, "links"), 9.0)
            ]
        );
    }

    #[test]
    fn the_next_agent_continues_from_the_saved_counters() {
        let (_root, layout) = temporary(&[Layout::metrics_dir]);
        let mut counters = Counters::load(&layout);
        assert_eq!(counters.take_changes(), None, "nothing came in");
        for point in [cumulative(10, 20, 5.0), cumulative(30, 40, 2.0)] {
            counters.take(1, &point, 0);
        }
        let mut cpu = cumulative(10, 20, 0.5);
        (cpu.family, cpu.amount.count) = (&CPU, 3.0);
        // A number whose last bit a careless parser gets wrong.
        cpu.amount.sum = 1_795_355_004.247_255_3;
        counters.take(1, &cpu, 0);
        Counters::save(&layout, &counters.take_changes().unwrap()).unwrap();
        assert_eq!(counters.take_changes(), None);

        let mut next = Counters::load(&layout);
        assert_eq!(next.totals(), counters.totals());
        next.take(1, &cumulative(30, 50, 4.0), 0);
        // A point of a run whose end the first agent has seen.
        next.take(1, &cumulative(10, 60, 99.0), 0);
        assert_eq!(next.totals()[&(REQUESTS.name, 1, "links")].1.sum, 9.0);

        fs::write(layout.agent_counters(), "{").unwrap();
        assert!(Counters::load(&layout).series.is_empty());
    }

    fn of(component: &str, time: u64) -> Point {
        Point {
            component: component.to_owned(),
            ..cumulative(10, time, time as f64)
        }
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let mut counters = Counters::default();
        for number in 0..=MAX_SERIES {
            counters.take(1, &of(&number.to_string(), 20), 0);
        }
        assert_eq!((counters.series.len(), counters.ignored), (MAX_SERIES, 1));
        counters.take(1, &of("0", 30), 1);
        assert_eq!(counters.ignored, 1, "an existing series still counts");
    }

    #[test]
    fn invented_series_do_not_lock_out_real_ones() {
        let mut counters = Counters::default();
        counters.take(1, &of("links", 20), 0);
        for number in 0..10 * MAX_SERIES as u64 {
            counters.take(1, &of(&number.to_string(), 20), number);
            counters.take(1, &of("links", 20 + number), number);
        }
        let real = |counters: &Counters, instance, component| {
            let totals = counters.totals();
            totals
                .get(&(REQUESTS.name, instance, component))
                .map(|total| total.1.sum)
        };
        let last = 10 * MAX_SERIES as u64 - 1;
        assert_eq!(real(&counters, 1, "links"), Some((20 + last) as f64), "it still counts");
        counters.take(2, &of("links", 20), last);
        assert_eq!(
            real(&counters, 2, "links"),
            Some(20.0),
            "another instance has room of its own"
        );
        counters.take(1, &of("admin", 20), last + STALE);
        assert_eq!(
            real(&counters, 1, "admin"),
            Some(20.0),
            "a new one has room after a while"
        );
    }
}
