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

/// A request to a store. This is a value, not a closure, because the code that handles a closure is compiled for each of them.
#[derive(Clone, Copy)]
pub enum Request<'a> {
    Get { key: &'a str },
    Set { key: &'a str, value: &'a str },
    Delete { key: &'a str },
}

thread_local! {
    /// This instance's open stores. Opening one costs more than using it.
    static OPEN: [RefCell<Option<Rc<key_value::Store>>>; 2] = const { [RefCell::new(None), RefCell::new(None)] };
}

impl Store {
    /// The value that was asked for, if there is one. A store that fails is closed, and the next request opens it again.
    ///
    /// # Errors
    /// The runtime's message, or that there was no answer in time.
    pub async fn request(self, request: Request<'_>) -> Result<Option<Vec<u8>>, String> {
        let work = async {
            let store = match self.slot(|slot| slot.borrow().clone()) {
                Some(store) => store,
                None => {
                    let store = Rc::new(key_value::Store::open(self.label()).await?);
                    drop(self.slot(|slot| slot.replace(Some(store.clone()))));
                    store
                }
            };
            match request {
                Request::Get { key } => store.get(key).await,
                Request::Set { key, value } => store.set(key, value).await.map(|()| None),
                Request::Delete { key } => store.delete(key).await.map(|()| None),
            }
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
            Error::NoSuchStore => format!("the runtime configuration has no key-value store \"{label}\""),
            Error::AccessDenied => format!("spin.toml does not grant the key-value store \"{label}\""),
            Error::Other(message) => message,
        }
    }
}
