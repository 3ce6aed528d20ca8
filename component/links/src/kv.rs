//! The key-value stores that spin.toml grants.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use spin_sdk::key_value::{Error, Store};

use crate::clock;

/// Longest wait for a store. It is only ever asked for what can be had elsewhere.
const LIMIT: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
pub enum Place {
    /// "default", the cache: may be on another machine, and shared.
    Cache,
    /// "local": a file of this machine, shared by its instances.
    Local,
}

thread_local! {
    /// This instance's open stores, one for each place: opening one costs more than using it.
    static KEPT: [RefCell<Option<Rc<Store>>>; 2] = const { [RefCell::new(None), RefCell::new(None)] };
}

impl Place {
    pub async fn get(self, key: &str) -> Result<Option<Vec<u8>>, String> {
        self.ask(async |store| store.get(key).await).await
    }

    pub async fn set(self, key: &str, value: &str) -> Result<(), String> {
        self.ask(async |store| store.set(key, value).await).await
    }

    pub async fn delete(self, key: &str) -> Result<(), String> {
        self.ask(async |store| store.delete(key).await).await
    }

    /// A store that fails is given up: the next question opens it anew.
    async fn ask<T>(self, question: impl AsyncFnOnce(&Store) -> Result<T, Error>) -> Result<T, String> {
        let work = async {
            let store = match self.kept(|kept| kept.borrow().clone()) {
                Some(store) => store,
                None => {
                    let store = Rc::new(Store::open(self.label()).await?);
                    drop(self.kept(|kept| kept.replace(Some(store.clone()))));
                    store
                }
            };
            question(&store).await
        };
        let outcome = match clock::within(LIMIT, work).await {
            Some(outcome) => outcome.map_err(|error| self.message(error)),
            None => Err("no answer in time".to_owned()),
        };
        if outcome.is_err() {
            drop(self.kept(RefCell::take));
        }
        outcome
    }

    fn kept<T>(self, work: impl FnOnce(&RefCell<Option<Rc<Store>>>) -> T) -> T {
        KEPT.with(|[cache, local]| {
            work(match self {
                Place::Cache => cache,
                Place::Local => local,
            })
        })
    }

    fn label(self) -> &'static str {
        match self {
            Place::Cache => "default",
            Place::Local => "local",
        }
    }

    fn message(self, error: Error) -> String {
        let label = self.label();
        match error {
            Error::StoreTableFull => "too many stores are open".to_owned(),
            Error::NoSuchStore => format!("the runtime configuration has no key-value store {label:?}"),
            Error::AccessDenied => format!("spin.toml does not grant the key-value store {label:?}"),
            Error::Other(message) => message,
        }
    }
}
