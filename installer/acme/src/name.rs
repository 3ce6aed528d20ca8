//! What a certificate can be issued for.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// A DNS name in lower case, or an IP address in its shortest form. Both are usable as the name of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    Dns(String),
    Ip(IpAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    #[error(
        "an authority issues a certificate for all subdomains only to who controls their DNS; name each host instead"
    )]
    Wildcard,
    #[error("write it in ASCII, as its registrar does (`xn--...`)")]
    NotAscii,
    #[error("it is longer than 253 characters (RFC 1035)")]
    TooLong,
    #[error("a DNS name has labels of 1 to 63 letters, digits and inner hyphens, separated by dots")]
    Label,
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.starts_with("*.") {
            return Err(Invalid::Wildcard);
        }
        if !name.is_ascii() {
            return Err(Invalid::NotAscii);
        }
        if name.len() > 253 {
            return Err(Invalid::TooLong);
        }
        // Browsers read a name whose last label is a number as an IPv4 address (URL Standard, "ends in a number").
        let ends_in_number = name
            .rsplit('.')
            .next()
            .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        match name.split('.').all(is_label) && !ends_in_number {
            true => Ok(Self::Dns(name)),
            false => Err(Invalid::Label),
        }
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => write!(f, "{address}"),
        }
    }
}

impl Name {
    /// Whether one of the names in a certificate covers this one. A wildcard covers one label (RFC 9525, section 6.3).
    pub fn is_covered_by(&self, names: &[String]) -> bool {
        names.iter().any(|covering| match self {
            Self::Ip(address) => covering.parse() == Ok(*address),
            Self::Dns(name) => match covering.strip_prefix("*.") {
                None => covering.eq_ignore_ascii_case(name),
                Some(parent) => name
                    .split_once('.')
                    .is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
            },
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_folded_into_one_form() {
        for (text, name) in [
            ("S.Example.ORG.", "s.example.org"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("localhost", "localhost"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:DB8:0::1", "2001:db8::1"),
        ] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_is_no_host_name_is_refused() {
        let long = format!("{}.example", "a.".repeat(125));
        let label = format!("{}.example", "a".repeat(64));
        for (text, error) in [
            ("*.example.org", Invalid::Wildcard),
            ("bücher.example", Invalid::NotAscii),
            (&*long, Invalid::TooLong),
            (&*label, Invalid::Label),
            ("", Invalid::Label),
            (".", Invalid::Label),
            ("..", Invalid::Label),
            ("../x", Invalid::Label),
            ("a/b", Invalid::Label),
            ("a..b", Invalid::Label),
            ("-a.example", Invalid::Label),
            ("a_b.example", Invalid::Label),
            ("1.2.3", Invalid::Label),
        ] {
            assert_eq!(text.parse::<Name>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_wildcard_covers_exactly_one_label() {
        let names = ["*.example.org", "Example.org", "192.0.2.1", "2001:db8:0:0::1"].map(str::to_owned);
        for (name, covered) in [
            ("s.example.org", true),
            ("a.s.example.org", false),
            ("example.org", true),
            ("example.com", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8::1", true),
        ] {
            assert_eq!(name.parse::<Name>().unwrap().is_covered_by(&names), covered, "{name}");
        }
    }
}
