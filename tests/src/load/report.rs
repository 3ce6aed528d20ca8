//! The outcomes of the requests, and how long they took.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::mix::Link;
use crate::failure::Failure;

/// The maximum number of failures of one kind that a report describes in full.
pub(super) const MAX_EXAMPLES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    Get,
    Head,
    Post,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
        })
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Right,
    Refused,
    /// The connection was reset, or ended before the answer was complete.
    Reset,
    TimedOut,
    /// The answer has an unexpected status.
    Status(u16),
    /// The answer has the right status but the wrong location, or no slug.
    Answer,
    /// The answer is not HTTP, or the machine's network failed.
    Other,
}

impl Outcome {
    pub(super) fn of(failure: &Failure) -> Self {
        match failure {
            Failure::Refused => Self::Refused,
            Failure::Reset => Self::Reset,
            Failure::TimedOut(_) => Self::TimedOut,
            Failure::Other(_) => Self::Other,
        }
    }
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Example {
    /// When the request ended, since the start of the load.
    pub at: Duration,
    /// When the request ended, since 1970, as `journalctl --output=short-unix` prints it.
    pub time: Duration,
    pub method: Method,
    pub outcome: Outcome,
    /// The request, the answer or failure, and the kind of connection.
    pub what: String,
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, what, .. } = self;
        let (at, time) = (self.at.as_secs_f64(), self.time.as_secs_f64());
        write!(f, "at {at:.3} s ({time:.3}): {method} {what}")
    }
}

/// The latencies of one phase.
#[derive(Clone, Debug)]
pub struct Latency {
    pub phase: String,
    /// Latencies in microseconds, in ascending order.
    sorted: Vec<u32>,
}

impl Latency {
    pub fn requests(&self) -> usize {
        self.sorted.len()
    }

    /// The time within which this share of the requests was answered: 0.5 for the median, 1.0 for the slowest.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.sorted.len() as f64 * share).ceil() as usize;
        let micros = self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0);
        Duration::from_micros(micros.into())
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.quantile(share).as_secs_f64() * 1000.0;
        let (p50, p99, max) = (ms(0.5), ms(0.99), ms(1.0));
        write!(
            f,
            "{}: {} requests, p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.0} ms",
            self.phase,
            self.requests()
        )
    }
}

/// The results of all workers.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub(super) outcomes: BTreeMap<(Method, Outcome), u64>,
    /// The first failures of each kind, in order of time.
    pub examples: Vec<Example>,
    /// The number of kept connections that the server had closed before the next request was sent.
    pub closes: u64,
    /// The number of `GET` and `HEAD` requests sent again because a kept connection ended without a byte of an answer.
    pub retries: u64,
    pub acknowledged: Vec<Link>,
    pub elapsed: Duration,
    /// The latencies of each phase that had requests.
    pub latencies: Vec<Latency>,
    /// Latencies in microseconds, by the index of the phase.
    samples: Vec<Vec<u32>>,
}

impl Report {
    /// The number of requests that match.
    pub fn count(&self, matching: impl Fn(Method, Outcome) -> bool) -> u64 {
        let matching = self
            .outcomes
            .iter()
            .filter(|((method, outcome), _)| matching(*method, *outcome));
        matching.map(|(_, count)| count).sum()
    }

    /// The number of requests with this outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.count(|_, found| found == outcome)
    }

    pub fn requests(&self) -> u64 {
        self.count(|_, _| true)
    }

    /// The number of requests that got anything but the right answer.
    pub fn failed(&self) -> u64 {
        self.count(|_, outcome| outcome != Outcome::Right)
    }

    /// The number of answers with a 5xx status.
    pub fn server_errors(&self) -> u64 {
        self.count(|_, outcome| matches!(outcome, Outcome::Status(500..)))
    }

    /// The latencies of a phase, if it had requests.
    pub fn latency(&self, phase: &str) -> Option<&Latency> {
        self.latencies.iter().find(|latency| latency.phase == phase)
    }

    pub(super) fn add(&mut self, other: Self) {
        for (key, count) in other.outcomes {
            *self.outcomes.entry(key).or_default() += count;
        }
        self.examples.extend(other.examples);
        self.closes += other.closes;
        self.retries += other.retries;
        self.acknowledged.extend(other.acknowledged);
        self.samples
            .resize_with(self.samples.len().max(other.samples.len()), Vec::new);
        for (all, more) in self.samples.iter_mut().zip(other.samples) {
            all.extend(more);
        }
    }

    pub(super) fn sample(&mut self, phase: usize, took: Duration) {
        self.samples.resize_with(self.samples.len().max(phase + 1), Vec::new);
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.samples[phase].push(micros);
    }

    /// Computes what needs the results of all workers: the latencies and the first failures.
    pub(super) fn finish(&mut self, phases: &[String]) {
        let samples = std::mem::take(&mut self.samples);
        self.latencies = phases
            .iter()
            .zip(samples)
            .filter(|(_, samples)| !samples.is_empty())
            .map(|(phase, mut sorted)| {
                sorted.sort_unstable();
                Latency {
                    phase: phase.clone(),
                    sorted,
                }
            })
            .collect();
        self.examples.sort_by_key(|example| example.at);
        let mut kept = BTreeMap::<_, usize>::new();
        self.examples.retain(|example| {
            let count = kept.entry((example.method, example.outcome)).or_default();
            *count += 1;
            *count <= MAX_EXAMPLES
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, seconds) = (self.requests(), self.elapsed.as_secs_f64());
        write!(
            f,
            "{requests} requests in {seconds:.1} s ({:.0}/s), {} failed; {} links acknowledged; kept connections: {} \
             found closed, {} requests sent again",
            requests as f64 / seconds,
            self.failed(),
            self.acknowledged.len(),
            self.closes,
            self.retries,
        )?;
        for ((method, outcome), count) in &self.outcomes {
            write!(f, "\n  {method:<4} {outcome:?}: {count}")?;
        }
        for latency in &self.latencies {
            write!(f, "\n  {latency}")?;
        }
        for example in &self.examples {
            write!(f, "\n  {example}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact() {
        let latency = Latency {
            phase: String::new(),
            sorted: (1..=200).collect(),
        };
        let micros = |share| latency.quantile(share).as_micros();
        assert_eq!([0.5, 0.99, 1.0].map(micros), [100, 198, 200]);
    }
}
