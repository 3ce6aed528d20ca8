//! Metrics of nginx's requests, taken from the journal: their number, status and duration, and what the cache did.

use std::collections::BTreeMap;

use super::line::{Cache, Line, Route};

/// Upper bounds of the buckets, in milliseconds, which is the resolution of nginx's clock.
pub const BOUNDS: [u32; 13] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];

/// Sums since the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: BTreeMap<(Route, u16), u64>,
    pub durations: BTreeMap<Route, Durations>,
    /// The time that instances took, for requests that nginx passed to one.
    pub upstream: BTreeMap<Route, Durations>,
    pub cache: BTreeMap<Cache, u64>,
}

impl Traffic {
    pub fn take(&mut self, line: &Line<'_>) {
        *self.requests.entry((line.route, line.status)).or_default() += 1;
        self.durations.entry(line.route).or_default().take(line.duration);
        if let Some(duration) = line.upstream {
            self.upstream.entry(line.route).or_default().take(duration);
        }
        if line.cache != Cache::None {
            *self.cache.entry(line.cache).or_default() += 1;
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (key, count) in &other.requests {
            *self.requests.entry(*key).or_default() += count;
        }
        for (cache, count) in &other.cache {
            *self.cache.entry(*cache).or_default() += count;
        }
        for (all, some) in [
            (&mut self.durations, &other.durations),
            (&mut self.upstream, &other.upstream),
        ] {
            for (route, durations) in some {
                all.entry(*route).or_default().add(durations);
            }
        }
    }
}

/// A histogram of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// For each bound the number of durations that do not exceed it but exceed the previous bound.
    counts: [u64; BOUNDS.len()],
    /// The number of durations that exceed the last bound.
    longer: u64,
    /// The sum of all durations.
    milliseconds: u64,
}

impl Durations {
    fn take(&mut self, milliseconds: u32) {
        let bucket = BOUNDS.partition_point(|bound| *bound < milliseconds);
        *self.counts.get_mut(bucket).unwrap_or(&mut self.longer) += 1;
        self.milliseconds += u64::from(milliseconds);
    }

    fn add(&mut self, other: &Self) {
        for (all, some) in self.counts.iter_mut().zip(other.counts) {
            *all += some;
        }
        self.longer += other.longer;
        self.milliseconds += other.milliseconds;
    }

    /// The sum of all durations, in seconds.
    pub fn sum(&self) -> f64 {
        self.milliseconds as f64 / 1000.0
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.longer
    }

    /// Each bound in seconds, with the number of durations that do not exceed it.
    pub fn up_to(&self) -> impl Iterator<Item = (f64, u64)> {
        let mut sum = 0;
        BOUNDS.iter().zip(self.counts).map(move |(bound, count)| {
            sum += count;
            (f64::from(*bound) / 1000.0, sum)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::line::parse;
    use super::*;

    fn traffic(lines: &[&str]) -> Traffic {
        let mut traffic = Traffic::default();
        for line in lines {
            let line = format!("l1\t1700000000.000\t{line}\t192.0.2.1\t-\t-").replace(' ', "\t");
            traffic.take(&parse(line.as_bytes()).unwrap());
        }
        traffic
    }

    #[test]
    fn requests_are_counted_by_route_and_status_and_by_cache_result() {
        let some = traffic(&[
            "302 0.000 - HIT GET /x",
            "302 0.000 - HIT GET /x",
            "302 0.004 0.003 MISS GET /x",
            "404 0.001 0.001 MISS GET /x",
        ]);
        let mut all = traffic(&["200 0.020 0.019 - POST /shorten", "404 0.000 - - GET /"]);
        all.add(&some);
        let requests = [
            ((Route::Redirect, 302), 3),
            ((Route::Redirect, 404), 1),
            ((Route::Shorten, 200), 1),
            ((Route::Other, 404), 1),
        ];
        assert_eq!(all.requests, requests.into());
        assert_eq!(all.cache, [(Cache::Hit, 2), (Cache::Miss, 2)].into());
        assert_eq!(all.durations[&Route::Redirect].count(), 4);
        assert_eq!(all.upstream[&Route::Redirect].count(), 2);
        assert!(!all.upstream.contains_key(&Route::Other));
    }

    #[test]
    fn a_bucket_includes_its_bound() {
        let all = traffic(&[
            "302 0.000 - - GET /x",
            "302 0.001 - - GET /x",
            "302 0.002 - - GET /x",
            "302 0.003 - - GET /x",
            "302 10.000 - - GET /x",
            "302 10.001 - - GET /x",
        ]);
        let durations = &all.durations[&Route::Redirect];
        let buckets: Vec<_> = durations.up_to().collect();
        assert_eq!(buckets[..3], [(0.001, 2), (0.002, 3), (0.005, 4)]);
        assert_eq!(buckets.last(), Some(&(10.0, 5)));
        assert_eq!((durations.count(), durations.sum()), (6, 20.007));
    }
}
