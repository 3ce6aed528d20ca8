//! Every path, unit name, user and port of the appliance. No other module spells one out; units, scripts and
//! nginx files repeat some of them, and a test holds the two together.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The Debian package. `links` is taken by a text browser.
pub const PACKAGE: &str = "links-shortener";
/// System user and group that the instances and the agent run as.
pub const USER: &str = "links";
/// The service a person starts and stops.
pub const SERVICE: &str = "links.service";
/// Every instance, for systemctl.
pub const INSTANCES: &str = "links@*.service";
/// Takes back, at boot, what a rollout that was cut off has changed.
pub const RECOVER: &str = "links-recover.service";
/// Largest number of instances; nginx gets one upstream pool per missing flag.
pub const MAX_INSTANCES: u16 = 16;
/// Name of the admin token's credential, and of the component's variable.
pub const ADMIN_TOKEN: &str = "admin_token";
/// Prefix that `LoadCredential=links:/etc/links/credentials` gives to each credential of that directory
/// (systemd.exec(5): the ID is suffixed with `_` and the file name).
pub const CREDENTIAL_PREFIX: &str = "links_";
/// In the directory above the ready flags.
pub const KEEPALIVE_FLAG: &str = "keepalive";

/// The kernel's tables of TCP connections, IPv4 and IPv6. `/proc/net` itself is not there under `ProcSubset=pid`.
pub const CONNECTION_TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// The kernel's table of Unix sockets.
pub const UNIX_SOCKET_TABLE: &str = "/proc/self/net/unix";

/// Where things are, below one root directory: `/` on a host, any directory for `linksctl up`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    config: PathBuf,
}

impl Layout {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            config: root.join("etc/links"),
            root,
        }
    }

    /// The same, configured by the files of another directory.
    pub fn with_config_dir(&self, config: PathBuf) -> Self {
        Self {
            root: self.root.clone(),
            config,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// True where this is the host itself, with its systemd and its nginx.
    pub fn is_host(&self) -> bool {
        self.root == Path::new("/")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    // Configuration: a person's.
    pub fn config_dir(&self) -> PathBuf {
        self.config.clone()
    }
    pub fn links_toml(&self) -> PathBuf {
        self.config.join("links.toml")
    }
    pub fn runtime_toml(&self) -> PathBuf {
        self.config.join("runtime.toml")
    }
    /// One file per secret, 0600 root; the file's name is the credential's.
    pub fn credentials_dir(&self) -> PathBuf {
        self.config.join("credentials")
    }

    /// The file of one credential.
    pub fn credential(&self, name: &str) -> PathBuf {
        self.credentials_dir().join(name)
    }

    // Program: the package's.
    /// The payload as dpkg or `install` put it there. Nothing runs from it.
    pub fn bundle(&self) -> PathBuf {
        self.at("usr/lib/links/bundle")
    }
    /// What `linksctl install` put on the host, for `linksctl uninstall`.
    pub fn install_record(&self) -> PathBuf {
        self.at("usr/lib/links/installed.json")
    }

    pub fn sysusers(&self) -> PathBuf {
        self.at("usr/lib/sysusers.d/links.conf")
    }
    pub fn tmpfiles(&self) -> PathBuf {
        self.at("usr/lib/tmpfiles.d/links.conf")
    }

    // State: ours.
    pub fn state_dir(&self) -> PathBuf {
        self.at("var/lib/links")
    }
    /// The databases; the only part of the state that the instances may write.
    pub fn data_dir(&self) -> PathBuf {
        self.at("var/lib/links/data")
    }
    pub fn releases_dir(&self) -> PathBuf {
        self.at("var/lib/links/releases")
    }
    /// One copy of the configuration per rollout, while an instance runs with it.
    pub fn applied_dir(&self) -> PathBuf {
        self.at("var/lib/links/applied")
    }
    /// The release of the last rollout that succeeded, as a symbolic link.
    pub fn current_release(&self) -> PathBuf {
        self.at("var/lib/links/current")
    }
    /// The one before that.
    pub fn previous_release(&self) -> PathBuf {
        self.at("var/lib/links/previous")
    }
    /// What a rollout that has not ended would have to take back.
    pub fn rollout_journal(&self) -> PathBuf {
        self.at("var/lib/links/rollout.json")
    }
    /// How the last rollout that changed something has ended.
    pub fn last_rollout(&self) -> PathBuf {
        self.at("var/lib/links/last-rollout.json")
    }
    /// Copies of the local database, each from before a release changed its tables.
    pub fn backups_dir(&self) -> PathBuf {
        self.at("var/lib/links/backups")
    }
    /// Holds two symbolic links per instance: to the release that it runs, and to the configuration.
    pub fn instances_dir(&self) -> PathBuf {
        self.at("var/lib/links/instances")
    }
    pub fn instance_release(&self, instance: u16) -> PathBuf {
        self.instances_dir().join(instance.to_string())
    }
    /// A directory like [`Self::config_dir`].
    pub fn instance_config(&self, instance: u16) -> PathBuf {
        self.instances_dir().join(format!("{instance}.config"))
    }
    /// What nginx writes a line into for each request; nothing else is in there but journals that a person has renamed.
    pub fn journal_dir(&self) -> PathBuf {
        self.at("var/lib/links/journal")
    }
    pub fn journal(&self) -> PathBuf {
        self.journal_dir().join("clicks.log")
    }
    /// The agent's own.
    pub fn agent_dir(&self) -> PathBuf {
        self.at("var/lib/links/agent")
    }
    /// By what the agent knows the journal again.
    pub fn journal_position(&self) -> PathBuf {
        self.agent_dir().join("journal.json")
    }
    /// The keys of the latest days' sketches of visitors (0600).
    pub fn visitor_salts(&self) -> PathBuf {
        self.agent_dir().join("salts.json")
    }
    /// Says that links.service was enabled once; from then on that is the administrator's business.
    pub fn configured_marker(&self) -> PathBuf {
        self.at("var/lib/links/configured")
    }
    /// Where nginx's default site pointed before it made way.
    pub fn parked_default_site(&self) -> PathBuf {
        self.at("var/lib/links/nginx-default-site")
    }
    /// Components compiled for the runtime of a release, by root, in a directory per release.
    pub fn compiled_dir(&self) -> PathBuf {
        self.at("var/lib/links/compiled")
    }
    /// What links last wrote as nginx's site, and what an interrupted change of it would have to undo.
    pub fn site_state(&self) -> PathBuf {
        self.at("var/lib/links/site.json")
    }
    /// A site that nginx is asked about before it takes its place.
    pub fn site_candidate(&self) -> PathBuf {
        self.at("var/lib/links/site-candidate.conf")
    }
    /// A site that somebody else had edited, after `--force` or a removal has taken its place.
    pub fn replaced_site(&self) -> PathBuf {
        self.at("var/lib/links/site-replaced.conf")
    }
    /// Compiled components; may be deleted at any time.
    pub fn cache_dir(&self) -> PathBuf {
        self.at("var/cache/links")
    }

    // Run time: gone after a boot.
    pub fn run_dir(&self) -> PathBuf {
        self.at("run/links")
    }
    /// There while an older version is being installed. That version counts from the beginning what has a name that it does
    /// not know.
    pub fn downgrade_marker(&self) -> PathBuf {
        self.at("run/links/downgrade")
    }
    /// The redirects that nginx keeps; its workers' own. In memory: no redirect waits for a disk.
    pub fn edge_cache_dir(&self) -> PathBuf {
        self.at("run/links/edge")
    }
    /// An instance is in rotation exactly while its flag is in here: a symbolic link to `.`.
    pub fn ready_dir(&self) -> PathBuf {
        self.at("run/links/ready")
    }
    pub fn ready_flag(&self, instance: u16) -> PathBuf {
        self.ready_dir().join(instance.to_string())
    }
    /// While it is missing, nginx closes each connection after its next answer.
    pub fn keepalive_flag(&self) -> PathBuf {
        self.run_dir().join(KEEPALIVE_FLAG)
    }
    /// `RuntimeDirectory=` of the instance: rendered configuration (0600), temporary files, its lock.
    pub fn instance_run_dir(&self, instance: u16) -> PathBuf {
        self.run_dir().join(instance.to_string())
    }

    /// Where the agent sends the instance's metrics on to, with secrets (0600).
    pub fn instance_forward(&self, instance: u16) -> PathBuf {
        self.instance_run_dir(instance).join("forward.json")
    }

    /// What is told of instances and outlives their stops, for the agent.
    pub fn metrics_dir(&self) -> PathBuf {
        self.at("run/links/metrics")
    }
    /// The instance's starts, its last drain, its memory.
    pub fn instance_metrics(&self, instance: u16) -> PathBuf {
        self.metrics_dir().join(format!("{instance}.json"))
    }
    /// Who checkpoints the database, as the agent says.
    pub fn checkpoints(&self) -> PathBuf {
        self.metrics_dir().join("checkpoints.json")
    }
    /// What the instances have sent, summed over their restarts.
    pub fn agent_counters(&self) -> PathBuf {
        self.metrics_dir().join("counters.json")
    }

    /// The release and the configuration that the instance was started with.
    pub fn instance_runs(&self, instance: u16) -> PathBuf {
        self.instance_run_dir(instance).join("runs.json")
    }

    /// Random secrets, new at each boot, that only root and the group links can read (root:links 0750).
    pub fn secrets_dir(&self) -> PathBuf {
        self.at("run/links/secrets")
    }
    /// Proves to the component that a request comes from the agent.
    pub fn agent_secret(&self) -> PathBuf {
        self.secrets_dir().join("agent")
    }
    /// Proves to the component that a request comes from nginx.
    pub fn proxy_secret(&self) -> PathBuf {
        self.secrets_dir().join("proxy")
    }
    /// Proves to the agent that telemetry comes from an instance.
    pub fn otlp_secret(&self) -> PathBuf {
        self.secrets_dir().join("otlp")
    }
    /// The site includes it: the header with [`Self::proxy_secret`] (root, 0600).
    pub fn proxy_secret_include(&self) -> PathBuf {
        self.secrets_dir().join("proxy.conf")
    }
    /// Sockets of the instances. Of links, with the set-group-ID bit and nginx's group, so that a socket made in it is open to
    /// nginx's workers and to nobody else (2710).
    pub fn sockets_dir(&self) -> PathBuf {
        self.at("run/links/sockets")
    }
    pub fn instance_socket(&self, instance: u16) -> PathBuf {
        self.sockets_dir().join(format!("{instance}.sock"))
    }
    /// Credentials of one instance on a host where systemd cannot deliver them (root:links 0750).
    pub fn fallback_credentials_dir(&self, instance: u16) -> PathBuf {
        self.fallback_credentials_base().join(instance.to_string())
    }
    /// A directory per instance whose credentials systemd could not deliver.
    pub fn fallback_credentials_base(&self) -> PathBuf {
        self.at("run/links/credentials")
    }

    /// There while nginx may run another site than the files say, because it was not allowed to reload.
    pub fn site_not_loaded(&self) -> PathBuf {
        self.at("run/links/site-not-loaded")
    }

    /// Held by the one rollout that is under way.
    pub fn rollout_lock(&self) -> PathBuf {
        self.at("run/links/rollout.lock")
    }

    // systemd's.
    /// Which host this is.
    pub fn machine_id(&self) -> PathBuf {
        self.at("etc/machine-id")
    }
    /// Where `systemctl enable links@N` puts its links.
    pub fn service_wants_dir(&self) -> PathBuf {
        self.at("etc/systemd/system/links.service.wants")
    }

    /// Lets the instances reach other machines; there while the configuration needs it.
    pub fn instances_network(&self) -> PathBuf {
        self.at("etc/systemd/system/links@.service.d/10-network.conf")
    }

    /// The same for the agent.
    pub fn agent_network(&self) -> PathBuf {
        self.at("etc/systemd/system/links.service.d/10-network.conf")
    }

    // needrestart's.
    pub fn needrestart(&self) -> PathBuf {
        self.at("etc/needrestart/conf.d/links.conf")
    }

    // nginx's.
    /// Included in the site's server, for the administrator's own directives.
    pub fn nginx_include_dir(&self) -> PathBuf {
        self.config.join("nginx.d")
    }
    /// Of the packaged nginx.
    pub fn nginx_pid(&self) -> PathBuf {
        self.at("run/nginx.pid")
    }
    /// The site where nginx has no directory of sites.
    pub fn nginx_conf_d_site(&self) -> PathBuf {
        self.at("etc/nginx/conf.d/links.conf")
    }
    /// A main file that nginx is asked about, beside its own, so that relative paths mean the same in both. No pattern of
    /// nginx finds a name with a dot before it.
    pub fn nginx_candidate(&self) -> PathBuf {
        self.at("etc/nginx/.links-candidate.conf")
    }
    pub fn nginx_site_available(&self) -> PathBuf {
        self.at("etc/nginx/sites-available/links")
    }
    pub fn nginx_site_enabled(&self) -> PathBuf {
        self.at("etc/nginx/sites-enabled/links")
    }
    pub fn nginx_default_site_enabled(&self) -> PathBuf {
        self.at("etc/nginx/sites-enabled/default")
    }
    pub fn nginx_default_site_available(&self) -> PathBuf {
        self.at("etc/nginx/sites-available/default")
    }
}

/// A layout below a new directory, which holds the given ones.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub fn temporary(directories: &[fn(&Layout) -> PathBuf]) -> (tempfile::TempDir, Layout) {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    for directory in directories {
        std::fs::create_dir_all(directory(&layout)).unwrap();
    }
    (root, layout)
}

/// The unit of one instance.
pub fn instance_unit(instance: u16) -> String {
    format!("links@{instance}.service")
}

/// The instance of a unit's name; none for another unit.
pub fn instance_of_unit(unit: &str) -> Option<u16> {
    let number = unit.strip_prefix("links@")?.strip_suffix(".service")?.parse().ok()?;
    (1..=MAX_INSTANCES).contains(&number).then_some(number)
}

/// Where nginx answers the instances about its cache: loopback, so that nobody else can ask.
pub fn edge_address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Where instance N listens: always loopback, nginx is in front.
pub fn instance_address(base_port: u16, instance: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, base_port.saturating_add(instance)))
}
