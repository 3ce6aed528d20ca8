//! What an authority's problems mean, in words, and what to do about them.

use links_config::acme::{Failure, FailureKind, Subproblem};

use crate::certificate::printable;

/// A failure has several texts, so it is kept on the heap.
pub type Attempt<T> = Result<T, Box<Failure>>;

/// The maximum length of an authority's text, in characters.
const LONGEST: usize = 500;

/// What was asked when a problem came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    /// The authority tried to validate a name.
    Validation,
    /// Anything else: the authority answered a request of ours.
    Request,
}

/// A problem document (RFC 9457), as far as ACME uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    pub acme_type: Option<String>,
    pub detail: Option<String>,
    /// The status of the HTTP response.
    pub status: Option<u16>,
    /// The authority refuses requests until this time, in seconds since 1970.
    pub retry_after: Option<u64>,
    pub subproblems: Vec<Subproblem>,
}

/// A failure that is not about a problem document.
pub fn failure(kind: FailureKind, message: impl Into<String>, hint: impl Into<String>) -> Box<Failure> {
    Box::new(Failure {
        kind,
        acme_type: None,
        detail: None,
        message: message.into(),
        hint: hint.into(),
        retry_after: None,
        subproblems: vec![],
    })
}

/// The kind of a problem type (RFC 8555, section 6.7; RFC 9773, section 7.4; draft-ietf-acme-profiles).
fn kind(problem: &Problem, during: During) -> FailureKind {
    use FailureKind as Kind;
    let name = problem.acme_type.as_deref().unwrap_or_default();
    match name.strip_prefix("urn:ietf:params:acme:error:").unwrap_or_default() {
        "rateLimited" => Kind::RateLimited,
        "caa" => Kind::Caa,
        "dns" => Kind::Dns,
        "connection" | "tls" => Kind::Connection,
        "unauthorized" | "incorrectResponse" if during == During::Validation => Kind::Unauthorized,
        // Outside of a validation, the account lacks the authority: it was deactivated or revoked.
        "unauthorized" | "accountDoesNotExist" => Kind::Account,
        "incorrectResponse" => Kind::Unauthorized,
        "rejectedIdentifier" | "unsupportedIdentifier" => Kind::RejectedIdentifier,
        "externalAccountRequired" => Kind::EabRequired,
        "userActionRequired" => Kind::TermsOfService,
        "invalidProfile" => Kind::Profile,
        "badNonce" => Kind::BadNonce,
        "serverInternal" => Kind::Server,
        "malformed" | "badCSR" | "badPublicKey" | "badSignatureAlgorithm" | "orderNotReady" => Kind::Protocol,
        "invalidContact" | "unsupportedContact" => Kind::Other,
        // A kind that a problem with several names shares with the first of them.
        "compound" => problem
            .subproblems
            .first()
            .map_or(Kind::Other, |first| kind(&Problem::from(first), during)),
        _ => match problem.status {
            Some(429) => Kind::RateLimited,
            Some(500..) => Kind::Server,
            _ => Kind::Other,
        },
    }
}

impl From<&Subproblem> for Problem {
    fn from(subproblem: &Subproblem) -> Self {
        Self {
            acme_type: subproblem.acme_type.clone(),
            detail: subproblem.detail.clone(),
            ..Self::default()
        }
    }
}

/// The failure that a problem is. `authority` is the host of the directory; `name` is the name that a certificate is for, if
/// the problem is about one.
pub fn of_problem(problem: Problem, authority: &str, name: Option<&str>, during: During) -> Box<Failure> {
    let kind = kind(&problem, during);
    let about = name.unwrap_or("the account");
    let (message, hint) = sentences(kind, &problem, authority, about);
    let detail = problem.detail.map(short);
    let message = match &detail {
        Some(detail) => format!("{message}: {}", end_with_stop(detail)),
        None => format!("{message}."),
    };
    Box::new(Failure {
        kind,
        acme_type: problem.acme_type.map(short),
        detail,
        message,
        hint,
        retry_after: problem.retry_after,
        subproblems: problem.subproblems.into_iter().map(short_subproblem).collect(),
    })
}

/// The beginning of the message, without its full stop, and the hint.
fn sentences(kind: FailureKind, problem: &Problem, authority: &str, name: &str) -> (String, String) {
    use FailureKind as Kind;
    let (message, hint) = match kind {
        Kind::RateLimited => (
            format!("{authority} issues no more certificates for {name} at the moment"),
            match problem.retry_after {
                Some(_) => "links tries again when the authority allows it.".to_owned(),
                None => "links tries again later. Do not use --force, which makes it worse.".to_owned(),
            },
        ),
        Kind::Caa => (
            format!("the CAA records of {name} do not let {authority} issue a certificate for it"),
            format!(
                "Add a CAA record that names this authority, or remove those of {name} and of the domains above it \
                 (`dig CAA {name}`)."
            ),
        ),
        Kind::Dns => (
            format!("{authority} cannot find the address of {name} in the DNS"),
            format!("Create an A or AAAA record that points {name} to this machine (`dig {name}` shows what there is)."),
        ),
        Kind::Connection => (
            format!("{authority} cannot connect to {name} on port 80"),
            "Check that its DNS records, AAAA included, point to this machine, and that the firewall lets port 80 in \
             from everywhere."
                .to_owned(),
        ),
        Kind::Unauthorized => (
            format!("{authority} got a wrong response from {name}"),
            "Its DNS records, AAAA included, probably point to another machine or to a proxy that does not pass \
             /.well-known/acme-challenge/ on to this one."
                .to_owned(),
        ),
        Kind::RejectedIdentifier => (
            format!("{authority} issues no certificates for {name}"),
            "Use another name, or another authority (`directory` in [tls])."
                .to_owned(),
        ),
        Kind::EabRequired => (
            format!("{authority} asks for an external account binding"),
            "Get a key ID and an HMAC key from your account there, and put them into `eab_kid` and `eab_key_file` in [tls]."
                .to_owned(),
        ),
        Kind::TermsOfService => (
            format!("{authority} wants its changed terms of service to be accepted"),
            "Open the address in the message, accept the terms there, then run `linksctl tls renew`.".to_owned(),
        ),
        Kind::Account => (
            format!("{authority} does not accept the account of this machine"),
            "If it was deactivated, run `/usr/lib/links/bin/links-acme deactivate` (with `--directory` and \
             `--ca-file`, if [tls] has them). The next attempt then creates another."
                .to_owned(),
        ),
        Kind::Profile => (
            format!("{authority} does not offer the profile"),
            "Change or remove `profile` in [tls].".to_owned(),
        ),
        Kind::BadNonce => (
            format!("{authority} has refused several requests in a row as too old"),
            "links tries again later.".to_owned(),
        ),
        Kind::Server => (
            format!("{authority} has an internal problem"),
            "links tries again later; the authority's status page may know more.".to_owned(),
        ),
        Kind::Protocol => (
            format!("{authority} has refused a request"),
            "Check that `directory` in [tls] is the directory of an ACME server; otherwise report this as a bug of links."
                .to_owned(),
        ),
        _ => (
            format!("{authority} has refused a certificate for {name}"),
            "links tries again later.".to_owned(),
        ),
    };
    (capitalised(message), hint)
}

/// The first letter is a capital, unless it begins a host's name.
fn capitalised(text: String) -> String {
    match text.strip_prefix("the ") {
        Some(rest) => format!("The {rest}"),
        None => text,
    }
}

fn end_with_stop(text: &str) -> String {
    match text.ends_with(['.', '!', '?']) {
        true => text.to_owned(),
        false => format!("{text}."),
    }
}

/// A text from the network, on one line of bounded length.
pub fn short(text: String) -> String {
    let text = printable(text);
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn short_subproblem(subproblem: Subproblem) -> Subproblem {
    Subproblem {
        acme_type: subproblem.acme_type.map(short),
        identifier: subproblem.identifier.map(short),
        detail: subproblem.detail.map(short),
    }
}

/// A failure from the network side, whose texts were made there.
pub fn cleaned(failure: Failure) -> Box<Failure> {
    Box::new(Failure {
        kind: failure.kind,
        acme_type: failure.acme_type.map(short),
        detail: failure.detail.map(short),
        message: printable(failure.message),
        hint: printable(failure.hint),
        retry_after: failure.retry_after,
        subproblems: failure.subproblems.into_iter().map(short_subproblem).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(name: &str, status: u16) -> Problem {
        Problem {
            acme_type: Some(format!("urn:ietf:params:acme:error:{name}")),
            detail: Some("the authority's words".to_owned()),
            status: Some(status),
            ..Problem::default()
        }
    }

    #[test]
    fn every_problem_type_has_a_kind() {
        use FailureKind as Kind;
        for (name, during, expected) in [
            ("rateLimited", During::Request, Kind::RateLimited),
            ("caa", During::Validation, Kind::Caa),
            ("dns", During::Validation, Kind::Dns),
            ("connection", During::Validation, Kind::Connection),
            ("tls", During::Validation, Kind::Connection),
            ("unauthorized", During::Validation, Kind::Unauthorized),
            ("incorrectResponse", During::Validation, Kind::Unauthorized),
            ("unauthorized", During::Request, Kind::Account),
            ("accountDoesNotExist", During::Request, Kind::Account),
            ("rejectedIdentifier", During::Request, Kind::RejectedIdentifier),
            ("externalAccountRequired", During::Request, Kind::EabRequired),
            ("userActionRequired", During::Request, Kind::TermsOfService),
            ("invalidProfile", During::Request, Kind::Profile),
            ("badNonce", During::Request, Kind::BadNonce),
            ("serverInternal", During::Request, Kind::Server),
            ("malformed", During::Request, Kind::Protocol),
            ("somethingNew", During::Request, Kind::Other),
        ] {
            assert_eq!(kind(&problem(name, 400), during), expected, "{name}");
        }
        assert_eq!(kind(&problem("somethingNew", 429), During::Request), Kind::RateLimited);
        assert_eq!(kind(&problem("somethingNew", 503), During::Request), Kind::Server);
        assert_eq!(kind(&Problem::default(), During::Request), Kind::Other);
        let compound = Problem {
            subproblems: vec![Subproblem {
                acme_type: Some("urn:ietf:params:acme:error:caa".to_owned()),
                identifier: None,
                detail: None,
            }],
            ..problem("compound", 403)
        };
        assert_eq!(kind(&compound, During::Request), Kind::Caa);
    }

    #[test]
    fn a_failure_names_the_authority_the_name_and_the_next_step() {
        let failure = of_problem(
            problem("dns", 400),
            "ca.example",
            Some("s.example.org"),
            During::Validation,
        );
        assert!(failure.message.contains("ca.example") && failure.message.contains("s.example.org"));
        assert!(
            failure.message.ends_with("the authority's words."),
            "{}",
            failure.message
        );
        assert!(failure.hint.contains("A or AAAA record"));
        assert_eq!(failure.acme_type.as_deref(), Some("urn:ietf:params:acme:error:dns"));
    }

    #[test]
    fn texts_of_the_network_cannot_take_over_a_terminal() {
        let nasty = Problem {
            detail: Some(format!("\u{1b}[2J\r\n{}", "x".repeat(1000))),
            ..problem("caa", 403)
        };
        let failure = of_problem(nasty, "ca.example", Some("a.example"), During::Validation);
        let detail = failure.detail.clone().unwrap_or_default();
        assert!(!detail.contains(char::is_control) && detail.chars().count() == LONGEST + 1);
        assert!(!failure.message.contains(char::is_control));
    }
}
