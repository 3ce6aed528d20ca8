//! The bodies of requests, and that of `POST /shorten`.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// Largest body, in bytes: a URL of the greatest length with every byte escaped (`\u0061`), and room for the rest.
pub const MAX_BODY: usize = 64 * 1024;

/// What a client asks for, not yet judged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shorten {
    pub url: String,
    pub slug: Option<String>,
    pub expires_at: Option<String>,
    pub max_clicks: Option<i64>,
}

impl Shorten {
    /// # Errors
    /// See [`json`].
    pub fn parse(body: &[u8]) -> Result<Shorten, Problem> {
        json(body, r#"{"url": "https://example.com/"}"#)
    }
}

/// Reads an object like `example`.
///
/// # Errors
/// 400, naming the field that is unknown, missing, twice there or of another type.
pub fn json<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, Problem> {
    // A derived type would also be read from an array, by position.
    if matches!(body.trim_ascii_start().first(), Some(first) if *first != b'{') {
        return Err(Problem::new(
            400,
            format!("The body must be a JSON object like {example}."),
        ));
    }
    let json = &mut serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut *json).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        Problem::new(
            400,
            match (error.is_data(), field.as_str()) {
                (false, _) => format!("The body is not JSON: {error}."),
                (true, ".") => format!("The body is not as expected: {error}."),
                (true, field) => format!("The field {field}: {error}."),
            },
        )
    })?;
    json.end()
        .map_err(|error| Problem::new(400, format!("The body is not JSON: {error}.")))?;
    Ok(read)
}

/// What a body may be sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// `application/json`, in a `POST`.
    Json,
    /// `application/merge-patch+json` (RFC 7396), in a `PATCH`; plain JSON is read the same way.
    MergePatch,
}

impl Body {
    /// # Errors
    /// 415 for another `content-type`. It is asked for even though the body is judged by itself: a page of another site
    /// cannot send it without a preflight.
    pub fn check_type(self, content_type: Option<&str>) -> Result<(), Problem> {
        let media_type = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
        let types = match self {
            Body::Json => &["application/json"][..],
            Body::MergePatch => &["application/merge-patch+json", "application/json"],
        };
        if types.iter().any(|known| media_type.eq_ignore_ascii_case(known)) {
            return Ok(());
        }
        Err(match self {
            Body::Json => Problem::new(415, "Send JSON with the header \"content-type: application/json\".")
                .with_header("accept-post", "application/json"),
            // RFC 5789, 2.2
            Body::MergePatch => Problem::new(
                415,
                "Send JSON with the header \"content-type: application/merge-patch+json\".",
            )
            .with_header("accept-patch", "application/merge-patch+json, application/json"),
        })
    }
}

pub fn too_large(most: usize) -> Problem {
    Problem::new(413, format!("The body must be at most {most} bytes."))
}

/// # Errors
/// 413 if a `content-length` says that the body is larger than `most` bytes; one that cannot be read is left to the host.
pub fn check_length(content_length: Option<&str>, most: usize) -> Result<(), Problem> {
    match content_length.and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(length) if length > most as u64 => Err(too_large(most)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::target;

    fn detail(body: &str) -> String {
        let problem = Shorten::parse(body.as_bytes()).unwrap_err();
        assert_eq!(problem.status, 400, "{body}");
        problem.detail.into_owned()
    }

    #[test]
    fn reads_all_fields_or_only_the_url() {
        let all = br#" {"url": "https://example.com/\u00fc", "slug": "x", "expires_at": "2030-01-01T00:00:00Z", "max_clicks": 5} "#;
        assert_eq!(
            Shorten::parse(all).unwrap(),
            Shorten {
                url: "https://example.com/ü".into(),
                slug: Some("x".into()),
                expires_at: Some("2030-01-01T00:00:00Z".into()),
                max_clicks: Some(5),
            }
        );
        let url = Shorten {
            url: "u".into(),
            slug: None,
            expires_at: None,
            max_clicks: None,
        };
        assert_eq!(Shorten::parse(br#"{"url":"u"}"#).as_ref(), Ok(&url));
        assert_eq!(
            Shorten::parse(br#"{"url":"u","slug":null,"expires_at":null,"max_clicks":null}"#),
            Ok(url)
        );
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        for (body, field, cause) in [
            (r#"{"url":5}"#, "field url", "expected a string"),
            (r#"{"url":null}"#, "field url", "expected a string"),
            (r#"{"url":["u"]}"#, "field url", "expected a string"),
            (r#"{"url":"u","slug":true}"#, "field slug", "expected a string"),
            (
                r#"{"url":"u","expires_at":1798761600}"#,
                "field expires_at",
                "expected a string",
            ),
            (r#"{"url":"u","max_clicks":"5"}"#, "field max_clicks", "expected i64"),
            (r#"{"url":"u","max_clicks":1.5}"#, "field max_clicks", "expected i64"),
            (r#"{"ulr":"u"}"#, "`ulr`", "unknown field"),
            (r#"{"url":"u","ttl":{"a":[1]}}"#, "`ttl`", "unknown field"),
            (r#"{"slug":"x"}"#, "`url`", "missing field"),
            ("{}", "`url`", "missing field"),
            (r#"{"url":"u","url":"v"}"#, "`url`", "duplicate field"),
        ] {
            let detail = detail(body);
            assert!(detail.contains(field) && detail.contains(cause), "{body}: {detail}");
        }
    }

    #[test]
    fn says_what_is_no_json() {
        for body in [
            "",
            " ",
            "{",
            "{\"url\"",
            r#"{"url":"u"} x"#,
            r#"{"url":"u"}{}"#,
            "{'url':'u'}",
            r#"{"url":"\ud800"}"#,
        ] {
            assert!(detail(body).contains("not JSON"), "{body}: {}", detail(body));
        }
        assert!(Shorten::parse(b"{\"url\":\"\xff\"}").is_err());
        for body in ["[]", r#"["u",null,null]"#, "null", "5", "\"u\"", "url=u"] {
            assert!(
                detail(body).contains("must be a JSON object"),
                "{body}: {}",
                detail(body)
            );
        }
    }

    #[test]
    fn deep_nesting_is_an_error_like_others() {
        let deep = format!("{{\"url\":{}", "[".repeat(60_000));
        assert!(Shorten::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn the_content_type_is_json() {
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            " application/json ",
        ] {
            assert_eq!(Body::Json.check_type(Some(good)), Ok(()), "{good:?}");
            assert_eq!(Body::MergePatch.check_type(Some(good)), Ok(()), "{good:?}");
        }
        for bad in [
            None,
            Some(""),
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("application/jsonx"),
            Some("application/merge-patch+json"),
        ] {
            let problem = Body::Json.check_type(bad).unwrap_err();
            assert_eq!(problem.status, 415, "{bad:?}");
            assert_eq!(problem.headers, vec![("accept-post", "application/json".into())]);
        }
    }

    #[test]
    fn a_patch_is_a_merge_patch() {
        for good in [
            "application/merge-patch+json",
            "Application/Merge-Patch+JSON; charset=utf-8",
        ] {
            assert_eq!(Body::MergePatch.check_type(Some(good)), Ok(()), "{good:?}");
        }
        for bad in [None, Some("text/plain"), Some("application/json-patch+json")] {
            let problem = Body::MergePatch.check_type(bad).unwrap_err();
            assert_eq!(problem.status, 415, "{bad:?}");
            let accepted = "application/merge-patch+json, application/json";
            assert_eq!(problem.headers, vec![("accept-patch", accepted.into())]);
        }
    }

    #[test]
    fn a_declared_length_may_refuse_at_once() {
        let check = |length| check_length(length, 65_536);
        assert_eq!(check(Some("65536")), Ok(()));
        assert_eq!(check(Some("65537")).unwrap_err().status, 413);
        assert_eq!(check(Some("18446744073709551615")).unwrap_err().status, 413);
        assert_eq!(check(None), Ok(()));
    }

    #[test]
    fn the_longest_url_fits_however_it_is_escaped() {
        assert!(target::MAX_BYTES * "\\u0061".len() < MAX_BODY);
    }
}
