//! `linksctl tls status`.

use std::process::ExitCode;

use serde::Serialize;

use super::report::{date, of_reason};
use links_base::layout::Layout;
use links_config::acme::{Failure, NameStatus, Next, State};
use links_config::files::ConfigFiles;
use links_config::links::{Config, PlainHttp, TlsMode};
use links_config::load::load_links;
use links_edge::TlsName;
use links_rollout::Appliance;

/// The output of `linksctl tls status --json`.
#[derive(Debug, Serialize)]
struct Status {
    /// Whether nginx serves a valid certificate for every name.
    ok: bool,
    mode: TlsMode,
    http: PlainHttp,
    hsts: bool,
    /// How short URLs begin, or none if that depends on the request.
    public_url: Option<String>,
    names: Vec<Name>,
}

#[derive(Debug, Serialize)]
struct Name {
    name: String,
    state: State,
    issuer: Option<String>,
    /// The SHA-256 of the certificate, in hexadecimal.
    sha256: Option<String>,
    /// In seconds since 1970.
    not_after: Option<u64>,
    /// Why nginx does not serve the certificate, or none if it does.
    problem: Option<String>,
    /// The next renewal or attempt, or none for a file.
    next: Option<Next>,
    /// The number of failed attempts since the last success.
    attempts: u32,
    /// Why the last attempt failed, or none if it did not.
    error: Option<Failure>,
}

/// Prints the status.
///
/// # Errors
/// The configuration is wrong, or a file cannot be read.
pub fn show(layout: &Layout, appliance: &Appliance, json: bool) -> anyhow::Result<ExitCode> {
    let config = load_links(&ConfigFiles::new(layout))?;
    let served = appliance.edge.tls_names(&config)?;
    let statuses = match config.tls.mode {
        TlsMode::Acme => appliance.edge.certificates.statuses(&config.tls)?,
        TlsMode::Files | TlsMode::Off => vec![],
    };
    let status = status(&config, &served, &statuses);
    match json {
        true => println!("{}", serde_json::to_string_pretty(&status)?),
        false => print!("{}", text(&status)),
    }
    Ok(match status.ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn status(config: &Config, served: &[TlsName], statuses: &[NameStatus]) -> Status {
    let names = config.tls.served().iter().map(|name| {
        let served = served.iter().find(|served| served.certificate.name == *name);
        let certificate = served.map(|served| &served.certificate);
        let described = certificate.map(|certificate| &certificate.described);
        let of_acme = statuses.iter().find(|status| status.name == *name);
        Name {
            name: name.clone(),
            state: certificate.map_or(State::Missing, |certificate| certificate.state),
            issuer: described.map(|described| described.issuer.clone()),
            sha256: described.map(|described| described.sha256.clone()),
            not_after: described.map(|described| described.not_after),
            problem: served.and_then(|served| served.trouble.clone()),
            next: of_acme.map(|status| status.next),
            attempts: of_acme.map_or(0, |status| status.attempts),
            error: of_acme.and_then(|status| status.error.clone()),
        }
    });
    let names: Vec<_> = names.collect();
    Status {
        ok: names
            .iter()
            .all(|name| name.state == State::Valid && name.problem.is_none()),
        mode: config.tls.mode,
        http: config.tls.http,
        hsts: config.tls.hsts,
        public_url: config.base_url(),
        names,
    }
}

fn text(status: &Status) -> String {
    if status.mode == TlsMode::Off {
        return "HTTPS is off; `linksctl tls enable NAME` turns it on\n".to_owned();
    }
    let mut lines = vec![];
    for name in &status.names {
        let state = match (name.state, name.not_after.map(date)) {
            (State::Valid, Some(until)) => format!("valid until {until}"),
            (State::Expired, Some(until)) => match status.http {
                PlainHttp::Redirect => format!("expired since {until}, so requests are not redirected to HTTPS"),
                PlainHttp::Serve => format!("expired since {until}"),
            },
            (State::NotYetValid, _) => "not valid yet: check this host's clock".to_owned(),
            _ => "no certificate, so there is no HTTPS".to_owned(),
        };
        let issuer = name
            .issuer
            .as_ref()
            .map_or_else(String::new, |issuer| format!(", from {issuer}"));
        lines.push(format!("{}  {state}{issuer}", name.name));
        lines.extend(name.problem.iter().map(|problem| format!("    not served: {problem}")));
        lines.extend(name.next.map(|next| match name.state {
            State::Missing => format!("    next attempt from {}", date(next.at)),
            _ => format!("    renewal from {}, {}", date(next.at), of_reason(next.why)),
        }));
        lines.extend(
            name.error
                .iter()
                .map(|error| format!("    the last attempt failed ({} in a row): {error}", name.attempts)),
        );
    }
    lines.push(format!(
        "without HTTPS: {}{}",
        match status.http {
            PlainHttp::Redirect => "redirected",
            PlainHttp::Serve => "served",
        },
        match status.hsts {
            true => "; browsers are told to use nothing but HTTPS",
            false => "",
        }
    ));
    lines.join("\n") + "\n"
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, "links.toml").unwrap()
    }

    fn of_acme(name: &str, error: &str) -> NameStatus {
        let text = format!(
            r#"{{"name":"{name}","id":null,"loaded":false,"certificate":null,"state":"missing","next":{{"at":60,
            "why":"retry"}},"ari":null,"attempts":2,"last_attempt":1,"error":{error}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_name_without_a_certificate_is_reported_with_the_reason() {
        let config = config("[tls]\nmode = \"acme\"\nnames = [\"a.example\"]\n");
        let error = r#"{"kind":"dns","acme_type":null,"detail":null,"message":"a.example leads nowhere.",
                        "hint":"Add an A record.","retry_after":null}"#;
        let status = status(&config, &[], &[of_acme("a.example", error)]);
        assert!(!status.ok);
        assert_eq!(
            text(&status),
            "a.example  no certificate, so there is no HTTPS\n\
             \x20   next attempt from 1970-01-01T00:01:00Z\n\
             \x20   the last attempt failed (2 in a row): a.example leads nowhere. Add an A record.\n\
             without HTTPS: redirected\n"
        );
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(
            (&json["mode"], &json["names"][0]["error"]["kind"]),
            (&"acme".into(), &"dns".into())
        );
        assert_eq!(json["names"][0]["state"], "missing");
    }

    #[test]
    fn only_names_that_would_be_redirected_are_said_not_to_be() {
        let shown = |http| {
            text(&Status {
                ok: false,
                mode: TlsMode::Acme,
                http,
                hsts: false,
                public_url: None,
                names: vec![Name {
                    name: "a.example".into(),
                    state: State::Expired,
                    issuer: None,
                    sha256: None,
                    not_after: Some(0),
                    problem: None,
                    next: None,
                    attempts: 0,
                    error: None,
                }],
            })
        };
        assert!(shown(PlainHttp::Redirect).contains("not redirected"));
        assert_eq!(
            shown(PlainHttp::Serve),
            "a.example  expired since 1970-01-01T00:00:00Z\nwithout HTTPS: served\n"
        );
    }

    #[test]
    fn without_https_nothing_is_wrong() {
        let status = status(&config(""), &[], &[]);
        assert!(status.ok && text(&status).starts_with("HTTPS is off"));
    }
}
