//! The key-value stores that spin.toml grants.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::sdk::key_value;
use crate::sdk::key_value::Error;

use crate::clock;

/// How long to wait for a store. Everything in it can also be had elsewhere.
const LIMIT: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
pub enum Store {
    /// "default", which may be on another machine and shared with other programs.
    Default,
    /// "local", a file of this machine that its instances share.
    Local,
}

thread_local! {
    /// This instance's open stores. Opening one costs more than using it.
    static OPEN: [RefCell<Option<Rc<key_value::Store>>>; 2] = const { [RefCell::new(None), RefCell::new(None)] };
}

impl Store {
    /// Reads a value.
    ///
    /// # Errors
    /// The runtime's message, or that there was no answer in time.
    pub async fn get(self, key: &str) -> Result<Option<Vec<u8>>, String> {
        self.request(async |store| store.get(key).await).await
    }

    /// Writes a value.
    ///
    /// # Errors
    /// The runtime's message, or that there was no answer in time.
    pub async fn set(self, key: &str, value: &str) -> Result<(), String> {
        self.request(async |store| store.set(key, value).await).await
    }

    /// Deletes a value.
    ///
    /// # Errors
    /// The runtime's message, or that there was no answer in time.
    pub async fn delete(self, key: &str) -> Result<(), String> {
        self.request(async |store| store.delete(key).await).await
    }

    /// Runs `request` on the store. A store that fails is closed, and the next request opens it again.
    async fn request<T>(self, request: impl AsyncFnOnce(&key_value::Store) -> Result<T, Error>) -> Result<T, String> {
        let work = async {
            let store = match self.slot(|slot| slot.borrow().clone()) {
                Some(store) => store,
                None => {
                    let store = Rc::new(key_value::Store::open(self.label()).await?);
                    drop(self.slot(|slot| slot.replace(Some(store.clone()))));
                    store
                }
            };
            request(&store).await
        };
        let outcome = match clock::within(LIMIT, work).await {
            Some(outcome) => outcome.map_err(|error| self.message(error)),
            None => Err("no answer in time".to_owned()),
        };
        if outcome.is_err() {
            drop(self.slot(RefCell::take));
        }
        outcome
    }

    fn slot<T>(self, work: impl FnOnce(&RefCell<Option<Rc<key_value::Store>>>) -> T) -> T {
        OPEN.with(|[default, local]| {
            work(match self {
                Store::Default => default,
                Store::Local => local,
            })
        })
    }

    fn label(self) -> &'static str {
        match self {
            Store::Default => "default",
            Store::Local => "local",
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
