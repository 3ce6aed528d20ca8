//! Runs wrk and parses its output.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

/// The results of one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Wrk {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Wrk {
    /// # Errors
    /// Fails if requests failed, or if the text is not the output of `wrk --latency`.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(
            !text.contains("Non-2xx or 3xx responses") && !text.contains("Socket errors"),
            "wrk reports failed requests:\n{text}"
        );
        let after = |prefix: &str| {
            let found = text.lines().find_map(|line| line.trim_start().strip_prefix(prefix));
            found
                .map(str::trim)
                .with_context(|| format!("the output of wrk has no {prefix}\n{text}"))
        };
        Ok(Self {
            per_second: after("Requests/sec:")?.parse()?,
            p50_ms: milliseconds(after("50%")?)?,
            p99_ms: milliseconds(after("99%")?)?,
        })
    }
}

/// Parses a time in wrk's format: "9.27us", "1.25ms", "1.02s", "1.10m".
fn milliseconds(text: &str) -> Result<f64> {
    let unit = text.trim_start_matches(|digit: char| digit.is_ascii_digit() || digit == '.');
    let number: f64 = text.trim_end_matches(unit).parse()?;
    Ok(number
        * match unit {
            "us" => 0.001,
            "ms" => 1.0,
            "s" => 1_000.0,
            "m" => 60_000.0,
            _ => anyhow::bail!("unknown unit in the time {text} of wrk"),
        })
}

/// Runs wrk with one thread for this many seconds.
///
/// # Errors
/// Fails if wrk cannot be started, or if an answer is an error.
pub fn wrk(seconds: u32, connections: u32, arguments: &[&str]) -> Result<Wrk> {
    let output = Command::new("wrk")
        .args([
            "--latency",
            "-t1",
            &format!("-c{connections}"),
            &format!("-d{seconds}s"),
        ])
        .args(arguments)
        .output()
        .context("Starting wrk (apt-get install wrk)")?;
    ensure!(output.status.success(), "wrk failed: {output:?}");
    Wrk::parse(&String::from_utf8_lossy(&output.stdout))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    const OUTPUT: &str = "Running 4s test @ http://127.0.0.1:7001/bench
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.92ms  508.41us  12.03ms   85.31%
    Req/Sec    16.79k     1.02k   18.50k    67.50%
  Latency Distribution
     50%    1.80ms
     75%    2.04ms
     90%    2.44ms
     99%  870.00us
  66861 requests in 4.00s, 9.31MB read
Requests/sec:  16702.66
Transfer/sec:      2.33MB
";

    #[test]
    fn the_output_of_wrk_is_parsed() {
        let expected = Wrk {
            per_second: 16702.66,
            p50_ms: 1.8,
            p99_ms: 0.87,
        };
        assert_eq!(Wrk::parse(OUTPUT).unwrap(), expected);
    }

    #[test]
    fn failed_requests_are_an_error() {
        for failed in [
            "Non-2xx or 3xx responses: 1",
            "Socket errors: connect 0, read 1, write 0, timeout 0",
        ] {
            assert!(Wrk::parse(&format!("{OUTPUT}  {failed}\n")).is_err());
        }
        assert!(Wrk::parse("").is_err());
    }
}
