//! The purpose of a request for a link. It matters for links with a limited number of clicks.

use crate::user_agent;

/// The headers by which browsers announce that no person has asked for the page yet: `Sec-Purpose` (Fetch standard), and its
/// predecessors in Chrome, Safari and Firefox.
pub const PREFETCH_HEADERS: [&str; 4] = ["sec-purpose", "purpose", "x-purpose", "x-moz"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A person follows the link.
    Follow,
    /// A `HEAD` request, or a program that shows a preview: nobody follows the link.
    Preview,
    /// A browser fetches the page in case the person goes there later.
    Prefetch,
}

impl Purpose {
    /// The purpose of a request. `header` returns the first value of a header, given its name in lower case.
    pub fn of(is_head: bool, header: impl Fn(&str) -> Option<Vec<u8>>) -> Purpose {
        let is_set = |name: &&str| header(name).is_some_and(|value| !value.trim_ascii().is_empty());
        if is_head {
            Purpose::Preview
        } else if PREFETCH_HEADERS.iter().any(is_set) {
            Purpose::Prefetch
        } else if user_agent::of_person(&header("user-agent").unwrap_or_default()).is_some() {
            Purpose::Follow
        } else {
            Purpose::Preview
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROWSER: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

    fn purpose(is_head: bool, headers: &[(&str, &str)]) -> Purpose {
        Purpose::of(is_head, |name| {
            let header = headers.iter().find(|(known, _)| *known == name);
            header.map(|(_, value)| value.as_bytes().to_vec())
        })
    }

    #[test]
    fn only_a_browser_used_by_a_person_follows() {
        let browser = ("user-agent", BROWSER);
        assert_eq!(purpose(false, &[browser]), Purpose::Follow);
        assert_eq!(purpose(false, &[browser, ("sec-purpose", "")]), Purpose::Follow);
        assert_eq!(purpose(true, &[browser]), Purpose::Preview);
        for (name, value) in [
            ("sec-purpose", "prefetch"),
            ("sec-purpose", "prefetch;prerender"),
            ("purpose", "prefetch"),
            ("x-purpose", "preview"),
            ("x-moz", "prefetch"),
        ] {
            assert_eq!(
                purpose(false, &[browser, (name, value)]),
                Purpose::Prefetch,
                "{name}: {value}"
            );
        }
        for agent in [
            "",
            "curl/8.5.0",
            "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
        ] {
            assert_eq!(purpose(false, &[("user-agent", agent)]), Purpose::Preview, "{agent}");
        }
        assert_eq!(purpose(false, &[]), Purpose::Preview);
    }
}
