//! The services that a runtime talks to, each on its own port of this computer's loopback interface.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::directory::TestDir;
use super::process::Process;
use crate::artifacts::{bao, test_program};
use crate::http::Client;
use crate::process::eventually;
use crate::stream::Address;

/// How long a service may take to start.
const DEADLINE: Duration = Duration::from_secs(30);

/// A port that was free a moment ago.
///
/// # Errors
/// Fails if there is no free port.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

impl TestDir {
    /// A libSQL server: the program `hrana-server` on the file links.db in this directory.
    ///
    /// # Errors
    /// Fails if the server does not start.
    pub fn hrana(&self, address: SocketAddr, token: &str) -> Result<(Process, SocketAddr)> {
        let mut command = Command::new(test_program("hrana-server")?);
        command.arg("--database").arg(self.path("links.db"));
        command
            .args(["--listen", &address.to_string()])
            .env("HRANA_TOKEN", token);
        let mut process = Process::spawn(&mut command, &self.path("hrana.err"))?;
        let address = process.line_after("listening on ")?.parse()?;
        Ok((process, address))
    }

    /// OpenBao in development mode: unsealed, in memory, with a key-value engine at `secret`.
    ///
    /// # Errors
    /// Fails if `bao` is missing or does not start.
    pub fn bao(&self, port: u16, token: &str) -> Result<Process> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = Command::new(bao());
        command.args(["server", "-dev", "-dev-no-store-token"]);
        command.arg(format!("-dev-root-token-id={token}"));
        command.arg(format!("-dev-listen-address={address}"));
        command.env("HOME", self.path(""));
        let process = Process::spawn(&mut command, &self.path("bao.err")).context("Starting OpenBao (.ci/servers)")?;
        eventually("OpenBao is unsealed", DEADLINE, || {
            let answer = Client::here(Address::Tcp(address)).get("/v1/sys/health");
            Ok(answer.ok().filter(|answer| answer.status == 200).map(drop))
        })
        .with_context(|| process.errors())?;
        Ok(process)
    }

    /// A Redis server without persistence.
    ///
    /// # Errors
    /// Fails if `redis-server` is missing or does not start.
    pub fn redis(&self, port: u16, password: &str) -> Result<Process> {
        let program = std::env::var_os("LINKS_REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--port", &port.to_string(), "--requirepass", password]);
        command.current_dir(self.path(""));
        let process =
            Process::spawn(&mut command, &self.path("redis.err")).context("Starting Redis (.ci/packages test)")?;
        eventually("Redis listens", DEADLINE, || {
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(drop))
        })?;
        Ok(process)
    }
}
