//! Where batches go: to the component, which has the database.

use links_domain::clicks::{Batch, Position};

use super::super::instances::{Instances, Question};

const PATH: &str = "/internal/clicks";

pub trait Desk {
    /// Up to where the journal is counted.
    ///
    /// # Errors
    /// Nobody says so; in words.
    fn position(&self, journal: &str) -> Result<Position, String>;

    /// The same, after the batch was taken or was not. `heeded` is the number of the latest [`Reuse`] that it heeds.
    ///
    /// [`Reuse`]: links_domain::clicks::Reuse
    ///
    /// # Errors
    /// As above. It may have been taken.
    fn send(&self, batch: &Batch, heeded: i64) -> Result<Position, String>;
}

impl Desk for Instances {
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
    use crate::agent::instances::tests::host;
    use crate::testing::Request;

    #[test]
    fn an_instance_in_rotation_is_asked() {
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
        let (_root, desk) = host(&[1], move |request: &Request| {
            seen.lock()
                .unwrap()
                .push((request.method.clone(), request.path.clone(), request.body.clone()));
            (200, "{\"position\":10,\"part\":null}".to_owned())
        });
        assert_eq!(desk.position(JOURNAL), Ok(Position::after(&batch)));
        assert_eq!(desk.send(&batch, 7), Ok(Position::after(&batch)));
        let body = serde_json::to_string(&batch).unwrap();
        let wanted = [
            ("GET", format!("{PATH}?journal={JOURNAL}"), String::new()),
            ("POST", format!("{PATH}?reuses=7"), body),
        ];
        let wanted = wanted.map(|(method, path, body)| (method.to_owned(), path, body));
        assert_eq!(*asked.lock().unwrap(), wanted);
    }
}
