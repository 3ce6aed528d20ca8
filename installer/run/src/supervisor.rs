//! Supervises one instance: carries out what [`Machine`] decides.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::fcntl::Flock;
use nix::sys::signal::Signal;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::machine::{Action, Event, Machine, Probing, Times, Traffic};
use links_base::endpoint::{self, Endpoint};
use links_base::health::Probe;
use links_base::instance_stats::Recorder;
use links_base::layout::{self, Layout};
use links_base::notify::notify;
use links_base::process::{self, Process};
use links_base::{connections, files, log, rotation, secrets, sockets};
use links_config::links::Config;
use links_config::load::load_for_instance;
use links_config::render;
use links_release::runtime::{self, Call};
use links_release::{Release, Snapshots, Store, Version};

/// The interval of probes before the first healthy answer. A warm start takes 10 to 40 ms.
const PROBE_AT_START: Duration = Duration::from_millis(10);
/// The margin on the timeouts that systemd gets, for work besides the waiting.
const MARGIN: Duration = Duration::from_secs(10);
/// The default interval at which systemd's watchdog is fed: a third of `WatchdogSec=` in the unit.
const FEED: Duration = Duration::from_secs(10);
/// The interval at which the runtime's memory is measured.
const MEASURE: Duration = Duration::from_secs(5);

/// Runs instance `instance` until it is stopped or its runtime ends.
///
/// # Errors
/// The instance cannot be started, does not become healthy in time, or its runtime exits on its own.
pub fn run(layout: &Layout, instance: u16) -> anyhow::Result<()> {
    let run_dir = layout.instance_run_dir(instance);
    fs::create_dir_all(&run_dir).with_context(|| format!("Making {}", run_dir.display()))?;
    let _lock = lock(&run_dir.join("lock"), instance)?;
    let flag = Flag::new(layout, instance)?;

    let (applied, digest) = Snapshots::new(layout).of_instance(instance);
    let loaded = load_for_instance(&applied, instance)?;
    loaded.log_warnings();
    let release = Store::new(layout).of_instance(instance)?;
    runtime::check_release(&release)?;
    if let Some(database) = loaded.local_database(applied.places()) {
        check_writable(&database)?;
    }
    let config = &loaded.config;
    let listen = endpoints(layout, instance, config, &release);
    sockets::remove_stale(&layout.instance_socket(instance))?;
    for endpoint in &listen {
        if let Endpoint::Tcp(address) = endpoint {
            endpoint::check_free(*address)?;
        }
    }

    let runtime_config = run_dir.join("runtime.toml");
    let rendered = loaded.render(applied.places())?;
    let exports = loaded.exports()?;
    let secrets = secrets::OfInstance::read(&secrets::Files::new(layout));
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
    let (sender, messages) = mpsc::channel();
    let stop = sender.clone();
    process::on_signals([SIGTERM, SIGINT], move || {
        stop.send(Message::Event(Event::StopRequested)).is_ok()
    })?;
    let exit = sender.clone();
    let started = Instant::now();
    let running = Process::start(&mut call.command(), Signal::SIGKILL, move |status| {
        // This fails once the supervisor is leaving, which is fine.
        let _ = exit.send(Message::Event(Event::Exited(process::describe(status))));
    })
    .with_context(|| format!("Starting {}", release.runtime_path().display()))?;

    let mut recorder = Recorder::started(layout.instance_metrics(instance));
    spawn_gauge(running.group(), sender.clone());
    let times = Times {
        start_timeout: config.health.start_timeout,
        drain_timeout: config.drain.timeout,
    };
    let (mut machine, actions) = Machine::start(times);
    let mut actions = VecDeque::from(actions);
    let mut probing = machine.probing();
    let prober = spawn_prober(&listen, config, sender, probing);
    let mut deadline = None;

    // The prober's thread ends when `prober` is dropped.
    let outcome = 'supervision: loop {
        while let Some(action) = actions.pop_front() {
            match action {
                Action::SetFlag => flag.set()?,
                Action::ClearFlag => flag.clear()?,
                Action::NotifyReady => {
                    log::notice!("instance {instance}: ready after {} ms", started.elapsed().as_millis());
                    notify(&[NotifyState::Ready]);
                }
                Action::NotifyStopping => notify(&[NotifyState::Stopping]),
                Action::NotifyStatus(text) => notify(&[NotifyState::Status(&text)]),
                Action::ExtendTimeout(time) => notify(&[NotifyState::ExtendTimeoutUsec(microseconds(time + MARGIN))]),
                Action::Log(text) => log::notice!("instance {instance}: {text}"),
                Action::Drained(time) => recorder.drained(time),
                Action::Observe => {
                    let observed = Event::Observed(observe(layout, instance, &listen));
                    actions.extend(machine.on(observed, started.elapsed()));
                }
                Action::Wake(after) => deadline = Some(Instant::now() + after),
                Action::Terminate => running.terminate(),
                Action::Kill => running.kill(),
                Action::Leave(outcome) => break 'supervision outcome,
            }
        }
        if machine.probing() != probing {
            probing = machine.probing();
            // The prober's thread runs until `prober` is dropped.
            let _ = prober.send(probing);
        }
        let message = match deadline {
            Some(at) => messages.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let event = match message {
            Ok(Message::Event(event)) => event,
            Ok(Message::Alive) => {
                notify(&[NotifyState::Watchdog]);
                continue;
            }
            Ok(Message::Memory(bytes)) => {
                recorder.memory(bytes);
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
    // Spin serves from a child process, which outlives Spin if Spin was killed.
    process::end_orphans()?;
    outcome.map_err(|error| anyhow::anyhow!("instance {instance}: {error}"))
}

/// The endpoints on which the instance is to listen, in the order of probing.
fn endpoints(layout: &Layout, instance: u16, config: &Config, release: &Release) -> Vec<Endpoint> {
    // `linksctl up` writes its site to match the running instances.
    let is_known = (config.nginx.manage || !layout.is_host()) && !layout.site_not_loaded().exists();
    let site = is_known.then(|| endpoint::site_text(&layout.nginx_site_places()));
    endpoint::listen(
        &Endpoint::socket(&layout.sockets_dir(), instance),
        &Endpoint::tcp(config.base_port, instance),
        release.can_listen_on_socket(&layout.instance_socket(instance)),
        site.as_deref(),
    )
}

enum Message {
    Event(Event),
    /// The watchdog may be fed: the runtime answers, or the machine waits for its end with its own deadlines.
    Alive,
    /// The resident memory of the runtime's processes, in bytes.
    Memory(Option<u64>),
}

/// The flag file that puts the instance in rotation.
struct Flag {
    path: std::path::PathBuf,
}

impl Flag {
    /// Removes a stale flag. The instance starts out of rotation.
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

/// Leaves the rotation on every exit, including errors.
impl Drop for Flag {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            log::error!("{error:#}");
        }
    }
}

/// Takes the lock of an instance, which the kernel releases however the process ends.
fn lock(path: &Path, instance: u16) -> anyhow::Result<Flock<File>> {
    let locked = files::lock(path, 0o600, &std::process::id().to_string())?;
    locked.with_context(|| {
        let holder = fs::read_to_string(path).unwrap_or_default();
        let unit = layout::instance_unit(instance);
        format!("instance {instance} is already run by process {holder}; `systemctl stop {unit}` stops it")
    })
}

/// Checks that SQLite can write the database and create files beside it.
fn check_writable(database: &Path) -> anyhow::Result<()> {
    let directory = database.parent().unwrap_or(Path::new("/"));
    let user_name = || {
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
                user_name(),
                directory.display(),
                directory.display()
            )
        })?;
    match OpenOptions::new().append(true).open(database) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| {
            format!(
                "the database {} has to be writable by user {}",
                database.display(),
                user_name()
            )
        }),
        _ => Ok(()),
    }
}

/// Starts a thread that probes until the returned sender is dropped. The sender changes how it probes.
fn spawn_prober(
    listen: &[Endpoint],
    config: &Config,
    sender: Sender<Message>,
    mut probing: Probing,
) -> Sender<Probing> {
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
                    // Liveness decides whether the process is restarted, readiness only whether it is in rotation: a
                    // database outage is no reason to restart.
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
                if sender.send(message).is_err() {
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

/// Starts a thread that measures the runtime's memory until the receiver is gone. Reading /proc may take long on a host with
/// many processes.
fn spawn_gauge(group: process::Group, sender: Sender<Message>) {
    std::thread::spawn(move || {
        while sender.send(Message::Memory(group.resident_bytes())).is_ok() {
            std::thread::sleep(MEASURE);
        }
    });
}

/// Carries out [`Action::Observe`].
fn observe(layout: &Layout, instance: u16, listen: &[Endpoint]) -> Traffic {
    let others =
        rotation::ready_instances(&layout.ready_dir()).map(|ready| ready.iter().any(|other| *other != instance));
    Traffic {
        connections: count_connections(listen),
        others: others.unwrap_or_else(|error| {
            log::error!("reading {}: {error}", layout.ready_dir().display());
            // nginx cannot read the flags either, and sends requests to all instances.
            false
        }),
    }
}

/// Counts the connections of these endpoints in the kernel's tables.
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

/// The duration in microseconds, at most 71 minutes. links.toml allows less than that for a start or a drain.
fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn an_instance_has_only_one_supervisor() {
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
    fn an_error_names_the_port_in_use() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = endpoint::check_free(address).unwrap_err().to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("base_port"),
            "{error}"
        );
        drop(taken);
        endpoint::check_free(address).unwrap();
    }

    #[test]
    fn an_error_names_the_missing_database_directory() {
        let directory = tempfile::tempdir().unwrap();
        check_writable(&directory.path().join("links.db")).unwrap();
        let missing = directory.path().join("missing/links.db");
        assert!(
            format!("{:#}", check_writable(&missing).unwrap_err()).contains("missing"),
            "wrong reason"
        );
    }

    #[test]
    fn the_flag_is_cleared_at_startup_and_at_exit() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        let flag = Flag::new(&layout, 1).unwrap();
        assert!(!layout.ready_flag(1).exists());
        flag.set().unwrap();
        flag.set().unwrap();
        // nginx checks several flags at once with one path that leads through all of them.
        assert!(layout.ready_flag(1).join("1/../ready").exists());
        drop(flag);
        assert!(!layout.ready_flag(1).exists());
    }

    #[test]
    fn a_failed_start_leaves_no_flag() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        fs::write(layout.ready_flag(2), b"").unwrap();
        // No release is installed.
        run(&layout, 1).unwrap_err();
        assert!(!layout.ready_flag(1).exists());
        assert!(
            layout.ready_flag(2).exists(),
            "the flag of another instance was removed"
        );
    }

    #[test]
    fn a_second_supervisor_does_not_touch_the_flag() {
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
    fn the_unit_removes_the_flag_of_a_killed_supervisor() {
        let unit = include_str!("../../../systemd/links@.service");
        let ready = Layout::new("/").ready_dir();
        let line = format!("ExecStopPost=/usr/bin/rm -f {}/%i", ready.display());
        assert!(unit.lines().any(|found| found == line), "{line}");
    }

    /// Polls the kernel's table, which has no events, until it shows `expected` connections.
    fn wait_for_count(expected: usize, server: SocketAddr) {
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
    fn connections_are_counted_until_both_sides_are_done() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        // The listener does not count.
        wait_for_count(0, server);

        let mut clients: Vec<_> = (0..3).map(|_| TcpStream::connect(server).unwrap()).collect();
        // Not accepted yet. The clients' sides of the connections are in the same table, and do not count.
        wait_for_count(3, server);
        let mut served: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
        wait_for_count(3, server);

        // A client closes, but may still be answered until the server closes, too.
        drop(clients.pop());
        wait_for_count(3, server);
        drop(served.pop());
        wait_for_count(2, server);

        // The server sends more than the client reads at once, and closes.
        let mut answered = served.pop().unwrap();
        answered.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(bytes) = answered.write(&[0; 65536]) {
            sent += bytes;
        }
        drop(answered);
        wait_for_count(2, server);
        let mut client = clients.pop().unwrap();
        assert_eq!(client.read_to_end(&mut vec![]).unwrap(), sent);
        wait_for_count(1, server);

        drop((served, clients));
        wait_for_count(0, server);
    }

    #[test]
    fn the_flags_show_whether_another_instance_is_ready() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let others = || observe(&layout, 1, &[Endpoint::Tcp(server)]).others;
        assert!(!others(), "the directory does not exist");
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        assert!(!others(), "the only flag is that of the instance itself");
        fs::write(layout.ready_flag(2), b"").unwrap();
        assert!(others());
    }

    #[test]
    fn the_longest_timeout_fits_into_the_notification() {
        assert_eq!(microseconds(Duration::from_hours(1) + MARGIN), 3_610_000_000);
    }
}
