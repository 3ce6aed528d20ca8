//! Errors as clients see them: `application/problem+json`, RFC 9457.

use std::borrow::Cow;

use links_domain::error::{Refused, Unavailable};
use serde::Serialize;

use crate::reply::{Headers, Reply};

/// A refusal. `detail` says what the client can change; it never contains a secret or a message of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: u16,
    pub detail: Cow<'static, str>,
    pub headers: Headers,
}

impl Problem {
    pub fn new(status: u16, detail: impl Into<Cow<'static, str>>) -> Self {
        Problem {
            status,
            detail: detail.into(),
            headers: Vec::new(),
        }
    }

    /// 422: a field of the body is not accepted.
    pub fn unprocessable(refused: Refused) -> Self {
        Problem::new(422, refused.into_reason())
    }

    /// 400: the request itself is not accepted.
    pub fn bad_request(refused: Refused) -> Self {
        Problem::new(400, refused.into_reason())
    }

    /// 409: the request does not fit what is stored.
    pub fn conflict(refused: Refused) -> Self {
        Problem::new(409, refused.into_reason())
    }

    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// 503, with the number of seconds after which another attempt makes sense.
    pub fn unavailable(detail: impl Into<Cow<'static, str>>) -> Self {
        Problem::new(503, detail).with_header("retry-after", "2")
    }
}

impl From<Unavailable> for Problem {
    fn from(Unavailable: Unavailable) -> Problem {
        Problem::unavailable("The database is not answering at the moment. Try again.")
    }
}

/// The body. `type` is left out, which means "about:blank": the status already says what kind of problem it is.
#[derive(Serialize)]
struct Body<'a> {
    title: &'static str,
    status: u16,
    detail: &'a str,
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Reply {
        let Problem {
            status,
            detail,
            headers,
        } = problem;
        let body = Body {
            title: title(status),
            status,
            detail: &detail,
        };
        // A struct of two strings and a number always has a JSON form.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        Reply::new(status, "application/problem+json", body).with_headers(headers)
    }
}

/// The reason phrases of RFC 9110 for the statuses that occur.
fn title(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_problem_json_with_its_own_headers() {
        let reply = Reply::from(Problem::new(405, "Use \"GET\".").with_header("allow", "GET, HEAD"));
        assert_eq!(reply.status, 405);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        assert_eq!(reply.header("allow"), Some("GET, HEAD"));
        assert_eq!(
            reply.body,
            br#"{"title":"Method Not Allowed","status":405,"detail":"Use \"GET\"."}"#
        );
    }
}
