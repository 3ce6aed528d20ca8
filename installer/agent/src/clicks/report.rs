//! What click counting reports: its progress, and its errors.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::progress::Progress;
use links_base::log;

/// What an error is about. Each error is logged once per topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    Journal,
    Database,
    Saving,
    Releasing,
    Salts,
    Countries,
}

#[derive(Debug)]
pub struct Report {
    progress: Arc<Mutex<Progress>>,
    /// The errors that are not over.
    errors: BTreeMap<Topic, String>,
}

impl Report {
    pub fn new(progress: Arc<Mutex<Progress>>) -> Self {
        progress.lock().unwrap_or_else(PoisonError::into_inner).error = None;
        Self {
            progress,
            errors: BTreeMap::new(),
        }
    }

    pub fn update<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reports an error.
    pub fn fail(&mut self, topic: Topic, text: String) {
        if self.errors.get(&topic) != Some(&text) {
            log::error!("clicks: {text}");
        }
        self.update(|progress| progress.error = Some(text.clone()));
        self.errors.insert(topic, text);
    }

    /// Logs a problem that nginx will solve, so that it is not an error of [`Progress`].
    pub fn wait(&mut self, topic: Topic, text: String) {
        if self.errors.insert(topic, text.clone()).as_ref() != Some(&text) {
            log::notice!("clicks: {text}");
        }
    }

    /// Reports that the error of a topic is over.
    pub fn resolve(&mut self, topic: Topic) {
        if self.errors.remove(&topic).is_some() {
            let text = match topic {
                Topic::Journal => "the journal can be read",
                Topic::Database => "the database takes them again",
                Topic::Saving => "the position can be saved again",
                Topic::Releasing => "counted lines can be released again",
                Topic::Salts => "the salts can be saved again",
                Topic::Countries => "countries are counted again",
            };
            log::notice!("clicks: {text}");
            let left = self.errors.values().next().cloned();
            self.update(|progress| progress.error = left);
        }
    }

    /// Reports that the journal at this path lost lines that had not been read.
    pub fn emptied(&self, path: &Path) {
        log::error!(
            "clicks: somebody has emptied {}; clicks that had not been read are lost",
            path.display()
        );
        self.update(|progress| progress.emptied += 1);
    }
}
