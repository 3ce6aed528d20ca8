//! Prepares an instance: checks its configuration and release, and writes the files that its runtime and others read.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use links_base::endpoint::{self, Endpoint};
use links_base::layout::Layout;
use links_base::{files, log, secrets, sockets};
use links_config::links::{Config, Health};
use links_config::load::load_for_instance;
use links_config::render;
use links_release::runtime::{self, Call};
use links_release::{Release, Snapshots, Store, Version};

use crate::machine::Times;

/// An instance whose runtime can be started. The command has secrets in its environment, so it is never printed.
pub struct Instance {
    /// Starts the runtime.
    pub command: Command,
    /// The endpoints on which the runtime listens, in the order of probing.
    pub listen: Vec<Endpoint>,
    /// How the runtime is probed.
    pub health: Health,
    pub times: Times,
}

/// Prepares an instance. Its directory below /run must exist.
///
/// # Errors
/// Fails if the configuration is invalid, if there is no usable release, if the database cannot be written, if a port is in
/// use, or if a file cannot be written.
pub fn prepare(layout: &Layout, instance: u16) -> anyhow::Result<Instance> {
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

    let run_dir = layout.instance_run_dir(instance);
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
    let times = Times {
        start_timeout: config.health.start_timeout,
        drain_timeout: config.drain.timeout,
    };
    Ok(Instance {
        command: call.command(),
        listen,
        health: config.health.clone(),
        times,
    })
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use std::net::TcpListener;

    use super::*;

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
}
