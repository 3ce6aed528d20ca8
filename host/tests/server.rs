//! Tests of the binary: its own responses, its startup, its errors and its shutdown. The components are made here.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic fails the test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{ManglingAndAbi, Resolve, WorldId};

/// The time limit of steps that take milliseconds on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A component with the imports and exports of a world. Each of its functions traps.
fn component(world: &str) -> Vec<u8> {
    build(world, |resolve, world| {
        dummy_module(resolve, world, ManglingAndAbi::Standard32)
    })
}

/// A component that answers every request with an error. If there is a time to wait, it then waits and traps.
fn component_working_after_answer(wait: Option<Duration>) -> Vec<u8> {
    let afterwards = wait.map_or(String::new(), |wait| {
        format!("(call $wait (i64.const {})) unreachable", wait.as_nanos())
    });
    answering_component(&afterwards)
}

/// A component that answers every request with an error. It then runs `afterwards`, in WebAssembly's text format.
fn answering_component(afterwards: &str) -> Vec<u8> {
    // 36 is the number of the error "loop-detected", which has no payload.
    let module = format!(
        r#"(module
            (import "[export]wasi:http/handler@0.3.0" "[task-return]handle"
                (func $answer (param i32 i32 i32 i64 i32 i32 i32 i32)))
            (import "wasi:clocks/monotonic-clock@0.3.0" "wait-for" (func $wait (param i64)))
            (memory (export "memory") 1)
            (func (export "[async-lift]wasi:http/handler@0.3.0#handle") (param i32) (result i32)
                (local $left i32)
                (call $answer (i32.const 1) (i32.const 36) (i32.const 0) (i64.const 0)
                    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
                {afterwards}
                (i32.const 0))
            (func (export "[callback][async-lift]wasi:http/handler@0.3.0#handle")
                (param i32 i32 i32) (result i32)
                unreachable))"#
    );
    build("waiting", |_, _| wat::parse_str(module).unwrap())
}

/// A component that waits and then traps without an answer.
fn waiting_component(wait: Duration) -> Vec<u8> {
    let wait = wait.as_nanos();
    let module = format!(
        r#"(module
            (import "wasi:clocks/monotonic-clock@0.3.0" "wait-for" (func $wait (param i64)))
            (memory (export "memory") 1)
            (func (export "[async-lift]wasi:http/handler@0.3.0#handle") (param i32) (result i32)
                (call $wait (i64.const {wait}))
                unreachable)
            (func (export "[callback][async-lift]wasi:http/handler@0.3.0#handle")
                (param i32 i32 i32) (result i32)
                unreachable))"#
    );
    build("waiting", |_, _| wat::parse_str(module).unwrap())
}

fn build(world: &str, module: impl FnOnce(&Resolve, WorldId) -> Vec<u8>) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve
        .push_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wit"))
        .unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut module = module(&resolve, world);
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

/// An application directory with spin.toml, app.wasm and runtime.toml.
struct App {
    dir: TempDir,
}

impl App {
    fn new(wasm: &[u8]) -> Self {
        let app = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        app.write("app.wasm", wasm);
        app.write("runtime.toml", b"log_dir = ''\n");
        app.write(
            "spin.toml",
            br#"
            spin_manifest_version = 2
            [application]
            name = "test"
            [[trigger.http]]
            route = "/app/..."
            component = "app"
            [component.app]
            source = "app.wasm"
            sqlite_databases = ["default"]
            "#,
        );
        app
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.dir.path().join(name), content).unwrap();
    }

    fn command(&self, listen: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_links-host"));
        command
            .arg("up")
            .arg("--from")
            .arg(self.dir.path())
            .arg("--listen")
            .arg(listen);
        command
            .arg("--runtime-config-file")
            .arg(self.dir.path().join("runtime.toml"));
        command
            .env_clear()
            .env("XDG_CACHE_HOME", self.dir.path().join("cache"))
            .current_dir(self.dir.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The standard error of a start that fails.
    fn startup_error(&self) -> String {
        let output = finish(self.command("127.0.0.1:0").spawn().unwrap());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        stderr
    }

    fn start(&self) -> Server {
        self.run(self.command("127.0.0.1:0"))
    }

    fn start_with_flags(&self, flags: &[&str]) -> Server {
        let mut command = self.command("127.0.0.1:0");
        command.args(flags);
        self.run(command)
    }

    /// Starts the server with at most this many file descriptors.
    fn start_with_descriptors(&self, descriptors: u32) -> Server {
        self.run(with_descriptors(&self.command("127.0.0.1:0"), descriptors))
    }

    /// The command that starts the server with this much address space.
    fn command_in_address_space(&self, gib: u64) -> Command {
        limited(&self.command("127.0.0.1:0"), &format!("-v {}", gib << 20))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("app.sock")
    }

    fn command_on_socket(&self) -> Command {
        self.command(&format!("unix:{}", self.socket().display()))
    }

    fn run(&self, mut command: Command) -> Server {
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            sender.send((line, stdout)).unwrap();
        });
        let (line, stdout) = lines.recv_timeout(DEADLINE).unwrap();
        let address = line.trim_end().strip_prefix("Serving http://");
        let address = address.unwrap_or_else(|| panic!("{line:?}: {}", stderr(&mut child)));
        Server {
            child: Some(child),
            // A Unix socket has no address.
            address: address.parse().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
            _stdout: stdout,
        }
    }
}

/// The same command with at most this many file descriptors.
fn with_descriptors(command: &Command, descriptors: u32) -> Command {
    limited(command, &format!("-n {descriptors}"))
}

/// The same command under a limit, given as options of the shell's `ulimit`.
fn limited(command: &Command, limit: &str) -> Command {
    let mut limited = Command::new("/bin/sh");
    limited
        .arg("-c")
        .arg(format!("ulimit {limit} && exec \"$@\""))
        .arg("sh");
    limited.arg(command.get_program()).args(command.get_args());
    limited
        .env_clear()
        .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(directory) = command.get_current_dir() {
        limited.current_dir(directory);
    }
    limited
}

fn stderr(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

/// Sends the head of a request and returns the whole response.
fn ask_through(mut stream: impl std::io::Read + std::io::Write, head: &str) -> String {
    write!(stream, "{head}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Waits until a process has exited. Kills it if it does not exit.
fn finish(child: Child) -> Output {
    let pid = child.id().to_string();
    let (sender, output) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match output.recv_timeout(DEADLINE) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            Command::new("kill").args(["-9", &pid]).status().unwrap();
            panic!("the process did not exit");
        }
    }
}

struct Server {
    child: Option<Child>,
    address: SocketAddr,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Sends the head of a request and returns the whole response.
    fn ask(&self, head: &str) -> String {
        ask_through(self.connect(), head)
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: test"))
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn end(mut self) -> Output {
        finish(self.child.take().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn the_server_answers_and_survives_a_trap() {
    let app = App::new(&component("service"));
    let server = app.start();
    let health = server.get("/.well-known/spin/health");
    assert!(
        health.starts_with("HTTP/1.1 200 OK\r\n") && health.ends_with("\r\n\r\nOK"),
        "{health}"
    );
    assert!(server.get("/elsewhere").starts_with("HTTP/1.1 404"));
    assert!(server.get("/.well-known/spin/nothing").starts_with("HTTP/1.1 404"));
    assert!(
        server.ask("GET /app HTTP/1.1").starts_with("HTTP/1.1 400"),
        "a request without a host was accepted"
    );
    for _ in 0..3 {
        assert!(server.get("/app/x").starts_with("HTTP/1.1 500"));
    }
    assert!(server.get("/.well-known/spin/health").starts_with("HTTP/1.1 200"));
    assert!(
        app.dir.path().join(".spin/sqlite_db.db").exists(),
        "the default database is not where Spin has it"
    );
    server.signal("TERM");
    let output = server.end();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.contains("component app") && log.contains("unreachable"), "{log}");
}

#[test]
fn sigterm_closes_the_listener_and_idle_connections() {
    let app = App::new(&component("service"));
    let server = app.start();
    let mut idle = server.connect();
    // An answer shows that the connection was accepted.
    write!(idle, "GET /.well-known/spin/health HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    server.signal("TERM");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    let address = server.address;
    assert_eq!(server.end().status.code(), Some(0));
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn shutdown_waits_for_a_request_in_flight_until_a_second_signal() {
    let app = App::new(&component("service"));
    let server = app.start();
    // A request is in flight even before its head is complete.
    let mut slow = server.connect();
    write!(slow, "GET /.well-known/spin/health HTTP/1.1\r\nHost:").unwrap();
    // An answer to a later request shows that this connection was accepted.
    assert!(server.get("/.well-known/spin/health").starts_with("HTTP/1.1 200"));
    server.signal("TERM");
    wait_until(|| TcpStream::connect(server.address).is_err());
    write!(slow, " test\r\n\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.end().status.code(), Some(0));

    let server = app.start();
    let mut stuck = server.connect();
    write!(stuck, "GET /.well-known/spin/health HTTP/1.1\r\nHost:").unwrap();
    assert!(server.get("/.well-known/spin/health").starts_with("HTTP/1.1 200"));
    server.signal("TERM");
    wait_until(|| TcpStream::connect(server.address).is_err());
    let start = Instant::now();
    server.signal("INT");
    assert_eq!(server.end().status.code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "the second signal did not end it at once"
    );
}

#[test]
fn shutdown_does_not_wait_for_an_idle_instance() {
    let app = App::new(&component_working_after_answer(None));
    // Waiting for the instance would use up the whole shutdown timeout.
    let server = app.start_with_flags(&["--idle-instance-timeout", "3600s", "--shutdown-timeout", "30s"]);
    assert!(server.get("/app").starts_with("HTTP/1.1 500"));
    let start = Instant::now();
    server.signal("TERM");
    let output = server.end();
    let (took, log) = (start.elapsed(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.contains("LoopDetected"), "the component did not answer: {log}");
    assert!(!log.contains("not all work finished"), "{log}");
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn shutdown_waits_for_an_instance_that_works_after_its_answer() {
    let app = App::new(&component_working_after_answer(Some(Duration::from_millis(700))));
    let server = app.start_with_flags(&["--idle-instance-timeout", "3600s", "--shutdown-timeout", "30s"]);
    assert!(server.get("/app").starts_with("HTTP/1.1 500"));
    server.signal("TERM");
    let log = String::from_utf8(server.end().stderr).unwrap();
    assert!(log.contains("unreachable"), "the instance was cut off: {log}");
    assert!(!log.contains("not all work finished"), "{log}");
}

#[test]
fn shutdown_waits_for_an_instance_that_computes_after_its_answer() {
    // It waits until its answer is sent, then computes for about a second without calling the host.
    let app = App::new(&answering_component(
        r#"(call $wait (i64.const 300000000))
        (loop $on
            (local.set $left (i32.add (local.get $left) (i32.const 1)))
            (br_if $on (i32.ne (local.get $left) (i32.const 2000000000))))
        unreachable"#,
    ));
    let server = app.start_with_flags(&["--idle-instance-timeout", "3600s", "--shutdown-timeout", "60s"]);
    assert!(server.get("/app").starts_with("HTTP/1.1 500"));
    server.signal("TERM");
    let log = String::from_utf8(server.end().stderr).unwrap();
    assert!(log.contains("unreachable"), "the instance was cut off: {log}");
    assert!(!log.contains("not all work finished"), "{log}");
}

#[test]
fn shutdown_waits_for_work_after_an_answer_only_within_the_timeout() {
    let app = App::new(&component_working_after_answer(Some(Duration::from_secs(3600))));
    let server = app.start_with_flags(&["--idle-instance-timeout", "3600s", "--shutdown-timeout", "50ms"]);
    assert!(server.get("/app").starts_with("HTTP/1.1 500"));
    server.signal("TERM");
    let log = String::from_utf8(server.end().stderr).unwrap();
    assert!(log.contains("not all work finished within 50ms"), "{log}");
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE);
        std::thread::yield_now();
    }
}

#[test]
fn the_server_survives_running_out_of_descriptors() {
    let app = App::new(&component("service"));
    let server = app.start_with_descriptors(40);
    // The kernel accepts them all, the server only some.
    let many: Vec<TcpStream> = (0..80).map(|_| server.connect()).collect();
    let (sender, answer) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.send(server.get("/.well-known/spin/health")));
        // The request waits behind the other connections, and is answered once they are closed.
        assert!(
            answer.recv_timeout(Duration::from_millis(300)).is_err(),
            "there were enough descriptors"
        );
        drop(many);
        assert!(answer.recv_timeout(DEADLINE).unwrap().starts_with("HTTP/1.1 200"));
    });
    server.signal("TERM");
    let log = String::from_utf8(server.end().stderr).unwrap();
    assert!(log.contains("could not be accepted"), "{log}");
}

#[test]
fn an_address_in_use_is_reported() {
    let app = App::new(&component("service"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = finish(app.command(&address).spawn().unwrap());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains(&format!("{address} is already in use")), "{stderr}");
}

const HEALTH: &str = "GET /.well-known/spin/health HTTP/1.1\r\nHost: test";

fn connect_to(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn a_unix_socket_serves_besides_an_address_and_is_removed_at_shutdown() {
    let app = App::new(&component("service"));
    let socket = app.socket();
    let server = app.start_with_flags(&["--listen", &format!("unix:{}", socket.display())]);
    let metadata = socket.symlink_metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    for answer in [server.ask(HEALTH), ask_through(connect_to(&socket), HEALTH)] {
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    assert!(ask_through(connect_to(&socket), "GET /app HTTP/1.1\r\nHost: test").starts_with("HTTP/1.1 500"));
    server.signal("TERM");
    assert_eq!(server.end().status.code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let app = App::new(&component("service"));
    let socket = app.socket();
    let server = app.run(app.command_on_socket());
    assert!(ask_through(connect_to(&socket), HEALTH).starts_with("HTTP/1.1 200"));
    let output = finish(app.command_on_socket().spawn().unwrap());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("app.sock is already in use"), "{error}");
    assert!(ask_through(connect_to(&socket), HEALTH).starts_with("HTTP/1.1 200"));

    server.signal("KILL");
    server.end();
    assert!(socket.exists());
    let server = app.run(app.command_on_socket());
    assert!(ask_through(connect_to(&socket), HEALTH).starts_with("HTTP/1.1 200"));

    // Another process has replaced the socket: that socket stays.
    std::fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    server.signal("TERM");
    assert_eq!(server.end().status.code(), Some(0));
    assert!(socket.exists());
}

#[test]
fn a_file_that_is_not_a_socket_is_left_alone() {
    let app = App::new(&component("service"));
    app.write("app.sock", b"important");
    let output = finish(app.command_on_socket().spawn().unwrap());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("app.sock exists and is not a socket"), "{error}");
    assert_eq!(std::fs::read(app.socket()).unwrap(), b"important");

    // An invalid application is detected after the socket is bound. The socket is still removed.
    let app = App::new(b"this is not wasm");
    let output = finish(app.command_on_socket().spawn().unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(!app.socket().exists());
}

#[test]
fn little_address_space_allows_fewer_instances_and_too_little_is_an_error() {
    let app = App::new(&component_working_after_answer(None));
    // As much as kernels have whose addresses have 39 bits.
    let server = app.run(app.command_in_address_space(512));
    assert!(server.get("/app").starts_with("HTTP/1.1 500"));
    server.signal("TERM");
    let log = String::from_utf8(server.end().stderr).unwrap();
    for part in ["LoopDetected", "at most 62 instances", "LimitAS="] {
        assert!(log.contains(part), "{part}: {log}");
    }

    let output = finish(app.command_in_address_space(16).spawn().unwrap());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("LimitAS="), "{error}");
}

#[test]
fn http_2_is_refused() {
    let app = App::new(&component("service"));
    let server = app.start();
    let mut stream = server.connect();
    // The preface, and SETTINGS with a window of zero, with which a response would never finish.
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(settings).unwrap();
    let mut answer = Vec::new();
    // The connection may be reset, because the server does not read the rest.
    drop(stream.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    assert!(server.ask(HEALTH).starts_with("HTTP/1.1 200"));
}

/// The tolerance of time limits, because the machine may be busy.
const SLACK: Duration = Duration::from_secs(30);

#[test]
fn connections_that_send_nothing_are_closed() {
    let app = App::new(&component("service"));
    let mut command = app.command("127.0.0.1:0");
    command.args(["--client-timeout", "500ms"]);
    let server = app.run(with_descriptors(&command, 40));
    let many: Vec<TcpStream> = (0..80).map(|_| server.connect()).collect();
    let start = Instant::now();
    // The kernel accepts them all, the server only some, so the request waits behind the others.
    assert!(server.ask(HEALTH).starts_with("HTTP/1.1 200"));
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    drop(many);
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let app = App::new(&component("service"));
    let server = app.start_with_flags(&["--client-timeout", "500ms"]);
    let mut stream = server.connect();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let requests = format!("{HEALTH}\r\n\r\n").repeat(1_000);
    let start = Instant::now();
    // First the responses fill the buffers of both sides, then the requests do.
    let error = loop {
        if let Err(error) = stream.write_all(requests.as_bytes()) {
            break error;
        }
        assert!(start.elapsed() < SLACK, "the client was not cut off");
    };
    let kinds = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
    assert!(kinds.contains(&error.kind()), "{error}");
}

#[test]
fn a_request_whose_body_never_arrives_does_not_block_others() {
    let app = App::new(&component("service"));
    let server = app.start_with_flags(&["--client-timeout", "3s"]);
    let mut slow: Vec<TcpStream> = (0..901).map(|_| server.connect()).collect();
    for stream in &mut slow {
        write!(stream, "POST /app HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n").unwrap();
    }
    // The server accepts connections in order, so it has accepted all the slow ones by now.
    assert!(server.get("/app").starts_with("HTTP/1.1 500"));
    for mut stream in slow {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer:?}");
    }
}

#[test]
fn a_request_beyond_the_capacity_is_refused() {
    let app = App::new(&waiting_component(Duration::from_secs(3600)));
    let server = app.start();
    // One more than the capacity: the last to arrive is refused.
    let mut stuck: Vec<TcpStream> = (0..901).map(|_| server.connect()).collect();
    for stream in &mut stuck {
        write!(stream, "GET /app HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        stream.set_nonblocking(true).unwrap();
    }
    let mut refused = None;
    wait_until(|| {
        refused = stuck.iter().position(|stream| stream.peek(&mut [0]).is_ok());
        refused.is_some()
    });
    let mut refused = stuck.remove(refused.unwrap());
    refused.set_nonblocking(false).unwrap();
    let mut answer = String::new();
    refused.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1\r\n"),
        "{answer}"
    );
    assert!(
        stuck.iter().all(|stream| stream.peek(&mut [0]).is_err()),
        "more than one was refused"
    );
    // The health check does not need the capacity.
    assert!(server.ask(HEALTH).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_component_that_never_answers_is_stopped() {
    let app = App::new(&waiting_component(Duration::from_secs(3600)));
    let server = app.start_with_flags(&["--request-timeout", "100ms"]);
    let start = Instant::now();
    assert!(server.get("/app").starts_with("HTTP/1.1 500"));
    assert!(start.elapsed() < SLACK);
}

#[test]
fn an_instance_that_was_idle_does_not_yield_at_once() {
    const REQUESTS: usize = 20;
    let app = App::new(&component_working_after_answer(None));
    let mut command = app.command("127.0.0.1:0");
    command
        .args(["--idle-instance-timeout", "3600s"])
        .env("RUST_LOG", "trace");
    let server = app.run(command);
    for _ in 0..REQUESTS {
        assert!(server.get("/app").starts_with("HTTP/1.1 500"));
        // Longer than two epoch ticks.
        std::thread::sleep(Duration::from_millis(50));
    }
    server.signal("TERM");
    let log = String::from_utf8(server.end().stderr).unwrap();
    let yields = log.matches("yields its thread").count();
    // On a busy machine a request may still take longer than a tick.
    assert!(yields < REQUESTS / 2, "{yields} of {REQUESTS}");
}

#[test]
fn untraced_requests_share_instances() {
    const REQUESTS: usize = 32;
    let app = App::new(&waiting_component(Duration::from_millis(500)));
    let mut command = app.command("127.0.0.1:0");
    // Nothing listens there, and no request is sampled.
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .env("OTEL_TRACES_SAMPLER", "always_off");
    let server = app.run(command);
    std::thread::scope(|scope| {
        for _ in 0..REQUESTS {
            scope.spawn(|| assert!(server.get("/app").starts_with("HTTP/1.1 500")));
        }
    });
    server.signal("TERM");
    let log = String::from_utf8(server.end().stderr).unwrap();
    // The trap of its first request ends each instance.
    let instances = log.matches("an instance failed").count();
    assert!((1..REQUESTS).contains(&instances), "{instances} instances: {log}");
}

fn compile(app: &App, out: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_links-host"));
    command
        .arg("compile")
        .arg("--from")
        .arg(app.dir.path())
        .arg("--out")
        .arg(out);
    command.output().unwrap()
}

/// The log of a server that is started with this directory of compiled components.
fn log_with_precompiled(app: &App, directory: &Path) -> String {
    let server = app.start_with_flags(&["--precompiled", directory.to_str().unwrap()]);
    assert!(server.get("/app").starts_with("HTTP/1.1 500"));
    server.signal("TERM");
    String::from_utf8(server.end().stderr).unwrap()
}

#[test]
fn components_are_compiled_once_in_advance() {
    const WARNING: &str = "compiled at startup";
    let app = App::new(&component("service"));
    let out = app.dir.path().join("compiled");
    let output = compile(&app, &out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = || -> Vec<PathBuf> {
        std::fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    };
    let [file] = &files()[..] else {
        panic!("{:?}", files());
    };
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o755)).unwrap();
    let log = log_with_precompiled(&app, &out);
    assert!(!log.contains(WARNING), "{log}");

    // A matching file is left alone.
    let inode = |file: &Path| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    let before = inode(file);
    assert!(compile(&app, &out).status.success());
    assert_eq!(inode(file), before);

    // Other users could have written the file.
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o777)).unwrap();
    let log = log_with_precompiled(&app, &out);
    assert!(log.contains(WARNING) && log.contains("is writable by"), "{log}");
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o755)).unwrap();

    // A damaged file is compiled again.
    std::fs::write(file, b"damaged").unwrap();
    let log = log_with_precompiled(&app, &out);
    assert!(log.contains(WARNING) && log.contains("cannot be loaded"), "{log}");
    assert!(compile(&app, &out).status.success());
    assert!(!log_with_precompiled(&app, &out).contains(WARNING));

    // The component changes: the compiled form of the old one is removed.
    app.write("app.wasm", &component_working_after_answer(None));
    let log = log_with_precompiled(&app, &out);
    assert!(
        log.contains(WARNING) && log.contains("no matching compiled component"),
        "{log}"
    );
    assert!(compile(&app, &out).status.success());
    assert_eq!(files().len(), 1);
    assert!(!log_with_precompiled(&app, &out).contains(WARNING));
}

#[test]
fn an_error_names_the_bad_component() {
    let app = App::new(b"this is not wasm");
    let error = app.startup_error();
    assert!(error.contains("app.wasm is not a WebAssembly component"), "{error}");

    std::fs::remove_file(app.dir.path().join("app.wasm")).unwrap();
    let error = app.startup_error();
    assert!(
        error.contains("component app") && error.contains("app.wasm") && error.contains("No such file"),
        "{error}"
    );

    let whole = component("service");
    app.write("app.wasm", &whole[..whole.len() / 2]);
    assert!(app.startup_error().contains("app.wasm is not a WebAssembly component"));

    app.write("app.wasm", &component("wants-redis"));
    let error = app.startup_error();
    assert!(error.contains("spin:redis/redis@3.0.0"), "{error}");

    app.write("app.wasm", &component("idle"));
    let error = app.startup_error();
    assert!(error.contains("does not serve HTTP"), "{error}");
}

#[test]
fn an_error_names_what_is_undefined_or_missing() {
    let app = App::new(&component("service"));
    app.write(
        "runtime.toml",
        b"log_dir = ''\n[key_value_store.default]\ntype = 'azure_cosmos'\nkey = 'hunter2'\n",
    );
    let error = app.startup_error();
    assert!(
        error.contains("runtime.toml") && error.contains("line 2") && error.contains("azure_cosmos"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "a secret was printed: {error}");

    app.write(
        "runtime.toml",
        b"log_dir = ''\n[sqlite_database.default]\ntype = 'spin'\npath = 'app.wasm/links.db'\n",
    );
    let error = app.startup_error();
    assert!(error.contains("\"default\"") && error.contains("app.wasm"), "{error}");

    app.write("runtime.toml", b"values = { admin_token = \"hunter2 }\n");
    let error = app.startup_error();
    assert!(
        error.contains("line 1") && !error.contains("hunter2"),
        "a secret was printed: {error}"
    );

    app.write("runtime.toml", b"");
    let manifest = std::fs::read_to_string(app.dir.path().join("spin.toml")).unwrap();
    app.write("spin.toml", manifest.replace("[\"default\"]", "[\"other\"]").as_bytes());
    let error = app.startup_error();
    assert!(
        error.contains("\"other\"") && error.contains("[sqlite_database.other]"),
        "{error}"
    );
}

#[test]
fn the_version_and_the_flags_are_printed() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_links-host"))
            .args(args)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
        )
    };
    assert_eq!(
        run(&["--version"]),
        (Some(0), format!("links-host {}\n", env!("CARGO_PKG_VERSION")))
    );
    let (code, help) = run(&["up", "--help"]);
    assert_eq!(code, Some(0));
    assert!(
        help.contains("--runtime-config-file") && help.contains("--max-instance-reuse-count"),
        "{help}"
    );
    assert_eq!(run(&["up", "--sqlite", "x"]).0, Some(2));
}
