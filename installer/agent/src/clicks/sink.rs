//! Sends batches to the component, which stores them in the database.

use links_domain::clicks::{Batch, Position};

use super::super::instances::{Instances, Question};

/// The component's endpoint.
const PATH: &str = "/internal/clicks";

/// Accepts batches of clicks.
pub trait Sink {
    /// The position up to which the journal is counted.
    ///
    /// # Errors
    /// Fails with a message if nobody answers.
    fn position(&self, journal: &str) -> Result<Position, String>;

    /// Sends a batch and returns the position afterwards, whether the batch was accepted or not. `heeded` is the number of the
    /// latest [`Reuse`] that the batch takes into account.
    ///
    /// [`Reuse`]: links_domain::clicks::Reuse
    ///
    /// # Errors
    /// Fails with a message if nobody answers. The batch may have been accepted nevertheless.
    fn send(&self, batch: &Batch, heeded: i64) -> Result<Position, String>;
}

impl Sink for Instances {
    fn position(&self, journal: &str) -> Result<Position, String> {
        self.ask(PATH, Question::Get(Some(("journal", journal))))
    }

    fn send(&self, batch: &Batch, heeded: i64) -> Result<Position, String> {
        let body = serde_json::to_vec(batch).map_err(|error| error.to_string())?;
        self.ask(&format!("{PATH}?reuses={heeded}"), Question::Post(&body))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::instances::tests::host;
    use links_base::testing::Request;

    #[test]
    fn requests_go_to_an_instance_in_rotation() {
        const JOURNAL: &str = "0123456789abcdef0123456789abcdef";
        let batch = Batch {
            journal: JOURNAL.to_owned(),
            start: 0,
            stop: 10,
            after: None,
            through: None,
            clicks: vec![],
            visitors: vec![],
            details: vec![],
        };
        let asked = Arc::new(Mutex::new(vec![]));
        let seen = Arc::clone(&asked);
        let (_root, sink) = host(&[1], move |request: &Request| {
            seen.lock()
                .unwrap()
                .push((request.method.clone(), request.path.clone(), request.body.clone()));
            (200, "{\"position\":10,\"part\":null}".to_owned())
        });
        assert_eq!(sink.position(JOURNAL), Ok(Position::after(&batch)));
        assert_eq!(sink.send(&batch, 7), Ok(Position::after(&batch)));
        let body = serde_json::to_string(&batch).unwrap();
        let wanted = [
            ("GET", format!("{PATH}?journal={JOURNAL}"), String::new()),
            ("POST", format!("{PATH}?reuses=7"), body),
        ];
        let wanted = wanted.map(|(method, path, body)| (method.to_owned(), path, body));
        assert_eq!(*asked.lock().unwrap(), wanted);
    }
}
