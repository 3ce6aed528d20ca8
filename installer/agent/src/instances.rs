//! Requests to the component's own endpoints under `/internal`, which nginx does not pass on. Only the component has access to
//! the database.

use std::cell::Cell;
use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::geteuid;
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use links_base::endpoint::Endpoint;
use links_base::http::{Method, Request, Response};
use links_base::layout::Layout;
use links_base::rotation;
use links_base::secrets::AGENT_HEADER;
use links_config::load::load_links;
use links_release::Snapshots;

/// How long a whole request may take. An instance gives its database 14 seconds.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The maximum size of a response that is read, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// A request to an instance.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    /// A `GET`, with at most one query parameter.
    Get(Option<(&'a str, &'a str)>),
    /// A `POST` with a JSON body.
    Post(&'a [u8]),
}

/// The instances in rotation.
#[derive(Debug)]
pub struct Instances {
    layout: Layout,
    /// The instance that answered last.
    last: Cell<u16>,
}

impl Instances {
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            last: Cell::new(0),
        }
    }

    /// Whether any instance is ready to be asked.
    pub fn is_any_ready(&self) -> bool {
        rotation::ready_instances(&self.layout.ready_dir()).is_ok_and(|ready| !ready.is_empty())
    }

    /// Asks the ready instances one after the other until one answers, beginning with the one that answered last.
    ///
    /// # Errors
    /// Fails if no instance answers. The message gives the reason of the last one.
    pub fn ask<T: DeserializeOwned>(&self, path: &str, question: Question<'_>) -> Result<T, String> {
        let secret = self.secret()?;
        let mut ready =
            rotation::ready_instances(&self.layout.ready_dir()).map_err(|error| format!("the ready flags: {error}"))?;
        ready.sort_by_key(|instance| *instance != self.last.get());
        let snapshots = Snapshots::new(&self.layout);
        let mut why = "no instance is ready".to_owned();
        for instance in ready {
            let (applied, _) = snapshots.of_instance(instance);
            let Ok(config) = load_links(&applied) else {
                why = format!("instance {instance}: its links.toml is invalid");
                continue;
            };
            let endpoint = Endpoint::of_running(&self.layout.sockets_dir(), config.base_port, instance);
            let answer = call(&endpoint, path, question, secret.as_deref());
            match answer
                .map_err(|error| error.to_string())
                .and_then(|response| read(&response))
            {
                Ok(answer) => {
                    self.last.set(instance);
                    return Ok(answer);
                }
                Err(error) => why = format!("instance {instance}: {error}"),
            }
        }
        Err(why)
    }

    /// The agent's secret. The file is read for each request, because root creates it at boot or when it is missing.
    fn secret(&self) -> Result<Option<String>, String> {
        let path = self.layout.agent_secret();
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().contains(|c: char| !c.is_ascii_graphic()) => Err(format!(
                "the agent's secret {}: it is not a header value",
                path.display()
            )),
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("the agent's secret {}: {error}", path.display())),
        }
    }
}

fn call(endpoint: &Endpoint, path: &str, question: Question<'_>, secret: Option<&str>) -> io::Result<Response> {
    let headers: Vec<_> = secret.map(|secret| (AGENT_HEADER, secret)).into_iter().collect();
    let (method, query) = match question {
        Question::Get(query) => (Method::Get, query),
        Question::Post(body) => (Method::Post(body), None),
    };
    let path = match query {
        Some((name, value)) => {
            let with_mark = format!("{path}?");
            let start = with_mark.len();
            let mut query = form_urlencoded::Serializer::for_suffix(with_mark, start);
            query.append_pair(name, value);
            query.finish()
        }
        None => path.to_owned(),
    };
    let request = Request {
        method,
        headers: &headers,
        limit: MAX_RESPONSE,
        ..Request::get(&path)
    };
    // The instances run as the same user as the agent.
    endpoint.send_secret(&request, TIMEOUT, geteuid())
}

fn read<T: DeserializeOwned>(response: &Response) -> Result<T, String> {
    if response.status != 200 {
        let problem = serde_json::from_str::<serde_json::Value>(&response.body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or_default();
        return Err(match response.status {
            404 => {
                "status 404: its release does not support this request, or it was started with another secret than the \
                    agent has now; the agent will retry"
                    .to_owned()
            }
            405 => "status 405: its release does not support this request".to_owned(),
            status => format!("status {status} {detail}"),
        });
    }
    serde_json::from_str(&response.body).map_err(|error| format!("invalid response: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use links_base::layout::temporary;
    use links_base::testing::{Request, Server};

    /// A host whose instance 1 answers with `answer`. Instance 2 does not exist.
    pub fn host(
        ready: &[u16],
        answer: impl FnMut(&Request) -> (u16, String) + Send + 'static,
    ) -> (tempfile::TempDir, Instances) {
        let (root, layout) = temporary(&[Layout::config_dir, Layout::ready_dir]);
        let server = Server::start(answer);
        let url = server.url("");
        let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
        fs::write(layout.links_toml(), format!("base_port = {}\n", port - 1)).unwrap();
        for instance in ready {
            fs::write(layout.ready_flag(*instance), b"").unwrap();
        }
        (root, Instances::new(layout))
    }

    fn answers(status: u16, body: &'static str) -> impl FnMut(&Request) -> (u16, String) + Send {
        move |_| (status, body.to_owned())
    }

    fn ask(instances: &Instances) -> Result<u64, String> {
        instances.ask("/internal/x", Question::Get(None))
    }

    #[test]
    fn the_instance_that_answered_is_asked_first_next_time() {
        let (_root, instances) = host(&[1, 2], answers(200, "7"));
        instances.last.set(2);
        assert!(instances.is_any_ready());
        assert_eq!((ask(&instances), instances.last.get()), (Ok(7), 1));
    }

    #[test]
    fn without_an_answer_the_error_gives_the_reason() {
        let (_root, instances) = host(&[], answers(200, "7"));
        assert!(!instances.is_any_ready());
        assert_eq!(ask(&instances), Err("no instance is ready".to_owned()));
        for (status, body, why) in [
            (
                404,
                "",
                "instance 1: status 404: its release does not support this request, or it was started with another secret \
                 than the agent has now; the agent will retry",
            ),
            (503, "{\"detail\":\"Full.\"}", "instance 1: status 503 Full."),
        ] {
            let (_root, instances) = host(&[1], answers(status, body));
            assert_eq!(ask(&instances), Err(why.to_owned()));
        }
        let (_root, instances) = host(&[1], answers(200, "seven"));
        assert!(
            ask(&instances)
                .unwrap_err()
                .starts_with("instance 1: invalid response: ")
        );
    }

    /// The secret is missing until root has created it. An instance knows the secret that it was started with.
    #[test]
    fn each_request_carries_the_current_secret() {
        let seen = Arc::new(Mutex::new(vec![]));
        let headers = Arc::clone(&seen);
        let (root, instances) = host(&[1], move |request| {
            let secret = request.header(AGENT_HEADER).map(str::to_owned);
            let is_right = secret.as_deref() == Some("5ec2e7");
            headers.lock().unwrap().push(secret);
            if is_right {
                (200, "7".to_owned())
            } else {
                (404, String::new())
            }
        });
        let layout = Layout::new(root.path());
        assert!(ask(&instances).unwrap_err().contains("another secret"));
        fs::create_dir_all(layout.secrets_dir()).unwrap();
        for (secret, outcome) in [("0ld\n", None), ("5ec2e7\n", Some(7))] {
            fs::write(layout.agent_secret(), secret).unwrap();
            assert_eq!(ask(&instances).ok(), outcome, "{secret}");
        }
        let sent = [None, Some("0ld".to_owned()), Some("5ec2e7".to_owned())];
        assert_eq!(*seen.lock().unwrap(), sent);
        fs::write(layout.agent_secret(), "two\nlines").unwrap();
        assert!(ask(&instances).unwrap_err().contains("secrets/agent"));
    }
}
