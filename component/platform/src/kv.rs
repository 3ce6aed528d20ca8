//! The key-value stores that spin.toml grants.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::sdk::key_value;
use crate::sdk::key_value::Error;

use crate::clock;

/// Longest wait for a store. What it holds can always be had elsewhere.
const LIMIT: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
pub enum Store {
    /// "default": may be on another machine, and shared with other programs.
    Default,
    /// "local": a file of this machine, shared by its instances.
    Local,
}

thread_local! {
    /// This instance's open stores: opening one costs more than using it.
    static KEPT: [RefCell<Option<Rc<key_value::Store>>>; 2] = const { [RefCell::new(None), RefCell::new(None)] };
}

impl Store {
    /// # Errors
    /// The runtime's message, or that there was no answer in time; so for all of them.
    pub async fn get(self, key: &str) -> Result<Option<Vec<u8>>, String> {
        self.request(async |store| store.get(key).await).await
    }

    pub async fn set(self, key: &str, value: &str) -> Result<(), String> {
        self.request(async |store| store.set(key, value).await).await
    }

    pub async fn delete(self, key: &str) -> Result<(), String> {
        self.request(async |store| store.delete(key).await).await
    }

    /// A store that fails is closed; the next request opens it again.
    async fn request<T>(self, request: impl AsyncFnOnce(&key_value::Store) -> Result<T, Error>) -> Result<T, String> {
        let work = async {
            let store = match self.kept(|kept| kept.borrow().clone()) {
                Some(store) => store,
                None => {
                    let store = Rc::new(key_value::Store::open(self.label()).await?);
                    drop(self.kept(|kept| kept.replace(Some(store.clone()))));
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
            drop(self.kept(RefCell::take));
        }
        outcome
    }

    fn kept<T>(self, work: impl FnOnce(&RefCell<Option<Rc<key_value::Store>>>) -> T) -> T {
        KEPT.with(|[default, local]| {
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
