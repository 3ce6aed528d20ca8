//! A server with the interface of S3 (Amazon S3 API Reference), and a bucket on it.

use std::time::Duration;

use anyhow::Context as _;
use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

use links_config::backup::{Object, Problem, S3Location, Settings};
use links_http::{Client, Limits, Request, Response};

/// How long a request may take. The whole request is a part of an object at most.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    silence: Duration::from_secs(60),
    whole: Duration::from_secs(15 * 60),
};
/// How long a signature is valid, which begins right before its request.
const SIGNATURE: Duration = Duration::from_secs(3600);
/// The pauses before a request is repeated because there was no answer, or one that blames the server.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(8),
];
/// How much of a server's explanation is shown.
const EXPLANATION: usize = 300;

#[derive(Debug)]
pub struct Server {
    client: Client,
    pub bucket: Bucket,
    pub credentials: Credentials,
    /// The host, for messages.
    name: String,
    pauses: &'static [Duration],
}

impl Server {
    /// # Errors
    /// The endpoint is not one.
    pub fn new(settings: &Settings, bucket: &str, credentials: Credentials) -> anyhow::Result<Self> {
        let region = &settings.s3_region;
        let (endpoint, style) = match &settings.s3_endpoint {
            // Names of buckets below their host need a certificate and a DNS entry for each.
            Some(endpoint) => (endpoint.clone(), UrlStyle::Path),
            // A certificate for `*.s3...` does not cover a bucket with a dot in its name.
            None => {
                let style = if bucket.contains('.') {
                    UrlStyle::Path
                } else {
                    UrlStyle::VirtualHost
                };
                (format!("https://s3.{region}.amazonaws.com"), style)
            }
        };
        let url = endpoint.parse().with_context(|| format!("Parsing {endpoint}"))?;
        let bucket = Bucket::new(url, style, bucket.to_owned(), region.clone())
            .with_context(|| format!("The endpoint {endpoint}"))?;
        let name = bucket.base_url().host_str().unwrap_or_default().to_owned();
        Ok(Self {
            client: Client::with(LIMITS),
            bucket,
            credentials,
            name,
            pauses: &PAUSES,
        })
    }

    /// Sends a request, repeatedly if necessary, and returns a response that the server does not blame itself for.
    ///
    /// # Errors
    /// The server does not answer, or it fails each time.
    pub fn ask<'a>(
        &self,
        action: &impl S3Action<'a>,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> anyhow::Result<Response> {
        let method = method_of(action);
        let mut pauses = self.pauses.iter();
        loop {
            let url = action.sign(SIGNATURE);
            let request = Request {
                method,
                url: url.as_str(),
                headers,
                body,
            };
            let failure = match self.client.send(&request) {
                Ok(response) if is_its_own_fault(response.status) => self.refusal(&response),
                Ok(response) => return Ok(response),
                Err(why) => Problem::Unreachable.error(format!("{} does not answer: {why}", self.name)),
            };
            match pauses.next() {
                Some(pause) => std::thread::sleep(*pause),
                None => return Err(failure),
            }
        }
    }

    /// Like [`Self::ask`], for a response that reports success.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub fn demand<'a>(
        &self,
        action: &impl S3Action<'a>,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> anyhow::Result<Response> {
        let response = self.ask(action, headers, body)?;
        match response.status {
            200..300 => Ok(response),
            _ => Err(self.refusal(&response)),
        }
    }

    /// An error for a response that does not report success.
    fn refusal(&self, response: &Response) -> anyhow::Error {
        let text = response.text();
        let code = element(&text, "Code");
        let problem = match (response.status, code.as_deref()) {
            (_, Some("NoSuchKey" | "NoSuchBucket" | "NoSuchUpload")) | (404, _) => Problem::Missing,
            (status, _) if is_its_own_fault(status) => Problem::Unreachable,
            _ => Problem::Refused,
        };
        let why = match (code, element(&text, "Message")) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code,
            // The response to HEAD has no body.
            _ => match response.status {
                403 => "the key may not do this, or the secret is wrong".to_owned(),
                404 => "there is no such bucket or object".to_owned(),
                _ => "without a reason".to_owned(),
            },
        };
        problem.error(format!("{} answers with status {}: {why}", self.name, response.status))
    }

    /// The size and the tag of an object. `None` if there is no such object.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub fn head(&self, key: &str) -> anyhow::Result<Option<(u64, Option<String>)>> {
        let action = self.bucket.head_object(Some(&self.credentials), key);
        let response = self.ask(&action, &[], None)?;
        if response.status == 404 {
            return Ok(None);
        }
        if response.status != 200 {
            return Err(self.refusal(&response));
        }
        let length = response.header("content-length").and_then(|length| length.parse().ok());
        let length = length.with_context(|| format!("{} does not tell the size of {key}", self.name))?;
        Ok(Some((length, response.header("etag").map(str::to_owned))))
    }

    /// The objects right below a prefix.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub fn list(&self, location: &S3Location) -> anyhow::Result<Vec<Object>> {
        let mut objects = vec![];
        let mut continuation: Option<String> = None;
        let prefix = match location.key.as_str() {
            "" => String::new(),
            key => format!("{key}/"),
        };
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
            action.with_prefix(&*prefix);
            action.with_delimiter("/");
            if let Some(token) = &continuation {
                action.with_continuation_token(&**token);
            }
            let response = self.demand(&action, &[], None)?;
            let page = ListObjectsV2::parse_response(&response.text())
                .map_err(|error| anyhow::anyhow!("{} answers a list that cannot be parsed: {error}", self.name))?;
            objects.extend(page.contents.into_iter().filter_map(|content| {
                Some(Object {
                    name: location
                        .name_of(&content.key)
                        .filter(|name| !name.is_empty())?
                        .to_owned(),
                    bytes: content.size?,
                })
            }));
            continuation = page.next_continuation_token;
            if continuation.is_none() {
                return Ok(objects);
            }
        }
    }

    /// Removes an object. One that is missing is no error.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub fn remove(&self, key: &str) -> anyhow::Result<()> {
        let action = self.bucket.delete_object(Some(&self.credentials), key);
        self.demand(&action, &[], None).map(drop)
    }

    /// Ends an upload, whose parts are then removed. One that the server does not know is no error.
    ///
    /// # Errors
    /// The server does not answer, or refuses.
    pub fn abort(&self, key: &str, upload: &str) -> anyhow::Result<()> {
        let action = self.bucket.abort_multipart_upload(Some(&self.credentials), key, upload);
        let response = self.ask(&action, &[], None)?;
        match response.status {
            200..300 | 404 => Ok(()),
            _ => Err(self.refusal(&response)),
        }
    }
}

fn method_of<'a, A: S3Action<'a>>(_: &A) -> &'static str {
    A::METHOD.to_str()
}

/// Whether a request with this status may succeed later: a fault of the server, or too many requests.
fn is_its_own_fault(status: u16) -> bool {
    status >= 500 || status == 429
}

/// The text of the first element of this name in a small XML document (S3 API Reference, "Error responses").
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    // It is shown on a terminal.
    Some(text.chars().filter(|c| !c.is_control()).take(EXPLANATION).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use links_base::testing;

    /// Requests, each as its method and path.
    pub type Asked = Arc<Mutex<Vec<String>>>;

    /// A bucket on a server that answers with this function.
    pub fn server<A: Into<testing::Response>>(
        mut answer: impl FnMut(&testing::Request) -> A + Send + 'static,
    ) -> (Server, Asked) {
        let asked = Asked::default();
        let seen = Arc::clone(&asked);
        let running = testing::Server::start(move |request| {
            let path = request.path.split('?').next().unwrap_or_default();
            seen.lock().unwrap().push(format!("{} {path}", request.method));
            answer(request)
        });
        let settings = Settings {
            s3_endpoint: Some(running.url("")),
            ..Settings::default()
        };
        let server = Server::new(&settings, "backups", Credentials::new("id", "HUSH")).unwrap();
        let pauses: &[Duration] = &[Duration::ZERO; 3];
        (Server { pauses, ..server }, asked)
    }

    fn error(status: u16, code: &str) -> (u16, String) {
        (
            status,
            format!("<Error><Code>{code}</Code><Message>a\u{7}b</Message></Error>"),
        )
    }

    #[test]
    fn a_fault_of_the_server_is_waited_for_and_a_refusal_is_not() {
        let mut left = 2;
        let (failing, asked) = server(move |_| {
            left -= 1;
            if left >= 0 {
                error(503, "SlowDown")
            } else {
                (200, String::new())
            }
        });
        failing.remove("a").unwrap();
        assert_eq!(*asked.lock().unwrap(), ["DELETE /backups/a"; 3]);

        for (status, code, problem, attempts) in [
            (403, "AccessDenied", Problem::Refused, 1),
            (404, "NoSuchBucket", Problem::Missing, 1),
            (500, "InternalError", Problem::Unreachable, 4),
        ] {
            let (refusing, asked) = server(move |_| error(status, code));
            let failure = refusing.remove("a").unwrap_err();
            assert_eq!(Problem::of(&failure), problem);
            let text = format!("{failure:#}");
            assert!(
                text.contains(code) && text.contains("ab") && !text.contains("HUSH"),
                "{text}"
            );
            assert_eq!(asked.lock().unwrap().len(), attempts);
        }
    }

    #[test]
    fn a_server_that_is_away_is_unreachable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let settings = Settings {
            s3_endpoint: Some(endpoint),
            ..Settings::default()
        };
        let gone = Server::new(&settings, "backups", Credentials::new("id", "HUSH")).unwrap();
        let gone = Server { pauses: &[], ..gone };
        assert_eq!(Problem::of(&gone.head("a").unwrap_err()), Problem::Unreachable);
    }

    #[test]
    fn a_list_comes_in_pages_and_has_only_what_is_right_below_the_prefix() {
        let page = |key: &str, next: &str| {
            format!(
                "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <EncodingType>url</EncodingType><Contents><Key>{key}</Key><Size>7</Size></Contents>{next}</ListBucketResult>"
            )
        };
        let (listing, _) = server(move |request| {
            let is_second = request.path.contains("continuation-token=t");
            let next = "<NextContinuationToken>t</NextContinuationToken><IsTruncated>true</IsTruncated>";
            let body = if is_second {
                page("vm%2Fb", "")
            } else {
                page("vm%2Fa", next)
            };
            (200, body)
        });
        let found = listing.list(&"s3://backups/vm".parse().unwrap()).unwrap();
        let names: Vec<_> = found.iter().map(|object| object.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(found[0].bytes, 7);
    }

    #[test]
    fn buckets_of_amazon_are_named_in_the_host() {
        let host = |bucket: &str, endpoint: Option<&str>| {
            let settings = Settings {
                s3_endpoint: endpoint.map(str::to_owned),
                s3_region: "eu-central-1".to_owned(),
                ..Settings::default()
            };
            let server = Server::new(&settings, bucket, Credentials::new("id", "HUSH")).unwrap();
            server.bucket.object_url("k").to_string()
        };
        assert_eq!(host("backups", None), "https://backups.s3.eu-central-1.amazonaws.com/k");
        assert_eq!(
            host("back.ups", None),
            "https://s3.eu-central-1.amazonaws.com/back.ups/k"
        );
        assert_eq!(
            host("backups", Some("https://x.example")),
            "https://x.example/backups/k"
        );
    }
}
