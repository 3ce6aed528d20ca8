//! Services that users run beside the appliance. Each is a systemd unit inside the machine, on its loopback interface.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::artifacts::{bao, target_directory};
use crate::http::{Answer, Client};
use crate::machine::Machine;
use crate::process::eventually;

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(30);

/// A server in a machine, identified by its unit. It ends with the machine.
#[derive(Debug)]
pub struct Server<'a> {
    machine: &'a Machine,
    unit: &'static str,
    port: u16,
}

impl<'a> Server<'a> {
    /// Runs `program` as a unit, with `environment` in a file that only root can read.
    fn run(
        machine: &'a Machine,
        unit: &'static str,
        port: u16,
        program: &str,
        environment: &str,
        more: &str,
    ) -> Result<Self> {
        secret_file(machine, &format!("/etc/{unit}.env"), environment)?;
        let text = format!(
            "[Service]\nExecStart={program}\nEnvironmentFile=/etc/{unit}.env\nStateDirectory={unit}\nUMask=0077\n{more}"
        );
        machine.write(&format!("/etc/systemd/system/{unit}.service"), text)?;
        machine.ok(["systemctl", "daemon-reload"])?;
        let server = Self { machine, unit, port };
        server.start()?;
        Ok(server)
    }

    /// Stops the unit. Connections are then refused, as by a machine without the server.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn stop(&self) -> Result<()> {
        self.machine.ok(["systemctl", "stop", self.unit]).map(drop)
    }

    /// Starts the unit and waits until it listens.
    ///
    /// # Errors
    /// Fails if the server does not listen within 30 s.
    pub fn start(&self) -> Result<()> {
        self.machine.ok(["systemctl", "start", self.unit])?;
        eventually(&format!("{} listens", self.unit), START, || {
            Ok(self.client().connect().ok().map(drop))
        })
        .with_context(|| self.machine.journal(self.unit).unwrap_or_default())
    }

    /// Pauses the processes of the unit. Connections are then accepted but never answered, as by a machine that hangs.
    ///
    /// # Errors
    /// Fails if the unit does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal("SIGSTOP")
    }

    /// Lets a paused unit continue.
    ///
    /// # Errors
    /// Fails if the unit does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal("SIGCONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let signal = format!("--signal={signal}");
        self.machine.ok(["systemctl", "kill", &signal, self.unit]).map(drop)
    }

    pub fn client(&self) -> Client {
        self.machine.http_at(self.port)
    }
}

/// Writes a file that only root can read, at every moment.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn secret_file(machine: &Machine, path: &str, contents: &str) -> Result<()> {
    machine.ok(["install", "-D", "-m", "600", "/dev/null", path])?;
    machine.write(path, contents)
}

/// Writes a file to /etc/links/credentials, as an administrator would.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn credential(machine: &Machine, name: &str, secret: &str) -> Result<()> {
    secret_file(
        machine,
        &format!("/etc/links/credentials/{name}"),
        &format!("{secret}\n"),
    )
}

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

    /// Starts the server. `program` is the path of hrana-server, which cargo builds for the tests.
    ///
    /// # Errors
    /// Fails if the server does not start.
    pub fn start_in(machine: &'a Machine, program: &str, token: &str) -> Result<Self> {
        machine.copy_in(program.as_ref(), "/usr/local/bin/hrana-server")?;
        let command = format!(
            "/usr/local/bin/hrana-server --listen 127.0.0.1:8080 --database {}",
            Self::DATABASE
        );
        let environment = format!("HRANA_TOKEN={token}\n");
        Ok(Self(Server::run(machine, "hrana", 8080, &command, &environment, "")?))
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

/// Starts Debian's Redis. The machine's tree must contain redis-server.
///
/// # Errors
/// Fails if Redis cannot be configured or does not start.
pub fn redis<'a>(machine: &'a Machine, password: &str) -> Result<Server<'a>> {
    let configuration = "/etc/redis/redis.conf";
    let text = machine.read(configuration)?;
    machine.ok(["systemctl", "stop", "redis-server"])?;
    machine.write(configuration, format!("{text}\nrequirepass {password}\n"))?;
    let server = Server {
        machine,
        unit: "redis-server",
        port: 6379,
    };
    server.start()?;
    Ok(server)
}

/// OpenBao in development mode: unsealed, in memory, with a key-value engine of version 2 at `secret`.
#[derive(Debug)]
pub struct Vault<'a> {
    server: Server<'a>,
    root: String,
}

impl<'a> std::ops::Deref for Vault<'a> {
    type Target = Server<'a>;

    fn deref(&self) -> &Server<'a> {
        &self.server
    }
}

impl<'a> Vault<'a> {
    pub const URL: &'static str = "http://127.0.0.1:8200";

    /// Starts OpenBao with this root token.
    ///
    /// # Errors
    /// Fails if `bao` is missing or does not start.
    pub fn start_in(machine: &'a Machine, root: &str) -> Result<Self> {
        machine
            .copy_in(&bao(), "/usr/local/bin/bao")
            .context("Copying OpenBao, which .ci/servers installs")?;
        let command = "/usr/local/bin/bao server -dev -dev-no-store-token -dev-listen-address=127.0.0.1:8200";
        let environment = format!("BAO_DEV_ROOT_TOKEN_ID={root}\nHOME=/var/lib/bao\n");
        // OpenBao prints its root token, which must not get into the journal.
        let quiet = "StandardOutput=null\n";
        let server = Server::run(machine, "bao", 8200, command, &environment, quiet)?;
        let vault = Self {
            server,
            root: root.to_owned(),
        };
        vault.wait_until_unsealed()?;
        Ok(vault)
    }

    /// Restarts OpenBao, which is then unsealed and empty.
    ///
    /// # Errors
    /// Fails if OpenBao does not start.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()?;
        self.wait_until_unsealed()
    }

    fn wait_until_unsealed(&self) -> Result<()> {
        eventually("OpenBao has mounted its key-value engine", START, || {
            let answer = self.as_root().get("/v1/secret/config");
            Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
        })
    }

    /// Seals OpenBao.
    ///
    /// # Errors
    /// Fails if OpenBao refuses the request.
    pub fn seal(&self) -> Result<()> {
        self.ask("/v1/sys/seal", &Value::Null).map(drop)
    }

    /// Writes a new version of the secret `secret/PATH`.
    ///
    /// # Errors
    /// Fails if OpenBao refuses the request.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        self.ask(
            &format!("/v1/secret/data/{path}"),
            &json!({ "data": { "value": value } }),
        )
        .map(drop)
    }

    /// Creates a token that may read everything, until [`Self::revoke`].
    ///
    /// # Errors
    /// Fails if OpenBao refuses the request.
    pub fn token(&self, id: &str) -> Result<()> {
        let rules = json!({ "policy": "path \"*\" { capabilities = [\"read\"] }" });
        self.ask("/v1/sys/policies/acl/links", &rules)?;
        let token = json!({ "id": id, "policies": ["links"], "period": "720h", "no_parent": true });
        self.ask("/v1/auth/token/create", &token).map(drop)
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// Fails if there is no such token.
    pub fn revoke(&self, id: &str) -> Result<()> {
        self.ask("/v1/auth/token/revoke", &json!({ "token": id })).map(drop)
    }

    fn as_root(&self) -> Client {
        self.client().header("x-vault-token", &self.root)
    }

    fn ask(&self, path: &str, body: &Value) -> Result<Answer> {
        let answer = self.as_root().post(path, body)?;
        ensure!(answer.status.is_success(), "POST {path}: {answer}");
        Ok(answer)
    }
}

/// The OpenTelemetry collector Rotel, which logs what it has decoded to its unit's journal. The machine's tree must contain
/// libpython3.11.
///
/// # Errors
/// Fails if `rotel` is missing or does not start.
pub fn rotel(machine: &Machine) -> Result<Server<'_>> {
    let program = target_directory().join("servers/rotel");
    machine
        .copy_in(&program, "/usr/local/bin/rotel")
        .context("Copying Rotel, which .ci/servers installs")?;
    let command = "/usr/local/bin/rotel start --exporter blackhole --debug-log metrics --debug-log traces \
                   --debug-log-verbosity detailed --otlp-http-endpoint 127.0.0.1:4318 --otlp-grpc-endpoint 127.0.0.1:4317";
    Server::run(machine, "rotel", 4318, command, "", "")
}
