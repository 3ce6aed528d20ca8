//! The service `links` on a host: its configuration, its state, and its processes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Host;
use crate::check::{CHECK_ONLINE, Check};
use crate::http::Answer;
use crate::otlp::Requests;
use crate::process::eventually;

/// The path of the appliance's configuration.
pub const LINKS_TOML: &str = "/etc/links/links.toml";
/// The path of the configuration that names the databases and providers.
pub const RUNTIME_TOML: &str = "/etc/links/runtime.toml";

impl Host {
    /// Writes a file to /etc/links/credentials, as an administrator would.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn credential(&self, name: &str, secret: &str) -> Result<()> {
        self.write_secret(&format!("/etc/links/credentials/{name}"), &format!("{secret}\n"))
    }

    /// Writes both configuration files, reloads the service, and waits until both instances are in rotation.
    ///
    /// # Errors
    /// Fails if the service refuses the configuration, with the service's journal, or if the instances do not become healthy.
    pub fn configure(&self, links_toml: &str, runtime_toml: &str) -> Result<()> {
        self.write(RUNTIME_TOML, runtime_toml)?;
        self.configure_links(links_toml)
    }

    /// Writes runtime.toml, reloads the service, and waits until both instances are in rotation.
    ///
    /// # Errors
    /// Fails as [`Self::configure`] does.
    pub fn configure_runtime(&self, runtime_toml: &str) -> Result<()> {
        self.write(RUNTIME_TOML, runtime_toml)?;
        self.reload()
    }

    /// Writes links.toml, reloads the service, and waits until both instances are in rotation.
    ///
    /// # Errors
    /// Fails as [`Self::configure`] does.
    pub fn configure_links(&self, links_toml: &str) -> Result<()> {
        self.write(LINKS_TOML, links_toml)?;
        self.reload()
    }

    fn reload(&self) -> Result<()> {
        let reloaded = self.run(["systemctl", "reload", "links"])?;
        ensure!(
            reloaded.status == 0,
            "systemctl reload links: {reloaded}\n{}",
            self.journal("links")?
        );
        self.wait_for_rotation(2)
    }

    /// The `StatusText` of the service, which `systemctl status links` shows.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn status_line(&self) -> Result<String> {
        let shown = self.ok(["systemctl", "show", "--property=StatusText", "--value", "links"])?;
        Ok(shown.stdout.trim().to_owned())
    }

    /// Waits until the status line starts with `beginning`. The line follows the instances with a short delay.
    ///
    /// # Errors
    /// Fails if it does not within 20 s.
    pub fn wait_for_status(&self, beginning: &str) -> Result<String> {
        self.wait_for_status_with(beginning, "")
    }

    /// Waits until the status line reports both instances ready, with a release of this version and no other.
    ///
    /// # Errors
    /// Fails as [`Self::wait_for_status`] does.
    pub fn wait_for_version_in_status(&self, version: &str) -> Result<()> {
        self.wait_for_status_with("2/2 ", &format!("release {version},"))
            .map(drop)
    }

    fn wait_for_status_with(&self, beginning: &str, part: &str) -> Result<String> {
        let mut last = String::new();
        eventually(
            &format!("the status line {beginning:?} with {part:?}"),
            Duration::from_secs(20),
            || {
                last = self.status_line()?;
                Ok((last.starts_with(beginning) && last.contains(part)).then(|| last.clone()))
            },
        )
        .with_context(|| format!("the status line is {last:?}"))
    }

    /// What `linksctl status --json` prints, whether or not it reports a problem.
    ///
    /// # Errors
    /// Fails if it prints no JSON, which means that the configuration is wrong.
    pub fn status(&self) -> Result<Value> {
        self.run(["linksctl", "status", "--json"])?.json()
    }

    /// The report of `linksctl check --online`.
    ///
    /// # Errors
    /// Fails if there is no report.
    pub fn check_online(&self) -> Result<Check> {
        Check::of(&self.run(CHECK_ONLINE)?)
    }

    /// The agent's answer to a scrape of its metrics.
    ///
    /// # Errors
    /// Fails if the agent does not run, or does not answer with 200.
    pub fn metrics(&self) -> Result<Answer> {
        let answer = self.http_at(9464).get("/metrics")?;
        ensure!(answer.status == 200, "{answer}");
        Ok(answer)
    }

    /// Exports `requests` to the agent, as a runtime does: compressed or not.
    ///
    /// # Errors
    /// Fails if the agent does not take them, or takes them from a client without the secret too.
    pub fn export(&self, requests: &Requests<'_>) -> Result<()> {
        let stranger = self.http_at(9465).header("content-type", "application/x-protobuf");
        let refused = stranger.post_bytes("/v1/metrics", requests.message())?;
        ensure!(refused.status == 401, "{refused}");
        let secret = self.read("/run/links/secrets/otlp")?;
        let runtime = stranger.header("links-otlp-secret", secret.trim());
        let answer = match requests.time % 2 {
            1 => runtime
                .header("content-encoding", "gzip")
                .post_bytes("/v1/metrics", requests.gzip()?)?,
            _ => runtime.post_bytes("/v1/metrics", requests.message())?,
        };
        ensure!(answer.status == 200, "{answer}");
        Ok(())
    }

    /// The processes of the appliance's units and programs, one per line.
    ///
    /// # Errors
    /// Fails if ps fails.
    pub fn processes(&self) -> Result<String> {
        let all = self.ok(["ps", "-eo", "pid=,user=,unit=,args="])?.stdout;
        let ours =
            |line: &&str| line.contains(" links ") || line.contains("linksctl") || line.contains("/var/lib/links");
        Ok(all.lines().filter(ours).collect::<Vec<_>>().join("\n"))
    }

    /// Waits until every unit of the appliance is inactive and none of its processes is left.
    ///
    /// # Errors
    /// Fails if this takes more than 20 s.
    pub fn wait_until_stopped(&self) -> Result<()> {
        let units = ["links", "links@1", "links@2"];
        eventually("links has stopped", Duration::from_secs(20), || {
            let states = self.run(["systemctl", "is-active"].into_iter().chain(units))?.stdout;
            let stopped = states == "inactive\n".repeat(units.len()) && self.processes()?.is_empty();
            Ok(stopped.then_some(()))
        })
    }

    /// Waits until every request in nginx's journal is counted.
    ///
    /// # Errors
    /// Fails if this takes longer than `deadline`, or if the agent serves no metrics.
    pub fn wait_until_counted(&self, deadline: Duration) -> Result<()> {
        eventually("nothing is left to count", deadline, || {
            let page = self.http_at(9464).get("/metrics")?.text();
            Ok(page.contains("\nlinks_journal_lag_bytes 0\n").then_some(()))
        })
    }
}
