//! `linksctl run N`: the supervisor of one instance.

mod machine;
pub mod told;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::fcntl::Flock;
use nix::sys::signal::Signal;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::config::links::Config;
use crate::config::load::load_for_instance;
use crate::config::render;
use crate::endpoint::{self, Endpoint};
use crate::health::Probe;
use crate::layout::{self, Layout};
use crate::notify::notify;
use crate::process::{self, Process};
use crate::release::{Release, Store};
use crate::rollout::{Version, snapshot};
use crate::runtime::{self, Call};
use crate::{connections, files, log, peers, rotation, secrets, sockets};
use machine::{Action, Event, Machine, Probing, Times, Traffic};
use told::Teller;

/// Between two probes before the first healthy answer; a warm start takes 10 to 40 ms.
const PROBE_AT_START: Duration = Duration::from_millis(10);
/// Added to the times that systemd is told, for what happens besides the waiting.
const MARGIN: Duration = Duration::from_secs(10);
/// systemd's watchdog is fed at least this often, where it does not say how often it is to be; a third of `WatchdogSec=`.
const FEED: Duration = Duration::from_secs(10);
/// Between two looks at the runtime's memory.
const MEASURE: Duration = Duration::from_secs(5);

/// Runs instance `instance` until it is stopped or its runtime ends.
///
/// # Errors
/// It cannot be started (each with its reason), does not become healthy in time, or its runtime ends unasked.
pub fn run(layout: &Layout, instance: u16) -> anyhow::Result<()> {
    let run_dir = layout.instance_run_dir(instance);
    fs::create_dir_all(&run_dir).with_context(|| format!("Making {}", run_dir.display()))?;
    let _lock = lock(&run_dir.join("lock"), instance)?;
    let flag = Flag::new(layout, instance)?;

    let (applied, digest) = snapshot::of_instance(layout, instance);
    let loaded = load_for_instance(&applied, instance)?;
    loaded.log_warnings();
    let release = Store::new(layout).of_instance(instance)?;
    runtime::check_release(&release)?;
    if let Some(database) = loaded.local_database(layout) {
        check_writable(&database)?;
    }
    let config = &loaded.config;
    let listen = endpoints(layout, instance, config, &release);
    sockets::remove_stale(&layout.instance_socket(instance))?;
    for endpoint in &listen {
        if let Endpoint::Tcp(address) = endpoint {
            check_free(*address)?;
        }
    }

    let runtime_config = run_dir.join("runtime.toml");
    let rendered = loaded.render(layout)?;
    let exports = loaded.exports()?;
    let secrets = secrets::OfInstance::read(layout);
    let with_secrets = render::with_variables(&rendered, &secrets.variables())?;
    files::replace(&runtime_config, with_secrets.as_bytes(), 0o600)?;
    let runs = Version {
        release: release.id.clone(),
        config: digest.unwrap_or_else(|| render::digest(&rendered, config, &exports)),
    };
    let forward = layout.instance_forward(instance);
    match exports.forward() {
        Some(target) => files::replace(&forward, &serde_json::to_vec(target)?, 0o600)?,
        None => files::remove_if_present(&forward).with_context(|| format!("Removing {}", forward.display()))?,
    }
    files::replace(&layout.instance_runs(instance), &serde_json::to_vec(&runs)?, 0o600)?;
    let call = Call {
        release: &release,
        listen: listen.clone(),
        runtime_config,
        state_dir: run_dir.join("state"),
        precompiled: Store::new(layout).compiled(&release),
        cache_dir: layout.cache_dir(),
        temporary_dir: run_dir.clone(),
        telemetry: exports.environment(instance, &release.manifest.version, secrets.otlp()),
    };
    log::notice!(
        "instance {instance}: release {}, {}, {}",
        release.id,
        release.runtime_name(),
        listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
    );

    process::adopt_orphans()?;
    let (tell, told) = mpsc::channel();
    let stop = tell.clone();
    process::on_signals([SIGTERM, SIGINT], move || {
        stop.send(Message::Event(Event::StopRequested)).is_ok()
    })?;
    let exit = tell.clone();
    let started = Instant::now();
    let running = Process::start(&mut call.command(), Signal::SIGKILL, move |status| {
        // The supervisor has left already: nobody needs to know.
        let _ = exit.send(Message::Event(Event::Exited(process::describe(status))));
    })
    .with_context(|| format!("Starting {}", release.runtime_path().display()))?;

    let mut teller = Teller::started(layout, instance);
    spawn_gauge(running.group(), tell.clone());
    let times = Times {
        start_timeout: config.health.start_timeout,
        drain_timeout: config.drain.timeout,
    };
    let (mut machine, actions) = Machine::start(times);
    let mut actions = VecDeque::from(actions);
    let mut probing = machine.probing();
    let prober = spawn_prober(&listen, config, tell, probing);
    let mut deadline = None;

    // `prober` stays connected to its channel until here is left; then its thread ends.
    let outcome = 'supervision: loop {
        while let Some(action) = actions.pop_front() {
            match action {
                Action::SetFlag => flag.set()?,
                Action::ClearFlag => flag.clear()?,
                Action::TellReady => {
                    log::notice!("instance {instance}: ready after {} ms", started.elapsed().as_millis());
                    notify(&[NotifyState::Ready]);
                }
                Action::TellStopping => notify(&[NotifyState::Stopping]),
                Action::TellStatus(text) => notify(&[NotifyState::Status(&text)]),
                Action::Extend(time) => notify(&[NotifyState::ExtendTimeoutUsec(microseconds(time + MARGIN))]),
                Action::Log(text) => log::notice!("instance {instance}: {text}"),
                Action::Drained(time) => teller.drained(time),
                Action::Look => {
                    let seen = Event::Seen(look(layout, instance, &listen));
                    actions.extend(machine.on(seen, started.elapsed()));
                }
                Action::Wake(after) => deadline = Some(Instant::now() + after),
                Action::Terminate => running.terminate(),
                Action::Kill => running.kill(),
                Action::Leave(outcome) => break 'supervision outcome,
            }
        }
        if machine.probing() != probing {
            probing = machine.probing();
            // It listens until here is left.
            let _ = prober.send(probing);
        }
        let message = match deadline {
            Some(at) => told.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let event = match message {
            Ok(Message::Event(event)) => event,
            Ok(Message::Alive) => {
                notify(&[NotifyState::Watchdog]);
                continue;
            }
            Ok(Message::Memory(bytes)) => {
                teller.memory(bytes);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {
                deadline = None;
                Event::Deadline
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the supervisor's own threads have ended"),
        };
        actions.extend(machine.on(event, started.elapsed()));
    };
    drop(prober);
    flag.clear()?;
    // Spin serves from a child of its own, which outlives it when it could not end it.
    process::end_orphans()?;
    outcome.map_err(|error| anyhow::anyhow!("instance {instance}: {error}"))
}

/// Where the instance is to listen, the first of them to be probed first.
fn endpoints(layout: &Layout, instance: u16, config: &Config, release: &Release) -> Vec<Endpoint> {
    // `linksctl up` writes its site for the instances that run.
    let is_known = (config.nginx.manage || !layout.is_host()) && !layout.site_not_loaded().exists();
    let site = is_known.then(|| peers::site_text(layout));
    endpoint::listen(
        &Endpoint::socket(layout, instance),
        &Endpoint::tcp(config.base_port, instance),
        peers::can_listen_on_socket(release, layout, instance),
        site.as_deref(),
    )
}

enum Message {
    Event(Event),
    /// The watchdog may be fed: the runtime's listener answers, or the machine waits for its end with deadlines of its own.
    Alive,
    /// What the runtime's processes have, in bytes.
    Memory(Option<u64>),
}

/// The instance's place in the rotation, while it has one.
struct Flag {
    path: std::path::PathBuf,
}

impl Flag {
    /// No flag: a stale one goes.
    fn new(layout: &Layout, instance: u16) -> anyhow::Result<Self> {
        let directory = layout.ready_dir();
        fs::create_dir_all(&directory).with_context(|| format!("Making {}", directory.display()))?;
        let flag = Self {
            path: layout.ready_flag(instance),
        };
        flag.clear()?;
        Ok(flag)
    }

    fn set(&self) -> anyhow::Result<()> {
        match symlink(".", &self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("Making {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    fn clear(&self) -> anyhow::Result<()> {
        files::remove_if_present(&self.path).with_context(|| format!("Removing {}", self.path.display()))
    }
}

/// On every way out, errors included.
impl Drop for Flag {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            log::error!("{error:#}");
        }
    }
}

/// The lock that says who runs an instance; held until the process ends, whatever its end is.
fn lock(path: &Path, instance: u16) -> anyhow::Result<Flock<File>> {
    let locked = files::lock(path, 0o600, &std::process::id().to_string())?;
    locked.with_context(|| {
        let holder = fs::read_to_string(path).unwrap_or_default();
        let unit = layout::instance_unit(instance);
        format!("instance {instance} is already run by process {holder}; `systemctl stop {unit}` stops it")
    })
}

/// SQLite needs to write the file, and to make others beside it.
fn check_writable(database: &Path) -> anyhow::Result<()> {
    let directory = database.parent().unwrap_or(Path::new("/"));
    let who = || {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
        user.ok()
            .flatten()
            .map_or_else(|| nix::unistd::geteuid().to_string(), |user| user.name)
    };
    tempfile::Builder::new()
        .prefix(".writable-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .with_context(|| {
            format!(
                "the database directory {} has to be writable by user {}; see `namei -l {}` and `findmnt -T {}`",
                directory.display(),
                who(),
                directory.display(),
                directory.display()
            )
        })?;
    match OpenOptions::new().append(true).open(database) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| {
            format!(
                "the database {} has to be writable by user {}",
                database.display(),
                who()
            )
        }),
        _ => Ok(()),
    }
}

/// The runtime would say this too, but not what to do.
pub fn check_free(address: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => bail!(
            "{address} is in use by another program; `ss -ltnp 'sport = :{}'` as root shows which. \
             End it, or choose another base_port in links.toml",
            address.port()
        ),
        Err(error) => Err(error).with_context(|| format!("Listening on {address}")),
        Ok(_) => Ok(()),
    }
}

/// Probes as it is told, until the returned sender is dropped.
fn spawn_prober(listen: &[Endpoint], config: &Config, tell: Sender<Message>, mut probing: Probing) -> Sender<Probing> {
    let probes: Vec<_> = listen
        .iter()
        .map(|endpoint| Probe::new(endpoint.clone(), config.health.timeout))
        .collect();
    let interval = config.health.interval;
    let feed = sd_notify::watchdog_enabled().map_or(FEED, |watchdog| watchdog / 3);
    let (change, changed) = mpsc::channel();
    std::thread::spawn(move || {
        loop {
            let messages = match probing {
                Probing::Eager | Probing::Regular => {
                    // Two questions: whether the process serves at all decides over its life, whether the component can
                    // do its work only over the rotation. A database that is away is no reason to restart.
                    let alive = probes.iter().try_for_each(Probe::alive);
                    let ready = alive.clone().and_then(|()| probes.iter().try_for_each(Probe::ready));
                    [
                        alive.is_ok().then_some(Message::Alive),
                        Some(Message::Event(ready.map_or_else(Event::NotReady, |()| Event::Ready))),
                    ]
                }
                Probing::Off => [Some(Message::Alive), None],
            };
            for message in messages.into_iter().flatten() {
                if tell.send(message).is_err() {
                    return;
                }
            }
            let pause = match probing {
                Probing::Eager => PROBE_AT_START,
                Probing::Regular => interval.min(feed),
                Probing::Off => feed,
            };
            match changed.recv_timeout(pause) {
                Ok(new) => probing = new,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    change
}

/// Measures as long as somebody listens. It is a thread of its own: /proc may take long on a host with many processes.
fn spawn_gauge(group: process::Group, tell: Sender<Message>) {
    std::thread::spawn(move || {
        while tell.send(Message::Memory(group.resident_bytes())).is_ok() {
            std::thread::sleep(MEASURE);
        }
    });
}

/// What the machine asks for with [`Action::Look`].
fn look(layout: &Layout, instance: u16, listen: &[Endpoint]) -> Traffic {
    let others = rotation::ready_instances(layout).map(|ready| ready.iter().any(|other| *other != instance));
    Traffic {
        connections: count_connections(listen),
        others: others.unwrap_or_else(|error| {
            log::error!("reading {}: {error}", layout.ready_dir().display());
            // nginx cannot look either, and asks everybody.
            false
        }),
    }
}

/// Connections of the server that listens there, from the kernel's tables.
fn count_connections(listen: &[Endpoint]) -> Result<usize, String> {
    let count = |endpoint: &Endpoint| match endpoint {
        Endpoint::Socket(path) => sockets::count(&sockets::table()?, path),
        Endpoint::Tcp(address) => {
            let tables = connections::tables()?;
            tables.iter().map(|table| connections::count(table, *address)).sum()
        }
    };
    listen.iter().map(count).sum()
}

/// At most 71 minutes, which is more than links.toml allows for a start or a drain.
fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn one_supervisor_per_instance() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = lock(&path, 1).unwrap();
        let error = lock(&path, 1).unwrap_err().to_string();
        assert!(
            error.contains(&format!("already run by process {}", std::process::id())),
            "{error}"
        );
        drop(held);
        lock(&path, 1).unwrap();
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = check_free(address).unwrap_err().to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("base_port"),
            "{error}"
        );
        drop(taken);
        check_free(address).unwrap();
    }

    #[test]
    fn a_missing_database_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        check_writable(&directory.path().join("links.db")).unwrap();
        let missing = directory.path().join("missing/links.db");
        assert!(
            format!("{:#}", check_writable(&missing).unwrap_err()).contains("missing"),
            "wrong reason"
        );
    }

    #[test]
    fn a_stale_flag_goes_at_the_start_and_a_set_one_at_the_end() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        let flag = Flag::new(&layout, 1).unwrap();
        assert!(!layout.ready_flag(1).exists());
        flag.set().unwrap();
        flag.set().unwrap();
        // nginx looks whether one path leads through all flags.
        assert!(layout.ready_flag(1).join("1/../ready").exists());
        drop(flag);
        assert!(!layout.ready_flag(1).exists());
    }

    #[test]
    fn a_start_that_fails_leaves_no_flag() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        fs::write(layout.ready_flag(2), b"").unwrap();
        // There is nothing to run.
        run(&layout, 1).unwrap_err();
        assert!(!layout.ready_flag(1).exists());
        assert!(layout.ready_flag(2).exists(), "that is another instance's");
    }

    #[test]
    fn the_flag_of_an_instance_that_runs_is_its_own() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::create_dir_all(layout.instance_run_dir(1)).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        let _held = lock(&layout.instance_run_dir(1).join("lock"), 1).unwrap();
        let error = run(&layout, 1).unwrap_err().to_string();
        assert!(error.contains("already run"), "{error}");
        assert!(layout.ready_flag(1).exists());
    }

    #[test]
    fn the_unit_takes_the_flag_of_a_supervisor_that_was_killed() {
        let unit = include_str!("../../../systemd/links@.service");
        let ready = Layout::new("/").ready_dir();
        let line = format!("ExecStopPost=/usr/bin/rm -f {}/%i", ready.display());
        assert!(unit.lines().any(|found| found == line), "{line}");
    }

    /// The kernel's table has no event: looks until it shows `expected`.
    fn comes_to(expected: usize, server: SocketAddr) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let found = count_connections(&[Endpoint::Tcp(server)]).unwrap();
            if found == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{found} connections instead of {expected}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn connections_are_counted_as_long_as_anybody_needs_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        // The listener is none.
        comes_to(0, server);

        let mut clients: Vec<_> = (0..3).map(|_| TcpStream::connect(server).unwrap()).collect();
        // Not accepted yet, and the clients' sides are in the table of this process as well.
        comes_to(3, server);
        let mut served: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        comes_to(3, server);

        // One ends: the client closes, and may still be answered until the server does.
        drop(clients.pop());
        comes_to(3, server);
        drop(served.pop());
        comes_to(2, server);

        // One is answered with more than the client takes at once, and closed.
        let mut answered = served.pop().unwrap();
        answered.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(bytes) = answered.write(&[0; 65536]) {
            sent += bytes;
        }
        drop(answered);
        comes_to(2, server);
        let mut client = clients.pop().unwrap();
        assert_eq!(client.read_to_end(&mut vec![]).unwrap(), sent);
        comes_to(1, server);

        drop((served, clients));
        comes_to(0, server);
    }

    #[test]
    fn who_else_is_ready_is_read_from_the_flags() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let others = || look(&layout, 1, &[Endpoint::Tcp(server)]).others;
        assert!(!others(), "there is no directory");
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        assert!(!others(), "that is the instance itself");
        fs::write(layout.ready_flag(2), b"").unwrap();
        assert!(others());
    }

    #[test]
    fn systemd_can_be_told_of_the_longest_times() {
        assert_eq!(microseconds(Duration::from_hours(1) + MARGIN), 3_610_000_000);
    }
}
