//! links-host with the components, without the rest of the appliance.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::directory::TestDir;
use super::process::Process;
use crate::artifacts::target_directory;
use crate::http::{Answer, Client};
use crate::stream::Address;

/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

impl TestDir {
    /// links-host with the components, this configuration and these environment variables.
    ///
    /// # Errors
    /// Fails if the runtime does not start.
    pub fn runtime(&self, configuration: &str, environment: &[(&str, &str)]) -> Result<Runtime> {
        let mut command = Command::new(target_directory().join("release/links-host"));
        command.arg("up");
        self.serve(command, &spin_toml(), configuration, environment)
    }

    /// Serves `application` with this configuration and these environment variables. `command` is `links-host up`, by whatever
    /// means it runs, with further flags.
    ///
    /// # Errors
    /// Fails if the runtime does not start.
    pub fn serve(
        &self,
        mut command: Command,
        application: &Path,
        configuration: &str,
        environment: &[(&str, &str)],
    ) -> Result<Runtime> {
        let file = self.path("runtime.toml");
        // linksctl adds this store too.
        let local = self.path("local.db");
        let local = format!("[key_value_store.local]\ntype = 'spin'\npath = '{}'\n", local.display());
        std::fs::write(&file, format!("log_dir = ''\n{local}{configuration}"))?;
        static RUNTIMES: AtomicU64 = AtomicU64::new(0);
        let socket = self.path(&format!("links-{}.sock", RUNTIMES.fetch_add(1, Relaxed)));
        command.arg("--from").arg(application);
        command
            .args(["--listen", "127.0.0.1:0"])
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .arg("--runtime-config-file")
            .arg(&file);
        command.arg("--state-dir").arg(self.path("state"));
        command.env("XDG_CACHE_HOME", target_directory().join("compiled"));
        command.envs(environment.iter().copied()).current_dir(self.path(""));
        let mut process = Process::spawn(&mut command, &self.path("runtime.err"))?;
        let address = process.line_after("Serving http://")?.parse()?;
        Ok(Runtime {
            process,
            address,
            socket,
        })
    }

    /// Everything that the runtimes have written to standard error.
    ///
    /// # Errors
    /// Fails if no runtime was started.
    pub fn runtime_errors(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.path("runtime.err"))?)
    }
}

/// The path of the application's manifest.
pub fn spin_toml() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../component/spin.toml")
}

/// A running links-host.
#[derive(Debug)]
pub struct Runtime {
    pub process: Process,
    address: SocketAddr,
    socket: PathBuf,
}

impl Runtime {
    /// A client over TCP.
    pub fn http(&self) -> Client {
        Client::here(Address::Tcp(self.address)).deadline(REQUEST_TIMEOUT)
    }

    /// A client over the Unix socket, as nginx is.
    pub fn http_through_socket(&self) -> Client {
        Client::here(Address::Unix(self.socket.clone())).deadline(REQUEST_TIMEOUT)
    }

    /// Sends `POST /shorten`.
    ///
    /// # Errors
    /// Fails if there is no answer, or if the answer is not HTTP.
    pub fn shorten(&self, token: &str, url: &str) -> Result<Answer> {
        let body = serde_json::json!({ "url": url });
        Ok(self.http().bearer(token).post("/shorten", body)?)
    }

    /// Shortens a URL and returns the slug.
    ///
    /// # Errors
    /// Fails unless the answer is 200 with a slug.
    pub fn slug(&self, token: &str, url: &str) -> Result<String> {
        let answer = self.shorten(token, url)?;
        ensure!(answer.status == 200, "POST /shorten: {answer}");
        let slug = answer.json::<Value>()?["slug"].as_str().map(str::to_owned);
        slug.with_context(|| format!("no slug in {answer}"))
    }

    /// Checks that the link redirects to `url`.
    ///
    /// # Errors
    /// Fails if it does not.
    pub fn leads_to(&self, slug: &str, url: &str) -> Result<()> {
        let answer = self.http().get(&format!("/{slug}"))?;
        ensure!(
            answer.status == 302 && answer.header("location") == url,
            "/{slug}: {answer}"
        );
        Ok(())
    }
}
