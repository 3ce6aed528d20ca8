//! A runtime that fails in the way named by the file `fault` beside it. The file `real` beside it is the working runtime,
//! which answers for the version and serves where the fault allows it. See `Fault` for the meaning of each fault.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Context as _, Result, bail};
use links_tests::Fault;
use nix::unistd::alarm;

fn main() -> Result<ExitCode> {
    let program = std::env::current_exe()?;
    let beside = |name: &str| program.with_file_name(name);
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_none_or(|command| command != "up") {
        return become_real(&beside("real"), &arguments);
    }

    let fault = std::fs::read_to_string(beside("fault")).context("Reading the fault")?;
    let listen = arguments.iter().skip_while(|argument| *argument != "--listen").nth(1);
    let listen = listen
        .and_then(|address| address.to_str())
        .context("--listen is missing")?;
    match Fault::of_name(&fault) {
        Some(Fault::Exits) => {
            eprintln!("broken-runtime: this is its last log line");
            Ok(ExitCode::from(3))
        }
        Some(Fault::Hangs) => loop {
            thread::park();
        },
        Some(Fault::Deaf) => {
            let _listener = bind(listen)?;
            loop {
                thread::park();
            }
        }
        Some(Fault::Sick) => {
            let listener = bind(listen)?;
            loop {
                // An error only means that the health probe hung up. It will ask again.
                drop(listener.accept().and_then(answer));
            }
        }
        Some(Fault::Instance(number))
            if listen.ends_with(&format!(":{}", 7000 + number)) || listen.ends_with(&format!("/{number}.sock")) =>
        {
            bail!("this instance must not serve on {listen}")
        }
        Some(Fault::Instance(_)) => become_real(&beside("real"), &arguments),
        Some(Fault::DiesYoung) => {
            // An alarm survives exec.
            alarm::set(1);
            become_real(&beside("real"), &arguments)
        }
        _ => bail!("{fault:?} is not a fault of the runtime"),
    }
}

fn become_real(real: &Path, arguments: &[OsString]) -> Result<ExitCode> {
    let error = Command::new(real).args(arguments).exec();
    Err(error).with_context(|| format!("Starting {}", real.display()))
}

/// A listener on the address in `--listen`.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

fn bind(listen: &str) -> Result<Listener> {
    Ok(match listen.strip_prefix("unix:") {
        Some(path) => Listener::Unix(UnixListener::bind(path)?),
        None => Listener::Tcp(TcpListener::bind(listen)?),
    })
}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept()?.0),
            Self::Tcp(listener) => Box::new(listener.accept()?.0),
        })
    }
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Reports the runtime healthy, and answers everything else with 500.
fn answer(mut stream: Box<dyn Stream>) -> io::Result<()> {
    let mut request = [0; 1024];
    let length = stream.read(&mut request)?;
    let status = if request[..length].starts_with(b"GET /.well-known/spin/health") {
        "200 OK"
    } else {
        "500 Internal Server Error"
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
}
