//! Bodies in JSON.

use links_domain::change::ChangeRequest;
use links_domain::clicks::Batch;
use links_domain::link::LinkRequest;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// The body of `POST /shorten`.
///
/// # Errors
/// 400, naming the field that is unknown, missing, duplicate or of the wrong type.
pub fn link_request(body: &[u8]) -> Result<LinkRequest, Problem> {
    read(body, r#"{"url": "https://example.com/"}"#)
}

/// The body of `PATCH /api/v1/links/:slug`.
///
/// # Errors
/// 400, naming the field that is unknown, duplicate or of the wrong type.
pub fn change_request(body: &[u8]) -> Result<ChangeRequest, Problem> {
    read(body, r#"{"url": "https://example.com/", "expires_at": null}"#)
}

/// The body of `POST /internal/clicks`.
///
/// # Errors
/// 400 with the first fault.
pub fn batch(body: &[u8]) -> Result<Batch, Problem> {
    let batch: Batch =
        serde_json::from_slice(body).map_err(|error| Problem::new(400, format!("Invalid batch: {error}.")))?;
    batch.check().map_err(Problem::bad_request)?;
    Ok(batch)
}

/// Parses a JSON object like `example`.
///
/// # Errors
/// 400, naming the field that is unknown, missing, duplicate or of the wrong type.
fn read<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, Problem> {
    // serde would also read the fields from an array, by position.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn detail(body: &str) -> String {
        let problem = link_request(body.as_bytes()).unwrap_err();
        assert_eq!(problem.status, 400, "{body}");
        problem.detail.into_owned()
    }

    #[test]
    fn reads_all_fields_or_only_the_url() {
        let all = br#" {"url": "https://example.com/\u00fc", "slug": "x", "expires_at": "2030-01-01T00:00:00Z", "max_clicks": 5} "#;
        assert_eq!(
            link_request(all).unwrap(),
            LinkRequest {
                url: "https://example.com/ü".into(),
                slug: Some("x".into()),
                expires_at: Some("2030-01-01T00:00:00Z".into()),
                max_clicks: Some(5),
            }
        );
        let url = LinkRequest {
            url: "u".into(),
            ..LinkRequest::default()
        };
        assert_eq!(link_request(br#"{"url":"u"}"#).as_ref(), Ok(&url));
        assert_eq!(
            link_request(br#"{"url":"u","slug":null,"expires_at":null,"max_clicks":null}"#),
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
    fn says_that_a_body_is_not_json() {
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
        assert!(link_request(b"{\"url\":\"\xff\"}").is_err());
        for body in ["[]", r#"["u",null,null]"#, "null", "5", "\"u\"", "url=u"] {
            assert!(
                detail(body).contains("must be a JSON object"),
                "{body}: {}",
                detail(body)
            );
        }
    }

    #[test]
    fn deep_nesting_is_an_ordinary_error() {
        let deep = format!("{{\"url\":{}", "[".repeat(60_000));
        assert!(link_request(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_change_names_the_field_that_is_wrong() {
        let request = change_request(br#"{"expires_at":null}"#).unwrap();
        assert_eq!((request.url, request.expires_at), (None, Some(None)));
        for (body, hint) in [
            (r#"{"slug":"other"}"#, "unknown field"),
            (r#"{"url":5}"#, "field url"),
            ("[]", "expires_at"),
        ] {
            let problem = change_request(body.as_bytes()).unwrap_err();
            assert!(
                problem.status == 400 && problem.detail.contains(hint),
                "{body}: {problem:?}"
            );
        }
    }

    #[test]
    fn an_invalid_batch_is_refused() {
        let name = "0123456789abcdef0123456789abcdef";
        let body = |journal: &str, stop| {
            format!(
                r#"{{"journal":"{journal}","start":0,"stop":{stop},"after":null,"through":null,"clicks":[],"visitors":[],"details":[]}}"#
            )
        };
        assert_eq!(batch(body(name, 7).as_bytes()).unwrap().stop, 7);
        for text in [body("x", 7), body(name, 0), String::new(), "{}".into(), "[]".into()] {
            assert_eq!(batch(text.as_bytes()).unwrap_err().status, 400, "{text}");
        }
    }
}
