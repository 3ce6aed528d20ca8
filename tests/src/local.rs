//! Servers on this machine's loopback interface, each on its own port: the runtime without the rest of the appliance, and
//! the services that it talks to. Each server ends when it is dropped.

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
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A child process whose standard error goes to a file.
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

    /// Waits for the first line of standard output that starts with `prefix`, and returns the rest of that line.
    fn line_after(&mut self, prefix: &str) -> Result<String> {
        let stdout = self.child.stdout.take().context("the output has been read already")?;
        let mut lines = BufReader::new(stdout);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                bail!("the process ended: {}", self.errors());
            }
            if let Some(rest) = line.trim_end().strip_prefix(prefix) {
                let rest = rest.to_owned();
                drain(lines);
                return Ok(rest);
            }
        }
    }

    /// The last lines that the process has written to standard error.
    pub fn errors(&self) -> String {
        tail(&self.errors)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).context("Sending a signal")
    }

    /// Suspends the process, so that it behaves like a machine that no longer answers.
    ///
    /// # Errors
    /// Fails if the process has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Resumes a suspended process.
    ///
    /// # Errors
    /// Fails if the process has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends SIGTERM and waits until the process has ended.
    ///
    /// # Errors
    /// Fails if the process does not end within 30 s.
    pub fn terminate(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        eventually("the process ends", DEADLINE, || Ok(self.child.try_wait()?.map(drop)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Discards the rest of the output, so that the process never blocks on a full pipe.
fn drain(mut output: BufReader<ChildStdout>) {
    std::thread::spawn(move || {
        // The copy ends with the process.
        let _ = io::copy(&mut output, &mut io::sink());
    });
}

/// A port that was free a moment ago.
///
/// # Errors
/// Fails if there is no free port.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A temporary directory for the files of one test.
#[derive(Debug)]
pub struct TestDir(TempDir);

impl TestDir {
    /// Creates the directory.
    ///
    /// # Errors
    /// Fails if the directory cannot be created.
    pub fn new() -> Result<Self> {
        Ok(Self(TempDir::new()?))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A libSQL server: the program `hrana-server` on the file links.db in this directory.
    ///
    /// # Errors
    /// Fails if the server does not start.
    pub fn hrana(&self, program: &str, address: SocketAddr, token: &str) -> Result<(Process, SocketAddr)> {
        let mut command = Command::new(program);
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
        command.env("HOME", self.0.path());
        let process = Process::spawn(&mut command, &self.path("bao.err")).context("Starting OpenBao (.ci/servers)")?;
        eventually("OpenBao is unsealed", DEADLINE, || {
            let answer = ask(address, "GET", "/v1/sys/health", &[], "");
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
        command.current_dir(self.0.path());
        let process =
            Process::spawn(&mut command, &self.path("redis.err")).context("Starting Redis (.ci/packages test)")?;
        eventually("Redis listens", DEADLINE, || {
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(drop))
        })?;
        Ok(process)
    }

    /// links-host with the components, this configuration and these environment variables.
    ///
    /// # Errors
    /// Fails if the runtime does not start.
    pub fn runtime(&self, configuration: &str, environment: &[(&str, &str)]) -> Result<Runtime> {
        let file = self.path("runtime.toml");
        // linksctl adds this store too.
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
    /// Sends a GET request over TCP.
    ///
    /// # Errors
    /// Fails if there is no answer, or if the answer is not HTTP.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        ask(self.address, "GET", path, headers, "")
    }

    /// Sends a GET request through the Unix socket, as nginx does.
    ///
    /// # Errors
    /// Fails as [`Self::get`] does.
    pub fn get_through_socket(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        exchange(stream, "GET", path, headers, "")
    }

    /// Sends `POST /shorten`.
    ///
    /// # Errors
    /// Fails as [`Self::get`] does.
    pub fn shorten(&self, token: &str, url: &str) -> Result<Answer> {
        let authorization = format!("Bearer {token}");
        let headers = [
            ("content-type", "application/json"),
            ("authorization", authorization.as_str()),
        ];
        let body = serde_json::json!({ "url": url }).to_string();
        ask(self.address, "POST", "/shorten", &headers, &body)
    }

    /// Shortens a URL and returns the slug.
    ///
    /// # Errors
    /// Fails unless the answer is 200 with a slug.
    pub fn slug(&self, token: &str, url: &str) -> Result<String> {
        let answer = self.shorten(token, url)?;
        ensure!(answer.status == 200, "POST /shorten: {answer:?}");
        let slug = serde_json::from_str::<Value>(&answer.body)?["slug"]
            .as_str()
            .map(str::to_owned);
        slug.with_context(|| format!("no slug in {}", answer.body))
    }

    /// Checks that the link redirects to `url`.
    ///
    /// # Errors
    /// Fails if it does not.
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

/// An HTTP/1.1 response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// Fails if there is no answer within 20 s, or if the answer is not HTTP.
pub fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
    let stream = TcpStream::connect_timeout(&address, REQUEST_TIMEOUT)?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
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
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is incomplete")?;
    let status = head.split(' ').nth(1).context("the answer has no status")?.parse()?;
    Ok(Answer {
        status,
        head: format!("{head}\r\n"),
        body: body.to_owned(),
    })
}
