//! Vault and OpenBao: the token, the mount, and the one secret that the component asks for. As the runtime does it:
//! variable NAME is field `value` of `MOUNT/data/[PREFIX/]NAME` of a KV version 2 engine.

use std::time::Duration;

use serde_json::Value;

use super::{AdminToken, Complaint, renew};
use crate::config::check::fits_a_header;
use crate::config::duration;
use crate::config::runtime::Resolved;
use crate::layout::ADMIN_TOKEN;
use crate::remote::{Answer, Client};

/// A token that ends sooner is worth a word: nobody renews it.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// One engine and what is looked for in it.
struct Place<'a> {
    mount: &'a str,
    /// Of the secret, below the mount.
    name: String,
}

impl<'a> Place<'a> {
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
) -> Vec<Complaint> {
    // Two questions.
    let client = Client::new(limit / 2);
    let place = Place::new(mount, prefix);
    let get = |path: &str| {
        let url = format!("{}/v1/{path}", url.value.trim_end_matches('/'));
        client.get(&url, &[("x-vault-token", token.value.as_str())])
    };
    let answers = get("auth/token/lookup-self").and_then(|own| Ok((own, get(&place.path())?)));
    match answers {
        Ok((own, secret)) => judge(&own, &secret, &place, token, admin_token),
        Err(reason) => vec![
            Complaint::error(format!("does not answer: {reason}"))
                .help("see that `url` is right, and that the server runs"),
        ],
    }
}

/// `own`: what the token may know of itself; `secret`: what it is for.
fn judge(own: &Answer, secret: &Answer, place: &Place<'_>, token: &Resolved, needed: AdminToken) -> Vec<Complaint> {
    let mut complaints = vec![];
    if own.status == 200
        && let Some(left) = ends_in(&own.body)
        && left < SOON
    {
        let left = duration::show(Duration::from_secs(left.as_secs()));
        complaints.push(
            Complaint::warning(format!("has a token that ends in {left}, and nobody renews it"))
                .help("give it a periodic token that something renews, or one that lasts longer"),
        );
    }
    complaints.extend(match secret.status {
        200 => value(&secret.body, place),
        // A token may be forbidden to look at itself.
        403 if own.status != 200 => Some(Complaint::error("refuses the token").help(renew(token))),
        403 => Some(
            Complaint::error(format!("does not let the token read {}", place.path())).help(format!(
                "give it a policy with read for {}; or is the engine mounted elsewhere than at `mount`?",
                place.path()
            )),
        ),
        404 if says(&secret.body, "no handler for route") || says(&secret.body, "unsupported path") => Some(
            Complaint::error(format!("has nothing mounted at {}/", place.mount))
                .help("mend `mount`: the command `vault secrets list` shows what is there"),
        ),
        404 => absent(place, needed),
        503 if says(&secret.body, "sealed") => Some(Complaint::error("is sealed").help("unseal it")),
        400 | 501 if says(&secret.body, "not initialized") => {
            Some(Complaint::error("is not initialized").help("initialize and unseal it"))
        }
        status => Some(Complaint::error(format!(
            "answers with status {status} for {}",
            place.path()
        ))),
    });
    complaints
}

fn absent(place: &Place<'_>, needed: AdminToken) -> Option<Complaint> {
    let message = format!("has no secret {}", place.path());
    let help = format!(
        "write it, for instance with `vault kv put -mount={} {} value=...`, the engine being of KV version 2",
        place.mount, place.name
    );
    match needed {
        AdminToken::NotNeeded => None,
        AdminToken::Elsewhere => Some(
            Complaint::warning(format!(
                "{message}: the admin token of /etc/links/credentials counts then"
            ))
            .help(help),
        ),
        AdminToken::Nowhere => {
            Some(Complaint::error(format!("{message}, and nobody else has the admin token")).help(help))
        }
    }
}

fn value(body: &str, place: &Place<'_>) -> Option<Complaint> {
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let path = place.path();
    match answer["data"]["data"]["value"].as_str() {
        Some("") => Some(Complaint::error(format!("has an empty field `value` in {path}"))),
        Some(token) if !fits_a_header(token) => Some(
            Complaint::error(format!("has a character in {path} that no bearer token may have"))
                .help("use letters, digits and -._~+/="),
        ),
        Some(_) => None,
        None => Some(
            Complaint::error(format!("has no field `value` of text in {path}")).help(format!(
                "`vault kv put -mount={} {} value=...`",
                place.mount, place.name
            )),
        ),
    }
}

/// None: never, or it does not say.
fn ends_in(body: &str) -> Option<Duration> {
    let answer: Value = serde_json::from_str(body).ok()?;
    let seconds = answer["data"]["ttl"].as_u64()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn says(body: &str, text: &str) -> bool {
    body.to_ascii_lowercase().contains(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::config::finding::Severity;
    use crate::testing::Server;

    const FOUND: &str = r#"{"data":{"data":{"value":"dGhpcyBpcyBhIHRva2Vu"},"metadata":{"version":3}}}"#;
    const FOREVER: &str = r#"{"data":{"ttl":0,"policies":["default"]}}"#;
    const NOTHING: &str = r#"{"errors":[]}"#;
    const DENIED: &str = r#"{"errors":["permission denied"]}"#;

    fn token() -> Resolved {
        Resolved {
            value: "HUSH".to_owned(),
            credential: Some("vault_token".to_owned()),
        }
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status,
            body: body.to_owned(),
        }
    }

    fn told(own: (u16, &str), secret: (u16, &str), needed: AdminToken) -> Vec<String> {
        let place = Place::new("secret", Some("links"));
        let complaints = judge(
            &answer(own.0, own.1),
            &answer(secret.0, secret.1),
            &place,
            &token(),
            needed,
        );
        complaints
            .into_iter()
            .map(|complaint| format!("{}; {}", complaint.message, complaint.help.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn each_trouble_has_a_sentence_of_its_own() {
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
                "does not let the token read secret/data/links/admin_token; give it a policy with read for \
                 secret/data/links/admin_token; or is the engine mounted elsewhere than at `mount`?"
                    .to_owned(),
            ),
            (
                (200, FOREVER),
                (404, unmounted),
                "has nothing mounted at secret/; mend `mount`: the command `vault secrets list` shows what is there"
                    .to_owned(),
            ),
            (
                (200, FOREVER),
                (404, NOTHING),
                format!(
                    "has no secret secret/data/links/admin_token, and nobody else has the admin token; write it, for \
                     instance with {put}, the engine being of KV version 2"
                ),
            ),
            (
                (200, FOREVER),
                (200, r#"{"data":{"data":{"token":"x"}}}"#),
                format!("has no field `value` of text in secret/data/links/admin_token; {put}"),
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
            assert_eq!(told(own, secret, AdminToken::Nowhere), [sentence]);
        }
    }

    #[test]
    fn all_is_well_also_for_a_token_that_may_not_look_at_itself() {
        for own in [(200, FOREVER), (403, DENIED)] {
            assert_eq!(told(own, (200, FOUND), AdminToken::Nowhere), [""; 0]);
        }
    }

    #[test]
    fn a_missing_secret_matters_as_much_as_it_is_needed() {
        let place = Place::new("secret", None);
        let severity = |needed| absent(&place, needed).map(|complaint| complaint.severity);
        assert_eq!(severity(AdminToken::Nowhere), Some(Severity::Error));
        assert_eq!(severity(AdminToken::Elsewhere), Some(Severity::Warning));
        assert_eq!(severity(AdminToken::NotNeeded), None);
    }

    #[test]
    fn a_token_that_ends_soon_is_worth_a_word() {
        let own = (200, r#"{"data":{"ttl":7200}}"#);
        let told = told(own, (200, FOUND), AdminToken::Nowhere);
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with("has a token that ends in 2h, and nobody renews it"),
            "{told:?}"
        );
    }

    #[test]
    fn a_server_is_asked_for_what_the_runtime_asks_it_for() {
        let server = Server::start(
            |request| match (request.path.as_str(), request.header("x-vault-token")) {
                ("/v1/auth/token/lookup-self", Some("HUSH")) => (200, FOREVER.to_owned()),
                ("/v1/kv/apps/data/links/admin_token", Some("HUSH")) => (200, FOUND.to_owned()),
                _ => (404, NOTHING.to_owned()),
            },
        );
        let url = Resolved {
            value: server.url("/"),
            credential: None,
        };
        let limit = Duration::from_secs(10);
        let ask = |mount, prefix| ask(&url, &token(), mount, prefix, AdminToken::Nowhere, limit);
        assert_eq!(ask("kv/apps", Some("links")), []);
        let told = &ask("kv/apps", None)[0].message;
        assert!(told.starts_with("has no secret kv/apps/data/admin_token"), "{told}");
    }
}
