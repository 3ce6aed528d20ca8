//! Vault and OpenBao: checks the token, the mount, and the one secret that the component reads. As in the runtime, the
//! variable NAME is the field `value` of `MOUNT/data/[PREFIX/]NAME` in an engine of KV version 2.

use std::time::Duration;

use serde_json::Value;

use super::diagnostic::{AdminToken, Diagnostic, renew};
use crate::remote::{Answer, Client};
use links_base::duration;
use links_base::layout::ADMIN_TOKEN;
use links_config::check::fits_a_header;
use links_config::runtime::Resolved;

/// A token that expires sooner than this gets a warning, because nobody renews it.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where the secret with the admin token is.
struct SecretPath<'a> {
    mount: &'a str,
    /// The secret's path below the mount.
    name: String,
}

impl<'a> SecretPath<'a> {
    fn new(mount: &'a str, prefix: Option<&str>) -> Self {
        Self {
            mount,
            name: match prefix {
                Some(prefix) => format!("{prefix}/{ADMIN_TOKEN}"),
                None => ADMIN_TOKEN.to_owned(),
            },
        }
    }

    fn path(&self) -> String {
        format!("{}/data/{}", self.mount, self.name)
    }
}

pub fn ask(
    url: &Resolved,
    token: &Resolved,
    mount: &str,
    prefix: Option<&str>,
    admin_token: AdminToken,
    limit: Duration,
) -> Vec<Diagnostic> {
    // Two requests share the limit.
    let client = Client::new(limit / 2);
    let place = SecretPath::new(mount, prefix);
    let get = |path: &str| {
        let url = format!("{}/v1/{path}", url.value.trim_end_matches('/'));
        client.get(&url, &[("x-vault-token", token.value.as_str())])
    };
    let answers = get("auth/token/lookup-self").and_then(|own| Ok((own, get(&place.path())?)));
    match answers {
        Ok((own, secret)) => judge(&own, &secret, &place, token, admin_token),
        Err(reason) => vec![
            Diagnostic::error(format!("does not answer: {reason}"))
                .help("check that `url` is right and that the server runs"),
        ],
    }
}

/// `own` answers the token's lookup of itself, `secret` the request for the secret.
fn judge(
    own: &Answer,
    secret: &Answer,
    place: &SecretPath<'_>,
    token: &Resolved,
    needed: AdminToken,
) -> Vec<Diagnostic> {
    let mut diagnostics = vec![];
    if own.status == 200
        && let Some(left) = expires_in(&own.body)
        && left < SOON
    {
        let left = duration::show(Duration::from_secs(left.as_secs()));
        diagnostics.push(
            Diagnostic::warning(format!("has a token that expires in {left}, and nobody renews it"))
                .help("use a periodic token that something renews, or one that lasts longer"),
        );
    }
    diagnostics.extend(match secret.status {
        200 => value(&secret.body, place),
        // A valid token may be forbidden to look itself up.
        403 if own.status != 200 => Some(Diagnostic::error("refuses the token").help(renew(token))),
        403 => Some(
            Diagnostic::error(format!("does not let the token read {}", place.path())).help(format!(
                "give the token a policy that allows it to read {}, or correct `mount` if the engine is elsewhere",
                place.path()
            )),
        ),
        404 if mentions(&secret.body, "no handler for route") || mentions(&secret.body, "unsupported path") => Some(
            Diagnostic::error(format!("has nothing mounted at {}/", place.mount))
                .help("correct `mount`: `vault secrets list` shows what is mounted"),
        ),
        404 => absent(place, needed),
        503 if mentions(&secret.body, "sealed") => Some(Diagnostic::error("is sealed").help("unseal it")),
        400 | 501 if mentions(&secret.body, "not initialized") => {
            Some(Diagnostic::error("is not initialized").help("initialize and unseal it"))
        }
        status => Some(Diagnostic::error(format!(
            "answers with status {status} for {}",
            place.path()
        ))),
    });
    diagnostics
}

fn absent(place: &SecretPath<'_>, needed: AdminToken) -> Option<Diagnostic> {
    let message = format!("has no secret {}", place.path());
    let help = format!(
        "write it, for instance with `vault kv put -mount={} {} value=...`; the engine must be KV version 2",
        place.mount, place.name
    );
    match needed {
        AdminToken::NotNeeded => None,
        AdminToken::Elsewhere => Some(
            Diagnostic::warning(format!(
                "{message}: the admin token of /etc/links/credentials is used instead"
            ))
            .help(help),
        ),
        AdminToken::Nowhere => {
            Some(Diagnostic::error(format!("{message}, and there is no other admin token")).help(help))
        }
    }
}

fn value(body: &str, place: &SecretPath<'_>) -> Option<Diagnostic> {
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let path = place.path();
    match answer["data"]["data"]["value"].as_str() {
        Some("") => Some(Diagnostic::error(format!("has an empty field `value` in {path}"))),
        Some(token) if !fits_a_header(token) => Some(
            Diagnostic::error(format!("has a character in {path} that no bearer token may have"))
                .help("use letters, digits and -._~+/="),
        ),
        Some(_) => None,
        None => Some(
            Diagnostic::error(format!("has no text field `value` in {path}")).help(format!(
                "`vault kv put -mount={} {} value=...`",
                place.mount, place.name
            )),
        ),
    }
}

/// How long the token is still valid, or none if it never expires or the answer does not contain it.
fn expires_in(body: &str) -> Option<Duration> {
    let answer: Value = serde_json::from_str(body).ok()?;
    let seconds = answer["data"]["ttl"].as_u64()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn mentions(body: &str, text: &str) -> bool {
    body.to_ascii_lowercase().contains(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::testing::Server;
    use links_config::finding::Severity;
    use links_config::runtime::Origin;

    const FOUND: &str = r#"{"data":{"data":{"value":"dGhpcyBpcyBhIHRva2Vu"},"metadata":{"version":3}}}"#;
    const FOREVER: &str = r#"{"data":{"ttl":0,"policies":["default"]}}"#;
    const NOTHING: &str = r#"{"errors":[]}"#;
    const DENIED: &str = r#"{"errors":["permission denied"]}"#;

    fn token() -> Resolved {
        Resolved {
            value: "HUSH".to_owned(),
            origin: Origin::Credential("vault_token".to_owned()),
        }
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            body: body.to_owned(),
        }
    }

    fn messages(own: (u16, &str), secret: (u16, &str), needed: AdminToken) -> Vec<String> {
        let place = SecretPath::new("secret", Some("links"));
        let diagnostics = judge(
            &answer(own.0, own.1),
            &answer(secret.0, secret.1),
            &place,
            &token(),
            needed,
        );
        diagnostics
            .into_iter()
            .map(|diagnostic| format!("{}; {}", diagnostic.message, diagnostic.help.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn each_problem_has_its_own_message() {
        let sealed = r#"{"errors":["Vault is sealed"]}"#;
        let unmounted = r#"{"errors":["no handler for route \"kv/data/links/admin_token\". route entry not found."]}"#;
        let put = "`vault kv put -mount=secret links/admin_token value=...`";
        for (own, secret, sentence) in [
            ((503, sealed), (503, sealed), "is sealed; unseal it".to_owned()),
            (
                (403, DENIED),
                (403, DENIED),
                "refuses the token; put a valid one into /etc/links/credentials/vault_token, mode 0600".to_owned(),
            ),
            (
                (200, FOREVER),
                (403, DENIED),
                "does not let the token read secret/data/links/admin_token; give the token a policy that allows it to \
                 read secret/data/links/admin_token, or correct `mount` if the engine is elsewhere"
                    .to_owned(),
            ),
            (
                (200, FOREVER),
                (404, unmounted),
                "has nothing mounted at secret/; correct `mount`: `vault secrets list` shows what is mounted"
                    .to_owned(),
            ),
            (
                (200, FOREVER),
                (404, NOTHING),
                format!(
                    "has no secret secret/data/links/admin_token, and there is no other admin token; write it, for \
                     instance with {put}; the engine must be KV version 2"
                ),
            ),
            (
                (200, FOREVER),
                (200, r#"{"data":{"data":{"token":"x"}}}"#),
                format!("has no text field `value` in secret/data/links/admin_token; {put}"),
            ),
            (
                (200, FOREVER),
                (200, r#"{"data":{"data":{"value":"a token\n"}}}"#),
                "has a character in secret/data/links/admin_token that no bearer token may have; use letters, digits \
                 and -._~+/="
                    .to_owned(),
            ),
            (
                (200, FOREVER),
                (500, NOTHING),
                "answers with status 500 for secret/data/links/admin_token; ".to_owned(),
            ),
        ] {
            assert_eq!(messages(own, secret, AdminToken::Nowhere), [sentence]);
        }
    }

    #[test]
    fn a_token_that_may_not_look_itself_up_is_accepted() {
        for own in [(200, FOREVER), (403, DENIED)] {
            assert_eq!(messages(own, (200, FOUND), AdminToken::Nowhere), [""; 0]);
        }
    }

    #[test]
    fn the_severity_of_a_missing_secret_depends_on_the_need_for_it() {
        let place = SecretPath::new("secret", None);
        let severity = |needed| absent(&place, needed).map(|diagnostic| diagnostic.severity);
        assert_eq!(severity(AdminToken::Nowhere), Some(Severity::Error));
        assert_eq!(severity(AdminToken::Elsewhere), Some(Severity::Warning));
        assert_eq!(severity(AdminToken::NotNeeded), None);
    }

    #[test]
    fn a_token_that_expires_soon_gets_a_warning() {
        let own = (200, r#"{"data":{"ttl":7200}}"#);
        let messages = messages(own, (200, FOUND), AdminToken::Nowhere);
        assert_eq!(messages.len(), 1);
        assert!(
            messages[0].starts_with("has a token that expires in 2h, and nobody renews it"),
            "{messages:?}"
        );
    }

    #[test]
    fn the_check_reads_the_same_secret_as_the_runtime() {
        let server = Server::start(
            |request| match (request.path.as_str(), request.header("x-vault-token")) {
                ("/v1/auth/token/lookup-self", Some("HUSH")) => (200, FOREVER.to_owned()),
                ("/v1/kv/apps/data/links/admin_token", Some("HUSH")) => (200, FOUND.to_owned()),
                _ => (404, NOTHING.to_owned()),
            },
        );
        let url = Resolved {
            value: server.url("/"),
            origin: Origin::Written,
        };
        let limit = Duration::from_secs(10);
        let ask = |mount, prefix| ask(&url, &token(), mount, prefix, AdminToken::Nowhere, limit);
        assert_eq!(ask("kv/apps", Some("links")), []);
        let message = &ask("kv/apps", None)[0].message;
        assert!(
            message.starts_with("has no secret kv/apps/data/admin_token"),
            "{message}"
        );
    }
}
