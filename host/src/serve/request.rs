//! A request in the form that components expect: with an absolute URI, and with Spin's headers.

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::uri::{Authority, Parts, Scheme};
use http::{Request, Uri};

use super::route::{Match, Route};

const PATH_INFO: HeaderName = HeaderName::from_static("spin-path-info");
const FULL_URL: HeaderName = HeaderName::from_static("spin-full-url");
const MATCHED_ROUTE: HeaderName = HeaderName::from_static("spin-matched-route");
const BASE_PATH: HeaderName = HeaderName::from_static("spin-base-path");
const RAW_COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-raw-component-route");
const COMPONENT_ROUTE: HeaderName = HeaderName::from_static("spin-component-route");
const CLIENT_ADDR: HeaderName = HeaderName::from_static("spin-client-addr");

/// How many headers every request gets.
const HEADERS: usize = 7;
/// How the URL of every request begins.
const SCHEME: &[u8] = b"http://";

/// The route of a component, as header values.
pub struct RouteHeaders {
    /// The route as written in spin.toml.
    raw: HeaderValue,
    /// The route without its trailing `/...`.
    prefix: HeaderValue,
}

impl RouteHeaders {
    /// # Errors
    /// The route cannot be sent as a header value.
    pub fn new(route: &Route) -> anyhow::Result<Self> {
        Ok(Self {
            raw: HeaderValue::from_str(&route.raw)?,
            prefix: HeaderValue::from_str(route.prefix())?,
        })
    }
}

/// Gives the request the form that components expect: an absolute URI, and Spin's headers. `None` without a valid host.
pub fn prepare<B>(
    mut request: Request<B>,
    matched: &Match<'_>,
    route: &RouteHeaders,
    peer: HeaderValue,
) -> Option<Request<B>> {
    let mut uri = std::mem::take(request.uri_mut()).into_parts();
    let url = FullUrl::new(request.headers().get(HOST), &uri)?;
    let path_info = url.path_info(&matched.rest)?;
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(url.authority);
    *request.uri_mut() = Uri::from_parts(uri).ok()?;

    // These replace any headers of the same name from the client. Both a path and a header value may contain non-ASCII bytes.
    let headers = request.headers_mut();
    headers.reserve(HEADERS + matched.parameters.len());
    headers.insert(PATH_INFO, path_info);
    headers.insert(FULL_URL, HeaderValue::from_maybe_shared(url.text).ok()?);
    headers.insert(MATCHED_ROUTE, route.raw.clone());
    headers.insert(BASE_PATH, HeaderValue::from_static("/"));
    headers.insert(RAW_COMPONENT_ROUTE, route.raw.clone());
    headers.insert(COMPONENT_ROUTE, route.prefix.clone());
    headers.insert(CLIENT_ADDR, peer);
    for (name, value) in &matched.parameters {
        let name = format!("spin-path-match-{}", name.to_ascii_lowercase().replace('_', "-"));
        headers.insert(
            HeaderName::from_bytes(name.as_bytes()).ok()?,
            HeaderValue::from_bytes(value.as_bytes()).ok()?,
        );
    }
    Some(request)
}

/// The absolute URL of a request. The parts of the request that are taken from it share its memory.
struct FullUrl {
    text: Bytes,
    authority: Authority,
    /// Where the path ends in `text`.
    path_end: usize,
}

impl FullUrl {
    /// `None` if no host is requested, or if the URI and the Host header contradict each other.
    fn new(host: Option<&HeaderValue>, uri: &Parts) -> Option<Self> {
        let in_uri = uri.authority.as_ref();
        let authority = match (host, in_uri) {
            (Some(host), _) => host.as_bytes(),
            (None, Some(authority)) => authority.as_str().as_bytes(),
            (None, None) => return None,
        };
        let (path, path_and_query) = uri
            .path_and_query
            .as_ref()
            .map_or(("/", "/"), |path| (path.path(), path.as_str()));
        let text = [SCHEME, authority, path_and_query.as_bytes()].concat();
        let text = Bytes::from(text);
        let path_start = SCHEME.len() + authority.len();
        let authority = Authority::from_maybe_shared(text.slice(SCHEME.len()..path_start)).ok()?;
        in_uri.is_none_or(|in_uri| *in_uri == authority).then_some(Self {
            text,
            authority,
            path_end: path_start + path.len(),
        })
    }

    /// The part of the path that a wildcard matched, which usually is the end of the path.
    fn path_info(&self, rest: &str) -> Option<HeaderValue> {
        let path = self.text.slice(..self.path_end);
        if path.ends_with(rest.as_bytes()) {
            HeaderValue::from_maybe_shared(path.slice(path.len() - rest.len()..)).ok()
        } else {
            HeaderValue::from_bytes(rest.as_bytes()).ok()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::super::route::Router;
    use super::*;

    const PEER: HeaderValue = HeaderValue::from_static("127.0.0.1:4711");

    /// The request that a component with this route gets.
    fn prepared(route: &str, uri: &str, host: Option<&[u8]>) -> Option<Request<()>> {
        let route = Route::parse(route).unwrap();
        let headers = RouteHeaders::new(&route).unwrap();
        let router = Router::new(vec![(route, ())]).unwrap();
        let mut request = Request::get(uri).header(FULL_URL, "forged").body(()).unwrap();
        if let Some(host) = host {
            request
                .headers_mut()
                .insert(HOST, HeaderValue::from_bytes(host).unwrap());
        }
        let path = request.uri().path().to_owned();
        let (matched, ()) = router.find(&path).unwrap();
        prepare(request, &matched, &headers, PEER)
    }

    #[test]
    fn the_uri_is_absolute_and_spins_headers_are_set() {
        let request = prepared("/api/:name_of/...", "/api/X/b//c/?q=1", Some(b"Sho.rt:80")).unwrap();
        assert_eq!(request.uri(), "http://Sho.rt:80/api/X/b//c/?q=1");
        for (name, value) in [
            ("spin-path-info", "/b//c/"),
            ("spin-full-url", "http://Sho.rt:80/api/X/b//c/?q=1"),
            ("spin-matched-route", "/api/:name_of/..."),
            ("spin-base-path", "/"),
            ("spin-raw-component-route", "/api/:name_of/..."),
            ("spin-component-route", "/api/:name_of"),
            ("spin-client-addr", "127.0.0.1:4711"),
            ("spin-path-match-name-of", "X"),
        ] {
            let values: Vec<_> = request.headers().get_all(name).iter().collect();
            assert_eq!(values, [value], "{name}");
        }
    }

    #[test]
    fn the_path_info_is_what_the_wildcard_matched() {
        for (route, path, info) in [
            ("/...", "/abc", "/abc"),
            ("/...", "/abc/?x", "/abc/"),
            ("/...", "/abc//", "/abc/"),
            ("/...", "//abc", "/abc"),
            ("/...", "/", "/"),
            ("/...", "/\u{e4}", "/\u{e4}"),
            ("/abc/...", "/abc", ""),
            ("/abc", "/abc/", ""),
            ("/...", "http://sho.rt", "/"),
            ("/...", "http://sho.rt?x", "/"),
            ("/...", "*", "/*"),
        ] {
            let request = prepared(route, path, Some(b"sho.rt")).unwrap();
            assert_eq!(
                request.headers()[PATH_INFO].as_bytes(),
                info.as_bytes(),
                "{route} {path}"
            );
        }
    }

    #[test]
    fn a_request_needs_one_valid_host() {
        let absolute = prepared("/...", "http://sho.rt/abc", Some(b"SHO.rt")).unwrap();
        assert_eq!(absolute.headers()[FULL_URL], "http://SHO.rt/abc");
        let without_header = prepared("/...", "http://sho.rt/abc", None).unwrap();
        assert_eq!(without_header.headers()[FULL_URL], "http://sho.rt/abc");
        for (uri, host) in [
            ("/abc", None),
            ("/abc", Some(&b""[..])),
            ("/abc", Some(b"a b")),
            ("/abc", Some(b"sho.rt/x")),
            ("/abc", Some(b"\xff")),
            ("http://sho.rt/abc", Some(b"other.example")),
        ] {
            assert!(prepared("/...", uri, host).is_none(), "{uri} {host:?}");
        }
    }
}
