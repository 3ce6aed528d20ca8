//! A libSQL server: its address and its token, which no message contains.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use url::Url;

use crate::bindings::sqlite::Error;
use crate::http_client::{self, Client, Version, below};

/// How long the server may stay silent. A statement may wait there for the lock of another one, by default for 5 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A libSQL server.
pub struct Server {
    pub(super) url: Url,
    token: String,
    authorization: HeaderValue,
    client: Client,
    pub(super) response_timeout: Duration,
}

impl Server {
    /// # Errors
    /// The URL or the token is invalid. The error quotes neither.
    pub fn new(url: &str, token: String) -> Result<Arc<Self>> {
        // The `libsql` crate uses TLS for this scheme.
        let url = match url.strip_prefix("libsql://") {
            Some(rest) => format!("https://{rest}"),
            None => url.to_owned(),
        };
        let schemes = ["libsql", "https", "http"];
        let url = http_client::server_url(&url, &schemes, "put the token into `token`")?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
            anyhow!("token contains a character that is not allowed in an HTTP header; does it end with a line break?")
        })?;
        authorization.set_sensitive(true);
        ensure!(token.trim() == token, "token starts or ends with a space");
        Ok(Arc::new(Self {
            client: Client::new(&url, Version::Http1),
            url,
            token,
            authorization,
            response_timeout: RESPONSE_TIMEOUT,
        }))
    }

    /// # Errors
    /// The server cannot be reached. The error contains neither the URL nor the token.
    pub async fn post(&self, base_url: &Url, path: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
        let request = Request::post(below(base_url, path))
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        self.client.send(request).await
    }

    pub fn timed_out(&self) -> Error {
        self.error(format_args!("no answer within {:?}", self.response_timeout))
    }

    pub fn error(&self, problem: impl std::fmt::Display) -> Error {
        let mut problem = problem.to_string();
        // A server may quote the token.
        if !self.token.is_empty() {
            problem = problem.replace(&self.token, "***");
        }
        Error::Io(format!("{self}: {problem}"))
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "libSQL at {}", self.url.as_str().trim_end_matches('/'))
    }
}

/// Whether the token may be sent to `url`, which the server has requested. The host must be the configured one or one of its
/// subdomains, and the scheme must be the configured one.
pub fn may_have_token(url: &Url, configured: &Url) -> bool {
    let (Some(host), Some(requested)) = (configured.domain(), url.domain()) else {
        return url.scheme() == configured.scheme() && url.host() == configured.host();
    };
    let is_below = requested
        .strip_suffix(host)
        .is_some_and(|below| below.is_empty() || below.ends_with('.'));
    url.scheme() == configured.scheme() && is_below
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn urls_of_the_libsql_crate_are_supported() {
        let shown = |url| Server::new(url, String::new()).unwrap().to_string();
        assert_eq!(
            shown("libsql://name-org.turso.io"),
            "libSQL at https://name-org.turso.io"
        );
        assert_eq!(shown("http://127.0.0.1:8080/"), "libSQL at http://127.0.0.1:8080");
        assert!(Server::new("ws://db", String::new()).is_err());
    }

    #[test]
    fn the_token_stays_with_the_configured_server() {
        let may =
            |url: &str, configured: &str| may_have_token(&Url::parse(url).unwrap(), &Url::parse(configured).unwrap());
        let configured = "https://db.example.org";
        assert!(may("https://db.example.org:8443/x", configured));
        assert!(may("https://eu-1.db.example.org", configured));
        for elsewhere in [
            "https://evil.example",
            "https://example.org",
            "https://evil-db.example.org",
            "http://db.example.org",
            "https://10.0.0.1",
        ] {
            assert!(!may(elsewhere, configured), "{elsewhere}");
        }
        assert!(may("http://127.0.0.1:8080", "http://127.0.0.1"));
        assert!(!may("http://1.127.0.0.1.example", "http://127.0.0.1"));
    }
}
