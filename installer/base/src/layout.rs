//! Every path, unit name, user and port of links. No other module spells one out. Units, scripts and nginx files repeat some
//! of them; a test checks that they agree.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Name of the Debian package. The name `links` is taken by a text browser.
pub const PACKAGE: &str = "links-shortener";
/// Name of the system user and group that the instances and the agent run as.
pub const USER: &str = "links";
/// Name of the system user that the network side of links-acme runs as. It owns no file.
pub const ACME_USER: &str = "links-acme";
/// The service that an administrator starts and stops.
pub const SERVICE: &str = "links.service";
/// Pattern for systemctl that matches every instance.
pub const INSTANCES: &str = "links@*.service";
/// The timer that renews certificates, and its service.
pub const TLS_TIMER: &str = "links-tls.timer";
pub const TLS_SERVICE: &str = "links-tls.service";
/// The service that undoes an interrupted rollout at boot.
pub const RECOVER: &str = "links-recover.service";
/// The timer that makes backups. It is enabled exactly while links.toml says how often.
pub const BACKUP_TIMER: &str = "links-backup.timer";
/// The maximum number of instances. nginx gets one upstream pool per missing ready flag.
pub const MAX_INSTANCES: u16 = 16;
/// Name of the credential that holds the admin token, and of the component's variable.
pub const ADMIN_TOKEN: &str = "admin_token";
/// Prefix that `LoadCredential=links:/etc/links/credentials` gives to each credential of that directory
/// (systemd.exec(5): the ID is suffixed with `_` and the file name).
pub const CREDENTIAL_PREFIX: &str = "links_";
/// File name of [`Layout::keepalive_flag`].
pub const KEEPALIVE_FLAG: &str = "keepalive";
/// The path of [`Layout::unlimited_flag`] relative to [`Layout::run_dir`].
pub const UNLIMITED_FLAG: &str = "limits/none";

/// File name of [`Layout::tls_chain`].
pub const TLS_CHAIN: &str = "fullchain.pem";
/// File name of [`Layout::tls_key`].
pub const TLS_KEY: &str = "privkey.pem";
/// Name of the file beside them that describes the certificate (`links_config::acme::Certificate`).
pub const TLS_DESCRIPTION: &str = "certificate.json";

/// The kernel's tables of TCP connections, for IPv4 and IPv6. `/proc/net` is hidden by `ProcSubset=pid`; these are not.
pub const CONNECTION_TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// The kernel's table of Unix sockets.
pub const UNIX_SOCKET_TABLE: &str = "/proc/self/net/unix";

/// The paths below one root directory: `/` on a host, any directory for `linksctl up`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this is the layout of the host itself, with its systemd and its nginx.
    pub fn is_host(&self) -> bool {
        self.root == Path::new("/")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    // Configuration, which belongs to the administrator.
    pub fn config_dir(&self) -> PathBuf {
        self.at("etc/links")
    }
    pub fn links_toml(&self) -> PathBuf {
        self.at("etc/links/links.toml")
    }
    /// A directory with files that extend links.toml.
    pub fn links_toml_d(&self) -> PathBuf {
        self.at("etc/links/links.toml.d")
    }
    pub fn runtime_toml(&self) -> PathBuf {
        self.at("etc/links/runtime.toml")
    }
    /// A directory with one file per credential, named like the credential (root, 0600).
    pub fn credentials_dir(&self) -> PathBuf {
        self.at("etc/links/credentials")
    }

    /// The file of one credential.
    pub fn credential(&self, name: &str) -> PathBuf {
        self.credentials_dir().join(name)
    }

    // Programs, which belong to the package.
    /// The payload as installed by dpkg or `linksctl install`. Nothing runs from this directory.
    pub fn bundle(&self) -> PathBuf {
        self.at("usr/lib/links/bundle")
    }
    /// The list of files that `linksctl install` has installed, for `linksctl uninstall`.
    pub fn install_record(&self) -> PathBuf {
        self.at("usr/lib/links/installed.json")
    }

    pub fn sysusers(&self) -> PathBuf {
        self.at("usr/lib/sysusers.d/links.conf")
    }
    pub fn tmpfiles(&self) -> PathBuf {
        self.at("usr/lib/tmpfiles.d/links.conf")
    }

    // State, which belongs to links.
    pub fn state_dir(&self) -> PathBuf {
        self.at("var/lib/links")
    }
    /// The directory of the databases, the only part of the state that the instances may write to.
    pub fn data_dir(&self) -> PathBuf {
        self.at("var/lib/links/data")
    }
    pub fn releases_dir(&self) -> PathBuf {
        self.at("var/lib/links/releases")
    }
    /// Copies of the configuration, one per rollout, kept while an instance uses it.
    pub fn applied_dir(&self) -> PathBuf {
        self.at("var/lib/links/applied")
    }
    /// A symbolic link to the release of the last successful rollout.
    pub fn current_release(&self) -> PathBuf {
        self.at("var/lib/links/current")
    }
    /// A symbolic link to the release before the current one.
    pub fn previous_release(&self) -> PathBuf {
        self.at("var/lib/links/previous")
    }
    /// The changes of a running rollout, so that they can be undone.
    pub fn rollout_journal(&self) -> PathBuf {
        self.at("var/lib/links/rollout.json")
    }
    /// The result of the last rollout that changed something.
    pub fn last_rollout(&self) -> PathBuf {
        self.at("var/lib/links/last-rollout.json")
    }
    /// Copies of the local database, each made before a release changed its tables.
    pub fn backups_dir(&self) -> PathBuf {
        self.at("var/lib/links/backups")
    }
    /// A record of the backups that this host has written, and of the last attempt (`links_release::Backups`).
    pub fn backups_record(&self) -> PathBuf {
        self.at("var/lib/links/backups.json")
    }
    /// What a restore is changing, so that it can be undone. While it exists, no click is counted.
    pub fn restore_journal(&self) -> PathBuf {
        self.at("var/lib/links/restore.json")
    }
    /// Random bytes, new with each restore of the database. The agent then gives the click journal another name.
    pub fn restored_marker(&self) -> PathBuf {
        self.at("var/lib/links/restored")
    }
    /// A directory with two symbolic links per instance: one to its release, one to its configuration.
    pub fn instances_dir(&self) -> PathBuf {
        self.at("var/lib/links/instances")
    }
    pub fn instance_release(&self, instance: u16) -> PathBuf {
        self.instances_dir().join(instance.to_string())
    }
    /// The configuration of one instance, a directory like [`Self::config_dir`].
    pub fn instance_config(&self, instance: u16) -> PathBuf {
        self.instances_dir().join(config_link_name(instance))
    }
    /// The directory of the click journal. It holds nothing else except old journals that somebody has renamed.
    pub fn journal_dir(&self) -> PathBuf {
        self.at("var/lib/links/journal")
    }
    /// The click journal, into which nginx writes a line for each request.
    pub fn journal(&self) -> PathBuf {
        self.journal_dir().join("clicks.log")
    }
    /// The state of the agent.
    pub fn agent_dir(&self) -> PathBuf {
        self.at("var/lib/links/agent")
    }
    /// How far the agent has read the journal, and how it recognises the file.
    pub fn journal_position(&self) -> PathBuf {
        self.agent_dir().join("journal.json")
    }
    /// The keys with which the last days' visitors are hashed (0600).
    pub fn visitor_salts(&self) -> PathBuf {
        self.agent_dir().join("salts.json")
    }
    /// Exists once links.service has been enabled. From then on, only the administrator enables or disables it.
    pub fn configured_marker(&self) -> PathBuf {
        self.at("var/lib/links/configured")
    }
    /// The target of nginx's default site before links disabled that site.
    pub fn parked_default_site(&self) -> PathBuf {
        self.at("var/lib/links/nginx-default-site")
    }
    /// Components that root has compiled for the runtime of a release, in one directory per release.
    pub fn compiled_dir(&self) -> PathBuf {
        self.at("var/lib/links/compiled")
    }
    /// A record of the nginx site that links wrote last, and of how to undo an interrupted change of it.
    pub fn site_state(&self) -> PathBuf {
        self.at("var/lib/links/site.json")
    }
    /// A new site while nginx tests it, before it replaces the current one.
    pub fn site_candidate(&self) -> PathBuf {
        self.at("var/lib/links/site-candidate.conf")
    }
    /// The copy of a site that somebody had edited, made before `--force` or a removal replaced it.
    pub fn replaced_site(&self) -> PathBuf {
        self.at("var/lib/links/site-replaced.conf")
    }

    // Certificates, and what belongs to getting them. Only root writes there; user links-acme never sees a file of these.
    pub fn tls_dir(&self) -> PathBuf {
        self.at("var/lib/links/tls")
    }
    /// The answers to HTTP-01 challenges (RFC 8555, section 8.3), which nginx serves: one file per challenge, named like its
    /// token.
    pub fn tls_challenges_dir(&self) -> PathBuf {
        self.at("var/lib/links/tls/challenges")
    }
    /// One symbolic link per name, to the directory of its certificate and key. Renaming it over replaces both at once.
    pub fn tls_live_dir(&self) -> PathBuf {
        self.at("var/lib/links/tls/live")
    }
    pub fn tls_live(&self, name: &str) -> PathBuf {
        self.tls_live_dir().join(name)
    }
    /// The certificate that nginx serves for `name`, followed by its issuers' certificates.
    pub fn tls_chain(&self, name: &str) -> PathBuf {
        self.tls_live(name).join(TLS_CHAIN)
    }
    /// The private key of [`Self::tls_chain`] (root, 0600).
    pub fn tls_key(&self, name: &str) -> PathBuf {
        self.tls_live(name).join(TLS_KEY)
    }
    pub fn tls_description(&self, name: &str) -> PathBuf {
        self.tls_live(name).join(TLS_DESCRIPTION)
    }
    /// The issued certificates: a directory per name, and in it a directory per certificate.
    pub fn tls_certificates_dir(&self) -> PathBuf {
        self.at("var/lib/links/tls/certificates")
    }
    /// One file per name: when it is renewed, and what the last attempt came to.
    pub fn tls_names_dir(&self) -> PathBuf {
        self.at("var/lib/links/tls/names")
    }
    /// The keys and the orders of unfinished issuances, one directory per name (root, 0700).
    pub fn tls_pending_dir(&self) -> PathBuf {
        self.at("var/lib/links/tls/pending")
    }
    /// The accounts at certificate authorities, one directory each (root, 0700).
    pub fn tls_accounts_dir(&self) -> PathBuf {
        self.at("var/lib/links/tls/accounts")
    }
    /// Copies of the administrator's certificates and keys, one file per name (root, 0600), and a description of each.
    pub fn tls_files_dir(&self) -> PathBuf {
        self.at("var/lib/links/tls/files")
    }
    /// The description of a copy, for users who cannot read that.
    pub fn tls_file_description(&self, name: &str) -> PathBuf {
        self.tls_files_dir().join(format!("{name}.json"))
    }
    /// The lock that links-acme holds while it changes something.
    pub fn tls_lock(&self) -> PathBuf {
        self.at("var/lib/links/tls/lock")
    }

    /// Held while the administrator's certificates are copied.
    pub fn tls_files_lock(&self) -> PathBuf {
        self.at("var/lib/links/tls/files.lock")
    }

    /// Compiled components, which may be deleted at any time.
    pub fn cache_dir(&self) -> PathBuf {
        self.at("var/cache/links")
    }

    // Run-time files, which a reboot deletes.
    pub fn run_dir(&self) -> PathBuf {
        self.at("run/links")
    }
    /// Exists while an older version is being installed. Such a version counts a journal from the beginning if it does not
    /// know the name that the journal has.
    pub fn downgrade_marker(&self) -> PathBuf {
        self.at("run/links/downgrade")
    }
    /// nginx's cache of redirects, which belongs to its workers. It is in memory, so that no redirect waits for a disk.
    pub fn edge_cache_dir(&self) -> PathBuf {
        self.at("run/links/edge")
    }
    /// The directory of the ready flags. An instance is in rotation exactly while its flag exists, a symbolic link to `.`.
    pub fn ready_dir(&self) -> PathBuf {
        self.at("run/links/ready")
    }
    pub fn ready_flag(&self, instance: u16) -> PathBuf {
        self.ready_dir().join(instance.to_string())
    }
    /// While this flag is missing, nginx closes each connection after its next response.
    pub fn keepalive_flag(&self) -> PathBuf {
        self.run_dir().join(KEEPALIVE_FLAG)
    }
    /// The flags of clients that have reached a limit. The agent sets them, and nginx checks them.
    pub fn limits_dir(&self) -> PathBuf {
        self.run_dir().join("limits")
    }
    /// A symbolic link to the keep-alive flag. While it is missing, some client may have a flag.
    pub fn unlimited_flag(&self) -> PathBuf {
        self.run_dir().join(UNLIMITED_FLAG)
    }
    /// `RuntimeDirectory=` of the instance, with its rendered configuration (0600), temporary files and lock.
    pub fn instance_run_dir(&self, instance: u16) -> PathBuf {
        self.run_dir().join(instance.to_string())
    }

    /// Where the agent forwards the instance's metrics to; holds secrets (0600).
    pub fn instance_forward(&self, instance: u16) -> PathBuf {
        self.instance_run_dir(instance).join("forward.json")
    }

    /// Statistics for the agent that outlive a stop of an instance.
    pub fn metrics_dir(&self) -> PathBuf {
        self.at("run/links/metrics")
    }
    /// The starts, the last drain and the memory of one instance.
    pub fn instance_metrics(&self, instance: u16) -> PathBuf {
        self.metrics_dir().join(format!("{instance}.json"))
    }
    /// A record of who checkpoints the database, written by the agent.
    pub fn checkpoints(&self) -> PathBuf {
        self.metrics_dir().join("checkpoints.json")
    }
    /// The counters that the instances have sent, summed over their restarts.
    pub fn agent_counters(&self) -> PathBuf {
        self.metrics_dir().join("counters.json")
    }

    /// The release and the configuration that the running instance was started with.
    pub fn instance_runs(&self, instance: u16) -> PathBuf {
        self.run_dir().join(runs_name(instance))
    }

    /// Secrets by which parts of links recognise each other, new at each boot (root:links 0750).
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
    /// The nginx file that sets the header with [`Self::proxy_secret`], included by the site (root, 0600).
    pub fn proxy_secret_include(&self) -> PathBuf {
        self.secrets_dir().join("proxy.conf")
    }
    /// The sockets of the instances. The directory belongs to user links and nginx's group, and has the set-group-ID bit
    /// (2710), so that nginx's workers, and nobody else, can open a socket in it.
    pub fn sockets_dir(&self) -> PathBuf {
        self.at("run/links/sockets")
    }
    pub fn instance_socket(&self, instance: u16) -> PathBuf {
        self.sockets_dir().join(socket_name(instance))
    }
    /// Credentials of one instance on a host where systemd cannot deliver them (root:links 0750).
    pub fn fallback_credentials_dir(&self, instance: u16) -> PathBuf {
        self.fallback_credentials_base().join(instance.to_string())
    }
    /// The parent of [`Self::fallback_credentials_dir`] of every such instance.
    pub fn fallback_credentials_base(&self) -> PathBuf {
        self.at("run/links/credentials")
    }

    /// Exists while nginx may serve an outdated site because it was not allowed to reload.
    pub fn site_not_loaded(&self) -> PathBuf {
        self.at("run/links/site-not-loaded")
    }

    /// The lock that a running backup holds.
    pub fn backup_lock(&self) -> PathBuf {
        self.at("run/links/backup.lock")
    }

    /// The lock that a running rollout holds.
    pub fn rollout_lock(&self) -> PathBuf {
        self.at("run/links/rollout.lock")
    }

    // Files of systemd.
    /// Identifies this host (machine-id(5)).
    pub fn machine_id(&self) -> PathBuf {
        self.at("etc/machine-id")
    }
    /// The directory where `systemctl enable links@N` creates its symbolic links.
    pub fn service_wants_dir(&self) -> PathBuf {
        self.at("etc/systemd/system/links.service.wants")
    }

    /// The symbolic link that `systemctl enable links-backup.timer` creates.
    pub fn backup_timer_enabled(&self) -> PathBuf {
        self.at("etc/systemd/system/timers.target.wants").join(BACKUP_TIMER)
    }

    /// The drop-in that lets the instances reach other machines. Exists only while the configuration needs it.
    pub fn instances_network(&self) -> PathBuf {
        self.at("etc/systemd/system/links@.service.d/10-network.conf")
    }

    /// The drop-in that lets the agent reach other machines. Exists only while the configuration needs it.
    pub fn agent_network(&self) -> PathBuf {
        self.at("etc/systemd/system/links.service.d/10-network.conf")
    }

    // Files of needrestart.
    pub fn needrestart(&self) -> PathBuf {
        self.at("etc/needrestart/conf.d/links.conf")
    }

    // Files of nginx.
    /// The administrator's own directives, included in the site's `server` block.
    pub fn nginx_include_dir(&self) -> PathBuf {
        self.at("etc/links/nginx.d")
    }
    /// The PID file of Debian's nginx.
    pub fn nginx_pid(&self) -> PathBuf {
        self.at("run/nginx.pid")
    }
    /// The site on a host whose nginx has no `sites-enabled` directory.
    pub fn nginx_conf_d_site(&self) -> PathBuf {
        self.at("etc/nginx/conf.d/links.conf")
    }
    /// A copy of nginx's main file for `nginx -t`. It is beside the original, so that relative paths have the same meaning.
    /// The leading dot hides it from the patterns of `include`.
    pub fn nginx_candidate(&self) -> PathBuf {
        self.at("etc/nginx/.links-candidate.conf")
    }
    pub fn nginx_site_available(&self) -> PathBuf {
        self.at("etc/nginx/sites-available/links")
    }
    pub fn nginx_site_enabled(&self) -> PathBuf {
        self.at("etc/nginx/sites-enabled/links")
    }
    /// Every place where nginx may read the site at its next start.
    pub fn nginx_site_places(&self) -> [PathBuf; 2] {
        [self.nginx_site_enabled(), self.nginx_conf_d_site()]
    }
    pub fn nginx_default_site_enabled(&self) -> PathBuf {
        self.at("etc/nginx/sites-enabled/default")
    }
    pub fn nginx_default_site_available(&self) -> PathBuf {
        self.at("etc/nginx/sites-available/default")
    }
}

/// A layout below a new temporary directory, in which the given directories exist.
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub fn temporary(directories: &[fn(&Layout) -> PathBuf]) -> (tempfile::TempDir, Layout) {
    let root = tempfile::tempdir().unwrap();
    let layout = Layout::new(root.path());
    for directory in directories {
        std::fs::create_dir_all(directory(&layout)).unwrap();
    }
    (root, layout)
}

/// The name of an instance's unit.
pub fn instance_unit(instance: u16) -> String {
    format!("links@{instance}.service")
}

/// The name of the link to an instance's configuration in [`Layout::instances_dir`].
pub fn config_link_name(instance: u16) -> String {
    format!("{instance}.config")
}

/// The path of [`Layout::instance_runs`] relative to [`Layout::run_dir`].
pub fn runs_name(instance: u16) -> PathBuf {
    Path::new(&instance.to_string()).join("runs.json")
}

/// The name of an instance's socket in [`Layout::sockets_dir`].
pub fn socket_name(instance: u16) -> String {
    format!("{instance}.sock")
}

/// The instance whose unit has this name. `None` for other units.
pub fn instance_of_unit(unit: &str) -> Option<u16> {
    let number = unit.strip_prefix("links@")?.strip_suffix(".service")?.parse().ok()?;
    (1..=MAX_INSTANCES).contains(&number).then_some(number)
}

/// The address where nginx answers the instances' questions about its cache. It is on loopback, out of reach of other machines.
pub fn edge_address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The TCP address of an instance. It is always on loopback, because nginx is in front.
pub fn instance_address(base_port: u16, instance: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, base_port.saturating_add(instance)))
}
