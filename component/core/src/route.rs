//! Which path and method means what.

use crate::problem::Problem;
use crate::slug::Slug;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `POST /shorten`
    Shorten,
    /// `OPTIONS /shorten`
    Preflight,
    /// `GET` or `HEAD /health`
    Health,
    /// `GET` or `HEAD /:slug`
    Follow(Slug),
    /// The same, with what is left of a sentence behind it, or otherwise not as a short URL has it: `/abc.`
    FollowAsSent(Slug),
    /// `GET` or `HEAD /api/v1/links/:slug`
    Show(Slug),
    /// `PATCH /api/v1/links/:slug`
    Change(Slug),
    /// `DELETE /api/v1/links/:slug`
    Remove(Slug),
    /// `GET` or `HEAD /api/v1/links/:slug/stats`
    Stats(Slug),
    /// `GET` or `HEAD /api/v1/stats`
    StatsOfAll,
    /// `POST /internal/clicks`, for the agent: nginx refuses what is below /internal.
    TakeClicks,
    /// `GET` or `HEAD /internal/clicks`
    FindClicks,
    /// `GET` or `HEAD /internal/database`, for the agent: nginx refuses what is below /internal.
    Database,
    /// `GET` or `HEAD /internal/sqlite`, for the agent: which SQLite the runtime has.
    Engine,
}

impl Route {
    /// `path` is as it came, without the query, which means nothing here.
    ///
    /// # Errors
    /// 404, or 405 with `allow`.
    pub fn of(method: &str, path: &str) -> Result<Route, Problem> {
        match path.strip_prefix('/').unwrap_or(path) {
            "shorten" => match method {
                "POST" => Ok(Route::Shorten),
                "OPTIONS" => Ok(Route::Preflight),
                _ => Err(not_allowed("POST, OPTIONS")),
            },
            "health" => reading(method).map(|()| Route::Health),
            "api/v1/stats" => reading(method).map(|()| Route::StatsOfAll),
            "internal/clicks" => match method {
                "POST" => Ok(Route::TakeClicks),
                "GET" | "HEAD" => Ok(Route::FindClicks),
                _ => Err(not_allowed("GET, HEAD, POST")),
            },
            "internal/database" => reading(method).map(|()| Route::Database),
            "internal/sqlite" => reading(method).map(|()| Route::Engine),
            text => match text.strip_prefix("api/v1/links/") {
                Some(rest) => of_link(method, rest),
                None => match Slug::in_path(text) {
                    Some(slug) => reading(method).map(|()| Route::Follow(slug)),
                    None => {
                        let slug = Slug::as_sent(text).ok_or_else(not_found)?;
                        reading(method).map(|()| Route::FollowAsSent(slug))
                    }
                },
            },
        }
    }
}

/// Whether a path is one for the agent, which nobody else is told of: without its proof each of these is an unknown path.
pub fn is_internal(path: &str) -> bool {
    path.strip_prefix('/').unwrap_or(path).starts_with("internal/")
}

/// Below `/api/v1/links/`.
fn of_link(method: &str, rest: &str) -> Result<Route, Problem> {
    let slug = |text| Slug::in_path(text).ok_or_else(not_found);
    if let Some(text) = rest.strip_suffix("/stats") {
        let slug = slug(text)?;
        return reading(method).map(|()| Route::Stats(slug));
    }
    let slug = slug(rest)?;
    match method {
        "GET" | "HEAD" => Ok(Route::Show(slug)),
        "PATCH" => Ok(Route::Change(slug)),
        "DELETE" => Ok(Route::Remove(slug)),
        _ => Err(not_allowed("GET, HEAD, PATCH, DELETE")),
    }
}

pub fn not_found() -> Problem {
    Problem::new(
        404,
        "There is no such link. Check the address: upper and lower case differ.",
    )
}

fn reading(method: &str) -> Result<(), Problem> {
    if method == "GET" || method == "HEAD" {
        Ok(())
    } else {
        Err(not_allowed("GET, HEAD"))
    }
}

fn not_allowed(allow: &'static str) -> Problem {
    Problem::new(405, format!("This address knows only these methods: {allow}.")).with_header("allow", allow)
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
            ("POST", "/shorten", Route::Shorten),
            ("OPTIONS", "/shorten", Route::Preflight),
            ("GET", "/health", Route::Health),
            ("HEAD", "/health", Route::Health),
            ("GET", "/internal/database", Route::Database),
            ("GET", "/internal/sqlite", Route::Engine),
            ("GET", "/abc", follow("abc")),
            ("HEAD", "/A-b_9", follow("A-b_9")),
            ("GET", "/Health", follow("Health")),
            ("GET", "/abc/", Route::FollowAsSent(slug("abc"))),
            ("HEAD", "/abc).", Route::FollowAsSent(slug("abc"))),
            ("GET", "/abc%22", Route::FollowAsSent(slug("abc"))),
            ("GET", "/%61bc", Route::FollowAsSent(slug("abc"))),
            ("GET", "/api/v1/stats", Route::StatsOfAll),
            ("GET", "/api/v1/links/abc", Route::Show(slug("abc"))),
            ("PATCH", "/api/v1/links/abc", Route::Change(slug("abc"))),
            ("DELETE", "/api/v1/links/abc", Route::Remove(slug("abc"))),
            ("GET", "/api/v1/links/abc/stats", Route::Stats(slug("abc"))),
            ("POST", "/internal/clicks", Route::TakeClicks),
            ("GET", "/internal/clicks", Route::FindClicks),
        ] {
            assert_eq!(Route::of(method, path), Ok(route), "{method} {path}");
        }
    }

    #[test]
    fn refuses_other_methods_and_names_those_that_work() {
        for (method, path, allow) in [
            ("GET", "/shorten", "POST, OPTIONS"),
            ("DELETE", "/shorten", "POST, OPTIONS"),
            ("POST", "/health", "GET, HEAD"),
            ("POST", "/abc", "GET, HEAD"),
            ("OPTIONS", "/abc", "GET, HEAD"),
            ("POST", "/internal/database", "GET, HEAD"),
            ("get", "/abc", "GET, HEAD"),
            ("POST", "/api/v1/stats", "GET, HEAD"),
            ("DELETE", "/api/v1/links/abc/stats", "GET, HEAD"),
            ("POST", "/api/v1/links/abc", "GET, HEAD, PATCH, DELETE"),
            ("PUT", "/internal/clicks", "GET, HEAD, POST"),
            ("POST", "/abc/", "GET, HEAD"),
        ] {
            let problem = Route::of(method, path).unwrap_err();
            assert_eq!(problem.status, 405, "{method} {path}");
            assert_eq!(problem.headers, vec![("allow", allow.into())], "{method} {path}");
        }
    }

    #[test]
    fn every_path_of_the_agent_is_internal() {
        let internal = [Route::TakeClicks, Route::FindClicks, Route::Database];
        for path in [
            "/internal/clicks",
            "internal/clicks",
            "/internal/database",
            "/internal/x",
            "/internal/",
        ] {
            assert!(is_internal(path), "{path}");
        }
        for path in [
            "/internal",
            "/internal.",
            "/abc",
            "/api/v1/stats",
            "//internal/clicks",
            "/Internal/clicks",
        ] {
            assert!(!is_internal(path), "{path}");
            for method in ["GET", "POST"] {
                let route = Route::of(method, path);
                assert!(!route.is_ok_and(|route| internal.contains(&route)), "{method} {path}");
            }
        }
    }

    #[test]
    fn knows_no_other_path() {
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
            "/api/v1/links//stats",
            "/api/v1/links/a/b/stats",
            "/internal/",
            "/internal/clicks/",
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
