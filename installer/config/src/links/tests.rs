#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::time::Duration;

use super::keys::{self, Absent, Since};
use super::{Access, Config, Enabled, Limits, Listen, Protocol, read};
use crate::finding::{Position, Severity};
use crate::runtime::Reference;

const SHIPPED: &str = include_str!("../../../../packaging/links.toml");
/// The file that version 0.1.0 installed. It shows each key with its default, commented out.
const OF_0_1_0: &str = include_str!("released-0.1.0.toml");

/// The text with every commented-out key enabled. Prose has a blank after its `#`, keys have none.
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.starts_with(|first: char| first.is_ascii_lowercase()) => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// The findings in a `links.toml` with this text.
fn found(text: &str) -> Vec<String> {
    let (config, findings) = read(text, "links.toml");
    let has_errors = findings.iter().any(|finding| finding.severity == Severity::Error);
    assert_eq!(config.is_none(), has_errors, "{text}");
    findings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_file_means_the_defaults() {
    for text in [SHIPPED, OF_0_1_0, ""] {
        assert_eq!(Config::parse(text, "links.toml").unwrap(), Config::default());
    }
}

/// Upgrades keep the file of 0.1.0, and downgrades give the settings back to it.
#[test]
fn the_keys_of_version_0_1_0_keep_their_names_and_defaults() {
    let text = uncommented(OF_0_1_0);
    let mut expected = Config {
        public_url: Some("https://s.example.org".to_owned()),
        ..Config::default()
    };
    expected.shorten.allowed_origin = Some("https://app.example.org".to_owned());
    expected.nginx.cache_ttl = Some(Duration::from_secs(5));
    expected.clicks.countries = Some("/var/lib/GeoIP/GeoLite2-Country.mmdb".into());
    expected.telemetry.endpoint = Some("http://127.0.0.1:4318".to_owned());
    let (line, _) = text
        .lines()
        .zip(1..)
        .find(|(line, _)| line.starts_with("headers = "))
        .map(|(line, number)| (number, line))
        .unwrap();
    expected.telemetry.headers = Some(Reference {
        credential: "otlp_headers".to_owned(),
        position: Position {
            file: "links.toml".to_owned(),
            line,
            column: 11,
        },
    });
    assert_eq!(Config::parse(&text, "links.toml").unwrap(), expected);

    let shown: toml::Table = toml::from_str(&text).unwrap();
    let mut paths = vec![];
    for (name, value) in &shown {
        match value.as_table() {
            Some(table) => paths.extend(table.keys().map(|key| format!("{name}.{key}"))),
            None => paths.push(name.clone()),
        }
    }
    paths.sort();
    let mut declared: Vec<_> = keys::all()
        .filter(|key| key.since == Since::V0_1_0)
        .map(keys::Key::path)
        .collect();
    declared.sort();
    assert_eq!(paths, declared);
}

/// The `valid keys` that an unknown key in this table is answered with.
fn valid_keys(table: &str) -> Vec<String> {
    let header = if table.is_empty() {
        String::new()
    } else {
        format!("[{table}]\n")
    };
    let (_, findings) = read(&format!("{header}zzzzzzzz = 1"), "links.toml");
    let help = findings
        .iter()
        .find(|finding| finding.message.contains("`zzzzzzzz`"))
        .and_then(|finding| finding.help.clone())
        .unwrap_or_default();
    let mut names: Vec<_> = help.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn the_parser_accepts_exactly_the_declared_keys() {
    for table in keys::TABLES {
        let inner = keys::TABLES.iter().filter_map(|inner| {
            let path = match table.name {
                "" => inner.name,
                name => inner.name.strip_prefix(name)?.strip_prefix('.')?,
            };
            (!path.is_empty() && !path.contains('.')).then_some(path)
        });
        let mut declared: Vec<_> = table.keys.iter().map(|key| key.name).chain(inner).collect();
        declared.sort_unstable();
        assert_eq!(valid_keys(table.name), declared, "in [{}]", table.name);
    }
    for key in keys::all() {
        // Backups cannot be made regularly without a place for them.
        let needed = match key.path().as_str() {
            "backup.every" => "backup.to = \"/b\"\n",
            _ => "",
        };
        let text = format!("{needed}{} = {}", key.path(), key.sample());
        let (config, findings) = read(&text, "links.toml");
        assert!(config.is_some(), "{text}: {findings:?}");
        let of_default = matches!(key.absent, Absent::Default(_)).then(Config::default);
        assert!(of_default.is_none_or(|default| config == Some(default)), "{text}");
    }
}

#[test]
fn the_parser_keeps_to_the_declared_ranges_and_words() {
    // Whether this value of the key is refused because of its range.
    let refused = |key: &keys::Key, value: &str| {
        let (_, findings) = read(&format!("{} = {value}", key.path()), "links.toml");
        let range = format!("`{}` must be ", key.path());
        findings.iter().any(|finding| finding.message.starts_with(&range))
    };
    let milli = Duration::from_millis(1);
    for key in keys::all() {
        let (inside, outside) = match &key.kind {
            keys::Kind::Boolean => (vec!["true".to_owned(), "false".to_owned()], vec!["1".to_owned()]),
            keys::Kind::Integer { from, to, .. } => (
                vec![from.to_string(), to.to_string()],
                vec![(from - 1).to_string(), (to + 1).to_string()],
            ),
            keys::Kind::Duration { from, to } => {
                let quoted = |duration: Duration| format!("\"{}ms\"", duration.as_millis());
                let below = from.checked_sub(milli).map(quoted);
                (
                    vec![quoted(*from), quoted(*to)],
                    below.into_iter().chain([quoted(*to + milli)]).collect(),
                )
            }
            keys::Kind::Word(words) => (
                words.iter().map(|word| format!("{word:?}")).collect(),
                vec!["\"zzzzzzzz\"".to_owned()],
            ),
            keys::Kind::Form(_) => (vec![], vec!["1979-05-27".to_owned()]),
        };
        for value in inside {
            assert!(!refused(key, &value), "{} = {value}", key.path());
        }
        for value in outside {
            assert!(refused(key, &value), "{} = {value}", key.path());
        }
    }
}

#[test]
fn declarations_are_sentences_about_bare_keys() {
    let is_bare = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    for table in keys::TABLES {
        assert!(
            table.name.split('.').all(|name| name.chars().all(is_bare)),
            "{}",
            table.name
        );
        assert_eq!(table.about.is_empty(), table.name.is_empty(), "{}", table.name);
        for key in table.keys {
            let about = key.about;
            assert!(!key.name.is_empty() && key.name.chars().all(is_bare), "{}", key.path());
            assert!(about.ends_with('.') && !about.contains("  "), "{about}");
            let texts = [about.to_owned(), key.kind.to_string()];
            assert!(
                texts.iter().all(|text| text.matches('`').count() % 2 == 0),
                "{}: a backtick is missing",
                key.path()
            );
        }
    }
}

#[test]
fn a_duration_may_combine_units() {
    for text in ["90s", "90 s", "90000ms", "1m30s", "1m 30s", "1min 30sec", "1.5m"] {
        let config = Config::parse(&format!("rollout.min_healthy = \"{text}\""), "links.toml").unwrap();
        assert_eq!(config.rollout.min_healthy, Duration::from_secs(90), "{text}");
    }
}

#[test]
fn every_key_is_read() {
    let text = r#"
        instances = 16
        base_port = 0x2328
        public_url = "HTTPS://S.Example.org:443/"
        shorten = { access = "open", allowed_origin = "http://localhost:5173" }
        health.start_timeout = "10m"
        health.interval = "100ms"
        health.timeout = "10s"
        drain.timeout = "0s"
        rollout.min_healthy = "90s"
        cache = { enabled = true, ttl = "1s", stale = "0s" }
        secrets = { ttl = "1h", stale = "24h" }
        metrics = { listen = "[::1]:9000", otlp_listen = "127.0.0.2:9001" }
        limits = { create = 0, wrong_tokens = 1, unknown_links = 60000, cache_misses = 2 }
        [telemetry]
        endpoint = "HTTPS://Otel.example/x/"
        protocol = "http/protobuf"
        headers = "credential:otlp"
        traces = false
        metrics = false
        logs = true
        sampling = 0.125
        [nginx]
        manage = false
        listen = [8080, "127.0.0.1:8081", "[::]:8080"]
        server_name = ["s.example.org", "*.example.net", "xn--bcher-kva.example"]
        replace_default_site = false
        trusted_proxies = ["10.1.2.3/8", "cloudflare", "2001:db8::1"]
        proxy_protocol = true
        cache_ttl = "1h"
        cache_stale = "0s"
        [backup]
        every = "24h"
        at = "03:30"
        to = "s3://backups/vm-1/"
        keep = 30
        encrypt_to = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
        s3_endpoint = "https://S3.example:443"
        s3_region = "eu-central-1"
    "#;
    let config = Config::parse(text, "links.toml").unwrap();
    assert_eq!((config.instances, config.base_port), (16, 9000));
    assert_eq!(config.public_url.as_deref(), Some("https://s.example.org"));
    assert_eq!(config.shorten.access, Access::Open);
    assert_eq!(config.shorten.allowed_origin.as_deref(), Some("http://localhost:5173"));
    assert_eq!(config.health.start_timeout, Duration::from_secs(600));
    assert_eq!(config.health.interval, Duration::from_millis(100));
    assert_eq!(config.health.timeout, Duration::from_secs(10));
    assert_eq!(config.drain.timeout, Duration::ZERO);
    assert_eq!(config.rollout.min_healthy, Duration::from_secs(90));
    let seconds = |duration: Duration| duration.as_secs();
    assert_eq!(config.cache.enabled, Enabled::Yes);
    assert_eq!((seconds(config.cache.ttl), seconds(config.cache.stale)), (1, 0));
    assert_eq!(
        (seconds(config.secrets.ttl), seconds(config.secrets.stale)),
        (3_600, 86_400)
    );
    assert_eq!(config.metrics.listen, "[::1]:9000".parse().ok());
    assert_eq!(config.metrics.otlp_listen.to_string(), "127.0.0.2:9001");
    let telemetry = &config.telemetry;
    assert_eq!(telemetry.endpoint.as_deref(), Some("https://otel.example/x"));
    assert_eq!(telemetry.protocol, Protocol::Http);
    assert_eq!(
        telemetry
            .headers
            .as_ref()
            .map(|reference| reference.credential.as_str()),
        Some("otlp")
    );
    assert_eq!(
        (telemetry.traces, telemetry.metrics, telemetry.logs),
        (false, false, true)
    );
    assert_eq!(telemetry.sampling.to_string(), "0.125");
    let limits = Limits {
        create: 0,
        wrong_tokens: 1,
        unknown_links: 60_000,
        cache_misses: 2,
    };
    assert_eq!(config.limits, limits);
    assert!(!config.nginx.manage && !config.nginx.replace_default_site && config.nginx.proxy_protocol);
    let trusted: Vec<_> = config.nginx.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(trusted, ["10.0.0.0/8", "cloudflare", "2001:db8::1/128"]);
    assert_eq!(
        (config.nginx.cache_ttl.map(seconds), seconds(config.nginx.cache_stale)),
        (Some(3_600), 0)
    );
    let listen: Vec<_> = config.nginx.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["8080", "127.0.0.1:8081", "[::]:8080"]);
    assert_eq!(config.nginx.listen[0], Listen::Port(8080));
    assert_eq!(
        config.nginx.server_name,
        ["s.example.org", "*.example.net", "xn--bcher-kva.example"]
    );
    let backup = &config.backup;
    assert_eq!(
        (backup.every.map(seconds), seconds(backup.at), backup.keep),
        (Some(86_400), 12_600, 30)
    );
    assert_eq!(
        backup.to.as_ref().map(ToString::to_string).as_deref(),
        Some("s3://backups/vm-1")
    );
    assert_eq!((backup.encrypt_to.len(), backup.plain_secrets), (1, false));
    assert_eq!(backup.s3_endpoint.as_deref(), Some("https://s3.example"));
    assert_eq!(backup.s3_region, "eu-central-1");
}

#[test]
fn backups_need_a_place_and_public_keys() {
    const KEY: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    for (text, errors) in [
        ("to = \"/b\"", 0),
        ("to = \"/b\"\nevery = \"1h\"\nat = \"23:59\"", 0),
        ("to = \"/b\"\nplain_secrets = true", 0),
        (&format!("encrypt_to = [\"{KEY}\", \"{KEY}\"]"), 0),
        ("every = \"24h\"", 1),
        // A place that is wrong is reported once.
        ("every = \"24h\"\nto = \"b\"", 1),
        ("to = \"/b\"\nevery = \"59m\"", 1),
        ("at = \"24:00\"", 1),
        ("at = \"3:30\"", 1),
        ("keep = 0", 0),
        ("keep = 1001", 1),
        ("encrypt_to = \"AGE-SECRET-KEY-1HUSH\"", 1),
        (&format!("encrypt_to = \"{KEY}\"\nplain_secrets = true"), 1),
        ("s3_region = \"eu/central\"", 1),
        ("s3_endpoint = \"https://x.example/path\"", 1),
    ] {
        let found = found(&format!("[backup]\n{text}"));
        assert_eq!(found.len(), errors, "{text}: {found:?}");
        assert!(found.iter().all(|finding| !finding.contains("HUSH")), "{found:?}");
    }
}

#[test]
fn nginx_caches_redirects_for_at_least_a_second_in_a_managed_site_or_on_request() {
    for (text, port) in [
        ("", Some(7000)),
        ("base_port = 9000", Some(9000)),
        ("nginx.manage = false", None),
        ("nginx = { manage = false, cache_ttl = \"5m\" }", Some(7000)),
        ("nginx = { manage = false, cache_ttl = \"0s\" }", None),
        ("nginx.cache_ttl = \"0s\"", None),
        ("nginx.cache_ttl = \"999ms\"", None),
        ("nginx.cache_ttl = \"1s\"", Some(7000)),
        // Without a cache, base_port is free for the site.
        ("nginx = { cache_ttl = \"0s\", listen = 7000 }", None),
    ] {
        assert_eq!(Config::parse(text, "links.toml").unwrap().edge_port(), port, "{text}");
    }
}

#[test]
fn redirects_from_a_local_database_are_cached_for_longer() {
    for (text, of_a_file, of_a_server) in [("", 300, 5), ("nginx.cache_ttl = \"7s\"", 7, 7)] {
        let config = Config::parse(text, "links.toml").unwrap();
        assert_eq!(config.edge_ttl(false).as_secs(), of_a_file, "{text}");
        assert_eq!(config.edge_ttl(true).as_secs(), of_a_server, "{text}");
    }
}

#[test]
fn international_hosts_are_converted_to_ascii() {
    let config = Config::parse("public_url = \"https://bücher.example:8443\"", "links.toml").unwrap();
    assert_eq!(config.public_url.as_deref(), Some("https://xn--bcher-kva.example:8443"));
}

#[test]
fn each_mistake_gets_one_finding_with_its_position() {
    for (text, message) in [
        // Unknown keys, in every table.
        (
            "instnaces = 2",
            "1:1: unknown key `instnaces`; did you mean `instances`?",
        ),
        (
            "\n\n  Base_Port = 1",
            "3:3: unknown key `Base_Port`; did you mean `base_port`?",
        ),
        (
            "port = 1",
            "1:1: unknown key `port`; valid keys: `instances`, `base_port`, `public_url`, `shorten`, `health`, `drain`, `rollout`, `cache`, `secrets`, `telemetry`, `metrics`, `clicks`, `limits`, `nginx`, `tls`, `backup`",
        ),
        (
            "[shorten]\nacess = \"token\"",
            "2:1: unknown key `acess` in [shorten]; did you mean `access`?",
        ),
        (
            "[health]\nstart = \"1s\"",
            "2:1: unknown key `start` in [health]; did you mean `start_timeout`?",
        ),
        (
            "[drain]\ntime_out = \"1s\"",
            "2:1: unknown key `time_out` in [drain]; did you mean `timeout`?",
        ),
        (
            "[rollout]\nmin-healthy = \"1s\"",
            "2:1: unknown key `min-healthy` in [rollout]; did you mean `min_healthy`?",
        ),
        (
            "nginx.listne = 80",
            "1:7: unknown key `listne` in [nginx]; did you mean `listen`?",
        ),
        (
            "[ngnix]\nlisten = 80",
            "1:2: unknown key `ngnix`; did you mean `nginx`?",
        ),
        (
            "[telemetry]\nendpoints = \"http://x\"",
            "2:1: unknown key `endpoints` in [telemetry]; did you mean `endpoint`?",
        ),
        (
            "[metrics]\nlistem = \"off\"",
            "2:1: unknown key `listem` in [metrics]; did you mean `listen`?",
        ),
        // Telemetry and metrics.
        (
            "telemetry.endpoint = \"collector:4318\"",
            "1:22: `telemetry.endpoint` cannot have the scheme `collector`; write it as http://HOST or https://HOST",
        ),
        (
            "telemetry.endpoint = \"http://key@collector:4318\"",
            "1:22: `telemetry.endpoint` must not name a user; put credentials for the collector into `headers`",
        ),
        (
            "telemetry.endpoint = \"http://collector:4318/?key=1\"",
            "1:22: `telemetry.endpoint` must end after the path",
        ),
        (
            "[telemetry]\nendpoint = \"http://collector:4317/x\"\nprotocol = \"grpc\"",
            "2:12: `telemetry.endpoint` must end after the host and the port: gRPC has paths of its own",
        ),
        (
            "telemetry.protocol = \"http/json\"",
            "1:22: `telemetry.protocol` must be one of `http/protobuf`, `grpc`, found \"http/json\"",
        ),
        (
            "telemetry.headers = \"authorization=Bearer x\"",
            "1:21: `telemetry.headers` must be a credential, not the secret itself: everybody on this host can read this file; put the secret into /etc/links/credentials/NAME, mode 0600, and write \"credential:NAME\"",
        ),
        (
            "telemetry.headers = \"credential:../x\"",
            "1:21: `telemetry.headers` names no credential: \"../x\" is not a valid credential name; use letters, digits, `_`, `-` and `.`",
        ),
        (
            "telemetry.sampling = 1.5",
            "1:22: `telemetry.sampling` must be from 0.0 to 1.0",
        ),
        (
            "telemetry.sampling = nan",
            "1:22: `telemetry.sampling` must be from 0.0 to 1.0",
        ),
        (
            "telemetry.sampling = \"1\"",
            "1:22: `telemetry.sampling` must be a number, found a string",
        ),
        (
            "clicks.countries = \"GeoLite2-Country.mmdb\"",
            "1:20: `clicks.countries` must be an absolute path; write \"/var/lib/GeoIP/GeoLite2-Country.mmdb\"",
        ),
        (
            "metrics.listen = \"9464\"",
            "1:18: `metrics.listen` must be ADDRESS:PORT, found \"9464\"; write \"127.0.0.1:9464\" or \"off\"",
        ),
        (
            "metrics.listen = \"10.0.0.1:9464\"",
            "1:18: warning: `metrics.listen` is not a loopback address: anyone who can reach it can read the metrics, and links.service blocks connections from other hosts; protect it by a password in nginx, or run `systemctl edit links` and set IPAddressAllow=",
        ),
        (
            "metrics.otlp_listen = \"0.0.0.0:9465\"",
            "1:23: `metrics.otlp_listen` must be a loopback address; write \"127.0.0.1:PORT\"",
        ),
        (
            "metrics.otlp_listen = \"127.0.0.1:7002\"",
            "1:23: `metrics.otlp_listen` 127.0.0.1:7002 takes the port of instance 2; choose another port",
        ),
        (
            "[metrics]\nlisten = \"127.0.0.1:9465\"",
            "1:1: `metrics.listen` and `metrics.otlp_listen` share port 9465; choose another port for one of them",
        ),
        (
            "metrics.listen = \"127.0.0.1:7000\"",
            "1:18: `metrics.listen` 127.0.0.1:7000 takes the port of nginx's cache (base_port itself); choose another port",
        ),
        (
            "nginx.listen = 7000",
            "1:16: `nginx.listen` 7000 takes 127.0.0.1:7000 from nginx's cache (base_port itself); change `base_port` or the nginx port",
        ),
        (
            "nginx.cache_ttl = \"2h\"",
            "1:19: `nginx.cache_ttl` must be from 0s to 1h, found 2h",
        ),
        (
            "nginx.cache_stale = \"25h\"",
            "1:21: `nginx.cache_stale` must be from 0s to 24h, found 25h",
        ),
        // Wrong types.
        (
            "instances = \"2\"",
            "1:13: `instances` must be an integer, found a string",
        ),
        ("instances = 2.0", "1:13: `instances` must be an integer, found a float"),
        (
            "public_url = 1",
            "1:14: `public_url` must be a string, found an integer",
        ),
        ("drain = 30", "1:9: `drain` must be a table, found an integer"),
        (
            "[drain]\ntimeout = 30",
            "2:11: `drain.timeout` must be a duration, found an integer; write a string with a unit, such as \"30s\"",
        ),
        (
            "[nginx]\nmanage = \"true\"",
            "2:10: `nginx.manage` must be a boolean, found a string; write `true` or `false`, without quotes",
        ),
        (
            "[nginx]\nlisten = true",
            "2:10: `nginx.listen` must be a port or ADDRESS:PORT, found a boolean",
        ),
        (
            "[nginx]\nserver_name = [\"a\", 1]",
            "2:21: `nginx.server_name` must be a string, found an integer",
        ),
        ("[[nginx]]\nlisten = 80", "1:1: `nginx` must be a table, found an array"),
        // Ranges.
        ("instances = 0", "1:13: `instances` must be from 1 to 16, found 0"),
        ("instances = 17", "1:13: `instances` must be from 1 to 16, found 17"),
        ("instances = -1", "1:13: `instances` must be from 1 to 16, found -1"),
        (
            "base_port = 1022",
            "1:13: `base_port` must be from 1023 to 65534, found 1022",
        ),
        (
            "base_port = 99999999999999999999",
            "1:13: `base_port` must be from 1023 to 65534, found 99999999999999999999",
        ),
        (
            "base_port = 65534",
            "1:13: `base_port` 65534 leaves no port for instance 2: the last port is 65535; write 65533 or less",
        ),
        (
            "[health]\nstart_timeout = \"999ms\"",
            "2:17: `health.start_timeout` must be from 1s to 10m, found 999ms",
        ),
        (
            "[health]\ninterval = \"2m\"",
            "2:12: `health.interval` must be from 100ms to 1m, found 2m",
        ),
        (
            "[health]\ntimeout = \"5\"",
            "2:11: `health.timeout` must be a duration such as \"30s\" or \"1m30s\", found \"5\"; time unit needed, for example \
             5sec or 5ms",
        ),
        (
            "[drain]\ntimeout = \"24h\"",
            "2:11: `drain.timeout` must be from 0s to 1h, found 24h",
        ),
        (
            "[rollout]\nmin_healthy = \"1d\"",
            "2:15: `rollout.min_healthy` must be from 0s to 10m, found 1d",
        ),
        (
            "[rollout]\nmin_healthy = \"soon\"",
            "2:15: `rollout.min_healthy` must be a duration such as \"30s\" or \"1m30s\", found \"soon\"; expected number at 0",
        ),
        (
            "[rollout]\nmin_healthy = \"5M\"",
            "2:15: `rollout.min_healthy` must be a duration such as \"30s\" or \"1m30s\", found \"5M\"; write numbers of at \
             most 12 digits, with a unit such as ms, s, m or h",
        ),
        (
            "[rollout]\nmin_healthy = \"18446744073709551615s 1000ms\"",
            "2:15: `rollout.min_healthy` must be a duration such as \"30s\" or \"1m30s\", found \"18446744073709551615s \
             1000ms\"; write numbers of at most 12 digits, with a unit such as ms, s, m or h",
        ),
        (
            "[rollout]\nmin_healthy = \"30x\"",
            "2:15: `rollout.min_healthy` must be a duration such as \"30s\" or \"1m30s\", found \"30x\"; unknown time unit \
             \"x\", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)",
        ),
        (
            "[nginx]\nlisten = 0",
            "2:10: `nginx.listen` must be from 1 to 65535, found 0",
        ),
        (
            "[nginx]\nlisten = [80, \"10.0.0.1:0\"]",
            "2:15: `nginx.listen` must name a port from 1 to 65535, found 0; write 80, \"127.0.0.1:8080\" or \"[::]:80\"",
        ),
        ("[nginx]\nlisten = []", "2:10: `nginx.listen` must not be empty"),
        (
            "[nginx]\nlisten = [80, \"0.0.0.0:80\"]",
            "2:10: `nginx.listen` names 0.0.0.0:80 twice",
        ),
        // Words and formats.
        (
            "[shorten]\naccess = \"opne\"",
            "2:10: `shorten.access` must be one of `token`, `open`, found \"opne\"; did you mean `open`?",
        ),
        (
            "[shorten]\naccess = \"Everyone\"",
            "2:10: `shorten.access` must be one of `token`, `open`, found \"Everyone\"",
        ),
        (
            "public_url = \"s.example.org\"",
            "1:14: `public_url` must be a URL: relative URL without a base; write it as https://HOST or http://HOST",
        ),
        (
            "public_url = \"ftp://s.example.org\"",
            "1:14: `public_url` cannot have the scheme `ftp`; write it as https://HOST or http://HOST",
        ),
        (
            "public_url = \"https://s.example.org/l\"",
            "1:14: `public_url` must end after the host and the port, without a path",
        ),
        (
            "public_url = \"https://s.example.org?a\"",
            "1:14: `public_url` must end after the host and the port, without a path",
        ),
        (
            "public_url = \"https://me@s.example.org\"",
            "1:14: `public_url` must not name a user",
        ),
        (
            "public_url = \"https://me:pw@s.example.org\"",
            "1:14: `public_url` must not hold a password",
        ),
        (
            "[shorten]\nallowed_origin = \"*\"",
            "2:18: `shorten.allowed_origin` must be a URL: relative URL without a base; write it as https://HOST or http://HOST",
        ),
        (
            "[nginx]\nserver_name = \"a; return 200\"",
            "2:15: `nginx.server_name` must be a host name, found \"a; return 200\"; write several as an array, and an international name in its xn-- form",
        ),
        (
            "[nginx]\nserver_name = \"\"",
            "2:15: `nginx.server_name` must be a host name, found \"\"; write several as an array, and an international name in its xn-- form",
        ),
        (
            "[nginx]\nlisten = \"80 ssl\"",
            "2:10: `nginx.listen` must be a port or ADDRESS:PORT, found \"80 ssl\"; write 80, \"127.0.0.1:8080\" or \"[::]:80\"",
        ),
        (
            "[nginx]\ntrusted_proxies = [\"10.0.0.0/8\", \"cloudfront\"]",
            "2:34: `nginx.trusted_proxies` must be a network, an address or \"cloudflare\", found \"cloudfront\"; write \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.1\"",
        ),
        (
            "nginx.trusted_proxies = \"10.0.0.0/33\"",
            "1:25: `nginx.trusted_proxies` must be a network, an address or \"cloudflare\", found \"10.0.0.0/33\"; write \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.1\"",
        ),
        (
            "nginx.trusted_proxies = \"0.0.0.0/0\"",
            "1:25: warning: `nginx.trusted_proxies` contains every address: anyone who can reach nginx can claim any address, scheme and host; name only the networks of the proxies",
        ),
        (
            "nginx.proxy_protocol = true",
            "1:24: `nginx.proxy_protocol` needs `trusted_proxies`: nginx accepts addresses only from proxies that it trusts; write their networks, such as trusted_proxies = [\"10.0.0.0/8\"]",
        ),
        (
            "[limits]\ncreate = -1",
            "2:10: `limits.create` must be from 0 to 60000, found -1",
        ),
        // nginx listens on an instance's port.
        (
            "nginx.listen = 7002\nbase_port = 7000",
            "1:16: `nginx.listen` 7002 takes 127.0.0.1:7002 from instance 2; change `base_port` or the nginx port",
        ),
        (
            "base_port = 7000\nnginx.listen = \"127.0.0.1:7001\"",
            "2:16: `nginx.listen` 127.0.0.1:7001 takes 127.0.0.1:7001 from instance 1; change `base_port` or the nginx port",
        ),
        // Not an error.
        (
            "[shorten]\naccess = \"open\"",
            "2:10: warning: `shorten.access` is \"open\": anyone who can reach nginx can create links; write \"token\" to ask for the admin token",
        ),
    ] {
        assert_eq!(found(text), [format!("links.toml:{message}")], "{text}");
    }
}

#[test]
fn nginx_may_use_other_ports_and_addresses() {
    for text in [
        "nginx.listen = 6999",
        "nginx.listen = 7003",
        "nginx.listen = \"192.0.2.1:7000\"",
        "nginx.listen = \"[::]:7001\"",
        "nginx.listen = \"192.0.2.1:7001\"",
        "nginx = { proxy_protocol = true, trusted_proxies = \"cloudflare\" }",
        "nginx = { listen = 7001, manage = false }",
    ] {
        assert_eq!(found(text), [""; 0], "{text}");
    }
}

#[test]
fn a_syntax_error_names_its_line() {
    for (text, place) in [
        ("instances = 2\nbase_port =\n", "links.toml:2:12: not TOML: "),
        ("[health\ninterval = \"1s\"", "links.toml:1:8: not TOML: "),
        ("instances = 2\ninstances = 3", "links.toml:2:1: not TOML: "),
        ("é = \"ü\" x", "links.toml:1:"),
    ] {
        let found = found(text);
        assert!(found.len() == 1 && found[0].starts_with(place), "{found:?}");
        assert!(!found[0].contains('\n'), "{found:?}");
    }
}

#[test]
fn columns_count_characters() {
    assert_eq!(
        found("shorten = { access = \"token\", \"ä\" = 1, b = 2 }"),
        [
            "links.toml:1:31: unknown key `ä` in [shorten]; valid keys: `access`, `allowed_origin`",
            "links.toml:1:40: unknown key `b` in [shorten]; valid keys: `access`, `allowed_origin`",
        ]
    );
}

#[test]
fn all_findings_are_reported_in_the_order_of_the_text() {
    let text = "
instances = 99
colour = \"red\"

[nginx]
listen = \"everywhere\"
manage = 1

[health]
interval = \"never\"
";
    let places: Vec<_> = read(text, "links.toml")
        .1
        .iter()
        .map(|finding| (finding.line.unwrap(), finding.column.unwrap()))
        .collect();
    assert_eq!(places, [(2, 13), (3, 1), (6, 10), (7, 10), (10, 12)]);
}

/// An interrupted copy may leave such a file. It is either valid or has errors, and never causes a panic.
#[test]
fn a_file_cut_off_anywhere_is_handled() {
    let text = uncommented(OF_0_1_0);
    for (end, _) in text.char_indices() {
        let (config, findings) = read(&text[..end], "links.toml");
        assert_eq!(
            config.is_none(),
            findings.iter().any(|finding| finding.severity == Severity::Error),
            "{end}"
        );
    }
}
