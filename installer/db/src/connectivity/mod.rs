//! `linksctl check --online`: asks every server that runtime.toml names, as the runtime will.

mod diagnostic;
mod redis;
mod vault;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::{libsql, remote};
use diagnostic::{AdminToken, Diagnostic, renew};
use links_base::layout::Layout;
use links_config::check::Loaded;
use links_config::connectivity::{Connectivity, Outcome, Tried};
use links_config::credentials::without;
use links_config::finding::{Finding, Severity};
use links_config::runtime::{Origin, Provider, Resolved, Service};

/// The time limit of each server. All are asked at the same time.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks every server that runtime.toml names.
pub fn ask_all(loaded: &Loaded, layout: &Layout) -> Connectivity {
    let mut findings = vec![];
    let tried = try_within(TIMEOUT, loaded, layout, &mut findings);
    Connectivity { tried, findings }
}

fn try_within(limit: Duration, loaded: &Loaded, layout: &Layout, findings: &mut Vec<Finding>) -> Vec<Tried> {
    let providers = loaded.providers();
    let admin_token = AdminToken::of(loaded);
    let begun = Instant::now();
    let (sender, receiver) = mpsc::channel();
    for (index, provider) in providers.iter().cloned().enumerate() {
        let sender = sender.clone();
        // A thread that takes too long is abandoned, and ends with the process.
        std::thread::spawn(move || {
            let diagnostics = match unset_variable(&provider.service) {
                Some(variable) => vec![variable_is_unset(variable)],
                None => ask(&provider.service, admin_token, limit),
            };
            // The receiver is gone if this is too late.
            let _ = sender.send((index, diagnostics, begun.elapsed()));
        });
    }
    drop(sender);
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut answers = vec![None; providers.len()];
    // A little more than `limit`, so that a thread can report its own timeout.
    let end = begun + limit + limit / 10;
    while let waiting @ 1.. = answers.iter().filter(|answer| answer.is_none()).count() {
        progress.set_message(format!("waiting for {waiting} of {} servers", providers.len()));
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((index, diagnostics, after)) => answers[index] = Some((diagnostics, after)),
            Err(_) => break,
        }
    }
    progress.finish_and_clear();
    let file = layout.runtime_toml().display().to_string();
    let mut all = vec![];
    for (provider, answer) in providers.iter().zip(answers) {
        let late = || {
            (
                vec![Diagnostic::error(format!(
                    "does not answer: {}",
                    remote::too_late(limit)
                ))],
                limit,
            )
        };
        let (diagnostics, after) = answer.unwrap_or_else(late);
        let wrong = diagnostics
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error);
        all.push(Tried {
            provider: provider.name.clone(),
            file: file.clone(),
            line: provider.place.0,
            column: provider.place.1,
            outcome: match &provider.service {
                Service::Cloud(_) | Service::Other { .. } => Outcome::NotTried,
                service if unset_variable(service).is_some() => Outcome::NotTried,
                _ if wrong => Outcome::Fails,
                _ => Outcome::Answers,
            },
            milliseconds: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
        });
        let finding = |diagnostic| finding(provider, &file, diagnostic, loaded);
        findings.extend(diagnostics.into_iter().map(finding));
    }
    all
}

fn finding(provider: &Provider, file: &str, diagnostic: Diagnostic, loaded: &Loaded) -> Finding {
    // The token may be a variable or in runtime.toml itself, and so not among the credentials.
    let token = token(&provider.service).map_or("", |token| &token.value);
    let redact = |text: &str| without(&loaded.credentials.redact(text), token);
    Finding {
        severity: diagnostic.severity,
        help: diagnostic.help.as_deref().map(redact),
        ..Finding::error(file, format!("`{}` {}", provider.name, redact(&diagnostic.message)))
    }
    .at(provider.place)
}

fn token(service: &Service) -> Option<&Resolved> {
    match service {
        Service::LibSql { token, .. } | Service::Vault { token, .. } => Some(token),
        Service::Redis { .. } | Service::Cloud(_) | Service::Other { .. } => None,
    }
}

/// The environment variable that holds the token for the instances, if this command does not have it.
fn unset_variable(service: &Service) -> Option<&str> {
    match token(service) {
        Some(Resolved {
            value,
            origin: Origin::Variable(name),
        }) if value.is_empty() => Some(name),
        _ => None,
    }
}

fn variable_is_unset(variable: &str) -> Diagnostic {
    Diagnostic::warning(format!(
        "is not tried: its token is {variable} in the instances' environment, which this command cannot see"
    ))
    .help(format!("set {variable} for this command too"))
}

fn ask(service: &Service, admin_token: AdminToken, limit: Duration) -> Vec<Diagnostic> {
    match service {
        Service::LibSql { url, token } => {
            let outcome = libsql::Client::new(&url.value, &token.value, limit).rows("SELECT 1", &[]);
            outcome.err().map(|error| database(&error, token)).into_iter().collect()
        }
        Service::Redis { url } => redis::ask(url, limit).into_iter().collect(),
        Service::Vault {
            url,
            token,
            mount,
            prefix,
        } => vault::ask(url, token, mount, prefix.as_deref(), admin_token, limit),
        Service::Cloud(kind) | Service::Other { kind, .. } => {
            vec![Diagnostic::warning(format!(
                "is not tried: `check --online` does not support {kind}"
            ))]
        }
    }
}

fn database(error: &libsql::Error, token: &Resolved) -> Diagnostic {
    let diagnostic = Diagnostic::error(error.to_string());
    match error {
        libsql::Error::Silent(_) => diagnostic.help("check that `url` is right and that the server runs"),
        libsql::Error::Refused => diagnostic.help(renew(token)),
        libsql::Error::Foreign => diagnostic.help("check that `url` is right and that the database exists"),
        libsql::Error::Status(_) | libsql::Error::Sql(_) => diagnostic.help("look at the server's log"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::libsql::tests::{TOKEN, serve};
    use links_base::testing::Server;
    use links_config::check::check;
    use links_config::files::ConfigFiles;
    use links_config::testing::Files;

    fn loaded(runtime: &str) -> Loaded {
        let files = Files::default()
            .with("/etc/links/links.toml", "", 0o644)
            .with("/etc/links/runtime.toml", runtime, 0o644)
            .with("/etc/links/credentials/admin_token", "dGhpcyBpcyBhIHRva2Vu", 0o600)
            .with("/etc/links/credentials/right", TOKEN, 0o600)
            .with("/etc/links/credentials/wrong", "a-wrong-token", 0o600);
        check(&ConfigFiles::new(&Layout::new("/")), &files).loaded.unwrap()
    }

    fn tried(runtime: &str, limit: Duration) -> (Vec<Tried>, Vec<String>) {
        let mut findings = vec![];
        let tried = try_within(limit, &loaded(runtime), &Layout::new("/"), &mut findings);
        (tried, findings.iter().map(ToString::to_string).collect())
    }

    fn libsql(url: &str, token: &str) -> String {
        format!("# a\n[sqlite_database.default]\ntype = \"libsql\"\nurl = \"{url}\"\ntoken = \"{token}\"\n")
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_database_that_answers_is_named_with_its_place() {
        let server = serve(&Arc::new(Mutex::new(rusqlite::Connection::open_in_memory().unwrap())));
        let (tried, findings) = tried(&libsql(&server.url(""), "credential:right"), LONG);
        assert_eq!(findings, [""; 0]);
        assert_eq!(tried.len(), 1);
        assert!(tried[0].answers());
        let text = tried[0].to_string();
        assert!(
            text.starts_with("/etc/links/runtime.toml:2:1: `sqlite_database.default` answers, after "),
            "{text}"
        );
    }

    #[test]
    fn the_help_for_a_refused_token_names_the_file_to_change() {
        let server = serve(&Arc::new(Mutex::new(rusqlite::Connection::open_in_memory().unwrap())));
        for (token, help) in [
            (
                "credential:wrong",
                "put a valid one into /etc/links/credentials/wrong, mode 0600",
            ),
            (
                "",
                "put one into /etc/links/credentials/NAME, mode 0600, and write token = \"credential:NAME\"",
            ),
        ] {
            let (tried, findings) = tried(&libsql(&server.url(""), token), LONG);
            assert_eq!(tried[0].outcome, Outcome::Fails);
            assert_eq!(
                findings,
                [format!(
                    "/etc/links/runtime.toml:2:1: `sqlite_database.default` refuses the token; {help}"
                )]
            );
        }
    }

    #[test]
    fn a_token_that_a_server_repeats_is_redacted() {
        let server = Server::start(|request| {
            let token = request.header("authorization").unwrap_or_default();
            (
                200,
                format!("{{\"results\":[{{\"error\":{{\"message\":\"bad {token}\"}}}}]}}"),
            )
        });
        let (_, findings) = tried(&libsql(&server.url(""), "credential:right"), LONG);
        assert!(findings[0].contains("bad Bearer [secret]"), "{findings:?}");
        assert!(!findings[0].contains(TOKEN));
    }

    /// One server does not listen, the other accepts and never answers. Both are asked at the same time.
    #[test]
    fn silent_servers_are_abandoned_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = listener.local_addr().unwrap();
        let runtime = libsql(&format!("http://{silent}"), "")
            + &format!("[key_value_store.default]\ntype = \"redis\"\nurl = \"redis://{silent}\"\n")
            + "[key_value_store.gone]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:1\"\n";
        let begun = Instant::now();
        let (tried, findings) = tried(&runtime, Duration::from_millis(500));
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(tried.iter().all(|tried| tried.outcome == Outcome::Fails));
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(findings[0].contains(":2:1: `sqlite_database.default` does not answer: no answer within 500ms"));
        assert!(findings[1].contains(":6:1: `key_value_store.default` does not answer: no answer within 500ms"));
        assert!(
            findings[2].contains(":9:1: `key_value_store.gone` does not answer: "),
            "{findings:?}"
        );
        assert!(findings[2].contains("refused"), "{findings:?}");
    }

    #[test]
    fn a_token_that_only_the_instances_have_is_reported() {
        let (tried, findings) = tried(&libsql("http://127.0.0.1:1", "env:NOBODY_SETS_THIS"), LONG);
        assert_eq!(tried[0].outcome, Outcome::NotTried);
        assert_eq!(
            findings,
            [
                "/etc/links/runtime.toml:2:1: warning: `sqlite_database.default` is not tried: its token is \
              NOBODY_SETS_THIS in the instances' environment, which this command cannot see; set \
              NOBODY_SETS_THIS for this command too"
            ]
        );
    }

    #[test]
    fn an_unsupported_server_is_reported_as_not_tried() {
        let (tried, findings) = tried(
            "[key_value_store.default]\ntype = \"aws_dynamo\"\nregion = \"r\"\ntable = \"t\"",
            LONG,
        );
        assert_eq!(tried[0].outcome, Outcome::NotTried);
        assert_eq!(
            findings,
            [
                "/etc/links/runtime.toml:1:1: warning: `key_value_store.default` is not tried: `check --online` does not \
              support aws_dynamo"
            ]
        );
    }

    #[test]
    fn a_local_configuration_asks_nobody() {
        let (tried, findings) = tried(include_str!("../../../../runtime.toml"), LONG);
        assert!(tried.is_empty() && findings.is_empty());
    }
}
