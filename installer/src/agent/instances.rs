//! Asking the component itself, below /internal, which nginx refuses: it has the database, and its credential.

use std::cell::Cell;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::config::load::load_links;
use crate::layout::{self, Layout};
use crate::rollout::snapshot;
use crate::{health, rotation};

/// For a whole request. An instance gives its database 14 seconds.
const TIMEOUT: Duration = Duration::from_secs(20);
/// More than this of an answer is not read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// The instances in rotation, on this host's loopback.
#[derive(Debug)]
pub struct Instances {
    layout: Layout,
    agent: Agent,
    /// The one that answered last.
    last: Cell<u16>,
}

impl Instances {
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            agent: health::client(TIMEOUT),
            last: Cell::new(0),
        }
    }

    /// Whether there is one to ask.
    pub fn is_any_ready(&self) -> bool {
        rotation::ready_instances(&self.layout).is_ok_and(|ready| !ready.is_empty())
    }

    /// One after the other, until one answers. `call` is given the address of `path` at an instance.
    ///
    /// # Errors
    /// None did: why the last one did not, in words.
    pub fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        call: impl Fn(&Agent, &str) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<T, String> {
        let mut ready = rotation::ready_instances(&self.layout).map_err(|error| format!("the ready flags: {error}"))?;
        ready.sort_by_key(|instance| *instance != self.last.get());
        let mut why = "no instance is ready".to_owned();
        for instance in ready {
            let (applied, _) = snapshot::of_instance(&self.layout, instance);
            let Ok(config) = load_links(&applied) else {
                why = format!("instance {instance}: its links.toml is wrong");
                continue;
            };
            let address = layout::instance_address(config.base_port, instance);
            let answer = call(&self.agent, &format!("http://{address}{path}"));
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
}

fn read<T: DeserializeOwned>(mut response: Response<Body>) -> Result<T, String> {
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(LONGEST).read_to_string();
    let body = body.map_err(|error| error.to_string())?;
    if status != 200 {
        let problem = serde_json::from_str::<serde_json::Value>(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or_default();
        return Err(match status {
            404 | 405 => "its release does not know the question".to_owned(),
            status => format!("status {status} {detail}"),
        });
    }
    serde_json::from_str(&body).map_err(|error| format!("not an answer: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
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
        std::fs::write(layout.links_toml(), format!("base_port = {}\n", port - 1)).unwrap();
        for instance in ready {
            std::fs::write(layout.ready_flag(*instance), b"").unwrap();
        }
        (root, Instances::new(layout))
    }

    fn says(status: u16, body: &'static str) -> impl FnMut(&Request) -> (u16, String) + Send {
        move |_| (status, body.to_owned())
    }

    fn asked(instances: &Instances) -> Result<u64, String> {
        instances.ask("/internal/x", |agent, url| {
            assert!(url.ends_with("/internal/x"), "{url}");
            agent.get(url).header("connection", "close").call()
        })
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
            (404, "", "instance 1: its release does not know the question"),
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
}
