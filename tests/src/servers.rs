//! What the appliance's user may have beside it, inside its machine and on its loopback: each server a unit of systemd.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::artifacts::{bao, target_directory};
use crate::http::{Answer, Client};
use crate::{Machine, eventually};

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(30);

/// A server inside, by the name of its unit. It ends with its machine.
#[derive(Debug)]
pub struct Server<'a> {
    machine: &'a Machine,
    unit: &'static str,
    port: u16,
}

impl<'a> Server<'a> {
    /// Runs `program` as a unit, with `environment` from a file that root alone can read.
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

    /// As a machine that is switched off: its connections are refused.
    ///
    /// # Errors
    /// systemctl failed.
    pub fn stop(&self) -> Result<()> {
        self.machine.ok(["systemctl", "stop", self.unit]).map(drop)
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// It does not within 30 s.
    pub fn start(&self) -> Result<()> {
        self.machine.ok(["systemctl", "start", self.unit])?;
        eventually(&format!("{} listens", self.unit), START, || {
            Ok(self.client().connect().ok().map(drop))
        })
        .with_context(|| self.machine.journal(self.unit).unwrap_or_default())
    }

    /// As a machine that does not answer any more: connections are taken, and nothing comes.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal("SIGSTOP")
    }

    /// # Errors
    /// It does not run.
    pub fn go_on(&self) -> Result<()> {
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

/// A file that root alone can read, at every moment.
///
/// # Errors
/// It cannot be written.
pub fn secret_file(machine: &Machine, path: &str, contents: &str) -> Result<()> {
    machine.ok(["install", "-D", "-m", "600", "/dev/null", path])?;
    machine.write(path, contents)
}

/// A file in /etc/links/credentials, as its owner would put it there.
///
/// # Errors
/// It cannot be written.
pub fn credential(machine: &Machine, name: &str, secret: &str) -> Result<()> {
    secret_file(
        machine,
        &format!("/etc/links/credentials/{name}"),
        &format!("{secret}\n"),
    )
}

/// The libSQL server of these tests.
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
    /// Inside.
    pub const DATABASE: &'static str = "/var/lib/hrana/links.db";

    /// `program`: hrana-server, which cargo builds for the tests.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_in(machine: &'a Machine, program: &str, token: &str) -> Result<Self> {
        machine.copy_in(program.as_ref(), "/usr/local/bin/hrana-server")?;
        let command = format!(
            "/usr/local/bin/hrana-server --listen 127.0.0.1:8080 --database {}",
            Self::DATABASE
        );
        let environment = format!("HRANA_TOKEN={token}\n");
        Ok(Self(Server::run(machine, "hrana", 8080, &command, &environment, "")?))
    }

    /// Every answer takes that long from now on.
    ///
    /// # Errors
    /// It does not answer.
    pub fn slow(&self, milliseconds: u32) -> Result<()> {
        self.set("/test/delay", &milliseconds.to_string())
    }

    /// The token that it takes from now on; a restart forgets it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn takes(&self, token: &str) -> Result<()> {
        self.set("/test/token", token)
    }

    fn set(&self, path: &str, value: &str) -> Result<()> {
        let answer = self.client().put(path, value)?;
        ensure!(answer.status == 204, "PUT {path}: {answer}");
        Ok(())
    }
}

/// Debian's Redis; the machine's tree has to hold redis-server.
///
/// # Errors
/// It does not take the password.
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

    /// # Errors
    /// There is no `bao`, or it does not start.
    pub fn start_in(machine: &'a Machine, root: &str) -> Result<Self> {
        machine
            .copy_in(&bao(), "/usr/local/bin/bao")
            .context("OpenBao comes by .ci/servers")?;
        let command = "/usr/local/bin/bao server -dev -dev-no-store-token -dev-listen-address=127.0.0.1:8200";
        let environment = format!("BAO_DEV_ROOT_TOKEN_ID={root}\nHOME=/var/lib/bao\n");
        // It prints its root token.
        let quiet = "StandardOutput=null\n";
        let server = Server::run(machine, "bao", 8200, command, &environment, quiet)?;
        let vault = Self {
            server,
            root: root.to_owned(),
        };
        vault.until_unsealed()?;
        Ok(vault)
    }

    /// Anew, and so unsealed and empty.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&self) -> Result<()> {
        self.stop()?;
        self.start()?;
        self.until_unsealed()
    }

    fn until_unsealed(&self) -> Result<()> {
        eventually("OpenBao has its key-value engine", START, || {
            let answer = self.as_root().get("/v1/secret/config");
            Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
        })
    }

    /// # Errors
    /// It does not do it.
    pub fn seal(&self) -> Result<()> {
        self.ask("/v1/sys/seal", &Value::Null).map(drop)
    }

    /// Gives the secret `secret/PATH` this value.
    ///
    /// # Errors
    /// It does not do it.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        self.ask(
            &format!("/v1/secret/data/{path}"),
            &json!({ "data": { "value": value } }),
        )
        .map(drop)
    }

    /// Takes the last version of the secret `secret/PATH` away.
    ///
    /// # Errors
    /// It does not do it.
    pub fn forget(&self, path: &str) -> Result<()> {
        self.ask(
            &format!("/v1/secret/delete/{path}"),
            &json!({ "versions": [1, 2, 3, 4, 5] }),
        )
        .map(drop)
    }

    /// A token that may read everything, and that counts until [`Self::revoke`].
    ///
    /// # Errors
    /// It does not make one.
    pub fn token(&self, id: &str) -> Result<()> {
        let rules = json!({ "policy": "path \"*\" { capabilities = [\"read\"] }" });
        self.ask("/v1/sys/policies/acl/links", &rules)?;
        let token = json!({ "id": id, "policies": ["links"], "period": "720h", "no_parent": true });
        self.ask("/v1/auth/token/create", &token).map(drop)
    }

    /// # Errors
    /// There is no such token.
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

/// The OpenTelemetry collector Rotel, which tells in its unit's journal what it has decoded. The machine's tree has to hold
/// libpython3.11.
///
/// # Errors
/// There is no `rotel`, or it does not start.
pub fn rotel(machine: &Machine) -> Result<Server<'_>> {
    let program = target_directory().join("servers/rotel");
    machine
        .copy_in(&program, "/usr/local/bin/rotel")
        .context("Rotel comes by .ci/servers")?;
    let command = "/usr/local/bin/rotel start --exporter blackhole --debug-log metrics --debug-log traces \
                   --debug-log-verbosity detailed --otlp-http-endpoint 127.0.0.1:4318 --otlp-grpc-endpoint 127.0.0.1:4317";
    Server::run(machine, "rotel", 4318, command, "", "")
}
