//! The network access that the configuration requires.

use std::fmt;
use std::net::IpAddr;

use url::Url;

use super::runtime::{Provider, Service};
use super::telemetry::Exports;

/// The network access of each systemd unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Access of links@.service, which connects to the providers and sends traces and logs.
    pub instances: Reach,
    /// Access of links.service, whose agent forwards metrics.
    pub agent: Reach,
}

/// Which machines a unit can connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Only this machine, because every server that the configuration names is here.
    #[default]
    Loopback,
    /// Other machines too, because the configuration names one.
    Open,
}

impl Network {
    pub fn of(providers: &[Provider], exports: &Exports) -> Self {
        let services = providers.iter().map(|provider| is_elsewhere(&provider.service));
        let targets = exports.direct().map(|target| leads_elsewhere(&target.url));
        Self {
            instances: Reach::to_others(services.chain(targets).any(|elsewhere| elsewhere)),
            agent: Reach::to_others(exports.forward().is_some_and(|target| leads_elsewhere(&target.url))),
        }
    }

    /// Everything that one of the two allows.
    pub fn widened(self, other: Self) -> Self {
        Self {
            instances: self.instances.max(other.instances),
            agent: self.agent.max(other.agent),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.instances, self.agent) {
            (Reach::Loopback, Reach::Loopback) => "the instances and the agent reach this machine only",
            (Reach::Open, Reach::Loopback) => "the instances reach other machines, which the configuration names",
            (Reach::Loopback, Reach::Open) => "the agent reach another machine, which the configuration names",
            (Reach::Open, Reach::Open) => {
                "the instances and the agent reach other machines, which the configuration names"
            }
        })
    }
}

impl Reach {
    fn to_others(elsewhere: bool) -> Self {
        match elsewhere {
            true => Self::Open,
            false => Self::Loopback,
        }
    }
}

fn is_elsewhere(service: &Service) -> bool {
    match service {
        Service::Cloud(_) => true,
        Service::LibSql { url, .. }
        | Service::Redis { url }
        | Service::Vault { url, .. }
        | Service::Other { url, .. } => leads_elsewhere(&url.value),
    }
}

/// Whether the host of a URL is another machine. False for a URL without a host, as that of a socket, and for an invalid URL.
fn leads_elsewhere(url: &str) -> bool {
    let url = Url::parse(url).ok();
    let Some(host) = url.as_ref().and_then(Url::host_str).filter(|host| !host.is_empty()) else {
        return false;
    };
    // The host is an unparsed string if the URL standard does not know the scheme, as with redis.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => !address.to_canonical().is_loopback(),
        // RFC 6761, section 6.3
        Err(_) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name != "localhost" && !name.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::credentials::Credentials;
    use crate::links::Config;
    use crate::runtime::RuntimeToml;

    fn network(links: &str, runtime: &str, secret: &str) -> Network {
        let mut credentials = Credentials::default();
        credentials.insert("s", secret);
        let runtime = RuntimeToml::parse(runtime, "runtime.toml").unwrap();
        let config = Config::parse(links, "links.toml").unwrap();
        Network::of(
            &runtime.providers(&credentials),
            &Exports::new(&config, &credentials).unwrap(),
        )
    }

    fn of(runtime: &str, secret: &str) -> Reach {
        let network = network("", runtime, secret);
        assert_eq!(network.agent, Reach::Loopback, "the agent uses no provider");
        network.instances
    }

    #[test]
    fn a_host_is_this_machine_or_another() {
        for url in [
            "http://127.0.0.1:8080",
            "http://127.9.9.9",
            "http://[::1]:8080",
            "http://[::ffff:127.0.0.1]",
            "http://localhost",
            "http://LOCALHOST.:80",
            "http://db.localhost",
            "redis://127.0.0.1:6379",
            "redis://:password@localhost/1",
            "redis://[::1]",
            "redis+unix:///run/redis.sock",
            "unix:///run/redis.sock",
            "redis:///",
            "no URL at all",
            "",
        ] {
            assert!(!leads_elsewhere(url), "{url}");
        }
        for url in [
            "https://links-you.turso.io",
            "http://192.0.2.1",
            "http://[2001:db8::1]",
            "http://0.0.0.0",
            "redis://192.0.2.1:6379",
            "rediss://user:password@cache.example:6380",
            "redis://[2001:db8::1]",
            "http://localhost.example.org",
            "http://notlocalhost",
        ] {
            assert!(leads_elsewhere(url), "{url}");
        }
    }

    #[test]
    fn the_shipped_file_and_local_servers_need_only_loopback() {
        assert_eq!(of(include_str!("../../../runtime.toml"), ""), Reach::Loopback);
        assert_eq!(of("", ""), Reach::Loopback);
        let local = "[key_value_store.default]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:6379\"";
        assert_eq!(of(local, ""), Reach::Loopback);
    }

    #[test]
    fn any_remote_provider_needs_the_network() {
        for text in [
            "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"\"",
            "[sqlite_database.other]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"\"",
            "[key_value_store.default]\ntype = \"redis\"\nurl = \"rediss://x.example\"",
            "[key_value_store.default]\ntype = \"aws_dynamo\"\nregion = \"r\"\ntable = \"t\"",
            "[key_value_store.default]\ntype = \"azure_cosmos\"\naccount = \"a\"\ndatabase = \"b\"\ncontainer = \"c\"",
            "[[variables_provider]]\ntype = \"vault\"\nurl = \"https://v.example\"\ntoken = \"\"\nmount = \"m\"",
            "[[variables_provider]]\ntype = \"azure_key_vault\"\nvault_url = \"https://x.example\"",
            "[llm_compute]\ntype = \"remote_http\"\nurl = \"https://l.example\"\nauth_token = \"\"",
        ] {
            assert_eq!(of(text, ""), Reach::Open, "{text}");
        }
    }

    #[test]
    fn a_url_in_a_credential_is_resolved() {
        let text = "[key_value_store.default]\ntype = \"redis\"\nurl = \"credential:s\"";
        assert_eq!(of(text, "redis://u:p@127.0.0.1"), Reach::Loopback);
        assert_eq!(of(text, "redis://u:p@cache.example"), Reach::Open);
    }

    #[test]
    fn a_remote_collector_is_reachable_only_for_those_who_send_to_it() {
        let reach = |switches: &str, endpoint: &str| {
            let links =
                format!("metrics.otlp_listen = \"127.0.0.1:9465\"\n[telemetry]\nendpoint = \"{endpoint}\"\n{switches}");
            let network = network(&links, "", "");
            (network.instances, network.agent)
        };
        let (open, loopback) = (Reach::Open, Reach::Loopback);
        assert_eq!(reach("", "http://127.0.0.1:4318"), (loopback, loopback));
        assert_eq!(reach("", "https://otel.example"), (open, open));
        assert_eq!(reach("traces = false", "https://otel.example"), (loopback, open));
        assert_eq!(reach("metrics = false", "https://otel.example"), (open, loopback));
        assert_eq!(
            reach("metrics = false\ntraces = false\nlogs = true", "https://otel.example"),
            (open, loopback)
        );
        let direct = "metrics.listen = \"off\"\n[telemetry]\ntraces = false\nendpoint = \"https://otel.example\"";
        assert_eq!(network(direct, "", "").instances, Reach::Open);
    }
}
