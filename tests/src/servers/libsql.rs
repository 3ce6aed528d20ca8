//! The tests' own libSQL server, in a machine.

use anyhow::{Result, ensure};

use super::unit::Server;
use crate::artifacts::test_program;
use crate::machine::Machine;

/// The tests' own libSQL server.
#[derive(Debug)]
pub struct LibSql<'a>(Server<'a>);

impl<'a> std::ops::Deref for LibSql<'a> {
    type Target = Server<'a>;

    fn deref(&self) -> &Server<'a> {
        &self.0
    }
}

impl<'a> LibSql<'a> {
    pub const URL: &'static str = "http://127.0.0.1:8080";
    /// The path of the database inside the machine.
    pub const DATABASE: &'static str = "/var/lib/hrana/links.db";

    const UNIT: &'static str = "hrana";
    const PORT: u16 = 8080;

    /// Starts the server.
    ///
    /// # Errors
    /// Fails if the server does not start.
    pub fn start_in(machine: &'a Machine, token: &str) -> Result<Self> {
        machine.copy_in(&test_program("hrana-server")?, "/usr/local/bin/hrana-server")?;
        let command = format!(
            "/usr/local/bin/hrana-server --listen 127.0.0.1:8080 --database {}",
            Self::DATABASE
        );
        let environment = format!("HRANA_TOKEN={token}\n");
        Ok(Self(Server::run(
            machine,
            Self::UNIT,
            Self::PORT,
            &command,
            &environment,
            "",
        )?))
    }

    /// The server that runs already.
    pub fn running_in(machine: &'a Machine) -> Self {
        Self(Server::of(machine, Self::UNIT, Self::PORT))
    }

    /// The lines of runtime.toml that make this server the database. The token is the credential `turso_token`.
    pub fn runtime_toml() -> String {
        format!(
            "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"{}\"\ntoken = \"credential:turso_token\"\n",
            Self::URL
        )
    }

    /// Sets the delay of every answer from now on.
    ///
    /// # Errors
    /// Fails if the server does not answer.
    pub fn set_delay(&self, milliseconds: u32) -> Result<()> {
        self.set("/test/delay", &milliseconds.to_string())
    }

    /// Sets the token that the server accepts from now on. A restart restores the original one.
    ///
    /// # Errors
    /// Fails if the server does not answer.
    pub fn set_token(&self, token: &str) -> Result<()> {
        self.set("/test/token", token)
    }

    fn set(&self, path: &str, value: &str) -> Result<()> {
        let answer = self.client().put(path, value)?;
        ensure!(answer.status == 204, "PUT {path}: {answer}");
        Ok(())
    }
}
