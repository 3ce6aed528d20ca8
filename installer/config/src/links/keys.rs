//! The keys of `links.toml`, declared once. The parser takes its ranges and defaults from here, and links-pack makes the man page
//! links.toml(5) and the documented example from the same declarations.
//!
//! A new key is one entry below. `read.rs` reads it, and the tests of this module's parent fail as long as it does not.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use crate::document::{Problem, Value, dotted};
use links_base::duration;
use links_base::layout::MAX_INSTANCES;

/// A key, and what its documentation says about it.
#[derive(Debug)]
pub struct Key {
    /// The table that the key is in, such as `health`. Empty at the top of the file.
    pub table: &'static str,
    /// The name in its table.
    pub name: &'static str,
    pub kind: Kind,
    pub absent: Absent,
    /// The first version with this key.
    pub since: Since,
    /// The description in plain English sentences. Names and values in it are in backticks.
    pub about: &'static str,
}

/// What values a key accepts.
#[derive(Debug)]
pub enum Kind {
    Boolean,
    /// An integer of a unit, which is empty if the integer is a plain number.
    Integer {
        from: i64,
        to: i64,
        unit: &'static str,
    },
    /// A string such as `"30s"` or `"1m30s"`.
    Duration {
        from: Duration,
        to: Duration,
    },
    /// One of several strings.
    Word(&'static [&'static str]),
    /// Anything else, described so that the description can follow "must be".
    Form(&'static str),
}

/// What counts if the key is absent. Values are written as in TOML.
#[derive(Debug)]
pub enum Absent {
    Default(&'static str),
    /// There is no default: the description says what happens without the key.
    Unset {
        example: &'static str,
    },
}

/// A released version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Since {
    V0_1_0,
    V0_2_0,
}

/// The keys of one table.
#[derive(Debug)]
pub struct Table {
    /// Empty for the keys at the top of the file.
    pub name: &'static str,
    pub about: &'static str,
    pub keys: &'static [&'static Key],
}

/// Declares a constant for each key, and [`TABLES`] with all of them.
macro_rules! tables {
    ($($table:literal: $about:literal {
        $($constant:ident = $name:literal { $($field:ident: $value:expr,)* })*
    })*) => {
        $($(
            pub static $constant: Key = Key { table: $table, name: $name, $($field: $value,)* };
        )*)*

        /// All keys by table, in the order of the documentation.
        pub static TABLES: &[Table] = &[
            $(Table { name: $table, about: $about, keys: &[$(&$constant),*] },)*
        ];
    };
}

const fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

const fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}

const ORIGIN: Kind = Kind::Form("a URL that ends after the host and the port: `https://HOST`, `http://HOST:PORT`");

tables! {
    "": "" {
        INSTANCES = "instances" {
            kind: Kind::Integer { from: 1, to: MAX_INSTANCES as i64, unit: "" },
            absent: Absent::Default("2"),
            since: Since::V0_1_0,
            about: "The number of instances that serve. With one, each restart interrupts the service for a moment. \
                    `linksctl scale` changes the number in `links.toml.d/instances.toml`.",
        }
        BASE_PORT = "base_port" {
            // The port of the first instance is unprivileged, and exists.
            kind: Kind::Integer { from: 1023, to: u16::MAX as i64 - 1, unit: "" },
            absent: Absent::Default("7000"),
            since: Since::V0_1_0,
            about: "The port below those of the instances: an instance that listens on a port has 127.0.0.1, port \
                    `base_port` + N. On `base_port` itself, nginx answers the instances' questions about its cache.",
        }
        PUBLIC_URL = "public_url" {
            kind: ORIGIN,
            absent: Absent::Unset { example: "\"https://s.example.org\"" },
            since: Since::V0_1_0,
            about: "The beginning of short URLs. Without it, short URLs begin with https:// and the first of `tls.names`. \
                    Without HTTPS, each answer uses the host and the scheme of its request.",
        }
    }
    "shorten": "Who may create links." {
        SHORTEN_ACCESS = "access" {
            kind: Kind::Word(&["token", "open"]),
            absent: Absent::Default("\"token\""),
            since: Since::V0_1_0,
            about: "With `\"token\"`, creating a link takes the admin token, which `linksctl token` prints. With \
                    `\"open\"`, everybody can create links.",
        }
        SHORTEN_ALLOWED_ORIGIN = "allowed_origin" {
            kind: ORIGIN,
            absent: Absent::Unset { example: "\"https://app.example.org\"" },
            since: Since::V0_1_0,
            about: "The one web origin whose pages may call `POST /shorten` from a browser (CORS). Without it, none may.",
        }
    }
    "health": "How instances are checked." {
        HEALTH_START_TIMEOUT = "start_timeout" {
            kind: Kind::Duration { from: seconds(1), to: minutes(10) },
            absent: Absent::Default("\"30s\""),
            since: Since::V0_1_0,
            about: "The maximum time from the start of an instance to its first healthy answer. After that, the start has \
                    failed.",
        }
        HEALTH_INTERVAL = "interval" {
            kind: Kind::Duration { from: milliseconds(100), to: minutes(1) },
            absent: Absent::Default("\"1s\""),
            since: Since::V0_1_0,
            about: "The time between two checks of a running instance.",
        }
        HEALTH_TIMEOUT = "timeout" {
            // Two checks in a row must end before the watchdog fires (WatchdogSec=30 in links@.service).
            kind: Kind::Duration { from: milliseconds(100), to: seconds(10) },
            absent: Absent::Default("\"2s\""),
            since: Since::V0_1_0,
            about: "A check that takes longer has failed.",
        }
    }
    "drain": "How instances stop." {
        DRAIN_TIMEOUT = "timeout" {
            kind: Kind::Duration { from: Duration::ZERO, to: hours(1) },
            absent: Absent::Default("\"30s\""),
            since: Since::V0_1_0,
            about: "How long a stopping instance waits for the requests that it still serves. The rest are aborted.",
        }
    }
    "rollout": "How changes are rolled out." {
        ROLLOUT_MIN_HEALTHY = "min_healthy" {
            kind: Kind::Duration { from: Duration::ZERO, to: minutes(10) },
            absent: Absent::Default("\"2s\""),
            since: Since::V0_1_0,
            about: "How long a restarted instance must stay healthy before the next one is restarted.",
        }
    }
    "cache": "The cache of redirects in the key-value store `default` of runtime.toml." {
        CACHE_ENABLED = "enabled" {
            kind: Kind::Form("`true`, `false` or `\"auto\"`"),
            absent: Absent::Default("\"auto\""),
            since: Since::V0_1_0,
            about: "Whether redirects are cached, so that they work while the database does not answer. `\"auto\"` means \
                    `true` if the database is on another machine.",
        }
        CACHE_TTL = "ttl" {
            kind: Kind::Duration { from: seconds(1), to: hours(1) },
            absent: Absent::Default("\"60s\""),
            since: Since::V0_1_0,
            about: "The maximum age of an entry while the database answers. A changed link is up to date everywhere after \
                    this time.",
        }
        CACHE_STALE = "stale" {
            kind: Kind::Duration { from: Duration::ZERO, to: hours(30 * 24) },
            absent: Absent::Default("\"24h\""),
            since: Since::V0_1_0,
            about: "The maximum age of an entry while the database does not answer.",
        }
    }
    "secrets": "The cache of an admin token that another machine supplies, such as Vault." {
        SECRETS_TTL = "ttl" {
            kind: Kind::Duration { from: seconds(1), to: hours(1) },
            absent: Absent::Default("\"30s\""),
            since: Since::V0_1_0,
            about: "How long the token is valid before it is looked up again, and so how long a replaced token still works.",
        }
        SECRETS_STALE = "stale" {
            kind: Kind::Duration { from: Duration::ZERO, to: hours(24) },
            absent: Absent::Default("\"15m\""),
            since: Since::V0_1_0,
            about: "How long the token is valid while the other machine does not answer.",
        }
    }
    "telemetry": "What is sent to your OpenTelemetry collector by OTLP." {
        TELEMETRY_ENDPOINT = "endpoint" {
            kind: Kind::Form("a URL: `https://HOST` or `http://HOST:PORT`, with a path only for `\"http/protobuf\"`"),
            absent: Absent::Unset { example: "\"http://127.0.0.1:4318\"" },
            since: Since::V0_1_0,
            about: "The collector. Without it, nothing is sent. For `\"http/protobuf\"`, `/v1/traces` and the paths of the \
                    other signals are appended.",
        }
        TELEMETRY_PROTOCOL = "protocol" {
            kind: Kind::Word(&["http/protobuf", "grpc"]),
            absent: Absent::Default("\"http/protobuf\""),
            since: Since::V0_1_0,
            about: "The transport. Each has a port of its own at the collector, usually 4318 and 4317.",
        }
        TELEMETRY_HEADERS = "headers" {
            kind: Kind::Form("`\"credential:NAME\"`"),
            absent: Absent::Unset { example: "\"credential:otlp_headers\"" },
            since: Since::V0_1_0,
            about: "The credential with headers for the collector: `NAME=VALUE,NAME=VALUE`, with a blank written as `%20`.",
        }
        TELEMETRY_TRACES = "traces" {
            kind: Kind::Boolean,
            absent: Absent::Default("true"),
            since: Since::V0_1_0,
            about: "Whether traces are sent.",
        }
        TELEMETRY_METRICS = "metrics" {
            kind: Kind::Boolean,
            absent: Absent::Default("true"),
            since: Since::V0_1_0,
            about: "Whether metrics are sent.",
        }
        TELEMETRY_LOGS = "logs" {
            kind: Kind::Boolean,
            absent: Absent::Default("false"),
            since: Since::V0_1_0,
            about: "Whether logs are sent. They are in the journal too, with links-host only there.",
        }
        TELEMETRY_SAMPLING = "sampling" {
            kind: Kind::Form("a number from 0.0 to 1.0"),
            absent: Absent::Default("1.0"),
            since: Since::V0_1_0,
            about: "The share of the traces that start here and are kept. A request with a `traceparent` header decides for \
                    itself.",
        }
    }
    "metrics": "The metrics for Prometheus. A Grafana dashboard and alert rules are in /usr/share/doc/links-shortener." {
        METRICS_LISTEN = "listen" {
            kind: Kind::Form("`\"ADDRESS:PORT\"` or `\"off\"`"),
            absent: Absent::Default("\"127.0.0.1:9464\""),
            since: Since::V0_1_0,
            about: "The address of `/metrics`.",
        }
        METRICS_OTLP_LISTEN = "otlp_listen" {
            kind: Kind::Form("`\"ADDRESS:PORT\"` with a loopback address"),
            absent: Absent::Default("\"127.0.0.1:9465\""),
            since: Since::V0_1_0,
            about: "The address on this host to which the instances send their metrics. Unused with `listen = \"off\"`.",
        }
    }
    "clicks": "How clicks are counted." {
        CLICKS_COUNTRIES = "countries" {
            kind: Kind::Form("an absolute path"),
            absent: Absent::Unset { example: "\"/var/lib/GeoIP/GeoLite2-Country.mmdb\"" },
            since: Since::V0_1_0,
            about: "A file with the countries of IP addresses in MaxMind's format, such as GeoLite2 Country or DB-IP Country \
                    Lite. With it, statistics contain countries. Addresses are not stored. The file is held in memory, and \
                    read again when it changes.",
        }
    }
    "limits": "How many requests one address (IPv6: one /64) may send per minute before it gets 429 for a while. 0 turns a limit \
               off. Addresses behind `nginx.trusted_proxies` are limited one by one, and programs on this host not at all." {
        LIMITS_CREATE = "create" {
            kind: Kind::Integer { from: 0, to: 60_000, unit: "" },
            absent: Absent::Default("60"),
            since: Since::V0_2_0,
            about: "Links that it creates while `shorten.access` is `\"open\"`.",
        }
        LIMITS_WRONG_TOKENS = "wrong_tokens" {
            kind: Kind::Integer { from: 0, to: 60_000, unit: "" },
            absent: Absent::Default("30"),
            since: Since::V0_2_0,
            about: "Requests to the API with a wrong token or without one. After more of them, the address gets 429 for API requests \
                    with a token.",
        }
        LIMITS_UNKNOWN_LINKS = "unknown_links" {
            kind: Kind::Integer { from: 0, to: 60_000, unit: "" },
            absent: Absent::Default("120"),
            since: Since::V0_2_0,
            about: "Requests for links and other paths that do not exist, except those that nginx answers from its cache. After more \
                    of them, the address gets only what is in that cache.",
        }
        LIMITS_CACHE_MISSES = "cache_misses" {
            kind: Kind::Integer { from: 0, to: 60_000, unit: "" },
            absent: Absent::Default("6000"),
            since: Since::V0_2_0,
            about: "Requests for links and other paths that nginx does not answer from its cache, whether they exist or not. After \
                    more of them, the address gets only what is in that cache. Links with `max_clicks` are never in it. If nginx \
                    has no cache, every request counts.",
        }
    }
    "nginx": "The nginx site of links. Your own directives go into /etc/links/nginx.d/*.conf." {
        NGINX_MANAGE = "manage" {
            kind: Kind::Boolean,
            absent: Absent::Default("true"),
            since: Since::V0_1_0,
            about: "Whether links writes and enables its nginx site. With `false`, the site is yours: `linksctl sample-site` prints \
                    one that counts clicks, and caches redirects if `cache_ttl` is set.",
        }
        NGINX_LISTEN = "listen" {
            kind: Kind::Form("a port, `\"ADDRESS:PORT\"`, or an array of them, such as `[\"192.0.2.1:80\", \"[2001:db8::1]:80\"]`"),
            absent: Absent::Default("80"),
            since: Since::V0_1_0,
            about: "Where nginx listens. A port means every address, and every IPv6 address too if the host has IPv6.",
        }
        NGINX_SERVER_NAME = "server_name" {
            kind: Kind::Form("a host name, or an array of them"),
            absent: Absent::Default("\"_\""),
            since: Since::V0_1_0,
            about: "The host names that the site answers to. `\"_\"` is the host of `public_url`. If that is unset too, the \
                    site answers where no other site does.",
        }
        NGINX_REPLACE_DEFAULT_SITE = "replace_default_site" {
            kind: Kind::Boolean,
            absent: Absent::Default("true"),
            since: Since::V0_1_0,
            about: "Whether Debian's default site is disabled, if nobody has changed it. Removing links enables it again.",
        }
        NGINX_TRUSTED_PROXIES = "trusted_proxies" {
            kind: Kind::Form("a network, an address or `\"cloudflare\"`, or an array of them"),
            absent: Absent::Unset { example: "[\"10.0.0.0/8\"]" },
            since: Since::V0_2_0,
            about: "The proxies in front of nginx. `\"cloudflare\"` stands for the networks in /etc/links/cloudflare.txt or, without \
                    that file, those that links ships. From these proxies, `X-Forwarded-For`, `-Proto` and `-Host` count.",
        }
        NGINX_PROXY_PROTOCOL = "proxy_protocol" {
            kind: Kind::Boolean,
            absent: Absent::Default("false"),
            since: Since::V0_2_0,
            about: "Whether these proxies send the PROXY protocol. The client's address is then the one in it, `X-Forwarded-*` does \
                    not count, and other requests are refused.",
        }
        NGINX_CACHE_TTL = "cache_ttl" {
            kind: Kind::Duration { from: Duration::ZERO, to: hours(1) },
            absent: Absent::Unset { example: "\"5s\"" },
            since: Since::V0_1_0,
            about: "How long nginx answers a redirect from its cache. A change that is made through this host is visible at \
                    once; one that is made elsewhere, within this time. Without this key, it is `\"5s\"` if the database is on \
                    another machine, and `\"5m\"` if it is a file. It never exceeds the validity of a link, and clicks of a \
                    link with `max_clicks` are always counted first. `\"0s\"` turns the cache off. With `manage = false`, nginx caches \
                    only if this is set.",
        }
        NGINX_CACHE_STALE = "cache_stale" {
            kind: Kind::Duration { from: Duration::ZERO, to: hours(24) },
            absent: Absent::Default("\"10m\""),
            since: Since::V0_1_0,
            about: "How much longer nginx answers from its cache while no instance answers.",
        }
    }
    "tls": "HTTPS. `linksctl tls enable` sets this up in links.toml.d/tls.toml." {
        TLS_MODE = "mode" {
            kind: Kind::Word(&["off", "files", "acme"]),
            absent: Absent::Default("\"off\""),
            since: Since::V0_2_0,
            about: "With `\"acme\"`, certificates are obtained from Let's Encrypt or another authority that speaks ACME, and \
                    renewed. With `\"files\"`, nginx uses your own.",
        }
        TLS_NAMES = "names" {
            kind: Kind::Form("a host name, or an array of them"),
            absent: Absent::Unset { example: "[\"s.example.org\"]" },
            since: Since::V0_2_0,
            about: "The host names that have HTTPS. The first one begins short URLs unless `public_url` is set. A name is \
                    served without HTTPS until it has a certificate.",
        }
        TLS_HTTP = "http" {
            kind: Kind::Word(&["redirect", "serve"]),
            absent: Absent::Default("\"redirect\""),
            since: Since::V0_2_0,
            about: "What requests without HTTPS get once their name has a certificate: a redirect to HTTPS, or the same as \
                    with HTTPS.",
        }
        TLS_HSTS = "hsts" {
            kind: Kind::Boolean,
            absent: Absent::Default("false"),
            since: Since::V0_2_0,
            about: "Whether browsers are told to use nothing but HTTPS for these names for a year \
                    (Strict-Transport-Security). They do so even if HTTPS is turned off here later.",
        }
        TLS_EMAIL = "email" {
            kind: Kind::Form("an email address"),
            absent: Absent::Unset { example: "\"me@example.org\"" },
            since: Since::V0_2_0,
            about: "For `\"acme\"`: the contact of the account at the authority.",
        }
        TLS_DIRECTORY = "directory" {
            kind: Kind::Form("a URL: `https://HOST/PATH`"),
            absent: Absent::Unset { example: "\"https://acme-staging-v02.api.letsencrypt.org/directory\"" },
            since: Since::V0_2_0,
            about: "For `\"acme\"`: the directory of the authority. Without it, this is Let's Encrypt.",
        }
        TLS_PROFILE = "profile" {
            kind: Kind::Form("the name of a profile"),
            absent: Absent::Unset { example: "\"shortlived\"" },
            since: Since::V0_2_0,
            about: "For `\"acme\"`: the authority's profile for the certificates. Without it, the authority chooses.",
        }
        TLS_CA_FILE = "ca_file" {
            kind: Kind::Form("an absolute path"),
            absent: Absent::Unset { example: "\"/etc/ssl/certs/own-ca.pem\"" },
            since: Since::V0_2_0,
            about: "For `\"acme\"`: a file with the root certificates that are trusted for the connection to the authority, \
                    instead of the system's.",
        }
        TLS_EAB_KID = "eab_kid" {
            kind: Kind::Form("a string"),
            absent: Absent::Unset { example: "\"kid-1\"" },
            since: Since::V0_2_0,
            about: "For `\"acme\"`: the identifier of your external account, if the authority asks for one.",
        }
        TLS_EAB_KEY_FILE = "eab_key_file" {
            kind: Kind::Form("an absolute path"),
            absent: Absent::Unset { example: "\"/etc/ssl/private/eab-key\"" },
            since: Since::V0_2_0,
            about: "For `\"acme\"`: a file with the key of your external account, as the authority shows it.",
        }
        TLS_CERTIFICATE = "certificate" {
            kind: Kind::Form("an absolute path, or an array of them"),
            absent: Absent::Unset { example: "\"/etc/letsencrypt/live/s.example.org/fullchain.pem\"" },
            since: Since::V0_2_0,
            about: "For `\"files\"`: the file with the certificate and its chain. It is checked and copied. A changed file is \
                    noticed within two hours, or at once by `linksctl tls renew`.",
        }
        TLS_KEY = "key" {
            kind: Kind::Form("an absolute path, or an array of them"),
            absent: Absent::Unset { example: "\"/etc/letsencrypt/live/s.example.org/privkey.pem\"" },
            since: Since::V0_2_0,
            about: "For `\"files\"`: the file with the key of each certificate, in the same order.",
        }
    }
    "backup": "Backups. linksctl(1) describes `linksctl backup` and `linksctl restore`." {
        BACKUP_EVERY = "every" {
            kind: Kind::Duration { from: hours(1), to: hours(30 * 24) },
            absent: Absent::Unset { example: "\"24h\"" },
            since: Since::V0_2_0,
            about: "The time between two backups. Without it, backups are made only by `linksctl backup`.",
        }
        BACKUP_AT = "at" {
            kind: Kind::Form("a time of the day in UTC, such as `\"03:30\"`"),
            absent: Absent::Default("\"00:00\""),
            since: Since::V0_2_0,
            about: "The time from which `every` is counted.",
        }
        BACKUP_TO = "to" {
            kind: Kind::Form("the absolute path of a directory, or `\"s3://BUCKET/PREFIX\"`"),
            absent: Absent::Unset { example: "\"/var/backups/links\"" },
            since: Since::V0_2_0,
            about: "Where the backups go. For S3, the keys are in the credentials `s3_access_key_id` and \
                    `s3_secret_access_key`, which the instances do not get.",
        }
        BACKUP_KEEP = "keep" {
            kind: Kind::Integer { from: 0, to: 1000, unit: "" },
            absent: Absent::Default("14"),
            since: Since::V0_2_0,
            about: "How many backups stay in `to`. Only backups that this host has written, read again, and finds unchanged \
                    count and are removed. 0 keeps all.",
        }
        BACKUP_ENCRYPT_TO = "encrypt_to" {
            kind: Kind::Form("a public key of age, `age1...`, or an array of them"),
            absent: Absent::Unset { example: "\"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\"" },
            since: Since::V0_2_0,
            about: "The keys for which backups are encrypted. Only encrypted backups contain the secrets: credentials, keys of \
                    certificates, the ACME account.",
        }
        BACKUP_PLAIN_SECRETS = "plain_secrets" {
            kind: Kind::Boolean,
            absent: Absent::Default("false"),
            since: Since::V0_2_0,
            about: "Whether backups that are not encrypted contain the secrets too.",
        }
        BACKUP_S3_ENDPOINT = "s3_endpoint" {
            kind: ORIGIN,
            absent: Absent::Unset { example: "\"https://s3.example.org\"" },
            since: Since::V0_2_0,
            about: "The S3-compatible server. Without it, Amazon's in `s3_region`.",
        }
        BACKUP_S3_REGION = "s3_region" {
            kind: Kind::Form("the name of a region"),
            absent: Absent::Default("\"us-east-1\""),
            since: Since::V0_2_0,
            about: "The region, which is a part of each signature.",
        }
    }
}

/// All keys, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Key> {
    TABLES.iter().flat_map(|table| table.keys.iter().copied())
}

/// The key with this name, which includes that of its table.
pub fn find(path: &str) -> Option<&'static Key> {
    all().find(|key| key.path() == path)
}

impl Key {
    /// The name with that of its table, such as `health.timeout`.
    pub fn path(&self) -> String {
        dotted(self.table, self.name)
    }

    /// The default, or the example if there is no default, as written in TOML.
    pub fn sample(&self) -> &'static str {
        match self.absent {
            Absent::Default(value) | Absent::Unset { example: value } => value,
        }
    }

    /// The default as `read` reads it.
    pub(super) fn default<T>(&self, read: impl Fn(&Value<'_>) -> Result<T, Problem>) -> T {
        let value = DeValue::parse(self.sample()).ok();
        value
            .and_then(|value| read(&value).ok())
            // The tests read the default of every key, and the types cannot express that each is valid.
            .unwrap_or_else(|| unreachable!("the default of {} is invalid", self.path()))
    }

    /// The range of an integer. No integer is in that of a key of another kind.
    pub(super) fn integers(&self) -> RangeInclusive<i64> {
        match self.kind {
            Kind::Integer { from, to, .. } => from..=to,
            _ => RangeInclusive::new(1, 0),
        }
    }

    /// The range of a duration. No duration is in that of a key of another kind.
    pub(super) fn durations(&self) -> RangeInclusive<Duration> {
        match self.kind {
            Kind::Duration { from, to } => from..=to,
            _ => RangeInclusive::new(seconds(1), Duration::ZERO),
        }
    }

    /// The strings that a key accepts: none if it is of another kind.
    pub(super) fn words(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Word(words) => words,
            _ => &[],
        }
    }
}

/// The kind in words, such as "an integer from 1 to 16". Values are in backticks.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("`true` or `false`"),
            Self::Integer { from, to, unit: "" } => write!(f, "an integer from {from} to {to}"),
            Self::Integer { from, to, unit } => write!(f, "an integer from {from} to {to}, in {unit}"),
            Self::Duration { from, to } => {
                let [from, to] = [from, to].map(|bound| duration::show(*bound));
                write!(f, "a duration from `\"{from}\"` to `\"{to}\"`")
            }
            Self::Word(words) => {
                for (index, word) in words.iter().enumerate() {
                    let separator = match index {
                        0 => "",
                        _ if index + 1 == words.len() => " or ",
                        _ => ", ",
                    };
                    write!(f, "{separator}`\"{word}\"`")?;
                }
                Ok(())
            }
            Self::Form(form) => f.write_str(form),
        }
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
        })
    }
}
