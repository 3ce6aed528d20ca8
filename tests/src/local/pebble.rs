//! Pebble, a certificate authority for tests, with a DNS server and a web server of its own.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::directory::TestDir;
use super::process::Process;
use super::services::free_port;
use crate::artifacts::server;
use crate::http::Client;
use crate::process::{eventually, require};
use crate::stream::Address;

/// Writes pebble's configuration.
const PREPARE: &str = include_str!("../../lab/pebble.sh");
/// The path below which an authority looks for answers (RFC 8555, section 8.3).
const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
const DEADLINE: Duration = Duration::from_secs(30);

/// How pebble behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The lifetime of certificates in seconds.
    pub lifetime: u32,
    /// How many percent of good nonces pebble refuses.
    pub refused_nonces: u32,
    /// Whether an account needs an external account binding.
    pub eab: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lifetime: 90 * 86_400,
            refused_nonces: 25,
            eab: false,
        }
    }
}

/// A running pebble. It ends when it is dropped.
#[derive(Debug)]
pub struct Pebble {
    directory: PathBuf,
    settings: Settings,
    acme: SocketAddr,
    management: SocketAddr,
    dns: SocketAddr,
    dns_management: SocketAddr,
    web: WebServer,
    pebble: Option<Process>,
    _dns: Process,
}

impl TestDir {
    /// Starts pebble. The answers to its challenges are the files in `challenges`.
    ///
    /// # Errors
    /// Fails if pebble is missing or does not start.
    pub fn pebble(&self, settings: Settings, challenges: &Path) -> Result<Pebble> {
        require(&[("openssl", "openssl"), ("curl", "curl")])?;
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let [acme, management, dns, dns_management] =
            [free_port()?, free_port()?, free_port()?, free_port()?].map(local);
        let directory = self.path("pebble");
        let web = WebServer::start(challenges)?;
        let prepared = Command::new("bash")
            .args(["-c", PREPARE, "pebble.sh"])
            .arg(&directory)
            .args([acme.port(), management.port(), web.address.port()].map(|port| port.to_string()))
            .args([settings.lifetime.to_string(), settings.eab.to_string()])
            .output()?;
        ensure!(
            prepared.status.success(),
            "{}",
            String::from_utf8_lossy(&prepared.stderr)
        );

        let mut command = Command::new(server("pebble-challtestsrv"));
        command.args([
            "-defaultIPv6",
            "",
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-doh",
            "",
        ]);
        command.args(["-dns01", &dns.to_string(), "-management", &dns_management.to_string()]);
        let mut dns_process = Process::spawn(&mut command, &self.path("dns.err"))
            .context("Starting pebble-challtestsrv, which .ci/servers installs")?;
        dns_process.discard_output();
        wait_for(dns_management)?;
        let mut pebble = Pebble {
            directory,
            settings,
            acme,
            management,
            dns,
            dns_management,
            web,
            pebble: None,
            _dns: dns_process,
        };
        pebble.start()?;
        Ok(pebble)
    }
}

fn wait_for(address: SocketAddr) -> Result<()> {
    eventually(&format!("{address} listens"), DEADLINE, || {
        Ok(TcpStream::connect(address).ok().map(drop))
    })
}

impl Pebble {
    /// The key of the external account `kid-1`.
    pub const EAB_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    /// A name for which pebble issues nothing.
    pub const BLOCKED: &str = "blocked.example";

    /// Starts pebble after [`Self::stop`]. It has then forgotten all accounts and certificates, and has other keys.
    ///
    /// # Errors
    /// Fails if pebble does not start.
    pub fn start(&mut self) -> Result<()> {
        let mut command = Command::new(server("pebble"));
        command.arg("-config").arg(self.directory.join("pebble.json"));
        command.args(["-dnsserver", &self.dns.to_string()]);
        command
            .env("PEBBLE_VA_NOSLEEP", "1")
            // So that every certificate needs a validation.
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", self.settings.refused_nonces.to_string());
        let mut process = Process::spawn(&mut command, &self.directory.join("pebble.err"))
            .context("Starting pebble, which .ci/servers installs")?;
        process.discard_output();
        self.pebble = Some(process);
        wait_for(self.acme)
    }

    /// Ends pebble. Connections to it are then refused.
    pub fn stop(&mut self) {
        self.pebble = None;
    }

    /// The URL of the directory.
    pub fn url(&self) -> String {
        format!("https://{}/dir", self.acme)
    }

    /// The file with the certificate that pebble's own server is trusted by.
    pub fn root_file(&self) -> PathBuf {
        self.directory.join("cert.pem")
    }

    /// Makes the DNS servers fail for a name.
    ///
    /// # Errors
    /// Fails if the DNS server refuses the request.
    pub fn break_dns(&self, name: &str) -> Result<()> {
        self.configure_dns("/set-servfail", &json!({ "host": name }))
    }

    /// Points a name to an address at which nothing listens.
    ///
    /// # Errors
    /// Fails if the DNS server refuses the request.
    pub fn point_elsewhere(&self, name: &str) -> Result<()> {
        self.configure_dns("/add-a", &json!({ "host": name, "addresses": ["127.0.0.2"] }))
    }

    fn configure_dns(&self, path: &str, body: &serde_json::Value) -> Result<()> {
        let answer = Client::here(Address::Tcp(self.dns_management)).post(path, body)?;
        ensure!(answer.status == 200, "{path}: {answer}");
        Ok(())
    }

    /// Answers the challenges of a name with 404.
    pub fn hide(&self, name: &str) {
        self.hidden().insert(name.to_owned());
    }

    /// Answers the challenges of a name again.
    pub fn show(&self, name: &str) {
        self.hidden().remove(name);
    }

    fn hidden(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.web.hidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the answers to challenges are served.
    pub fn web_address(&self) -> SocketAddr {
        self.web.address
    }

    /// Checks that a chain leads to pebble's root.
    ///
    /// # Errors
    /// Fails if it does not, or if a certificate in it is not valid.
    pub fn verify(&self, chain: &Path) -> Result<()> {
        let root = self.directory.join("issuer.pem");
        let url = format!("https://{}/roots/0", self.management);
        let fetched = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert"])
            .arg(self.root_file())
            .arg(url)
            .output()?;
        ensure!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        fs::write(&root, fetched.stdout)?;
        let verified = Command::new("openssl")
            .args(["verify", "-CAfile"])
            .arg(&root)
            .arg("-untrusted")
            .arg(chain)
            .arg(chain)
            .output()?;
        ensure!(
            verified.status.success(),
            "{}",
            String::from_utf8_lossy(&verified.stderr)
        );
        Ok(())
    }
}

/// Serves the answers to challenges, as nginx does for links.
#[derive(Debug)]
struct WebServer {
    address: SocketAddr,
    hidden: Arc<Mutex<BTreeSet<String>>>,
}

impl WebServer {
    /// Serves until the process ends.
    fn start(challenges: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let hidden = Arc::<Mutex<BTreeSet<String>>>::default();
        let (challenges, hides) = (challenges.to_owned(), Arc::clone(&hidden));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The client may have closed the connection.
                let _ = answer(&stream, &challenges, &hides);
            }
        });
        Ok(Self { address, hidden })
    }
}

fn answer(mut stream: &TcpStream, challenges: &Path, hidden: &Mutex<BTreeSet<String>>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut host = String::new();
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("host") => value.clone_into(&mut host),
            Some(_) => {}
            None => break,
        }
    }
    let host = host.split(':').next().unwrap_or_default();
    let is_hidden = hidden.lock().unwrap_or_else(PoisonError::into_inner).contains(host);
    let token = first
        .split(' ')
        .nth(1)
        .and_then(|path| path.strip_prefix(WELL_KNOWN))
        .filter(|token| !is_hidden && !token.contains('/'));
    let (status, body) = match token.map(|token| fs::read_to_string(challenges.join(token))) {
        Some(Ok(body)) => ("200 OK", body),
        _ => ("404 Not Found", "nothing here".to_owned()),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}
