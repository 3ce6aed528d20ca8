//! `linksctl check --online`: asks every server that runtime.toml names, as the runtime will.

mod redis;
mod vault;

use std::fmt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::config::check::Loaded;
use crate::config::credentials::without;
use crate::config::finding::{Finding, Severity};
use crate::config::links::Access;
use crate::config::runtime::{Origin, Provider, Resolved, Service, file_of};
use crate::layout::{ADMIN_TOKEN, Layout};
use crate::{libsql, remote};

/// For each server; they are asked at the same time.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tried {
    pub provider: String,
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub outcome: Outcome,
    pub milliseconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Answers,
    Fails,
    /// Its protocol is not spoken here.
    NotTried,
}

impl Tried {
    pub fn answers(&self) -> bool {
        self.outcome == Outcome::Answers
    }
}

/// For one that answers.
impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            provider,
            file,
            line,
            column,
            milliseconds,
            ..
        } = self;
        write!(
            f,
            "{file}:{line}:{column}: `{provider}` answers, after {milliseconds} ms"
        )
    }
}

/// What is wrong with one provider, its name left out: "refuses the token".
#[derive(Clone, Debug, PartialEq, Eq)]
struct Complaint {
    severity: Severity,
    message: String,
    help: Option<String>,
}

impl Complaint {
    fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            help: None,
        }
    }

    fn warning(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(message)
        }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// What becomes of the admin token where a provider of variables has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AdminToken {
    /// Nobody is asked for it.
    NotNeeded,
    /// Another one counts then.
    Elsewhere,
    Nowhere,
}

impl AdminToken {
    fn of(loaded: &Loaded) -> Self {
        if loaded.config.shorten.access == Access::Open {
            Self::NotNeeded
        } else if loaded.credentials.get(ADMIN_TOKEN).is_some() {
            Self::Elsewhere
        } else {
            Self::Nowhere
        }
    }
}

/// Asks all of them, and adds what is wrong to `findings`.
pub fn try_all(loaded: &Loaded, layout: &Layout, findings: &mut Vec<Finding>) -> Vec<Tried> {
    try_within(PATIENCE, loaded, layout, findings)
}

fn try_within(limit: Duration, loaded: &Loaded, layout: &Layout, findings: &mut Vec<Finding>) -> Vec<Tried> {
    let providers = loaded.providers();
    let admin_token = AdminToken::of(loaded);
    let begun = Instant::now();
    let (tell, told) = mpsc::channel();
    for (index, provider) in providers.iter().cloned().enumerate() {
        let tell = tell.clone();
        // Left alone where it takes too long: it ends with the process.
        std::thread::spawn(move || {
            let complaints = match not_seen(&provider.service) {
                Some(variable) => vec![is_not_seen(variable)],
                None => ask(&provider.service, admin_token, limit),
            };
            // Nobody may wait for it any more.
            let _ = tell.send((index, complaints, begun.elapsed()));
        });
    }
    drop(tell);
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut answers = vec![None; providers.len()];
    // What is late by its own clock is to say so itself.
    let end = begun + limit + limit / 10;
    while let waiting @ 1.. = answers.iter().filter(|answer| answer.is_none()).count() {
        progress.set_message(format!("waiting for {waiting} of {} servers", providers.len()));
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok((index, complaints, after)) => answers[index] = Some((complaints, after)),
            Err(_) => break,
        }
    }
    progress.finish_and_clear();
    let file = layout.runtime_toml().display().to_string();
    let mut all = vec![];
    for (provider, answer) in providers.iter().zip(answers) {
        let late = || {
            (
                vec![Complaint::error(format!(
                    "does not answer: {}",
                    remote::too_late(limit)
                ))],
                limit,
            )
        };
        let (complaints, after) = answer.unwrap_or_else(late);
        let wrong = complaints.iter().any(|complaint| complaint.severity == Severity::Error);
        all.push(Tried {
            provider: provider.name.clone(),
            file: file.clone(),
            line: provider.place.0,
            column: provider.place.1,
            outcome: match &provider.service {
                Service::Cloud(_) | Service::Other { .. } => Outcome::NotTried,
                service if not_seen(service).is_some() => Outcome::NotTried,
                _ if wrong => Outcome::Fails,
                _ => Outcome::Answers,
            },
            milliseconds: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
        });
        let finding = |complaint| finding(provider, &file, complaint, loaded);
        findings.extend(complaints.into_iter().map(finding));
    }
    all
}

fn finding(provider: &Provider, file: &str, complaint: Complaint, loaded: &Loaded) -> Finding {
    // It need not be a credential.
    let own = token(&provider.service).map_or("", |token| &token.value);
    let redact = |text: &str| without(&loaded.credentials.redact(text), own);
    Finding {
        severity: complaint.severity,
        help: complaint.help.as_deref().map(redact),
        ..Finding::error(file, format!("`{}` {}", provider.name, redact(&complaint.message)))
    }
    .at(provider.place)
}

fn token(service: &Service) -> Option<&Resolved> {
    match service {
        Service::LibSql { token, .. } | Service::Vault { token, .. } => Some(token),
        Service::Redis { .. } | Service::Cloud(_) | Service::Other { .. } => None,
    }
}

/// The variable that holds the token for the instances, and is not set here.
fn not_seen(service: &Service) -> Option<&str> {
    match token(service) {
        Some(Resolved {
            value,
            origin: Origin::Variable(name),
        }) if value.is_empty() => Some(name),
        _ => None,
    }
}

fn is_not_seen(variable: &str) -> Complaint {
    Complaint::warning(format!(
        "is not tried: its token is {variable} of the instances' environment, which this command does not see"
    ))
    .help(format!("set {variable} for this command too"))
}

fn ask(service: &Service, admin_token: AdminToken, limit: Duration) -> Vec<Complaint> {
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
            vec![Complaint::warning(format!(
                "is not tried: `check --online` does not speak with {kind}"
            ))]
        }
    }
}

fn database(error: &libsql::Error, token: &Resolved) -> Complaint {
    let complaint = Complaint::error(error.to_string());
    match error {
        libsql::Error::Silent(_) => complaint.help("see that `url` is right, and that the server runs"),
        libsql::Error::Refused => complaint.help(renew(token)),
        libsql::Error::Foreign => complaint.help("see that `url` is right, and that the database is there"),
        libsql::Error::Status(_) | libsql::Error::Sql(_) => complaint.help("see what the server's own log says"),
    }
}

fn renew(token: &Resolved) -> String {
    match &token.origin {
        Origin::Credential(name) => format!("put a valid one into {}, mode 0600", file_of(name)),
        Origin::Variable(name) => format!("set {name} to a valid one, here and with `systemctl edit links@`"),
        Origin::Written => format!(
            "put one into {}, mode 0600, and write token = \"credential:NAME\"",
            file_of("NAME")
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::config::check::check;
    use crate::config::testing::Files;
    use crate::libsql::tests::{TOKEN, serve};
    use crate::testing::Server;

    fn loaded(runtime: &str) -> Loaded {
        let files = Files::default()
            .with("/etc/links/links.toml", "", 0o644)
            .with("/etc/links/runtime.toml", runtime, 0o644)
            .with("/etc/links/credentials/admin_token", "dGhpcyBpcyBhIHRva2Vu", 0o600)
            .with("/etc/links/credentials/right", TOKEN, 0o600)
            .with("/etc/links/credentials/wrong", "a-wrong-token", 0o600);
        check(&Layout::new("/"), &files).loaded.unwrap()
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
        let said = tried[0].to_string();
        assert!(
            said.starts_with("/etc/links/runtime.toml:2:1: `sqlite_database.default` answers, after "),
            "{said}"
        );
    }

    #[test]
    fn a_refused_token_says_which_file_to_change() {
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
    fn a_server_that_repeats_the_token_is_not_repeated() {
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

    /// Neither answers: one does not listen, the other accepts and is silent. Both are asked at the same time.
    #[test]
    fn silence_is_given_up_in_time() {
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
    fn a_token_that_only_the_instances_have_is_said() {
        let (tried, findings) = tried(&libsql("http://127.0.0.1:1", "env:NOBODY_SETS_THIS"), LONG);
        assert_eq!(tried[0].outcome, Outcome::NotTried);
        assert_eq!(
            findings,
            [
                "/etc/links/runtime.toml:2:1: warning: `sqlite_database.default` is not tried: its token is \
              NOBODY_SETS_THIS of the instances' environment, which this command does not see; set \
              NOBODY_SETS_THIS for this command too"
            ]
        );
    }

    #[test]
    fn what_is_not_tried_is_said() {
        let (tried, findings) = tried(
            "[key_value_store.default]\ntype = \"aws_dynamo\"\nregion = \"r\"\ntable = \"t\"",
            LONG,
        );
        assert_eq!(tried[0].outcome, Outcome::NotTried);
        assert_eq!(
            findings,
            [
                "/etc/links/runtime.toml:1:1: warning: `key_value_store.default` is not tried: `check --online` does not \
              speak with aws_dynamo"
            ]
        );
    }

    #[test]
    fn a_local_configuration_asks_nobody() {
        let (tried, findings) = tried(include_str!("../../../runtime.toml"), LONG);
        assert!(tried.is_empty() && findings.is_empty());
    }
}
