//! `linksctl status` and `linksctl version`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use links_archive::restore::unfinished;
use links_base::endpoint::Endpoint;
use links_base::health::Probe;
use links_base::layout::{self, Layout};
use links_base::services::{OnBehalfOf, Services};
use links_base::{clock, connections, rotation, sandbox};
use links_config::backup::Settings;
use links_config::files::ConfigFiles;
use links_config::load::{load_links, local_database};
use links_edge as edge;
use links_release::backups::{Attempt, Written};
use links_release::sqlite::{self, Sqlite};
use links_release::{Backups, Release, Store};
use links_rollout::{self as rollout, Appliance};

#[derive(Serialize)]
struct Status {
    /// Whether every wanted instance is in rotation and healthy, and links answers through nginx on every address.
    ok: bool,
    instances: Vec<Instance>,
    /// The release in the installed payload.
    payload: Option<String>,
    /// The rollout that is running or was interrupted.
    rollout: Option<String>,
    /// The parts of the instances' sandbox that this host does not provide.
    sandbox: Vec<String>,
    database: Option<DatabaseFile>,
    /// None if the database is not a local file or this user may not read it.
    sqlite: Option<Sqlite>,
    public_url: Option<String>,
    nginx: Nginx,
    /// None if this user may not read the record.
    backup: Option<Backup>,
    /// The restore that is under way or was interrupted.
    restore: Option<String>,
}

/// The backups in the location of links.toml. Without one, those in any location.
#[derive(Serialize)]
struct Backup {
    /// The time between two backups in seconds, or none if the timer is off.
    every_seconds: Option<u64>,
    to: Option<String>,
    latest: Option<Written>,
    /// The seconds since the latest one was begun.
    age_seconds: Option<u64>,
    /// The last attempt at the location of links.toml.
    last: Option<Attempt>,
    /// Why the backups need attention, if they do.
    trouble: Option<String>,
}

#[derive(Serialize)]
struct Nginx {
    /// The addresses that nginx should listen on, and whether links answers there.
    addresses: Vec<Listening>,
    /// The file of the site, or none if linksctl does not manage nginx.
    site: Option<PathBuf>,
    /// Whether somebody else has changed the site since linksctl wrote it. links.toml has no effect on it then.
    edited: bool,
    /// When nginx loaded its current configuration (RFC 3339), or none while it does not run.
    since: Option<String>,
}

#[derive(Serialize)]
struct Listening {
    address: SocketAddr,
    /// Why links does not answer here, or none if it does.
    trouble: Option<String>,
}

#[derive(Serialize)]
struct Instance {
    instance: u16,
    /// The Unix socket or the port that the instance listens on, or both.
    listens: Vec<String>,
    /// Whether the instance is in nginx's rotation.
    ready: bool,
    /// Why the instance is not healthy, or none if it is.
    trouble: Option<String>,
    release: Option<String>,
    runtime: Option<String>,
}

#[derive(Serialize)]
struct DatabaseFile {
    path: PathBuf,
    /// The size of the file and its write-ahead log, or none if this user may not see it.
    bytes: Option<u64>,
}

/// Prints the status. The exit status is 1 if an instance is missing, or if links does not answer through nginx.
///
/// # Errors
/// links.toml is wrong, or the ready flags cannot be read.
pub fn show(layout: &Layout, json: bool) -> anyhow::Result<ExitCode> {
    let status = observe(layout)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", text(&status));
    }
    Ok(if status.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn observe(layout: &Layout) -> anyhow::Result<Status> {
    let config = load_links(&ConfigFiles::new(layout))?;
    let appliance = Appliance::new(layout, Services::of_host(OnBehalfOf::Person));
    let store = &appliance.store;
    let flags = rotation::ready_instances(&layout.ready_dir())?;
    let instances: Vec<_> = (1..=config.instances)
        .map(|instance| {
            let release = store.of_instance(instance).ok();
            Instance {
                instance,
                listens: listens(layout, config.base_port, instance),
                ready: flags.contains(&instance),
                trouble: Probe::new(
                    Endpoint::of_running(&layout.sockets_dir(), config.base_port, instance),
                    config.health.timeout,
                )
                .ready()
                .err(),
                runtime: release.as_ref().map(Release::runtime_name),
                release: release.map(|release| release.id),
            }
        })
        .collect();
    let nginx = nginx(appliance.edge.status(&config)?);
    let all_ready = instances
        .iter()
        .all(|instance| instance.ready && instance.trouble.is_none());
    Ok(Status {
        ok: all_ready && nginx.addresses.iter().all(|listening| listening.trouble.is_none()),
        instances,
        payload: Release::open(&appliance.bundle).ok().map(|release| release.id),
        rollout: rollout::unfinished(&appliance)?,
        sandbox: sandbox::lacks(layout, appliance.services),
        database: database(layout),
        sqlite: sqlite::observe(layout),
        public_url: config.base_url(),
        nginx,
        backup: Backups::read(&layout.backups_record())
            .ok()
            .map(|record| backup(&config.backup, &record, clock::now())),
        restore: unfinished(layout, &appliance)?,
    })
}

fn backup(settings: &Settings, record: &Backups, now: u64) -> Backup {
    let to = settings.to.as_ref().map(ToString::to_string);
    let latest = record.latest_in(to.as_deref()).cloned();
    let age = latest.as_ref().map(|latest| now.saturating_sub(latest.begun));
    let every = settings.every.map(|every| every.as_secs());
    let last = to
        .as_deref()
        .and_then(|to| record.last_at(to))
        .map(|(last, _)| last.clone());
    let failure = last.as_ref().and_then(|last| last.error.clone());
    let is_late = every.is_some_and(|every| age.is_none_or(|age| age > 2 * every));
    Backup {
        trouble: match (failure, is_late) {
            (Some(error), _) => Some(format!("the last attempt failed: {error}")),
            (None, true) => Some("it is late: `journalctl -u links-backup` shows why".to_owned()),
            (None, false) => None,
        },
        every_seconds: every,
        to,
        latest,
        age_seconds: age,
        last,
    }
}

/// A time span for a person, in its largest unit.
fn age(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..7200 => (seconds / 60, "minutes"),
        7200..172_800 => (seconds / 3600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit} ago")
}

fn backup_lines(backup: &Backup) -> Vec<String> {
    // Without a destination in links.toml and without a backup made by hand, there is nothing to show.
    if backup.to.is_none() && backup.latest.is_none() {
        return vec![];
    }
    let latest = match (&backup.latest, backup.age_seconds) {
        (Some(latest), Some(seconds)) => format!("{}, {}/{}", age(seconds), latest.location, latest.name),
        _ => "none yet".to_owned(),
    };
    let timer = if backup.every_seconds.is_none() {
        ", the timer is off"
    } else {
        ""
    };
    let mut lines = vec![format!("backup      {latest}{timer}")];
    lines.extend(backup.trouble.as_ref().map(|trouble| format!("            {trouble}")));
    lines
}

fn nginx(status: edge::Status) -> Nginx {
    let listening = |(address, answer): (SocketAddr, Result<(), String>)| Listening {
        address,
        trouble: answer.err(),
    };
    Nginx {
        addresses: status.addresses.into_iter().map(listening).collect(),
        site: status.site,
        edited: status.edited,
        since: status
            .since
            .and_then(|since| OffsetDateTime::from(since).truncate_to_second().format(&Rfc3339).ok()),
    }
}

fn listens(layout: &Layout, base_port: u16, instance: u16) -> Vec<String> {
    let endpoint = Endpoint::of_running(&layout.sockets_dir(), base_port, instance);
    let tcp = layout::instance_address(base_port, instance);
    // Without the kernel's tables, the instance's own endpoint is still listed.
    let sockets = connections::sockets().unwrap_or_default();
    let is_open = connections::listeners(&sockets)
        .iter()
        .any(|listener| listener.address == tcp);
    let also = (endpoint != Endpoint::Tcp(tcp) && is_open).then_some(Endpoint::Tcp(tcp));
    [endpoint]
        .into_iter()
        .chain(also)
        .map(|endpoint| endpoint.to_string())
        .collect()
}

fn database(layout: &Layout) -> Option<DatabaseFile> {
    // `linksctl check` reports errors in runtime.toml.
    let path = local_database(&ConfigFiles::new(layout))?;
    let bytes = sqlite::size(&path).ok();
    Some(DatabaseFile { path, bytes })
}

fn text(status: &Status) -> String {
    let ready = status.instances.iter().filter(|instance| instance.ready).count();
    let mut lines = vec![format!("{ready}/{} instances ready", status.instances.len())];
    for instance in &status.instances {
        let state = match (&instance.trouble, instance.ready) {
            (None, true) => "ready",
            (None, false) => "healthy, not in rotation",
            (Some(_), _) => "down",
        };
        let unknown = || "-".to_owned();
        lines.push(format!(
            "  {}  {}  {state}  {}  {}",
            instance.instance,
            instance.listens.join(" "),
            instance.release.clone().unwrap_or_else(unknown),
            instance.runtime.clone().unwrap_or_else(unknown),
        ));
        lines.extend(instance.trouble.as_ref().map(|trouble| format!("     {trouble}")));
    }
    if let Some(payload) = &status.payload {
        lines.push(format!("installed   {payload}"));
    }
    if let Some(rollout) = &status.rollout {
        lines.push(format!("rollout     {rollout}"));
    }
    lines.extend(status.sandbox.iter().map(|lack| format!("sandbox     {lack}")));
    if let Some(database) = &status.database {
        let size = database
            .bytes
            .map(|bytes| format!("  {} KiB", bytes.div_ceil(1024)))
            .unwrap_or_default();
        lines.push(format!("database    {}{size}", database.path.display()));
    }
    if let Some(sqlite) = &status.sqlite {
        lines.push(format!("SQLite      {}", sqlite.text()));
        lines.extend(sqlite.warning.as_ref().map(|warning| format!("     {warning}")));
    }
    lines.extend(nginx_lines(&status.nginx));
    lines.extend(status.backup.iter().flat_map(backup_lines));
    lines.extend(status.restore.iter().map(|restore| format!("restore     {restore}")));
    if let Some(url) = &status.public_url {
        lines.push(format!("public URL  {url}"));
    }
    lines.join("\n") + "\n"
}

fn nginx_lines(nginx: &Nginx) -> Vec<String> {
    let serving = nginx.addresses.iter().filter(|listening| listening.trouble.is_none());
    let serving: Vec<_> = serving.map(|listening| listening.address.to_string()).collect();
    let since = match &nginx.since {
        Some(since) => format!("running since {since}"),
        None => "not running".to_owned(),
    };
    let mut lines = vec![match serving.is_empty() {
        true => format!("nginx       {since}, links is not reachable"),
        false => format!("nginx       {since}, links is reachable on {}", serving.join(", ")),
    }];
    lines.extend(nginx.addresses.iter().filter_map(|listening| {
        let trouble = listening.trouble.as_ref()?;
        Some(format!("            not on {}: {trouble}", listening.address))
    }));
    if let (Some(site), true) = (&nginx.site, nginx.edited) {
        lines.push(format!(
            "            {} was edited, so linksctl keeps it; `linksctl rollout --force` replaces it",
            site.display()
        ));
    }
    lines
}

#[derive(Serialize)]
struct Versions {
    linksctl: &'static str,
    release: Option<String>,
    runtime: Option<String>,
    /// The origin of the runtime.
    runtime_origin: Option<String>,
}

/// Prints the versions of what is installed.
///
/// # Errors
/// None in practice.
pub fn version(layout: &Layout, json: bool) -> anyhow::Result<()> {
    let release = Store::new(layout)
        .of_instance(1)
        .or_else(|_| Release::open(&layout.bundle()))
        .ok();
    let versions = Versions {
        linksctl: env!("CARGO_PKG_VERSION"),
        runtime: release.as_ref().map(Release::runtime_name),
        runtime_origin: release.as_ref().map(|release| release.manifest.runtime.origin.clone()),
        release: release.map(|release| release.id),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&versions)?);
        return Ok(());
    }
    println!("linksctl  {}", versions.linksctl);
    println!(
        "release   {}",
        versions.release.as_deref().unwrap_or("none is installed")
    );
    if let (Some(runtime), Some(origin)) = (&versions.runtime, &versions.runtime_origin) {
        println!("runtime   {runtime} ({origin})");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_release::sqlite::By;

    #[test]
    fn the_text_shows_each_instance_and_its_problem() {
        let instance = |instance, trouble: Option<&str>| Instance {
            instance,
            listens: vec![Endpoint::tcp(7000, instance).to_string()],
            ready: trouble.is_none(),
            trouble: trouble.map(str::to_owned),
            release: Some("1.2.3-abc".into()),
            runtime: Some("spin 4.0.2".into()),
        };
        let status = Status {
            ok: false,
            instances: vec![instance(1, None), instance(2, Some("connection refused"))],
            payload: Some("1.2.3-abc".into()),
            rollout: Some("to release 1.2.4-def, interrupted".into()),
            sandbox: vec!["ProtectProc=default, not invisible".into()],
            database: Some(DatabaseFile {
                path: "/var/lib/links/data/links.db".into(),
                bytes: Some(4097),
            }),
            sqlite: Some(Sqlite {
                version: Some("3.49.1".into()),
                checkpoints: By::Nobody,
                warning: Some("the log grows".into()),
            }),
            public_url: None,
            nginx: Nginx {
                addresses: vec![
                    Listening {
                        address: SocketAddr::from(([0, 0, 0, 0], 80)),
                        trouble: None,
                    },
                    Listening {
                        address: SocketAddr::from(([127, 0, 0, 1], 7000)),
                        trouble: Some("nothing answers".into()),
                    },
                ],
                site: Some("/etc/nginx/sites-enabled/links".into()),
                edited: true,
                since: Some("2030-01-31T18:00:00Z".into()),
            },
            backup: Some(Backup {
                every_seconds: Some(86_400),
                to: Some("/b".into()),
                latest: Some(Written::at("/b", "a.tar.zst", 1000)),
                age_seconds: Some(7300),
                last: None,
                trouble: Some("the last attempt failed: the disk is full".into()),
            }),
            restore: Some("interrupted".into()),
        };
        assert_eq!(
            text(&status),
            "1/2 instances ready\n\
             \x20 1  127.0.0.1:7001  ready  1.2.3-abc  spin 4.0.2\n\
             \x20 2  127.0.0.1:7002  down  1.2.3-abc  spin 4.0.2\n\
             \x20    connection refused\n\
             installed   1.2.3-abc\n\
             rollout     to release 1.2.4-def, interrupted\n\
             sandbox     ProtectProc=default, not invisible\n\
             database    /var/lib/links/data/links.db  5 KiB\n\
             SQLite      3.49.1, not checkpointed\n\
             \x20    the log grows\n\
             nginx       running since 2030-01-31T18:00:00Z, links is reachable on 0.0.0.0:80\n\
             \x20           not on 127.0.0.1:7000: nothing answers\n\
             \x20           /etc/nginx/sites-enabled/links was edited, so linksctl keeps it; `linksctl rollout --force` \
             replaces it\n\
             backup      2 hours ago, /b/a.tar.zst\n\
             \x20           the last attempt failed: the disk is full\n\
             restore     interrupted\n"
        );
    }

    #[test]
    fn backups_that_are_late_or_fail_are_reported() {
        let now = 1_900_000_000;
        let mut settings = Settings::default();
        let mut record = Backups::default();
        assert!(backup_lines(&backup(&settings, &record, now)).is_empty());
        settings.every = Some(std::time::Duration::from_secs(86_400));
        settings.to = Some("/b".parse().unwrap());
        assert!(backup(&settings, &record, now).trouble.is_some());
        record.succeeded(Written::at("/b", "a", now - 100_000), now - 99_000);
        let recent = backup(&settings, &record, now);
        assert_eq!((recent.trouble, recent.age_seconds), (None, Some(100_000)));
        assert!(backup(&settings, &record, now + 100_000).trouble.is_some());
        record.failed("/b", now, now, "the disk is full".to_owned());
        assert!(
            backup(&settings, &record, now)
                .trouble
                .unwrap()
                .contains("the disk is full")
        );
        settings.every = None;
        settings.to = None;
        let lines = backup_lines(&backup(&settings, &record, now));
        assert!(lines[0].ends_with("/b/a, the timer is off"), "{lines:?}");
    }
}
