//! Where batches go: to the component, which has the database.

use std::cell::Cell;
use std::time::Duration;

use links_core::clicks::{Batch, Position};
use ureq::Agent;

use crate::config::load::load_links;
use crate::layout::{self, Layout};
use crate::rollout::snapshot;
use crate::rotation;

/// For a whole request. An instance gives its database 14 seconds.
const TIMEOUT: Duration = Duration::from_secs(20);
/// More than this of an answer is not read, in bytes.
const LONGEST: u64 = 64 * 1024;
const PATH: &str = "/internal/clicks";

pub trait Desk {
    /// Up to where the journal is counted.
    ///
    /// # Errors
    /// Nobody says so; in words.
    fn position(&self, journal: &str) -> Result<Position, String>;

    /// The same, after the batch was taken or was not.
    ///
    /// # Errors
    /// As above. It may have been taken.
    fn send(&self, batch: &Batch) -> Result<Position, String>;
}

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
        let config = Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            // A connection that is kept would count as traffic while the instance drains.
            .max_idle_connections(0)
            // The environment's proxy is for other hosts.
            .proxy(None)
            .build();
        Self {
            layout,
            agent: config.into(),
            last: Cell::new(0),
        }
    }

    /// One after the other, until one answers.
    fn ask(
        &self,
        call: impl Fn(&Agent, &str) -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Position, String> {
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
            let answer = call(&self.agent, &format!("http://{address}{PATH}"));
            match answer.map_err(|error| error.to_string()).and_then(position_of) {
                Ok(position) => {
                    self.last.set(instance);
                    return Ok(position);
                }
                Err(error) => why = format!("instance {instance}: {error}"),
            }
        }
        Err(why)
    }
}

impl Desk for Instances {
    fn position(&self, journal: &str) -> Result<Position, String> {
        self.ask(|agent, url| {
            let request = agent.get(url).query("journal", journal);
            request.header("connection", "close").call()
        })
    }

    fn send(&self, batch: &Batch) -> Result<Position, String> {
        let body = serde_json::to_vec(batch).map_err(|error| error.to_string())?;
        self.ask(|agent, url| {
            let request = agent.post(url).header("content-type", "application/json");
            request.header("connection", "close").send(&body)
        })
    }
}

fn position_of(mut response: ureq::http::Response<ureq::Body>) -> Result<Position, String> {
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(LONGEST).read_to_string();
    let body = body.map_err(|error| error.to_string())?;
    if status != 200 {
        let problem = serde_json::from_str::<serde_json::Value>(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().unwrap_or_default().to_owned();
        return Err(match status {
            404 | 405 => "it runs a release that does not count clicks".to_owned(),
            status => format!("status {status} {detail}"),
        });
    }
    serde_json::from_str(&body).map_err(|error| format!("not an answer: {error}"))
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::layout::temporary;
    use crate::testing::{Request, Server};

    const JOURNAL: &str = "0123456789abcdef0123456789abcdef";

    fn batch() -> Batch {
        Batch {
            journal: JOURNAL.to_owned(),
            start: 0,
            stop: 10,
            after: None,
            through: None,
            clicks: vec![],
            visitors: vec![],
            details: vec![],
        }
    }

    /// Instance 1 is what answers at `url`, and 2 is nobody.
    fn host(url: &str, ready: &[u16]) -> (tempfile::TempDir, Instances) {
        let (root, layout) = temporary(&[Layout::config_dir, Layout::ready_dir]);
        let port: u16 = url.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
        std::fs::write(layout.links_toml(), format!("base_port = {}\n", port - 1)).unwrap();
        for instance in ready {
            std::fs::write(layout.ready_flag(*instance), b"").unwrap();
        }
        (root, Instances::new(layout))
    }

    #[test]
    fn an_instance_in_rotation_is_asked() {
        let asked = Arc::new(Mutex::new(vec![]));
        let seen = Arc::clone(&asked);
        let server = Server::start(move |request: &Request| {
            seen.lock()
                .unwrap()
                .push((request.method.clone(), request.path.clone(), request.body.clone()));
            (200, "{\"position\":10,\"part\":null}".to_owned())
        });
        let (_root, desk) = host(&server.url("/"), &[2, 1]);
        assert_eq!(desk.position(JOURNAL), Ok(Position::after(&batch())));
        assert_eq!(desk.send(&batch()), Ok(Position::after(&batch())));
        let body = serde_json::to_string(&batch()).unwrap();
        assert_eq!(
            *asked.lock().unwrap(),
            [
                (
                    "GET".to_owned(),
                    format!("/internal/clicks?journal={JOURNAL}"),
                    String::new()
                ),
                ("POST".to_owned(), "/internal/clicks".to_owned(), body)
            ]
        );
    }

    #[test]
    fn an_answer_is_200_and_a_position() {
        for (status, body, wanted) in [
            (200, "{\"position\":null,\"part\":null}", Ok(Position::default())),
            (
                503,
                "{\"detail\":\"The database does not answer.\"}",
                Err("does not answer"),
            ),
            (404, "", Err("release")),
            (200, "ok", Err("not an answer")),
            (200, "{}", Err("not an answer")),
            (200, "{\"position\":-1,\"part\":null}", Err("not an answer")),
        ] {
            let server = Server::start(move |_| (status, body.to_owned()));
            let (_root, desk) = host(&server.url("/"), &[1]);
            match (desk.send(&batch()), wanted) {
                (Ok(position), wanted) => assert_eq!(Ok(position), wanted),
                (Err(error), Err(wanted)) => assert!(error.contains(wanted), "{error}"),
                (outcome, _) => panic!("{status} {body}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn nobody_in_rotation_is_no_answer() {
        let (_root, desk) = host("http://127.0.0.1:7001/", &[]);
        assert_eq!(desk.position(JOURNAL), Err("no instance is ready".to_owned()));
    }
}
