//! Errors of instant-acme, as failures.

use std::error::Error as StdError;
use std::io;

use instant_acme::{Error, Problem};
use links_base::clock;
use links_config::acme::{Failure, FailureKind, Subproblem};
use rustls::CertificateError;

use super::http::{NoResponse, Seen};
use crate::words::{self, During, failure, of_problem};

/// What an error is about.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The host of the authority's directory.
    pub authority: &'a str,
    /// The name that a certificate is for.
    pub name: Option<&'a str>,
    pub during: During,
    pub seen: &'a Seen,
}

/// The failure that an error is.
pub fn of(error: &Error, context: &Context<'_>) -> Box<Failure> {
    match error {
        Error::Api(problem) => of_api(problem, context),
        Error::Timeout(_) => too_slow(context.authority),
        Error::Other(inner) => match inner.downcast_ref() {
            Some(error) => no_response(error, context.authority),
            None => unexpected(&error.to_string(), context),
        },
        // The response is not JSON, or not the expected.
        _ => unexpected(&error.to_string(), context),
    }
}

/// The authority still works on something.
pub fn too_slow(authority: &str) -> Box<Failure> {
    failure(
        FailureKind::Server,
        format!("{authority} has not finished in time."),
        "links continues later.",
    )
}

pub fn of_api(problem: &Problem, context: &Context<'_>) -> Box<Failure> {
    let subproblems = problem.subproblems.iter().map(|it| Subproblem {
        acme_type: it.r#type.clone(),
        identifier: it.identifier.as_ref().map(|it| it.authorized(false).to_string()),
        detail: it.detail.clone(),
    });
    let problem = words::Problem {
        acme_type: problem.r#type.clone(),
        detail: problem.detail.clone(),
        status: problem.status.or(context.seen.status),
        retry_after: retry_after(context.seen, clock::now()),
        subproblems: subproblems.collect(),
    };
    of_problem(problem, context.authority, context.name, context.during)
}

/// The time in `Retry-After`, which is a number of seconds or a date (RFC 9110, section 10.2.3). Only errors count: other
/// responses say when to poll.
fn retry_after(seen: &Seen, now: u64) -> Option<u64> {
    seen.status.filter(|status| *status >= 400)?;
    seconds(seen.retry_after.as_deref()?, now).map(|seconds| now.saturating_add(seconds))
}

/// In how many seconds a `Retry-After` is over.
pub fn seconds(retry_after: &str, now: u64) -> Option<u64> {
    let text = retry_after.trim();
    match text.parse() {
        Ok(seconds) => Some(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            let at = date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
            Some(at.saturating_sub(now))
        }
    }
}

fn unexpected(text: &str, context: &Context<'_>) -> Box<Failure> {
    let authority = context.authority;
    let text = words::short(text.to_owned());
    match context.seen.status {
        Some(status @ 500..) => failure(
            FailureKind::Server,
            format!("{authority} has an internal problem (HTTP status {status})."),
            "links tries again later.",
        ),
        status => failure(
            FailureKind::Protocol,
            format!(
                "{authority} does not respond as an ACME server does{}: {text}.",
                status.map_or_else(String::new, |status| format!(" (HTTP status {status})"))
            ),
            "Check `directory` in [tls].",
        ),
    }
}

fn no_response(error: &NoResponse, authority: &str) -> Box<Failure> {
    if let Some(certificate) = causes(error).find_map(certificate_error) {
        return untrusted(certificate, authority);
    }
    let cause = causes(error).last().map(ToString::to_string).unwrap_or_default();
    // hyper's resolver error is not public.
    let is_dns = causes(error).any(|cause| cause.to_string() == "dns error");
    let hint = match is_dns {
        true => "Check the DNS servers of this machine (/etc/resolv.conf), and `directory` in [tls].",
        false => "Check that this machine and its firewall allow connections to the authority's HTTPS port.",
    };
    let what = match is_dns {
        true => "the address of",
        false => "a connection to",
    };
    let message = match error {
        NoResponse::TimedOut => format!("{authority} does not respond: {error}."),
        NoResponse::Failed(_) => format!("This machine cannot get {what} {authority}: {}.", words::short(cause)),
    };
    failure(
        FailureKind::Network,
        message,
        format!("{hint} links tries again later."),
    )
}

/// The error and its causes.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The error about the server's certificate. TLS errors are inside of one or more I/O errors, whose source is not what they
/// contain, but the source of that.
fn certificate_error<'a>(mut error: &'a (dyn StdError + 'static)) -> Option<&'a CertificateError> {
    while let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = inner;
    }
    match error.downcast_ref() {
        Some(rustls::Error::InvalidCertificate(error)) => Some(error),
        _ => None,
    }
}

fn untrusted(error: &CertificateError, authority: &str) -> Box<Failure> {
    use CertificateError as Invalid;
    match error {
        Invalid::Expired
        | Invalid::ExpiredContext { .. }
        | Invalid::NotValidYet
        | Invalid::NotValidYetContext { .. } => failure(
            FailureKind::Clock,
            format!("By the clock of this machine, the certificate of {authority} itself is not valid now."),
            "Check the date and time (`timedatectl`).",
        ),
        _ => failure(
            FailureKind::Tls,
            format!("This machine does not trust the certificate of {authority}: {error}."),
            "Install ca-certificates, or for an authority of your own set `ca_file` in [tls].",
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn context(seen: &Seen) -> Context<'_> {
        Context {
            authority: "ca.example",
            name: Some("a.example"),
            during: During::Request,
            seen,
        }
    }

    fn refused(inner: rustls::Error) -> Error {
        Error::Other(Box::new(NoResponse::Failed(Box::new(io::Error::other(
            io::Error::other(inner),
        )))))
    }

    #[test]
    fn a_clock_that_is_wrong_is_told_from_an_unknown_authority() {
        let seen = Seen::default();
        let kind = |error| of(&refused(rustls::Error::InvalidCertificate(error)), &context(&seen)).kind;
        assert_eq!(kind(CertificateError::Expired), FailureKind::Clock);
        assert_eq!(kind(CertificateError::NotValidYet), FailureKind::Clock);
        assert_eq!(kind(CertificateError::UnknownIssuer), FailureKind::Tls);
        let failure = of(&Error::Other(Box::new(NoResponse::TimedOut)), &context(&seen));
        assert_eq!(failure.kind, FailureKind::Network);
    }

    #[test]
    fn what_is_no_acme_server_is_told_from_one_in_trouble() {
        let json = || Error::Json(serde_json::from_str::<u8>("<html>").unwrap_err());
        let with = |status| Seen {
            status: Some(status),
            ..Seen::default()
        };
        assert_eq!(of(&json(), &context(&with(404))).kind, FailureKind::Protocol);
        assert_eq!(of(&json(), &context(&with(503))).kind, FailureKind::Server);
    }

    #[test]
    fn retry_after_is_a_number_of_seconds_or_a_date() {
        let now = 1_800_000_000;
        assert_eq!(seconds("120", now), Some(120));
        assert_eq!(seconds(" Fri, 15 Jan 2027 08:01:00 GMT ", now), Some(60));
        assert_eq!(seconds("Fri, 15 Jan 2027 07:00:00 GMT", now), Some(0), "in the past");
        assert_eq!(seconds("soon", now), None);
        let seen = |status| Seen {
            status: Some(status),
            retry_after: Some("60".to_owned()),
            ..Seen::default()
        };
        assert_eq!(retry_after(&seen(429), now), Some(now + 60));
        assert_eq!(retry_after(&seen(200), now), None);
    }
}
