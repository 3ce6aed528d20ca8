//! OpenBao, which speaks Vault's protocol, in a machine.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::unit::{START, Server};
use crate::artifacts::bao;
use crate::http::{Answer, Client};
use crate::machine::Machine;
use crate::process::eventually;

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
