//! Type and size of request bodies.

use crate::problem::Problem;

/// The maximum size of a body, in bytes: a URL of the maximum length with every byte escaped (`\u0061`), and room for the rest.
pub const MAX_BODY: usize = 64 * 1024;

/// The media type of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// `application/json`, in a `POST`.
    Json,
    /// `application/merge-patch+json` (RFC 7396), in a `PATCH`. Plain JSON is accepted, too.
    MergePatch,
}

impl MediaType {
    /// Checks the header `content-type`.
    ///
    /// # Errors
    /// 415 for another type. The body would be readable anyway, but a page of another site cannot send this type without a
    /// preflight.
    pub fn check(self, content_type: Option<&str>) -> Result<(), Problem> {
        let media_type = content_type.unwrap_or("").split(';').next().unwrap_or("").trim();
        let types = match self {
            MediaType::Json => &["application/json"][..],
            MediaType::MergePatch => &["application/merge-patch+json", "application/json"],
        };
        if types.iter().any(|known| media_type.eq_ignore_ascii_case(known)) {
            return Ok(());
        }
        Err(match self {
            MediaType::Json => Problem::new(415, "Send JSON with the header \"content-type: application/json\".")
                .with_header("accept-post", "application/json"),
            // RFC 5789, 2.2
            MediaType::MergePatch => Problem::new(
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

/// Checks the header `content-length`. An invalid one is left to the runtime.
///
/// # Errors
/// 413 if the body is larger than `most` bytes.
pub fn check_length(content_length: Option<&str>, most: usize) -> Result<(), Problem> {
    match content_length.and_then(|text| text.trim().parse::<u64>().ok()) {
        Some(length) if length > most as u64 => Err(too_large(most)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use links_domain::target;

    use super::*;

    #[test]
    fn the_content_type_is_json() {
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            " application/json ",
        ] {
            assert_eq!(MediaType::Json.check(Some(good)), Ok(()), "{good:?}");
            assert_eq!(MediaType::MergePatch.check(Some(good)), Ok(()), "{good:?}");
        }
        for bad in [
            None,
            Some(""),
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("application/jsonx"),
            Some("application/merge-patch+json"),
        ] {
            let problem = MediaType::Json.check(bad).unwrap_err();
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
            assert_eq!(MediaType::MergePatch.check(Some(good)), Ok(()), "{good:?}");
        }
        for bad in [None, Some("text/plain"), Some("application/json-patch+json")] {
            let problem = MediaType::MergePatch.check(bad).unwrap_err();
            assert_eq!(problem.status, 415, "{bad:?}");
            let accepted = "application/merge-patch+json, application/json";
            assert_eq!(problem.headers, vec![("accept-patch", accepted.into())]);
        }
    }

    #[test]
    fn a_declared_length_is_checked() {
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
