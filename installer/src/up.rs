//! `linksctl up`: the appliance in the foreground, without systemd. nginx and one supervisor per instance, everything
//! below one directory.

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
use crate::config::links::{Config, Listen};
use crate::config::load::{load, load_links};
use crate::files::make_directory;
use crate::layout::{Layout, edge_address};
use crate::nginx::{self, Room, Surroundings};
use crate::peers::{self, Stage};
use crate::process::{self, Process};
use crate::release::{Release, Store};
use crate::rotation::Watch;
use crate::{edge, exec, files, rotation, secrets, supervise, token};

/// The links.toml that the package ships.
const LINKS_TOML: &str = include_str!("../../packaging/links.toml");
/// Longer than any start or stop of an instance takes by its own deadlines.
const MARGIN: Duration = Duration::from_secs(10);

/// What the main thread waits for.
enum Event {
    Stop,
    Ended { who: String, how: String },
}

/// Runs until Ctrl-C, SIGTERM, or the end of any part.
///
/// # Errors
/// A part cannot be started, or ends unasked: everything else is stopped then.
pub fn run(layout: &Layout, args: &UpArgs) -> anyhow::Result<()> {
    ensure!(
        !layout.is_host(),
        "`linksctl up` runs below a directory of its own: give --root DIR. On the host itself, `systemctl start links` does it"
    );
    let nginx = exec::find("nginx").context("nginx is not installed: `apt-get install nginx-light`")?;
    if args.dry_run {
        println!("make {} (configuration, database, release)", layout.root().display());
        println!(
            "start the instances of {} and wait until each is ready",
            layout.links_toml().display()
        );
        println!("start {} in front of them", nginx.display());
        return Ok(());
    }
    let release = prepare(layout, args)?;
    let config = load_links(layout)?;
    let listen = args
        .listen
        .map_or_else(|| config.nginx.listen.clone(), |address| vec![Listen::Address(address)]);
    let config = Config {
        nginx: crate::config::links::Nginx {
            listen,
            ..config.nginx.clone()
        },
        ..config
    };
    load(layout)?;
    let edge = config.edge_port().map(edge_address);
    for address in config.nginx.listen.iter().map(|listen| listen.address()).chain(edge) {
        supervise::check_free(address)?;
    }
    // Now that nobody else runs here.
    rotation::clear(layout)?;
    secrets::make_missing(layout)?;

    process::adopt_orphans()?;
    let (tell, told) = mpsc::channel();
    let stop = tell.clone();
    process::on_signals([SIGINT, SIGTERM, SIGHUP], move || stop.send(Event::Stop).is_ok())?;
    let watch = Watch::new(layout)?;
    let mut parts = Parts {
        running: vec![],
        told,
        stop_timeout: config.drain.timeout + MARGIN,
    };
    let up = (|| {
        for instance in 1..=config.instances {
            Store::new(layout).point(instance, &release.id)?;
            parts.start(
                format!("instance {instance}"),
                &mut supervisor(layout, instance)?,
                tell.clone(),
            )?;
        }
        parts.start("the agent".to_owned(), &mut agent(layout)?, tell.clone())?;
        let deadline = Instant::now() + config.health.start_timeout + MARGIN;
        let everyone: Vec<_> = (1..=config.instances).collect();
        let ready = watch.until(layout, deadline, |ready| {
            parts.nobody_ended()?;
            Ok(ready == everyone)
        })?;
        ensure!(ready, "the instances did not become ready in time");
        parts.start("nginx".to_owned(), &mut nginx_command(layout, &nginx, &config)?, tell)?;
        wait_until_open(public_address(&config), || parts.nobody_ended())?;
        announce(layout, &config, &release)?;
        parts.wait()
    })();
    parts.stop();
    process::end_orphans()?;
    up
}

/// The directory with everything in it that an installation would have.
fn prepare(layout: &Layout, args: &UpArgs) -> anyhow::Result<Release> {
    make_directory(&layout.config_dir(), 0o755)?;
    make_directory(&layout.data_dir(), 0o750)?;
    make_directory(&layout.cache_dir(), 0o750)?;
    make_directory(&layout.journal_dir(), 0o750)?;
    make_directory(&layout.agent_dir(), 0o700)?;
    make_directory(&layout.ready_dir(), 0o755)?;
    make_directory(&layout.metrics_dir(), 0o750)?;
    make_directory(&layout.sockets_dir(), 0o700)?;
    edge::keep_connections(layout)?;
    if !layout.links_toml().exists() {
        let [nginx, metrics, otlp] = free_addresses()?;
        let text = first_links_toml(nginx, free_base_port()?, metrics, otlp);
        files::replace(&layout.links_toml(), text.as_bytes(), 0o644)?;
    }
    if !token::exists(layout) {
        token::make(layout)?;
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

/// The shipped links.toml with ports that were free.
fn first_links_toml(listen: SocketAddr, base_port: u16, metrics: SocketAddr, otlp: SocketAddr) -> String {
    LINKS_TOML
        .replacen("#listen = \"127.0.0.1:9464\"", &format!("listen = \"{metrics}\""), 1)
        .replacen(
            "#otlp_listen = \"127.0.0.1:9465\"",
            &format!("otlp_listen = \"{otlp}\""),
            1,
        )
        .replacen("#base_port = 7000", &format!("base_port = {base_port}"), 1)
        .replacen("#listen = 80", &format!("listen = \"{listen}\""), 1)
}

/// Three that differ: each is held while the next one is looked for.
fn free_addresses() -> anyhow::Result<[SocketAddr; 3]> {
    let open = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("Looking for a free port");
    let listeners = [open()?, open()?, open()?];
    let [first, second, third] = &listeners;
    Ok([first.local_addr()?, second.local_addr()?, third.local_addr()?])
}

/// The lowest of a range of ports that nobody listens on: 7000 where it can be, so that the documentation fits.
fn free_base_port() -> anyhow::Result<u16> {
    let config = Config::default();
    (config.base_port..u16::MAX - config.instances)
        .step_by(100)
        .find(|base| {
            (0..=config.instances)
                .all(|instance| supervise::check_free(crate::layout::instance_address(*base, instance)).is_ok())
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
    // Its own addresses only: nobody else's site can be in the way.
    let surroundings = Surroundings {
        ipv6: false,
        default_server: true,
        room: Room::MODEST,
    };
    let peers = peers::peers(layout, config, Stage::Final);
    let site = directory.join("site.conf");
    files::replace(
        &site,
        nginx::site(config, layout, surroundings, &peers)?.as_bytes(),
        0o644,
    )?;
    // Workers of an nginx that root starts become `nobody` by default, who may not look at the ready flags below a
    // private directory.
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

/// Where a person on this machine reaches nginx.
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

/// nginx tells nobody when it listens.
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
    let token = token::read(layout)?;
    // Not `println!`, whose panic would leave the parts running where nobody reads.
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
    .context("Telling where it is up")
}

/// The processes that make up the appliance.
struct Parts {
    running: Vec<(String, Process)>,
    told: Receiver<Event>,
    stop_timeout: Duration,
}

impl Parts {
    fn start(&mut self, who: String, command: &mut Command, tell: Sender<Event>) -> anyhow::Result<()> {
        let name = who.clone();
        // SIGTERM, not SIGKILL: supervisors and nginx have processes of their own to take along.
        let process = Process::start(command.stdin(Stdio::null()), Signal::SIGTERM, move |status| {
            // Nobody listens any more when `up` itself is at its end.
            let _ = tell.send(Event::Ended {
                who: name,
                how: process::describe(status),
            });
        })
        .with_context(|| format!("Starting {who}"))?;
        self.running.push((who, process));
        Ok(())
    }

    /// While others start.
    fn nobody_ended(&mut self) -> anyhow::Result<()> {
        match self.told.try_recv() {
            Ok(Event::Ended { who, how }) => Err(self.ended(&who, &how)),
            Ok(Event::Stop) => bail!("stopped before it was up"),
            Err(_) => Ok(()),
        }
    }

    /// Until the person has enough of it.
    fn wait(&mut self) -> anyhow::Result<()> {
        match self.told.recv() {
            Ok(Event::Ended { who, how }) => Err(self.ended(&who, &how)),
            Ok(Event::Stop) | Err(_) => Ok(()),
        }
    }

    fn ended(&mut self, who: &str, how: &str) -> anyhow::Error {
        self.running.retain(|(name, _)| name != who);
        anyhow!("{who} {how}")
    }

    /// nginx first, so that nobody asks what is going.
    fn stop(&mut self) {
        let deadline = Instant::now() + self.stop_timeout;
        for (_, process) in self.running.iter().rev() {
            process.signal(Signal::SIGTERM);
        }
        while !self.running.is_empty() {
            match self
                .told
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(Event::Ended { who, .. }) => self.running.retain(|(name, _)| *name != who),
                // A second Ctrl-C: no more patience.
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
    use crate::config::links::{Metrics, read};

    #[test]
    fn the_first_links_toml_is_the_shipped_one_with_free_ports() {
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
