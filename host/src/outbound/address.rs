//! The addresses in `allowed_outbound_hosts`.

use anyhow::{Context as _, Result, bail, ensure};
use http::uri::{Authority, Scheme};

/// One entry of `allowed_outbound_hosts`: a single scheme, host and port. Spin's wildcards and ranges are not supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    scheme: Scheme,
    pub host: String,
    pub port: u16,
}

impl Address {
    /// # Errors
    /// Spin would refuse the entry, or it stands for more than one address.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let (scheme, authority) = text
            .split_once("://")
            .with_context(|| format!("{text:?} does not start with http:// or https://"))?;
        let scheme = match scheme {
            "http" => Scheme::HTTP,
            "https" => Scheme::HTTPS,
            _ => bail!("{text:?}: links-host supports only http:// and https://"),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        ensure!(
            !authority.contains(['*', '/', '{', '@']) && !authority.contains(".."),
            "{text:?}: each entry is one host and one port; links-host supports no wildcard, range or path"
        );
        let authority: Authority = authority
            .parse()
            .with_context(|| format!("{text:?} has no host, or no port from 0 to 65535"))?;
        Self::of(&scheme, &authority).with_context(|| format!("{text:?} has no host, or no port from 0 to 65535"))
    }

    /// Returns none if the host is missing or the port is invalid. Spin's `self` is not a host.
    pub fn of(scheme: &Scheme, authority: &Authority) -> Option<Self> {
        let host = authority.host().to_ascii_lowercase();
        // `Authority` accepts an empty port and one that is out of range.
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port.parse().ok()?,
            _ if *scheme == Scheme::HTTPS => 443,
            _ => 80,
        };
        (!host.is_empty() && !matches!(host.as_str(), "self" | "self.alt")).then(|| Self {
            scheme: scheme.clone(),
            host,
            port,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_scheme_a_host_and_a_port() {
        let parse = |text| Address::parse(text).unwrap();
        assert_eq!(parse("http://127.0.0.1"), parse("http://127.0.0.1:80/"));
        assert_eq!(parse("https://Example.com"), parse(" https://example.com:443"));
        assert_eq!(parse("http://[::1]:8080").port, 8080);
        assert_eq!(parse("http://[::1]").port, 80);
        // Nothing listens on port 0; such an entry turns an address off.
        assert_eq!(parse("http://127.0.0.1:0").port, 0);
        for (bad, why) in [
            ("127.0.0.1:80", "does not start"),
            ("", "does not start"),
            ("redis://127.0.0.1:6379", "only"),
            ("*://127.0.0.1:80", "only"),
            ("http://*:80", "no wildcard"),
            ("http://127.0.0.1:*", "no wildcard"),
            ("http://127.0.0.1:1..9", "range"),
            ("http://127.0.0.0/8:80", "path"),
            ("http://127.0.0.1:80/path", "path"),
            ("http://127.0.0.1:", "no port"),
            ("http://127.0.0.1:65536", "no port"),
            ("http://self", "no host"),
            ("http://:80", "no host"),
        ] {
            let error = format!("{:#}", Address::parse(bad).unwrap_err());
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
