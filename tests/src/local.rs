//! Servers on this machine's loopback, each on a port of its own: the runtime without an appliance around it, and what it
//! talks to. Each ends when it is dropped.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::artifacts::{bao, target_directory};
use crate::process::{eventually, tail};

/// How long a server may take to start or to end.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(20);

/// A process with its standard error in a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    errors: PathBuf,
}

impl Process {
    fn spawn(command: &mut Command, errors: &Path) -> Result<Self> {
        let program = command.get_program().to_owned();
        let file = File::options().create(true).append(true).open(errors)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn();
        Ok(Self {
            child: child.with_context(|| format!("Starting {}", Path::new(&program).display()))?,
            errors: errors.to_owned(),
        })
    }

    /// What follows `prefix` in the first line that has it.
    fn said(&mut self, prefix: &str) -> Result<String> {
        let stdout = self.child.stdout.take().context("its output is read already")?;
        let mut lines = BufReader::new(stdout);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                bail!("it ended: {}", self.errors());
            }
            if let Some(rest) = line.trim_end().strip_prefix(prefix) {
                let rest = rest.to_owned();
                drain(lines);
                return Ok(rest);
            }
        }
    }

    /// The end of what it has written to standard error.
    pub fn errors(&self) -> String {
        tail(&self.errors)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).context("Sending a signal")
    }

    /// As a machine that does not answer any more.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// # Errors
    /// It has ended.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    /// It does not.
    pub fn terminate(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        eventually("the process ends", DEADLINE, || Ok(self.child.try_wait()?.map(drop)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So that it never waits for somebody to read.
fn drain(mut output: BufReader<ChildStdout>) {
    std::thread::spawn(move || {
        // It ends with the process.
        let _ = io::copy(&mut output, &mut io::sink());
    });
}

/// A port that was free a moment ago.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Files for one test.
#[derive(Debug)]
pub struct Place(TempDir);

impl Place {
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        Ok(Self(TempDir::new()?))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A libSQL server: the program `hrana-server`, with the file links.db of this place.
    ///
    /// # Errors
    /// It does not start.
    pub fn hrana(&self, program: &str, address: SocketAddr, token: &str) -> Result<(Process, SocketAddr)> {
        let mut command = Command::new(program);
        command.arg("--database").arg(self.path("links.db"));
        command
            .args(["--listen", &address.to_string()])
            .env("HRANA_TOKEN", token);
        let mut process = Process::spawn(&mut command, &self.path("hrana.err"))?;
        let address = process.said("listening on ")?.parse()?;
        Ok((process, address))
    }

    /// OpenBao in development mode: unsealed, in memory, with a key-value engine at `secret`.
    ///
    /// # Errors
    /// There is no `bao`, or it does not start.
    pub fn bao(&self, port: u16, token: &str) -> Result<Process> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = Command::new(bao());
        command.args(["server", "-dev", "-dev-no-store-token"]);
        command.arg(format!("-dev-root-token-id={token}"));
        command.arg(format!("-dev-listen-address={address}"));
        command.env("HOME", self.0.path());
        let process = Process::spawn(&mut command, &self.path("bao.err")).context("Starting OpenBao (.ci/servers)")?;
        eventually("OpenBao is unsealed", DEADLINE, || {
            let answer = ask(address, "GET", "/v1/sys/health", &[], "");
            Ok(answer.ok().filter(|answer| answer.status == 200).map(drop))
        })
        .with_context(|| process.errors())?;
        Ok(process)
    }

    /// A Redis server that keeps nothing.
    ///
    /// # Errors
    /// There is no `redis-server`, or it does not start.
    pub fn redis(&self, port: u16, password: &str) -> Result<Process> {
        let program = std::env::var_os("LINKS_REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--port", &port.to_string(), "--requirepass", password]);
        command.current_dir(self.0.path());
        let process =
            Process::spawn(&mut command, &self.path("redis.err")).context("Starting Redis (.ci/packages test)")?;
        eventually("Redis listens", DEADLINE, || {
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(drop))
        })?;
        Ok(process)
    }

    /// links-host with the component, on this configuration and with these environment variables.
    ///
    /// # Errors
    /// It does not start.
    pub fn runtime(&self, configuration: &str, environment: &[(&str, &str)]) -> Result<Runtime> {
        let file = self.path("runtime.toml");
        // This store linksctl adds as well.
        let local = self.path("local.db");
        let local = format!("[key_value_store.local]\ntype = 'spin'\npath = '{}'\n", local.display());
        std::fs::write(&file, format!("log_dir = ''\n{local}{configuration}"))?;
        static RUNTIMES: AtomicU64 = AtomicU64::new(0);
        let socket = self.path(&format!("links-{}.sock", RUNTIMES.fetch_add(1, Relaxed)));
        let mut command = Command::new(target_directory().join("release/links-host"));
        command.arg("up").arg("--from").arg(spin_toml());
        command
            .args(["--listen", "127.0.0.1:0"])
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .arg("--runtime-config-file")
            .arg(&file);
        command.arg("--state-dir").arg(self.path("state"));
        command.env("XDG_CACHE_HOME", target_directory().join("compiled"));
        command.envs(environment.iter().copied()).current_dir(self.0.path());
        let mut process = Process::spawn(&mut command, &self.path("runtime.err"))?;
        let address = process.said("Serving http://")?.parse()?;
        Ok(Runtime {
            process,
            address,
            socket,
        })
    }

    /// All that the runtimes have written to standard error.
    ///
    /// # Errors
    /// There was none.
    pub fn runtime_errors(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.path("runtime.err"))?)
    }
}

/// The application's manifest.
pub fn spin_toml() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../component/spin.toml")
}

/// links-host at work.
#[derive(Debug)]
pub struct Runtime {
    pub process: Process,
    address: SocketAddr,
    socket: PathBuf,
}

impl Runtime {
    /// # Errors
    /// No answer, or none that is HTTP.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        ask(self.address, "GET", path, headers, "")
    }

    /// The same through the Unix socket, as nginx asks.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_through_socket(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        exchange(stream, "GET", path, headers, "")
    }

    /// # Errors
    /// As [`Self::get`].
    pub fn shorten(&self, token: &str, url: &str) -> Result<Answer> {
        let authorization = format!("Bearer {token}");
        let headers = [
            ("content-type", "application/json"),
            ("authorization", authorization.as_str()),
        ];
        let body = serde_json::json!({ "url": url }).to_string();
        ask(self.address, "POST", "/shorten", &headers, &body)
    }

    /// Shortens, which succeeds; the slug.
    ///
    /// # Errors
    /// It does not.
    pub fn slug(&self, token: &str, url: &str) -> Result<String> {
        let answer = self.shorten(token, url)?;
        ensure!(answer.status == 200, "POST /shorten: {answer:?}");
        let slug = serde_json::from_str::<Value>(&answer.body)?["slug"]
            .as_str()
            .map(str::to_owned);
        slug.with_context(|| format!("no slug in {}", answer.body))
    }

    /// # Errors
    /// The link does not lead there.
    pub fn leads_to(&self, slug: &str, url: &str) -> Result<()> {
        let answer = self.get(&format!("/{slug}"), &[])?;
        let line = format!("\r\nlocation: {url}\r\n");
        ensure!(
            answer.status == 302 && answer.head.contains(&line),
            "/{slug}: {answer:?}"
        );
        Ok(())
    }
}

/// An answer over HTTP/1.1.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One request on a connection of its own.
///
/// # Errors
/// No answer within 20 s, or none that is HTTP.
pub fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    let stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    exchange(stream, method, path, headers, body)
}

fn exchange(
    mut stream: impl io::Read + io::Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: links.example\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer {
        status,
        head: format!("{head}\r\n"),
        body: body.to_owned(),
    })
}
