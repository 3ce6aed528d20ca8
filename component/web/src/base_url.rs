//! The origin under which a client reached the appliance.

use links_domain::origin::Origin;

use crate::problem::Problem;

/// The origin that the client used: nginx sends it in `x-forwarded-proto` and `x-forwarded-host`; without nginx it is http and
/// the header `host`.
///
/// # Errors
/// 400 if the scheme or the host is invalid, because both end up in every short URL.
pub fn of_request(scheme: Option<&str>, host: Option<&str>) -> Result<Origin, Problem> {
    let scheme = scheme.unwrap_or("http").to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        return Err(Problem::new(400, "The header x-forwarded-proto must be http or https."));
    }
    host.filter(|host| looks_like_host(host))
        .and_then(|host| Origin::parse(&format!("{scheme}://{host}")))
        .ok_or_else(|| {
            Problem::new(
                400,
                "The header host (or x-forwarded-host) must be one host name with an optional port. Alternatively, \
                 set the variable public_url on the server.",
            )
        })
}

/// Whether this may be a Host header: a name, an IPv4 address or an IPv6 address in brackets, with an optional port.
/// International names arrive in Punycode.
fn looks_like_host(text: &str) -> bool {
    text.len() <= 255
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn comes_from_forwarded_headers() {
        for (scheme, host, origin) in [
            (None, "sho.rt", "http://sho.rt"),
            (Some("https"), "sho.rt", "https://sho.rt"),
            (Some("HTTPS"), "Sho.RT:443", "https://sho.rt"),
            (Some("http"), "127.0.0.1:7001", "http://127.0.0.1:7001"),
            (Some("http"), "[::1]:7001", "http://[::1]:7001"),
        ] {
            assert_eq!(of_request(scheme, Some(host)).unwrap().to_string(), origin);
        }
    }

    #[test]
    fn an_invalid_forwarded_host_is_refused() {
        let long = "a".repeat(256);
        for host in [
            None,
            Some(""),
            Some("."),
            Some("a b"),
            Some("evil.example/path"),
            Some("a, b"),
            Some("user@host"),
            Some("host?x"),
            Some("host#x"),
            Some("host:port"),
            Some("ho\"st"),
            Some("ho%73t"),
            Some("\\evil"),
            Some("[::1"),
            Some(long.as_str()),
        ] {
            assert_eq!(of_request(None, host).unwrap_err().status, 400, "{host:?}");
        }
    }

    #[test]
    fn a_forwarded_scheme_is_http_or_https() {
        for scheme in ["", "javascript", "http, https", "ftp"] {
            let problem = of_request(Some(scheme), Some("sho.rt")).unwrap_err();
            assert!(problem.detail.contains("x-forwarded-proto"), "{scheme:?}");
        }
    }
}
