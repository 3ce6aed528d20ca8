//! Access to the API by bearer tokens (RFC 6750).

use std::fmt;

use links_domain::secret;
use subtle::ConstantTimeEq;

use crate::problem::Problem;

/// A token whose debug output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

/// Who may use the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Whoever sends this token.
    Token(Token),
    /// Whoever sends the token with this digest.
    Digest(secret::Digest),
    /// Nobody: a token is required, but none is configured.
    Closed,
}

impl Access {
    /// Access for whoever sends this token; an empty one counts as not configured. Surrounding white space is dropped, because
    /// files often end with a line end, which no header can contain.
    pub fn token(text: &str) -> Access {
        match text.trim() {
            "" => Access::Closed,
            text => Access::Token(Token(text.to_owned())),
        }
    }

    /// Like [`Access::token`], for the token's digest; `None` counts as not configured.
    pub fn digest(digest: Option<secret::Digest>) -> Access {
        digest.map_or(Access::Closed, Access::Digest)
    }

    /// The digest of a token, with white space treated as in [`Access::token`].
    pub fn digest_of(text: &str, salt: [u8; secret::SALT_LENGTH]) -> Option<secret::Digest> {
        match text.trim() {
            "" => None,
            text => Some(secret::Digest::of(text.as_bytes(), salt)),
        }
    }

    /// Decides by the `authorization` header.
    ///
    /// # Errors
    /// 401 without the right token, 503 if no token is configured.
    pub fn check(&self, authorization: Option<&[u8]>) -> Result<(), Problem> {
        match self {
            Access::Open => return Ok(()),
            Access::Token(_) | Access::Digest(_) => {}
            Access::Closed => {
                return Err(Problem::new(
                    503,
                    "No token is configured on this server, so nobody may do this. Its operator can set admin_token, or \
                     let everybody create links with shorten_access = \"open\".",
                ));
            }
        }
        let Some(given) = authorization.and_then(bearer) else {
            return Err(Problem::new(401, "Send the header \"authorization: Bearer TOKEN\".")
                .with_header("www-authenticate", "Bearer realm=\"links\""));
        };
        if self.accepts(given) {
            return Ok(());
        }
        Err(Problem::new(401, "The bearer token is wrong.")
            .with_header("www-authenticate", "Bearer realm=\"links\", error=\"invalid_token\""))
    }

    fn accepts(&self, given: &[u8]) -> bool {
        match self {
            // Constant time for tokens of the same length. The length itself is not a secret.
            Access::Token(Token(token)) => given.ct_eq(token.as_bytes()).into(),
            Access::Digest(digest) => digest.is_of(given),
            Access::Open | Access::Closed => false,
        }
    }
}

/// The token of `Bearer TOKEN`. The scheme is case-insensitive (RFC 9110, 11.1), and a header need not be UTF-8.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked("Bearer ".len())?;
    let token = rest.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(access: &Access, header: &str) -> Option<u16> {
        access
            .check(Some(header.as_bytes()))
            .err()
            .map(|problem| problem.status)
    }

    /// Access by the token itself, and by its digest.
    fn both(token: &str) -> [Access; 2] {
        [
            Access::token(token),
            Access::digest(Access::digest_of(token, [1; secret::SALT_LENGTH])),
        ]
    }

    #[test]
    fn lets_the_token_in() {
        for access in both("s3cret\n") {
            for header in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret "] {
                assert_eq!(status(&access, header), None, "{header:?}");
            }
        }
    }

    #[test]
    fn asks_for_a_token_or_says_that_it_is_wrong() {
        let cases = [
            (None, "Bearer realm=\"links\""),
            (Some(""), "Bearer realm=\"links\""),
            (Some("Bearer"), "Bearer realm=\"links\""),
            (Some("Bearer "), "Bearer realm=\"links\""),
            (Some("Basic s3cret"), "Bearer realm=\"links\""),
            (Some("s3cret"), "Bearer realm=\"links\""),
            (Some("Bearer s3cre"), "Bearer realm=\"links\", error=\"invalid_token\""),
            (
                Some("Bearer s3cret2"),
                "Bearer realm=\"links\", error=\"invalid_token\"",
            ),
            (Some("Bearer S3CRET"), "Bearer realm=\"links\", error=\"invalid_token\""),
            (
                Some("Bearer s3cret, s3cret"),
                "Bearer realm=\"links\", error=\"invalid_token\"",
            ),
        ];
        for (access, (header, challenge)) in both("s3cret")
            .iter()
            .flat_map(|access| cases.map(|case| (access, case)))
        {
            let problem = access.check(header.map(str::as_bytes)).err();
            let headers = problem.as_ref().map(|problem| problem.headers.clone());
            assert_eq!(problem.map(|problem| problem.status), Some(401), "{header:?}");
            assert_eq!(
                headers,
                Some(vec![("www-authenticate", challenge.into())]),
                "{header:?}"
            );
        }
        assert!(
            both("s3cret")
                .iter()
                .all(|access| access.check(Some(b"Bearer \xff")).is_err())
        );
    }

    #[test]
    fn an_empty_token_opens_nothing() {
        for access in ["", " ", "\n"].into_iter().flat_map(both) {
            for header in ["Bearer ", "Bearer  ", "Bearer \n", ""] {
                assert_eq!(status(&access, header), Some(503), "{access:?} {header:?}");
            }
        }
    }

    #[test]
    fn open_access_needs_no_token() {
        assert_eq!(Access::Open.check(None), Ok(()));
    }

    #[test]
    fn a_token_is_not_printed() {
        for access in both("s3cret") {
            assert!(!format!("{access:?}").contains("s3cret"));
        }
    }
}
