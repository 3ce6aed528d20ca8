//! A foreign program where an instance or nginx should listen.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::machine::Machine;
use crate::process::eventually;

/// Listens at the first argument and writes what it receives to the file in the second one. It answers nothing.
const PROGRAM: &str = r#"
    my ($address, $file) = @ARGV;
    my $server = $address =~ m{^/}
        ? IO::Socket::UNIX->new(Local => $address, Listen => 64)
        : IO::Socket::INET->new(LocalAddr => $address, Listen => 64, ReuseAddr => 1);
    $server or die "$address: $!\n";
    open my $note, ">", $file or die "$file: $!\n";
    $note->autoflush;
    print $note "listens\n";
    while (my $client = $server->accept) {
        print $note "connected\n";
        my $request = "";
        while ($request !~ /\r\n\r\n/ and sysread $client, my $part, 4096) { $request .= $part; }
        print $note $request, "end\n";
        close $client;
    }
"#;

/// A program that has taken an address. It ends with the machine.
#[derive(Debug)]
pub struct Squatter<'a> {
    machine: &'a Machine,
    unit: String,
    ss: String,
}

impl<'a> Squatter<'a> {
    /// Takes an address, which is an IP address with a port or the path of a Unix socket, with the rights of `user`.
    ///
    /// # Errors
    /// Fails if the address is not free.
    pub fn take(machine: &'a Machine, address: &str, user: &str) -> Result<Self> {
        let place = address.rsplit([':', '/']).next().unwrap_or_default();
        let squatter = Self {
            machine,
            unit: format!("squatter-{place}"),
            ss: match address.starts_with('/') {
                true => format!("`ss -lxp src {address}`"),
                false => format!("`ss -ltnp 'sport = :{place}'`"),
            },
        };
        machine.ok(["rm", "--force", &squatter.file()])?;
        machine.ok([
            "systemd-run",
            "--quiet",
            &format!("--unit={}", squatter.unit),
            &format!("--uid={user}"),
            "perl",
            "-MIO::Socket::INET",
            "-MIO::Socket::UNIX",
            "-e",
            PROGRAM,
            address,
            &squatter.file(),
        ])?;
        eventually(&format!("{address} is taken"), Duration::from_secs(10), || {
            Ok(squatter
                .notes()
                .is_ok_and(|notes| notes.starts_with("listens\n"))
                .then_some(()))
        })
        .with_context(|| machine.journal(&squatter.unit).unwrap_or_default())?;
        Ok(squatter)
    }

    fn file(&self) -> String {
        format!("/tmp/{}", self.unit)
    }

    fn notes(&self) -> Result<String> {
        self.machine.read(&self.file())
    }

    /// What it has received so far: for each connection a line `connected`, the head of the request, and a line `end`.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn heard(&self) -> Result<String> {
        Ok(self.notes()?.trim_start_matches("listens\n").to_owned())
    }

    /// Its name and process in the machine, as `ss` and linksctl show them.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn shown(&self) -> Result<String> {
        Ok(format!("perl (process {})", self.machine.main_pid(&self.unit)?))
    }

    /// The command that shows who has the address, as an error about it recommends.
    pub fn ss(&self) -> &str {
        &self.ss
    }

    /// Ends it. The address is then free.
    ///
    /// # Errors
    /// Fails if systemctl fails.
    pub fn leave(self) -> Result<()> {
        self.machine.ok(["systemctl", "stop", &self.unit]).map(drop)
    }
}
