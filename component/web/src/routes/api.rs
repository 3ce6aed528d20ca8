//! The routes of the API.

use links_domain::slug::Slug;

use super::{not_allowed, read_only};
use crate::links::not_found;
use crate::problem::Problem;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `POST /shorten`
    Shorten,
    /// `OPTIONS /shorten`
    Preflight,
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
    /// `POST /internal/clicks`, which like everything below `/internal/` is for the agent
    AddClicks,
    /// `GET` or `HEAD /internal/clicks`
    ClickPosition,
    /// `GET` or `HEAD /internal/database`
    DatabaseSize,
    /// `GET` or `HEAD /internal/sqlite`, the SQLite that the runtime has
    Engine,
}

impl Route {
    /// Finds the route. `path` is as the client sent it, without the query. For a path below `/internal/` the caller has to
    /// check the agent's proof first.
    ///
    /// # Errors
    /// 404, or 405 with `allow`.
    pub fn of(method: &str, path: &str) -> Result<Route, Problem> {
        let path = path.strip_prefix('/').unwrap_or(path);
        match path {
            "shorten" => match method {
                "POST" => Ok(Route::Shorten),
                "OPTIONS" => Ok(Route::Preflight),
                _ => Err(not_allowed("POST, OPTIONS")),
            },
            "api/v1/stats" => read_only(method).map(|()| Route::StatsOfAll),
            "internal/clicks" => match method {
                "POST" => Ok(Route::AddClicks),
                "GET" | "HEAD" => Ok(Route::ClickPosition),
                _ => Err(not_allowed("GET, HEAD, POST")),
            },
            "internal/database" => read_only(method).map(|()| Route::DatabaseSize),
            "internal/sqlite" => read_only(method).map(|()| Route::Engine),
            _ => of_link(method, path.strip_prefix("api/v1/links/").ok_or_else(not_found)?),
        }
    }
}

/// Whether a path is for the agent. Without the agent's proof, each of these is an unknown path.
pub fn is_internal(path: &str) -> bool {
    path.strip_prefix('/').unwrap_or(path).starts_with("internal/")
}

/// The route for `/api/v1/links/` followed by `rest`.
fn of_link(method: &str, rest: &str) -> Result<Route, Problem> {
    let slug = |text| Slug::in_path(text).ok_or_else(not_found);
    if let Some(text) = rest.strip_suffix("/stats") {
        let slug = slug(text)?;
        return read_only(method).map(|()| Route::Stats(slug));
    }
    let slug = slug(rest)?;
    match method {
        "GET" | "HEAD" => Ok(Route::Show(slug)),
        "PATCH" => Ok(Route::Change(slug)),
        "DELETE" => Ok(Route::Remove(slug)),
        _ => Err(not_allowed("GET, HEAD, PATCH, DELETE")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn finds_the_route() {
        let slug = || Slug::in_path("abc").unwrap();
        for (method, path, route) in [
            ("POST", "/shorten", Route::Shorten),
            ("OPTIONS", "/shorten", Route::Preflight),
            ("GET", "/api/v1/stats", Route::StatsOfAll),
            ("GET", "/api/v1/links/abc", Route::Show(slug())),
            ("PATCH", "/api/v1/links/abc", Route::Change(slug())),
            ("DELETE", "/api/v1/links/abc", Route::Remove(slug())),
            ("GET", "/api/v1/links/abc/stats", Route::Stats(slug())),
            ("POST", "/internal/clicks", Route::AddClicks),
            ("GET", "/internal/clicks", Route::ClickPosition),
            ("GET", "/internal/database", Route::DatabaseSize),
            ("GET", "/internal/sqlite", Route::Engine),
        ] {
            assert_eq!(Route::of(method, path), Ok(route), "{method} {path}");
        }
    }

    #[test]
    fn refuses_other_methods_and_names_the_allowed_ones() {
        for (method, path, allow) in [
            ("GET", "/shorten", "POST, OPTIONS"),
            ("DELETE", "/shorten", "POST, OPTIONS"),
            ("POST", "/internal/database", "GET, HEAD"),
            ("POST", "/api/v1/stats", "GET, HEAD"),
            ("DELETE", "/api/v1/links/abc/stats", "GET, HEAD"),
            ("POST", "/api/v1/links/abc", "GET, HEAD, PATCH, DELETE"),
            ("PUT", "/internal/clicks", "GET, HEAD, POST"),
        ] {
            let problem = Route::of(method, path).unwrap_err();
            assert_eq!(problem.status, 405, "{method} {path}");
            assert_eq!(problem.headers, vec![("allow", allow.into())], "{method} {path}");
        }
    }

    #[test]
    fn every_path_of_the_agent_is_internal() {
        let internal = [
            Route::AddClicks,
            Route::ClickPosition,
            Route::DatabaseSize,
            Route::Engine,
        ];
        for path in [
            "/internal/clicks",
            "internal/clicks",
            "/internal/database",
            "/internal/sqlite",
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
    fn other_paths_are_not_found() {
        for path in [
            "",
            "/",
            "/abc",
            "/health",
            "/shorten/",
            "/api",
            "/api/",
            "/api/v1/links//stats",
            "/api/v1/links/a/b/stats",
            "/api/v1/links/a.b",
            "/internal/",
            "/internal/clicks/",
        ] {
            for method in ["GET", "POST", "OPTIONS"] {
                assert_eq!(Route::of(method, path).unwrap_err().status, 404, "{method} {path}");
            }
        }
    }
}
