//! Variables from HashiCorp Vault or OpenBao. Each variable is a secret of the key-value engine, version 2, with its value in
//! the field `value`. As in Spin, every read queries the server, so a changed secret takes effect immediately.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use url::Url;

use crate::http_client::{self, Client, Version, below};

/// How long the server may take to respond.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of a response, in bytes. Vault limits requests to 32 MiB by default.
const MAX_RESPONSE_BYTES: usize = 32 << 20;

/// A Vault server and the path of the secrets on it.
pub struct Vault {
    url: Url,
    token: HeaderValue,
    /// `MOUNT/data/` or `MOUNT/data/PREFIX/`.
    path: String,
    client: Client,
    /// Whether a missing mount was already logged.
    warned: AtomicBool,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}, {}", self.path)
    }
}

impl std::fmt::Display for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault at {}", self.url.as_str().trim_end_matches('/'))
    }
}

#[derive(Deserialize)]
struct SecretResponse {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    data: Secret,
}

#[derive(Deserialize)]
struct Secret {
    value: String,
}

impl Vault {
    /// # Errors
    /// An argument is invalid. The error does not contain the token.
    pub fn new(url: &str, token: &str, mount: &str, prefix: Option<&str>) -> Result<Self> {
        let url = http_client::server_url(url, &["https", "http"], "put the token into `token`")?;
        ensure!(
            token.trim() == token,
            "token starts or ends with a space or a line break"
        );
        let mut token = HeaderValue::try_from(token)
            .map_err(|_| anyhow!("token contains a character that is not allowed in an HTTP header"))?;
        token.set_sensitive(true);
        let mount = mount.trim_matches('/');
        ensure!(!mount.is_empty(), "mount is empty");
        let mut path = format!("{mount}/data/");
        if let Some(prefix) = prefix {
            path.push_str(prefix.trim_matches('/'));
            path.push('/');
        }
        // Building a request reports an invalid path now rather than at the first read.
        Request::get(below(&url, &format!("v1/{path}x")))
            .body(())
            .context("mount or prefix contains a character that is not allowed in a URL")?;
        Ok(Self {
            client: Client::new(&url, Version::Http1),
            url,
            token,
            path,
            warned: AtomicBool::new(false),
        })
    }

    /// Returns none if Vault has no such secret, so that the next provider is tried.
    ///
    /// # Errors
    /// The request fails or the response holds no value. The error contains Vault's message, but never the token or a value.
    pub async fn get(&self, name: &str) -> Result<Option<String>> {
        let read = tokio::time::timeout(TIMEOUT, self.read(name));
        let read = read
            .await
            .unwrap_or_else(|_| Err(anyhow!("no answer within {TIMEOUT:?}")));
        read.with_context(|| format!("Failed to check Vault for config: {self}"))
    }

    async fn read(&self, name: &str) -> Result<Option<String>> {
        let path = format!("{}{name}", self.path);
        let url = below(&self.url, &format!("v1/{path}"));
        let mut response = self.ask(url.as_str()).await?;
        // A standby node that does not forward requests redirects to the active one.
        if response.status() == StatusCode::TEMPORARY_REDIRECT {
            let active = self.redirect_target(&url.to_string(), response.headers())?;
            response = self.ask(active.as_str()).await?;
        }
        match response.status() {
            StatusCode::OK => {
                let body = http_client::read(response.into_body(), MAX_RESPONSE_BYTES).await?;
                // The parser's message may quote the secret.
                let secret: SecretResponse = serde_json::from_slice(&body)
                    .map_err(|_| anyhow!("the secret {path} has no field \"value\" that is a string"))?;
                self.warned.store(false, Relaxed);
                Ok(Some(secret.data.data.value))
            }
            StatusCode::NOT_FOUND => {
                let body = http_client::read(response.into_body(), MAX_RESPONSE_BYTES).await?;
                // Vault sends no error message for a missing secret, but one for a missing mount.
                if let Some(problem) = errors(&body)
                    && !self.warned.swap(true, Relaxed)
                {
                    tracing::warn!("{self}: {path}: {problem}");
                }
                Ok(None)
            }
            _ => bail!(http_client::refusal(response, errors).await),
        }
    }

    async fn ask(&self, url: &str) -> Result<Response<Incoming>> {
        let request = Request::get(url)
            .header("x-vault-token", self.token.clone())
            .header("x-vault-request", "true")
            .body(Full::default())?;
        self.client.send(request).await
    }

    /// The target of a redirect. Its scheme must be the configured one, so that the token is not sent unencrypted.
    fn redirect_target(&self, requested: &str, headers: &HeaderMap) -> Result<Url> {
        let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.context("HTTP 307 without a Location")?;
        let active = Url::parse(requested)?
            .join(location)
            .context("HTTP 307 with an invalid Location")?;
        ensure!(
            active.scheme() == self.url.scheme(),
            "HTTP 307 from {} to {}",
            self.url.scheme(),
            active.scheme()
        );
        Ok(active)
    }
}

/// The error messages in an unsuccessful response, or none if there are none.
fn errors(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    let errors = serde_json::from_slice::<Errors>(body).ok()?.errors;
    (!errors.is_empty()).then(|| errors.join("; "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;
    use crate::testing::{Response, Server};

    /// The result of `get("admin_token")` for this response, and the head of the request.
    async fn get(prefix: Option<&str>, status: u16, body: &str) -> (Result<Option<String>>, String) {
        let server = Server::with(vec![Response::new(status, body)]).await;
        let vault = Vault::new(&server.url(), "t0ken", "/kv/v2/", prefix).unwrap();
        let got = vault.get("admin_token").await;
        (got, server.requests()[0].head.clone())
    }

    const SECRET: &str = r#"{"request_id":"x","data":{"data":{"value":"v4lue"},"metadata":{"version":3}}}"#;

    #[tokio::test]
    async fn the_field_value_is_the_value() {
        let (value, asked) = get(None, 200, SECRET).await;
        assert_eq!(value.unwrap().as_deref(), Some("v4lue"));
        assert!(
            asked.starts_with("GET /v1/kv/v2/data/admin_token HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(asked.contains("x-vault-token: t0ken\r\n"), "{asked}");
        let (_, asked) = get(Some("links/prod"), 200, SECRET).await;
        assert!(
            asked.starts_with("GET /v1/kv/v2/data/links/prod/admin_token "),
            "{asked}"
        );
    }

    /// The result of `get("admin_token")` from a standby node that redirects to `location`.
    async fn redirected(location: impl Fn(&str) -> String) -> Result<Option<String>> {
        let active = Server::start(|request| {
            assert!(request.head.contains("x-vault-token: t0ken"));
            Some(Response::new(200, SECRET))
        })
        .await;
        let location = location(&active.url());
        let standby = Server::start(move |request| {
            assert!(request.head.contains("x-vault-token: t0ken"));
            Some(Response::new(307, "").header("location", &location))
        })
        .await;
        let vault = Vault::new(&standby.url(), "t0ken", "kv", None).unwrap();
        vault.get("admin_token").await
    }

    #[tokio::test]
    async fn a_standby_nodes_redirect_is_followed() {
        let value = redirected(|active| format!("{active}/v1/kv/data/admin_token")).await;
        assert_eq!(value.unwrap().as_deref(), Some("v4lue"));
        let refused = redirected(|active| active.replace("http:", "https:")).await;
        let error = format!("{:#}", refused.unwrap_err());
        assert!(error.contains("HTTP 307 from http to https"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_secret_is_left_to_the_next_provider() {
        assert_eq!(get(None, 404, r#"{"errors":[]}"#).await.0.unwrap(), None);
        // The latest version was deleted.
        let deleted = r#"{"data":{"data":null,"metadata":{"deletion_time":"2026-01-01T00:00:00Z"}}}"#;
        assert_eq!(get(None, 404, deleted).await.0.unwrap(), None);
    }

    #[tokio::test]
    async fn errors_contain_vaults_message() {
        for (status, body, expected) in [
            (
                403,
                r#"{"errors":["permission denied"]}"#,
                "HTTP 403: permission denied",
            ),
            (503, r#"{"errors":["Vault is sealed"]}"#, "HTTP 503: Vault is sealed"),
            (502, "<html>", "HTTP 502: <html>"),
            (500, "", "HTTP 500 Internal Server Error"),
        ] {
            let error = format!("{:#}", get(None, status, body).await.0.unwrap_err());
            assert!(
                error.starts_with("Failed to check Vault for config: Vault at http://127.0.0.1:"),
                "{error}"
            );
            assert!(error.ends_with(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_value_that_is_not_a_string_is_not_quoted() {
        for body in [
            r#"{"data":{"data":{"value":{"pin":7531}}}}"#,
            r#"{"data":{"data":{"pin":"7531"}}}"#,
        ] {
            let error = format!("{:#}", get(None, 200, body).await.0.unwrap_err());
            assert!(
                error.contains("kv/v2/data/admin_token") && !error.contains("7531"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let vault = Vault::new("https://vault.example:8200/", "t0ken", "secret", None).unwrap();
        assert_eq!(
            format!("{vault:?}"),
            "Vault at https://vault.example:8200, secret/data/"
        );
        for (url, token, mount) in [
            ("https://t0ken@vault", "t0ken", "secret"),
            ("https://vault", "t0ken\n", "secret"),
            ("https://vault", "t0\0ken", "secret"),
            ("https://vault", "t0ken", "/"),
            ("https://vault", "t0ken", "a b"),
        ] {
            let error = format!("{:#}", Vault::new(url, token, mount, None).unwrap_err());
            assert!(!error.contains("t0"), "{error}");
        }
    }
}
