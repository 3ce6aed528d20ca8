//! Pebble, a certificate authority for tests, in a machine, with the DNS server that it asks.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::unit::Server;
use crate::artifacts::server;
use crate::local::Settings;
use crate::machine::Machine;

const PREPARE: &str = include_str!("../../lab/pebble.sh");
const DIRECTORY: &str = "/etc/pebble";
const ACME: u16 = 14000;
const MANAGEMENT: u16 = 15000;
/// The port on which the machine itself answers challenges.
const HTTP: u16 = 80;
const DNS: u16 = 8053;
const DNS_MANAGEMENT: u16 = 8055;

/// A running pebble, which finds every name at the machine's loopback address.
#[derive(Debug)]
pub struct Pebble<'a> {
    machine: &'a Machine,
    /// Stopping it makes the authority unreachable.
    pub server: Server<'a>,
    dns: Server<'a>,
}

impl<'a> Pebble<'a> {
    /// The URL of the directory.
    pub const URL: &'static str = "https://127.0.0.1:14000/dir";
    /// The certificate that pebble's own server is trusted by.
    pub const ROOT_FILE: &'static str = "/etc/pebble/cert.pem";
    /// A name for which pebble issues nothing.
    pub const BLOCKED: &'static str = "blocked.example";

    /// Starts pebble.
    ///
    /// # Errors
    /// Fails if pebble is missing or does not start.
    pub fn start_in(machine: &'a Machine, settings: Settings) -> Result<Self> {
        for program in ["pebble", "pebble-challtestsrv"] {
            let path = format!("/usr/local/bin/{program}");
            // A second pebble may start while the first still ends, and a running program cannot be replaced.
            if !machine.exists(&path)? {
                machine
                    .copy_in(&server(program), &path)
                    .context("Copying pebble, which .ci/servers installs")?;
            }
        }
        machine.write("/var/tmp/pebble.sh", PREPARE)?;
        let ports = [ACME, MANAGEMENT, HTTP].map(|port| port.to_string());
        let (lifetime, eab) = (settings.lifetime.to_string(), settings.eab.to_string());
        machine.ok([
            "bash",
            "/var/tmp/pebble.sh",
            DIRECTORY,
            &ports[0],
            &ports[1],
            &ports[2],
            &lifetime,
            &eab,
        ])?;
        let dns = format!(
            "/usr/local/bin/pebble-challtestsrv -defaultIPv6 \"\" -http01 \"\" -https01 \"\" -tlsalpn01 \"\" -doh \"\" \
             -dns01 127.0.0.1:{DNS} -management 127.0.0.1:{DNS_MANAGEMENT}"
        );
        let dns = Server::run(machine, "pebble-dns", DNS_MANAGEMENT, &dns, "", "")?;
        let command = format!("/usr/local/bin/pebble -config {DIRECTORY}/pebble.json -dnsserver 127.0.0.1:{DNS}");
        let environment = format!(
            "PEBBLE_VA_NOSLEEP=1\nPEBBLE_AUTHZREUSE=0\nPEBBLE_WFE_NONCEREJECT={}\n",
            settings.refused_nonces
        );
        let server = Server::run(machine, "pebble", ACME, &command, &environment, "")?;
        Ok(Self { machine, server, dns })
    }

    /// Makes the DNS servers fail for a name.
    ///
    /// # Errors
    /// Fails if the DNS server refuses the request.
    pub fn break_dns(&self, name: &str) -> Result<()> {
        self.configure_dns("/set-servfail", &json!({ "host": name }))
    }

    /// Points a name to an address, and to no other.
    ///
    /// # Errors
    /// Fails if the DNS server refuses the request.
    pub fn point(&self, name: &str, address: &str) -> Result<()> {
        self.configure_dns("/clear-a", &json!({ "host": name }))?;
        self.configure_dns("/add-a", &json!({ "host": name, "addresses": [address] }))
    }

    fn configure_dns(&self, path: &str, body: &Value) -> Result<()> {
        let answer = self.dns.client().post(path, body)?;
        ensure!(answer.status == 200, "{path}: {answer}");
        Ok(())
    }

    /// The certificates, in PEM, that the issued ones lead to. They are new after each start of pebble.
    ///
    /// # Errors
    /// Fails if pebble does not answer.
    pub fn issuer(&self) -> Result<String> {
        let url = format!("https://127.0.0.1:{MANAGEMENT}/roots/0");
        let fetched = self.machine.ok([
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--cacert",
            Self::ROOT_FILE,
            &url,
        ])?;
        Ok(fetched.stdout)
    }

    /// Whether pebble has issued a certificate, by its serial in hexadecimal, and what it says about it: `Valid` or `Revoked`.
    ///
    /// # Errors
    /// Fails if pebble does not answer, or does not know the certificate.
    pub fn certificate_status(&self, serial: &str) -> Result<String> {
        let url = format!("https://127.0.0.1:{MANAGEMENT}/cert-status-by-serial/{serial}");
        let fetched = self.machine.ok([
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--cacert",
            Self::ROOT_FILE,
            &url,
        ])?;
        let status: Value = fetched.json()?;
        let text = status["Status"].as_str().map(str::to_owned);
        text.with_context(|| format!("no status in {status}"))
    }
}
