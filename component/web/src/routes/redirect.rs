//! The routes of the redirect component.

use links_domain::slug::Slug;

use super::read_only;
use crate::links::not_found;
use crate::problem::Problem;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `GET` or `HEAD /health`
    Health,
    /// `GET` or `HEAD /:slug`
    Follow(Slug),
    /// The same for a path that is not a short URL's own, such as `/abc.` at the end of a sentence.
    FollowAsSent(Slug),
}

impl Route {
    /// Finds the route. `path` is as the client sent it, without the query.
    ///
    /// # Errors
    /// 404, or 405 with `allow`.
    pub fn of(method: &str, path: &str) -> Result<Route, Problem> {
        let route = match path.strip_prefix('/').unwrap_or(path) {
            "health" => Route::Health,
            text => match Slug::in_path(text) {
                Some(slug) => Route::Follow(slug),
                None => Route::FollowAsSent(Slug::as_sent(text).ok_or_else(not_found)?),
            },
        };
        read_only(method).map(|()| route)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn finds_the_route() {
        let slug = |text| Slug::in_path(text).unwrap();
        let follow = |text| Route::Follow(slug(text));
        for (method, path, route) in [
            ("GET", "/health", Route::Health),
            ("HEAD", "/health", Route::Health),
            ("GET", "/abc", follow("abc")),
            ("HEAD", "/A-b_9", follow("A-b_9")),
            ("GET", "/Health", follow("Health")),
            ("GET", "/abc/", Route::FollowAsSent(slug("abc"))),
            ("HEAD", "/abc).", Route::FollowAsSent(slug("abc"))),
            ("GET", "/abc%22", Route::FollowAsSent(slug("abc"))),
            ("GET", "/%61bc", Route::FollowAsSent(slug("abc"))),
        ] {
            assert_eq!(Route::of(method, path), Ok(route), "{method} {path}");
        }
    }

    #[test]
    fn refuses_other_methods_and_names_the_allowed_ones() {
        for (method, path) in [
            ("POST", "/health"),
            ("POST", "/abc"),
            ("OPTIONS", "/abc"),
            ("get", "/abc"),
            ("POST", "/abc/"),
        ] {
            let problem = Route::of(method, path).unwrap_err();
            assert_eq!(problem.status, 405, "{method} {path}");
            assert_eq!(problem.headers, vec![("allow", "GET, HEAD".into())], "{method} {path}");
        }
    }

    #[test]
    fn other_paths_are_not_found() {
        let long = format!("/{}", "a".repeat(65));
        for path in [
            "",
            "/",
            "//",
            "/a/b",
            "/shorten/",
            "/health.",
            "/a.b",
            "/robots.txt",
            "/internal/",
            "/internal/clicks",
            "/api/v1/links/abc",
            "/api/",
            "/ü",
            "*",
            long.as_str(),
        ] {
            for method in ["GET", "POST", "OPTIONS"] {
                assert_eq!(Route::of(method, path).unwrap_err().status, 404, "{method} {path}");
            }
        }
    }
}
