//! The progress of `linksctl tls`: lines for people, events for scripts.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use links_base::log;
use links_config::acme::{Action, Event, Failure, NameResult, NameStatus, Outcome, Planned, Step, Why};
use links_rollout::Style;

/// The last line of a command with `--json`.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "https")]
pub struct Https {
    pub ok: bool,
    pub names: Vec<Name>,
}

/// A name in [`Https`].
#[derive(Debug, Serialize)]
pub struct Name {
    pub name: String,
    /// Whether nginx serves the name with a certificate.
    pub https: bool,
    /// Why the attempt in this run failed or, if the name waits after a failure, why that attempt failed.
    pub error: Option<Failure>,
}

/// How much is reported to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Each step, and the names for which there is nothing to do.
    Full,
    /// Only changes and failures.
    Changes,
}

#[derive(Debug)]
pub struct Reporter {
    style: Style,
    detail: Detail,
    spinner: Option<ProgressBar>,
}

impl Reporter {
    pub fn new(style: Style, detail: Detail) -> Self {
        Self {
            style,
            detail,
            spinner: None,
        }
    }

    pub fn style(&self) -> Style {
        self.style
    }

    /// Shows on a terminal that something is still going on, until [`Self::rest`].
    pub fn work(&mut self, what: String) {
        if self.style == Style::Text && std::io::stderr().is_terminal() {
            let spinner = ProgressBar::new_spinner().with_message(what);
            spinner.enable_steady_tick(Duration::from_millis(100));
            self.spinner = Some(spinner);
        }
    }

    pub fn rest(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// Reports an event of links-acme, which has printed it as `line`.
    pub fn event(&mut self, event: &Event, line: &str) {
        match self.style {
            Style::Json => self.line(line),
            _ => {
                if let Some(text) = text(event, self.detail) {
                    self.line(&text);
                }
            }
        }
    }

    /// Reports a line to people.
    pub fn note(&mut self, text: &str) {
        if self.style != Style::Json {
            self.line(text);
        }
    }

    /// Reports the result of the command.
    pub fn finish(&mut self, https: &Https) {
        self.rest();
        if self.style == Style::Json {
            match serde_json::to_string(https) {
                Ok(line) => self.line(&line),
                Err(error) => log::error!("linksctl: writing the result: {error}"),
            }
            return;
        }
        for name in &https.names {
            if let Some(error) = &name.error {
                log::error!("linksctl: {}: {error}", name.name);
            }
        }
        let served = https.names.iter().filter(|name| name.https);
        let urls: Vec<_> = served.map(|name| format!("https://{}", name.name)).collect();
        if !urls.is_empty() && self.detail == Detail::Full {
            self.line(&format!("nginx serves {}", urls.join(", ")));
        }
    }

    fn line(&self, line: &str) {
        // A closed terminal is no reason to stop.
        let print = || drop(writeln!(std::io::stdout(), "{line}"));
        match &self.spinner {
            Some(spinner) => spinner.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.rest();
    }
}

/// An event as a line for people. `None` if it is not worth one. Failures are reported at the end.
fn text(event: &Event, detail: Detail) -> Option<String> {
    match event {
        Event::Account(account) if account.created => Some(match &account.terms_of_service {
            Some(terms) => format!(
                "new account at {}, whose terms of service are {terms}",
                account.directory
            ),
            None => format!("new account at {}", account.directory),
        }),
        Event::Step { name, step } if detail == Detail::Full => Some(format!("{name}: {}", of_step(*step))),
        Event::Plan(planned) => Some(of_plan(planned)),
        Event::Result(result) => of_result(result, detail),
        _ => None,
    }
}

fn of_step(step: Step) -> &'static str {
    match step {
        Step::Order => "the authority has accepted the order",
        Step::Challenge => "nginx has the answer to the authority's challenge",
        Step::Validation => "the authority has seen the answer",
        Step::Finalization => "the authority has issued the certificate",
        Step::Stored => "the certificate is stored",
    }
}

fn of_plan(planned: &Planned) -> String {
    let name = &planned.name;
    let at = planned.at.map_or_else(String::new, date);
    match planned.action {
        Action::Issue => format!("{name}: get a certificate"),
        Action::Renew => format!("{name}: renew the certificate, {}", of_reason(planned.why)),
        Action::Keep => format!("{name}: keep the certificate until {at}, {}", of_reason(planned.why)),
        Action::Pause => format!("{name}: wait until {at} after a failure"),
    }
}

fn of_result(result: &NameResult, detail: Detail) -> Option<String> {
    let NameResult { name, status, .. } = result;
    match result.outcome {
        Outcome::Issued | Outcome::Renewed => Some(format!("{name}: new certificate{}", of_certificate(status))),
        Outcome::Kept if detail == Detail::Full => Some(format!(
            "{name}: the certificate{} stays; renewal from {}",
            of_certificate(status),
            date(status.next.at)
        )),
        Outcome::Paused => Some(format!("{name}: the next attempt is after {}", date(status.next.at))),
        Outcome::Kept | Outcome::Failed => None,
    }
}

fn of_certificate(status: &NameStatus) -> String {
    let certificate = status.certificate.as_ref();
    certificate.map_or_else(String::new, |certificate| {
        format!(
            " of {}, valid until {}",
            certificate.issuer,
            date(certificate.not_after)
        )
    })
}

/// The reason for the time of a renewal, to follow a comma.
pub fn of_reason(why: Why) -> &'static str {
    match why {
        Why::Missing => "because there is none",
        Why::Expired => "because it has expired",
        Why::Ari => "as the authority suggests",
        Why::Lifetime => "at the last third of its lifetime",
        Why::Settings => "because the settings ask for another authority or profile",
        Why::Retry => "after a failure",
        Why::Forced => "because of --force",
    }
}

/// A time in seconds since 1970, in RFC 3339.
pub fn date(unix: u64) -> String {
    let seconds = i64::try_from(unix).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    // A time after the year 9999 has no such form.
    time.and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn shown(line: &str, detail: Detail) -> Option<String> {
        text(&serde_json::from_str(line).unwrap(), detail)
    }

    fn result(outcome: &str) -> String {
        format!(
            r#"{{"event":"result","name":"a.example","outcome":"{outcome}","error":null,"status":{{"name":"a.example",
            "id":"1","loaded":false,"certificate":{{"issuer":"R3","names":["a.example"],"serial":"1","sha256":"0",
            "self_signed":false,"not_before":0,"not_after":86400,"must_staple":false,"ocsp":null,"directory":null,
            "profile":null}},"state":"valid","next":{{"at":60,"why":"ari"}},"ari":null,"attempts":0,"last_attempt":null,
            "error":null}}}}"#
        )
    }

    #[test]
    fn people_read_what_changes() {
        for (line, expected) in [
            (
                result("renewed"),
                "a.example: new certificate of R3, valid until 1970-01-02T00:00:00Z",
            ),
            (
                result("paused"),
                "a.example: the next attempt is after 1970-01-01T00:01:00Z",
            ),
        ] {
            for detail in [Detail::Full, Detail::Changes] {
                assert_eq!(shown(&line, detail).as_deref(), Some(expected));
            }
        }
        assert!(
            shown(&result("kept"), Detail::Full)
                .unwrap()
                .contains("renewal from 1970-01-01T00:01:00Z")
        );
        assert_eq!(shown(&result("kept"), Detail::Changes), None);
        assert_eq!(shown(&result("failed"), Detail::Full), None);
    }

    #[test]
    fn steps_are_for_a_person_who_waits() {
        let step = r#"{"event":"step","name":"a.example","step":"validation"}"#;
        assert_eq!(
            shown(step, Detail::Full).as_deref(),
            Some("a.example: the authority has seen the answer")
        );
        assert_eq!(shown(step, Detail::Changes), None);
        let plan = r#"{"event":"plan","name":"a.example","action":"keep","why":"lifetime","at":60}"#;
        assert_eq!(
            shown(plan, Detail::Full).as_deref(),
            Some("a.example: keep the certificate until 1970-01-01T00:01:00Z, at the last third of its lifetime")
        );
    }

    #[test]
    fn scripts_read_the_result_in_the_last_line() {
        let https = Https {
            ok: true,
            names: vec![Name {
                name: "a.example".into(),
                https: true,
                error: None,
            }],
        };
        assert_eq!(
            serde_json::to_string(&https).unwrap(),
            r#"{"event":"https","ok":true,"names":[{"name":"a.example","https":true,"error":null}]}"#
        );
    }
}
