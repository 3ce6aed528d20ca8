//! `linksctl up`: the appliance in the foreground, without systemd. nginx, the agent and one supervisor per instance run with
//! all their files below one directory.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::UpArgs;
use crate::setup::LINKS_TOML;
use links_base::endpoint::check_free;
use links_base::files::make_directory;
use links_base::layout::{Layout, edge_address};
use links_base::process::{self, Process};
use links_base::rotation::Watch;
use links_base::services::{OnBehalfOf, Services};
use links_base::{exec, files, rotation, secrets};
use links_config::admin_token;
use links_config::files::ConfigFiles;
use links_config::links::{Config, Listen, keys};
use links_config::load::{Invalid, load, load_links};
use links_config::proxies;
use links_config::reader::Disk;
use links_edge::nginx::{self, CacheSize, HostFacts, Https};
use links_release::{Release, Store};
use links_rollout::{Appliance, Stage, peers};

/// How much longer to wait for a start or a stop than an instance's own deadline for it.
const MARGIN: Duration = Duration::from_secs(10);

/// An event that the main thread waits for.
enum Event {
    Stop,
    Ended { name: String, how: String },
}

/// Runs the appliance until Ctrl-C, SIGTERM, or until any of its processes ends.
///
/// # Errors
/// A process cannot be started, or ends by itself. All others are stopped then.
pub fn run(layout: &Layout, args: &UpArgs) -> anyhow::Result<()> {
    ensure!(
        !layout.is_host(),
        "`linksctl up` needs a directory of its own: use --root DIR. On an installed host run `systemctl start links`"
    );
    let nginx = exec::find("nginx").context("nginx is not installed: `apt-get install nginx-light`")?;
    if args.dry_run {
        println!("create {} (configuration, database, release)", layout.root().display());
        println!(
            "start the instances of {} and wait until each is ready",
            layout.links_toml().display()
        );
        println!("start {} in front of them", nginx.display());
        return Ok(());
    }
    let release = prepare(layout, args)?;
    let config = load_links(&ConfigFiles::new(layout))?;
    ensure!(
        !config.tls.is_on(),
        "`linksctl up` has no HTTPS: leave out the [tls] table, and set `public_url` if a server in front of it has HTTPS"
    );
    let listen = args
        .listen
        .map_or_else(|| config.nginx.listen.clone(), |address| vec![Listen::Address(address)]);
    let config = Config {
        nginx: links_config::links::Nginx {
            listen,
            ..config.nginx.clone()
        },
        ..config
    };
    load(&ConfigFiles::new(layout))?;
    let edge = config.edge_port().map(edge_address);
    for address in config.nginx.listen.iter().map(|listen| listen.address()).chain(edge) {
        check_free(address)?;
    }
    // The ports are free, so no other `linksctl up` runs here and the flags are stale.
    rotation::clear(&layout.ready_dir())?;
    secrets::Files::new(layout).make_missing()?;

    process::adopt_orphans()?;
    let (sender, events) = mpsc::channel();
    let stop = sender.clone();
    process::on_signals([SIGINT, SIGTERM, SIGHUP], move || stop.send(Event::Stop).is_ok())?;
    let watch = Watch::new(&layout.ready_dir())?;
    let mut parts = Parts {
        running: vec![],
        events,
        stop_timeout: config.drain.timeout + MARGIN,
    };
    let up = (|| {
        for instance in 1..=config.instances {
            Store::new(layout).point(instance, &release.id)?;
            parts.start(
                format!("instance {instance}"),
                &mut supervisor(layout, instance)?,
                sender.clone(),
            )?;
        }
        parts.start("the agent".to_owned(), &mut agent(layout)?, sender.clone())?;
        let deadline = Instant::now() + config.health.start_timeout + MARGIN;
        let all: Vec<_> = (1..=config.instances).collect();
        let ready = watch.until(deadline, |ready| {
            parts.check_running()?;
            Ok(ready == all)
        })?;
        ensure!(ready, "the instances did not become ready in time");
        parts.start("nginx".to_owned(), &mut nginx_command(layout, &nginx, &config)?, sender)?;
        wait_until_open(public_address(&config), || parts.check_running())?;
        announce(layout, &config, &release)?;
        parts.wait()
    })();
    parts.stop();
    process::end_orphans()?;
    up
}

/// Creates the directories, the configuration and the token that an installation would have, and imports the release.
fn prepare(layout: &Layout, args: &UpArgs) -> anyhow::Result<Release> {
    make_directory(&layout.config_dir(), 0o755)?;
    make_directory(&layout.data_dir(), 0o750)?;
    make_directory(&layout.cache_dir(), 0o750)?;
    make_directory(&layout.journal_dir(), 0o750)?;
    make_directory(&layout.agent_dir(), 0o700)?;
    make_directory(&layout.ready_dir(), 0o755)?;
    make_directory(&layout.limits_dir(), 0o755)?;
    make_directory(&layout.metrics_dir(), 0o750)?;
    make_directory(&layout.sockets_dir(), 0o700)?;
    appliance(layout).edge.keep_connections()?;
    if !layout.links_toml().exists() {
        let [nginx, metrics, otlp] = free_addresses()?;
        let text = first_links_toml(nginx, free_base_port()?, metrics, otlp);
        files::replace(&layout.links_toml(), text.as_bytes(), 0o644)?;
    }
    let config = ConfigFiles::new(layout);
    if !admin_token::exists(&config) {
        admin_token::make(&config)?;
    }
    let bundle = args.bundle.clone().unwrap_or_else(|| layout.bundle());
    let store = Store::new(layout);
    store.remove_leftovers()?;
    let release = store.import_from(&bundle)?;
    if !layout.runtime_toml().exists() {
        let shipped = release.directory.join(&release.manifest.runtime_config);
        let text = std::fs::read(&shipped).with_context(|| format!("Reading {}", shipped.display()))?;
        files::replace(&layout.runtime_toml(), &text, 0o644)?;
    }
    Ok(release)
}

/// The appliance below the directory of `linksctl up`.
fn appliance(layout: &Layout) -> Appliance {
    Appliance::new(layout, Services::of_host(OnBehalfOf::Person))
}

/// The links.toml of an installation with free ports.
fn first_links_toml(listen: SocketAddr, base_port: u16, metrics: SocketAddr, otlp: SocketAddr) -> String {
    let values = [
        (&keys::BASE_PORT, base_port.to_string()),
        (&keys::METRICS_LISTEN, format!("\"{metrics}\"")),
        (&keys::METRICS_OTLP_LISTEN, format!("\"{otlp}\"")),
        (&keys::NGINX_LISTEN, format!("\"{listen}\"")),
    ];
    let lines = values.map(|(key, value)| format!("{} = {value}\n", key.path()));
    format!("{LINKS_TOML}\n{}", lines.concat())
}

/// Three different addresses: each port is held until all are found.
fn free_addresses() -> anyhow::Result<[SocketAddr; 3]> {
    let open = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("Looking for a free port");
    let listeners = [open()?, open()?, open()?];
    let [first, second, third] = &listeners;
    Ok([first.local_addr()?, second.local_addr()?, third.local_addr()?])
}

/// The lowest port of a free range. It is 7000 if that is free, as in the documentation.
fn free_base_port() -> anyhow::Result<u16> {
    let config = Config::default();
    (config.base_port..u16::MAX - config.instances)
        .step_by(100)
        .find(|base| {
            (0..=config.instances)
                .all(|instance| check_free(links_base::layout::instance_address(*base, instance)).is_ok())
        })
        .context("no free ports for the instances")
}

fn supervisor(layout: &Layout, instance: u16) -> anyhow::Result<Command> {
    let mut command = ourselves(layout)?;
    command.arg("run").arg(instance.to_string());
    Ok(command)
}

fn agent(layout: &Layout) -> anyhow::Result<Command> {
    let mut command = ourselves(layout)?;
    command.arg("agent");
    Ok(command)
}

fn ourselves(layout: &Layout) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("Looking for this program's own path")?);
    command.arg("--root").arg(layout.root());
    Ok(command)
}

fn nginx_command(layout: &Layout, program: &Path, config: &Config) -> anyhow::Result<Command> {
    let directory = layout.run_dir().join("nginx");
    make_directory(&directory, 0o755)?;
    let proxies = proxies::networks(config, &ConfigFiles::new(layout), &Disk).map_err(Invalid)?;
    // This nginx has its addresses to itself, so no other site can be the default server.
    let facts = HostFacts::alone(CacheSize::MODEST, proxies);
    let peers = peers(&appliance(layout), config, Stage::Final);
    let site = directory.join("site.conf");
    files::replace(
        &site,
        nginx::site(config, &nginx::Paths::new(layout), &facts, &peers, &Https::default())?.as_bytes(),
        0o644,
    )?;
    // If root starts nginx, its workers run as `nobody` by default, who cannot see ready flags below a private directory.
    let user = nix::unistd::geteuid().is_root().then_some("root");
    let main = directory.join("nginx.conf");
    files::replace(&main, nginx::standalone(&directory, &site, user)?.as_bytes(), 0o644)?;
    let mut command = Command::new(program);
    command
        .arg("-e")
        .arg("stderr")
        .arg("-p")
        .arg(&directory)
        .arg("-c")
        .arg(&main);
    Ok(command)
}

/// The address at which a person on this machine reaches nginx.
fn public_address(config: &Config) -> SocketAddr {
    let address = config
        .nginx
        .listen
        .first()
        .map_or(SocketAddr::from(([127, 0, 0, 1], 80)), |listen| listen.address());
    if address.ip().is_unspecified() {
        SocketAddr::from(([127, 0, 0, 1], address.port()))
    } else {
        address
    }
}

/// Polls, because nginx does not report when it listens.
fn wait_until_open(address: SocketAddr, mut check: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let deadline = Instant::now() + MARGIN;
    while let Err(error) = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
        check()?;
        ensure!(Instant::now() < deadline, "nginx does not listen on {address}: {error}");
        std::thread::yield_now();
    }
    Ok(())
}

fn announce(layout: &Layout, config: &Config, release: &Release) -> anyhow::Result<()> {
    let origin = format!("http://{}", public_address(config));
    let token = admin_token::read(&ConfigFiles::new(layout))?;
    // `println!` would panic if nobody reads, and leave the processes running.
    writeln!(
        io::stdout(),
        "\nlinks {} on {} is up at {origin} ({} instances; configuration: {})\n\n\
         Shorten:\n  curl -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' \
         -d '{{\"url\": \"https://example.com/\", \"slug\": \"hello\"}}' {origin}/shorten\n\n\
         Then this redirects:\n  {origin}/hello\n\nCtrl-C stops it.",
        release.manifest.version,
        release.runtime_name(),
        config.instances,
        layout.config_dir().display(),
    )
    .context("Writing to standard output")
}

/// The processes that make up the appliance.
struct Parts {
    running: Vec<(String, Process)>,
    events: Receiver<Event>,
    stop_timeout: Duration,
}

impl Parts {
    fn start(&mut self, name: String, command: &mut Command, sender: Sender<Event>) -> anyhow::Result<()> {
        let ended = name.clone();
        // SIGTERM, not SIGKILL: supervisors and nginx have to stop processes of their own.
        let process = Process::start(command.stdin(Stdio::null()), Signal::SIGTERM, move |status| {
            // The receiver is gone once `up` itself is ending.
            let _ = sender.send(Event::Ended {
                name: ended,
                how: process::describe(status),
            });
        })
        .with_context(|| format!("Starting {name}"))?;
        self.running.push((name, process));
        Ok(())
    }

    /// Fails if a process has ended or a person wants to stop. Used while others start.
    fn check_running(&mut self) -> anyhow::Result<()> {
        match self.events.try_recv() {
            Ok(Event::Ended { name, how }) => Err(self.ended(&name, &how)),
            Ok(Event::Stop) => bail!("stopped before it was up"),
            Err(_) => Ok(()),
        }
    }

    /// Waits until a process ends or a person stops the appliance.
    fn wait(&mut self) -> anyhow::Result<()> {
        match self.events.recv() {
            Ok(Event::Ended { name, how }) => Err(self.ended(&name, &how)),
            Ok(Event::Stop) | Err(_) => Ok(()),
        }
    }

    fn ended(&mut self, ended: &str, how: &str) -> anyhow::Error {
        self.running.retain(|(name, _)| name != ended);
        anyhow!("{ended} {how}")
    }

    /// Stops all processes, nginx first so that it sends no request to instances that are stopping.
    fn stop(&mut self) {
        let deadline = Instant::now() + self.stop_timeout;
        for (_, process) in self.running.iter().rev() {
            process.signal(Signal::SIGTERM);
        }
        while !self.running.is_empty() {
            match self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Event::Ended { name: ended, .. }) => self.running.retain(|(name, _)| *name != ended),
                // A second Ctrl-C kills the rest at once.
                Ok(Event::Stop) | Err(RecvTimeoutError::Timeout) => {
                    self.running.iter().for_each(|(_, process)| process.kill());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use links_config::links::{Metrics, read};

    #[test]
    fn the_first_links_toml_is_that_of_an_installation_with_free_ports() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8123));
        let metrics = SocketAddr::from(([127, 0, 0, 1], 8124));
        let otlp = SocketAddr::from(([127, 0, 0, 1], 8125));
        let text = first_links_toml(listen, 7100, metrics, otlp);
        let (config, findings) = read(&text, "links.toml");
        assert!(findings.is_empty(), "{findings:?}");
        let read = config.map(|config| (config.base_port, config.nginx.listen, config.metrics));
        let metrics = Metrics {
            listen: Some(metrics),
            otlp_listen: otlp,
        };
        assert_eq!(read, Some((7100, vec![Listen::Address(listen)], metrics)));
    }
}
