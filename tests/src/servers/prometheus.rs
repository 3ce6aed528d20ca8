//! Prometheus, in a machine, which scrapes the agent of links every second.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::unit::Server;
use crate::machine::Machine;
use crate::process::eventually;

const CONFIGURATION: &str = "
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: [/usr/share/doc/links-shortener/links.rules.yml]
scrape_configs:
  - job_name: links
    static_configs: [{ targets: [\"127.0.0.1:9464\"] }]
";
/// How long a metric may take. The runtimes export every 10 s, and the agent queries the database once a minute.
const DEADLINE: Duration = Duration::from_secs(90);

#[derive(Debug)]
pub struct Prometheus<'a> {
    server: Server<'a>,
    machine: &'a Machine,
}

impl<'a> Prometheus<'a> {
    /// Starts Debian's Prometheus, and waits until it has scraped the agent. The machine's tree must contain prometheus.
    ///
    /// # Errors
    /// Fails if Prometheus does not start, or if the agent serves no metrics.
    pub fn start_in(machine: &'a Machine) -> Result<Self> {
        machine.write("/etc/prometheus/prometheus.yml", CONFIGURATION)?;
        machine.ok(["systemctl", "restart", "prometheus"])?;
        let server = Server::of(machine, "prometheus", 9090);
        let prometheus = Self { server, machine };
        prometheus.reaches("up{job=\"links\"}", 1.0)?;
        Ok(prometheus)
    }

    /// The value of `query`; `None` if there is no value, or if Prometheus is not up yet.
    ///
    /// # Errors
    /// Fails if Prometheus refuses the query.
    pub fn value(&self, query: &str) -> Result<Option<f64>> {
        let escaped: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect();
        let Ok(answer) = self.server.client().get(&format!("/api/v1/query?query={escaped}")) else {
            return Ok(None);
        };
        if answer.status == 503 {
            return Ok(None);
        }
        let found: serde_json::Value = answer.json()?;
        ensure!(found["status"] == "success", "{query}: {found}");
        let value = found["data"]["result"][0]["value"][1].as_str();
        Ok(value.map(str::parse).transpose()?)
    }

    /// Waits until the value of `query` is right.
    ///
    /// # Errors
    /// Fails if it is not within 90 s, with the last value and the metrics of the agent.
    pub fn satisfies(&self, query: &str, is_right: impl Fn(f64) -> bool) -> Result<()> {
        let mut last = None;
        eventually(query, DEADLINE, || {
            last = self.value(query)?;
            Ok(last.is_some_and(&is_right).then_some(()))
        })
        .with_context(|| {
            let page = self.machine.http_at(9464).get("/metrics");
            let page = page.map_or_else(|failure| failure.to_string(), |page| page.text());
            format!("the last value was {last:?}; the page of the agent is\n{page}")
        })
    }

    /// Waits until the value of `query` is `expected`.
    ///
    /// # Errors
    /// Fails as [`Self::satisfies`] does.
    pub fn reaches(&self, query: &str, expected: f64) -> Result<()> {
        self.satisfies(query, |value| value == expected)
    }

    /// Waits until the agent that runs now has been scraped.
    ///
    /// # Errors
    /// Fails as [`Self::satisfies`] does.
    pub fn wait_for_scrape(&self) -> Result<()> {
        let now = self.machine.shell("date +%s.%N")?.stdout;
        let query = format!("timestamp(links_build_info) > {}", now.trim());
        self.satisfies(&query, |_| true)
    }
}
