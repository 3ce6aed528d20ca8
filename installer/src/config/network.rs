//! Which network the instances need, by the configuration.

use std::net::IpAddr;

use url::Url;

use super::runtime::{Provider, Service};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// This machine's own: nginx is in front, and every provider is here.
    #[default]
    Loopback,
    /// A provider is on another machine.
    Open,
}

impl Network {
    pub fn of(providers: &[Provider]) -> Self {
        match providers.iter().any(|provider| is_elsewhere(&provider.service)) {
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

/// Whether a URL's host is another machine. One without a host (a socket's) is not, and one that is no URL leads nowhere.
fn leads_elsewhere(url: &str) -> bool {
    let url = Url::parse(url).ok();
    let Some(host) = url.as_ref().and_then(Url::host_str).filter(|host| !host.is_empty()) else {
        return false;
    };
    // Of a scheme that the URL standard does not know (redis), the host is any text.
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
    use crate::config::credentials::Credentials;
    use crate::config::runtime::RuntimeToml;

    fn of(runtime: &str, secret: &str) -> Network {
        let mut credentials = Credentials::default();
        credentials.insert("s", secret);
        Network::of(
            &RuntimeToml::parse(runtime, "runtime.toml")
                .unwrap()
                .providers(&credentials),
        )
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
    fn the_shipped_file_and_local_servers_need_no_network() {
        assert_eq!(of(include_str!("../../../runtime.toml"), ""), Network::Loopback);
        assert_eq!(of("", ""), Network::Loopback);
        let local = "[key_value_store.default]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:6379\"";
        assert_eq!(of(local, ""), Network::Loopback);
    }

    #[test]
    fn any_provider_elsewhere_needs_one() {
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
            assert_eq!(of(text, ""), Network::Open, "{text}");
        }
    }

    #[test]
    fn a_url_in_a_credential_counts_by_what_it_says() {
        let text = "[key_value_store.default]\ntype = \"redis\"\nurl = \"credential:s\"";
        assert_eq!(of(text, "redis://u:p@127.0.0.1"), Network::Loopback);
        assert_eq!(of(text, "redis://u:p@cache.example"), Network::Open);
    }
}
