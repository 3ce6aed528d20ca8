//! Finds the component that answers a path, by Spin's rules.
//!
//! A route is a list of segments, each a literal or a parameter (`:name`). It may end with `/...`, which matches any rest.
//! Slashes at either end are ignored. If several routes match, the first segment in which they differ decides: a literal
//! precedes a parameter, and a parameter precedes `...`. So the longest prefix wins.

use std::borrow::Cow;
use std::cmp::Ordering;

use anyhow::{Result, bail};

/// The prefix of the paths that the runtime answers itself.
pub const WELL_KNOWN: &str = "/.well-known/spin/";

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The route as written in spin.toml.
    pub raw: String,
    segments: Vec<Segment>,
    wildcard: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Segment {
    Literal(String),
    Parameter(String),
}

/// A path that a route has matched.
#[derive(Debug, PartialEq)]
pub struct Match<'a> {
    pub route: &'a Route,
    /// The part that `...` matched, with its leading slash. Empty for an exact route.
    pub rest: Cow<'a, str>,
    /// The name and value of each parameter.
    pub parameters: Vec<(&'a str, &'a str)>,
}

impl Route {
    /// # Errors
    /// The route can never match, or Spin would interpret it differently.
    pub fn parse(raw: &str) -> Result<Self> {
        if !raw.starts_with('/') {
            bail!("the route {raw:?} must start with a slash");
        }
        let (path, wildcard) = match raw.strip_suffix("/...").or_else(|| raw.strip_suffix("/*")) {
            Some(prefix) => (prefix, true),
            None => (raw, false),
        };
        let mut segments = Vec::new();
        for segment in split(path) {
            match segment.strip_prefix(':') {
                Some("") => bail!("the route {raw:?} has a parameter without a name"),
                Some(name) => segments.push(Segment::Parameter(name.to_owned())),
                None if segment == "..." || segment == "*" => {
                    bail!("the route {raw:?} has {segment:?} in the middle; it may only come last")
                }
                None => segments.push(Segment::Literal(segment.to_owned())),
            }
        }
        Ok(Self {
            raw: raw.to_owned(),
            segments,
            wildcard,
        })
    }

    /// The route without its trailing `/...`.
    pub fn prefix(&self) -> &str {
        self.raw.strip_suffix("/...").unwrap_or(&self.raw)
    }

    /// Whether the route ends with `...`.
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    fn matches<'a>(&'a self, path: &'a str) -> Option<Match<'a>> {
        let mut parameters = Vec::new();
        let trimmed = path.trim_matches('/');
        // The segments that are not matched yet, if any.
        let mut left = (!trimmed.is_empty()).then_some(trimmed);
        for segment in &self.segments {
            let path = left?;
            let (part, after) = path
                .split_once('/')
                .map_or((path, None), |(part, after)| (part, Some(after)));
            match segment {
                Segment::Literal(literal) if literal == part => {}
                Segment::Parameter(name) if !part.is_empty() => parameters.push((name.as_str(), part)),
                _ => return None,
            }
            left = after;
        }
        let rest = match left {
            _ if self.wildcard => rest(path, left),
            Some(_) => return None,
            None => Cow::Borrowed(""),
        };
        Some(Match {
            route: self,
            rest,
            parameters,
        })
    }

    /// Orders the more exact route first.
    fn exactness(&self, other: &Self) -> Ordering {
        let rank = |route: &Self, at: usize| match route.segments.get(at) {
            Some(Segment::Literal(_)) => 0,
            Some(Segment::Parameter(_)) => 1,
            None if route.wildcard => 3,
            None => 2,
        };
        let longest = self.segments.len().max(other.segments.len());
        (0..=longest)
            .map(|at| rank(self, at).cmp(&rank(other, at)))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }
}

/// The last segments of a path, `left`, with the slash before them. Like Spin, keeps a slash at the end of the path, but only
/// one.
fn rest<'a>(path: &'a str, left: Option<&str>) -> Cow<'a, str> {
    let end = path.trim_end_matches('/').len();
    let path = &path[..path.len().min(end + 1)];
    let start = end - left.map_or(0, str::len);
    match (left, start.checked_sub(1)) {
        (None, _) => Cow::Borrowed(&path[end..]),
        (Some(_), Some(slash)) => Cow::Borrowed(&path[slash..]),
        // Only the path of `OPTIONS *` does not start with a slash.
        (Some(_), None) => Cow::Owned(format!("/{path}")),
    }
}

/// The segments of a path; none for `/`.
fn split(path: &str) -> impl Iterator<Item = &str> {
    let trimmed = path.trim_matches('/');
    let empty = trimmed.is_empty();
    trimmed.split('/').filter(move |_| !empty)
}

/// Routes and their targets.
#[derive(Debug)]
pub struct Router<T> {
    routes: Vec<(Route, T)>,
}

impl<T> Router<T> {
    /// # Errors
    /// Two routes match the same paths.
    pub fn new(mut routes: Vec<(Route, T)>) -> Result<Self> {
        routes.sort_by(|(one, _), (other, _)| one.exactness(other));
        for (at, (route, _)) in routes.iter().enumerate() {
            if let Some((twin, _)) = routes[..at].iter().find(|(twin, _)| twin.shape() == route.shape()) {
                bail!(
                    "the routes {:?} and {:?} match the same paths: remove one",
                    twin.raw,
                    route.raw
                );
            }
        }
        Ok(Self { routes })
    }

    pub fn find<'a>(&'a self, path: &'a str) -> Option<(Match<'a>, &'a T)> {
        self.routes
            .iter()
            .find_map(|(route, target)| Some((route.matches(path)?, target)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &(Route, T)> {
        self.routes.iter()
    }
}

impl Route {
    /// What the route matches, regardless of the names of parameters. Equal for routes that match the same paths.
    fn shape(&self) -> (Vec<Option<&str>>, bool) {
        let segments = self.segments.iter().map(|segment| match segment {
            Segment::Literal(literal) => Some(literal.as_str()),
            Segment::Parameter(_) => None,
        });
        (segments.collect(), self.wildcard)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    fn router(routes: &[&str]) -> Router<String> {
        let routes = routes
            .iter()
            .map(|raw| (Route::parse(raw).unwrap(), (*raw).to_owned()))
            .collect();
        Router::new(routes).unwrap()
    }

    fn goes_to(routes: &[&str], path: &str) -> Option<String> {
        router(routes).find(path).map(|(_, target)| target.clone())
    }

    #[test]
    fn the_longest_prefix_wins() {
        let routes = ["/...", "/api/...", "/api/v1/...", "/api/v1", "/api/:version/health"];
        assert_eq!(goes_to(&routes, "/"), Some("/...".into()));
        assert_eq!(goes_to(&routes, "/abc"), Some("/...".into()));
        assert_eq!(goes_to(&routes, "/api"), Some("/api/...".into()));
        assert_eq!(goes_to(&routes, "/api/x/y"), Some("/api/...".into()));
        assert_eq!(goes_to(&routes, "/api/v1"), Some("/api/v1".into()));
        assert_eq!(goes_to(&routes, "/api/v1/x"), Some("/api/v1/...".into()));
        assert_eq!(goes_to(&routes, "/api/v2/health"), Some("/api/:version/health".into()));
        assert_eq!(goes_to(&routes, "/apix"), Some("/...".into()));
    }

    #[test]
    fn an_exact_route_matches_nothing_below_it() {
        assert_eq!(goes_to(&["/health"], "/health"), Some("/health".into()));
        assert_eq!(goes_to(&["/health"], "/health/"), Some("/health".into()));
        assert_eq!(goes_to(&["/health"], "/health/x"), None);
        assert_eq!(goes_to(&["/health"], "/"), None);
        assert_eq!(goes_to(&["/"], "/"), Some("/".into()));
        assert_eq!(goes_to(&["/"], "/x"), None);
    }

    #[test]
    fn the_rest_keeps_its_slashes() {
        for (path, rest) in [
            ("/foo", ""),
            ("/foo/", "/"),
            ("/foo/bar", "/bar"),
            ("/foo/bar/", "/bar/"),
            ("/foo/bar/baz", "/bar/baz"),
            ("//foo//bar//", "//bar/"),
            ("/foo///", "/"),
        ] {
            let router = router(&["/foo/..."]);
            assert_eq!(router.find(path).unwrap().0.rest, rest, "{path}");
        }
        for (path, rest) in [
            ("/", "/"),
            ("//", "/"),
            ("/foo", "/foo"),
            ("//foo/", "/foo/"),
            ("*", "/*"),
            ("", ""),
        ] {
            assert_eq!(router(&["/..."]).find(path).unwrap().0.rest, rest, "{path}");
        }
        assert_eq!(router(&["/foo"]).find("/foo").unwrap().0.rest, "");
    }

    #[test]
    fn parameters_have_names_and_values() {
        let router = router(&["/users/:id/..."]);
        let (matched, _) = router.find("/users/7/posts").unwrap();
        assert_eq!(matched.parameters, [("id", "7")]);
        assert_eq!(matched.rest, "/posts");
        assert_eq!(matched.route.prefix(), "/users/:id");
    }

    #[test]
    fn duplicate_and_invalid_routes_are_refused() {
        let twins = ["/a/:x", "/a/:y"].map(|raw| (Route::parse(raw).unwrap(), ()));
        assert!(Router::new(twins.into()).unwrap_err().to_string().contains("/a/:y"));
        assert!(Route::parse("health").is_err());
        assert!(Route::parse("/a/.../b").is_err());
        assert!(Route::parse("/a/:").is_err());
    }
}
