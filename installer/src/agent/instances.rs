//! Asking the component itself, below /internal, which nginx refuses: it has the database, and its credential.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use nix::unistd::geteuid;
use serde::de::DeserializeOwned;
use ureq::http::{HeaderValue, Response};
use ureq::{Body, RequestBuilder};

use crate::config::load::load_links;
use crate::endpoint::Endpoint;
use crate::layout::Layout;
use crate::rollout::snapshot;
use crate::rotation;
use crate::secrets::AGENT_HEADER;

/// For a whole request. An instance gives its database 14 seconds.
const TIMEOUT: Duration = Duration::from_secs(20);
/// More than this of an answer is not read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    /// With one parameter in the query, or none.
    Get(Option<(&'a str, &'a str)>),
    /// With this JSON.
    Post(&'a [u8]),
}

/// The instances in rotation.
#[derive(Debug)]
pub struct Instances {
    layout: Layout,
    /// The one that answered last.
    last: Cell<u16>,
}

impl Instances {
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            last: Cell::new(0),
        }
    }

    /// Whether there is one to ask.
    pub fn is_any_ready(&self) -> bool {
        rotation::ready_instances(&self.layout).is_ok_and(|ready| !ready.is_empty())
    }

    /// One after the other, until one answers.
    ///
    /// # Errors
    /// None did: why the last one did not, in words.
    pub fn ask<T: DeserializeOwned>(&self, path: &str, question: Question<'_>) -> Result<T, String> {
        let secret = self.secret()?;
        let mut ready = rotation::ready_instances(&self.layout).map_err(|error| format!("the ready flags: {error}"))?;
        ready.sort_by_key(|instance| *instance != self.last.get());
        let mut why = "no instance is ready".to_owned();
        for instance in ready {
            let (applied, _) = snapshot::of_instance(&self.layout, instance);
            let Ok(config) = load_links(&applied) else {
                why = format!("instance {instance}: its links.toml is wrong");
                continue;
            };
            let endpoint = Endpoint::of_running(&self.layout, config.base_port, instance);
            let answer = call(&endpoint, path, question, secret.as_ref());
            match answer.map_err(|error| error.to_string()).and_then(read) {
                Ok(answer) => {
                    self.last.set(instance);
                    return Ok(answer);
                }
                Err(error) => why = format!("instance {instance}: {error}"),
            }
        }
        Err(why)
    }

    /// Read for each question: root makes the file, at a boot or when it is missing.
    fn secret(&self) -> Result<Option<HeaderValue>, String> {
        let path = self.layout.agent_secret();
        let failed = |why: &dyn std::fmt::Display| format!("the agent's secret {}: {why}", path.display());
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let mut secret = HeaderValue::from_str(text.trim()).map_err(|error| failed(&error))?;
        secret.set_sensitive(true);
        Ok(Some(secret))
    }
}

fn call(
    endpoint: &Endpoint,
    path: &str,
    question: Question<'_>,
    secret: Option<&HeaderValue>,
) -> Result<Response<Body>, ureq::Error> {
    // The instances run as the user that the agent has.
    let agent = endpoint.client_for_secrets(TIMEOUT, geteuid());
    let url = endpoint.url(path);
    match question {
        Question::Get(query) => with_secret(agent.get(url), secret).query_pairs(query).call(),
        Question::Post(body) => {
            let request = with_secret(agent.post(url), secret);
            request.header("content-type", "application/json").send(body)
        }
    }
}

/// A kept connection would count as traffic while the instance drains.
fn with_secret<T>(request: RequestBuilder<T>, secret: Option<&HeaderValue>) -> RequestBuilder<T> {
    let request = request.header("connection", "close");
    match secret {
        Some(secret) => request.header(AGENT_HEADER, secret),
        None => request,
    }
}

fn read<T: DeserializeOwned>(mut response: Response<Body>) -> Result<T, String> {
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(LONGEST).read_to_string();
    let body = body.map_err(|error| error.to_string())?;
    if status != 200 {
        let problem = serde_json::from_str::<serde_json::Value>(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or_default();
        return Err(match status {
            404 => "status 404: its release does not know the question, or it was started with another secret than \
                    the agent has now; it is asked again"
                .to_owned(),
            405 => "status 405: its release does not know the question".to_owned(),
            status => format!("status {status} {detail}"),
        });
    }
    serde_json::from_str(&body).map_err(|error| format!("not an answer: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::layout::temporary;
    use crate::testing::{Request, Server};

    /// A host whose instance 1 answers like this; 2 is nobody.
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

    fn says(status: u16, body: &'static str) -> impl FnMut(&Request) -> (u16, String) + Send {
        move |_| (status, body.to_owned())
    }

    fn asked(instances: &Instances) -> Result<u64, String> {
        instances.ask("/internal/x", Question::Get(None))
    }

    #[test]
    fn the_first_that_answers_is_asked_first_from_then_on() {
        let (_root, instances) = host(&[1, 2], says(200, "7"));
        instances.last.set(2);
        assert!(instances.is_any_ready());
        assert_eq!((asked(&instances), instances.last.get()), (Ok(7), 1));
    }

    #[test]
    fn without_an_answer_the_reason_is_told() {
        let (_root, instances) = host(&[], says(200, "7"));
        assert!(!instances.is_any_ready());
        assert_eq!(asked(&instances), Err("no instance is ready".to_owned()));
        for (status, body, why) in [
            (
                404,
                "",
                "instance 1: status 404: its release does not know the question, or it was started with another secret \
                 than the agent has now; it is asked again",
            ),
            (503, "{\"detail\":\"Full.\"}", "instance 1: status 503 Full."),
        ] {
            let (_root, instances) = host(&[1], says(status, body));
            assert_eq!(asked(&instances), Err(why.to_owned()));
        }
        let (_root, instances) = host(&[1], says(200, "seven"));
        assert!(
            asked(&instances)
                .unwrap_err()
                .starts_with("instance 1: not an answer: ")
        );
    }

    /// Secrets are missing until root has made them, and an instance knows those that it was started with.
    #[test]
    fn each_question_carries_the_secret_that_is_there_by_then() {
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
        assert!(asked(&instances).unwrap_err().contains("another secret"));
        fs::create_dir_all(layout.secrets_dir()).unwrap();
        for (secret, outcome) in [("0ld\n", None), ("5ec2e7\n", Some(7))] {
            fs::write(layout.agent_secret(), secret).unwrap();
            assert_eq!(asked(&instances).ok(), outcome, "{secret}");
        }
        let sent = [None, Some("0ld".to_owned()), Some("5ec2e7".to_owned())];
        assert_eq!(*seen.lock().unwrap(), sent);
        fs::write(layout.agent_secret(), "two\nlines").unwrap();
        assert!(asked(&instances).unwrap_err().contains("secrets/agent"));
    }
}
