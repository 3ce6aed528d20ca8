//! Moto, which has the interface of S3, in a machine.

use anyhow::{Context as _, Result, ensure};

use super::unit::Server;
use crate::artifacts::target_directory;
use crate::http::Client;
use crate::machine::Machine;

/// A server with the interface of S3. It keeps objects in memory and accepts any signature. The machine's tree must contain
/// python3-cryptography.
#[derive(Debug)]
pub struct S3<'a> {
    server: Server<'a>,
}

impl<'a> std::ops::Deref for S3<'a> {
    type Target = Server<'a>;

    fn deref(&self) -> &Server<'a> {
        &self.server
    }
}

impl<'a> S3<'a> {
    pub const ENDPOINT: &'static str = "http://127.0.0.1:5000";
    pub const BUCKET: &'static str = "backups";

    /// Starts Moto and creates the bucket.
    ///
    /// # Errors
    /// Fails if Moto is missing or does not start.
    pub fn start_in(machine: &'a Machine) -> Result<Self> {
        machine
            .copy_in(&target_directory().join("servers/moto.tar"), "/var/tmp/moto.tar")
            .context("Copying Moto, which .ci/servers installs")?;
        machine.shell(
            "mkdir /opt/moto; tar --extract --file /var/tmp/moto.tar --directory /opt/moto; rm /var/tmp/moto.tar",
        )?;
        let command = "/usr/bin/python3 -m moto.server -H 127.0.0.1 -p 5000";
        let server = Server::run(machine, "moto", 5000, command, "PYTHONPATH=/opt/moto\n", "")?;
        let s3 = Self { server };
        s3.create_bucket()?;
        Ok(s3)
    }

    /// The host, because Moto would take the first label of another name for a bucket.
    fn api(&self) -> Client {
        self.client().header("host", "127.0.0.1:5000")
    }

    fn create_bucket(&self) -> Result<()> {
        let made = self.api().put(&format!("/{}", Self::BUCKET), "")?;
        ensure!(made.status == 200, "{made}");
        Ok(())
    }

    /// The keys of all objects.
    ///
    /// # Errors
    /// Fails if the server does not answer.
    pub fn keys(&self) -> Result<Vec<String>> {
        self.listed(&format!("/{}?list-type=2", Self::BUCKET))
    }

    /// The keys of the uploads that were begun and not ended.
    ///
    /// # Errors
    /// Fails if the server does not answer.
    pub fn uploads(&self) -> Result<Vec<String>> {
        self.listed(&format!("/{}?uploads", Self::BUCKET))
    }

    fn listed(&self, path: &str) -> Result<Vec<String>> {
        let answer = self.api().get(path)?;
        ensure!(answer.status == 200, "{answer}");
        let text = answer.text();
        let parts = text
            .split("<Key>")
            .skip(1)
            .filter_map(|part| part.split("</Key>").next());
        Ok(parts.map(str::to_owned).collect())
    }
}
