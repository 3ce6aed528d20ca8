//! What this component depends on and can do without for a while: whether it answers.

use std::cell::Cell;
use std::time::Duration;

use links_core::outage::{self, Note, Outage};

use crate::{cache, clock, local, log, settings};

#[derive(Clone, Copy)]
pub enum Service {
    Database,
    Cache,
    /// The provider of the variable `admin_token`.
    Provider,
}

/// What this instance knows of one of them.
struct Knowledge {
    outage: Cell<Option<Outage>>,
    /// Whether it has looked what other instances know.
    shared: Cell<bool>,
    /// When it has looked last, in Unix milliseconds.
    looked: Cell<i64>,
}

thread_local! {
    static KNOWN: [Knowledge; 3] = const {
        [const {
            Knowledge {
                outage: Cell::new(None),
                shared: Cell::new(false),
                looked: Cell::new(0),
            }
        }; 3]
    };
}

impl Service {
    /// Whether it did not answer a moment ago and is better left alone. If not, the caller is the one who tries: others
    /// then rest for a pause again.
    pub async fn rests(self) -> bool {
        let Some(outage) = self.outage().await else {
            return false;
        };
        let now = clock::now_in_milliseconds();
        if outage.rests(now, self.pause()) {
            return true;
        }
        let outage = outage.tried_again(now);
        self.known(|known| known.outage.set(Some(outage)));
        // Another instance may have found that it answers, and told the operator.
        if self.is_shared() && self.noted().await.is_some_and(|note| note.explains(outage.since)) {
            self.known(|known| known.outage.take());
        } else {
            self.note(outage).await;
        }
        false
    }

    /// It answered, `took` after it was asked. Unless it is known that it did not before, this costs a look in a second at
    /// what others know: who found out may be gone, and the next outage would be taken for a part of that one.
    pub async fn answered(self, took: Duration) {
        let known = self.known(|known| known.outage.take());
        if known.is_none() && !(self.is_shared() && self.looks()) {
            return;
        }
        let outage = if self.is_shared() {
            // If it is over, another instance was first to find out, and has told the operator. What was asked before the
            // latest attempt that failed says nothing.
            let asked = clock::now_in_milliseconds().saturating_sub(milliseconds(took));
            match self.noted().await {
                Some(Note::Lasts(noted)) if known.is_some() || noted.tried <= asked => {
                    let ended = outage::encode_end(clock::now_in_milliseconds());
                    local::set(self.end_key(), &ended).await;
                    Some(noted)
                }
                _ => None,
            }
        } else {
            known
        };
        if let Some(outage) = outage {
            let seconds = outage.seconds(clock::now_in_milliseconds());
            log::line(&format!("{} answers again", self.name()), format!("after {seconds} s"));
        }
    }

    /// It failed, `took` after it was asked. The operator is told once an outage, not once a request.
    pub async fn failed(self, why: &str, took: Duration) {
        let now = clock::now_in_milliseconds();
        let known = self.known(|known| known.outage.get());
        let known = known.filter(|outage| outage.goes_on(now));
        // At once, so that the other requests of this instance that fail now see it.
        let begun = known.map_or_else(|| Outage::begin(now), |outage| outage.tried_again(now));
        self.known(|known_here| known_here.outage.set(Some(begun)));
        let note = match self.is_shared() {
            true => self.noted().await,
            false => None,
        };
        if note.is_some_and(|note| note.explains(now.saturating_sub(milliseconds(took)))) {
            self.known(|known| known.outage.take());
            return;
        }
        let outage = note.map_or(known, |note| note.lasting(known, now));
        if outage.is_none() {
            log::line(&format!("{} does not answer", self.name()), why);
        }
        let outage = outage.map_or_else(|| Outage::begin(now), |outage| outage.tried_again(now));
        self.note(outage).await;
    }

    /// Whether it is time for a look. The provider is rarely asked anyway.
    fn looks(self) -> bool {
        let now = clock::now_in_milliseconds();
        let looked = self.known(|known| known.looked.get());
        let is_time = matches!(self, Service::Provider) || !(0..1000).contains(&now.saturating_sub(looked));
        if is_time {
            self.known(|known| known.looked.set(now));
        }
        is_time
    }

    async fn outage(self) -> Option<Outage> {
        if self.is_shared() && !self.known(|known| known.shared.get()) {
            self.known(|known| known.looked.set(clock::now_in_milliseconds()));
            let noted = self.noted().await;
            // Requests that came at the same time have looked, too, and may know more by now.
            if !self.known(|known| known.shared.replace(true))
                && let Some(Note::Lasts(outage)) = noted
            {
                self.known(|known| known.outage.set(Some(outage)));
            }
        }
        self.known(|known| known.outage.get())
    }

    /// What another instance, or this one, has left.
    async fn noted(self) -> Option<Note> {
        let outage = Outage::decode(&local::get(self.key()).await?)?;
        let ended = local::get(self.end_key()).await;
        let ended = ended.and_then(|ended| outage::decode_end(&ended));
        Some(Note::new(outage, ended, clock::now_in_milliseconds()))
    }

    async fn note(self, outage: Outage) {
        self.known(|known| known.outage.set(Some(outage)));
        if self.is_shared() {
            local::set(self.key(), &outage.encode()).await;
        }
    }

    /// Whether instances tell each other. Where nothing is kept, no store is asked for anything.
    fn is_shared(self) -> bool {
        match self {
            Service::Database => cache::is_known_to_be_on(),
            Service::Cache => true,
            Service::Provider => settings::are_known_to_keep_secrets(),
        }
    }

    fn known<T>(self, work: impl FnOnce(&Knowledge) -> T) -> T {
        KNOWN.with(|[database, cache, provider]| {
            work(match self {
                Service::Database => database,
                Service::Cache => cache,
                Service::Provider => provider,
            })
        })
    }

    /// Between two attempts at something that does not answer.
    fn pause(self) -> Duration {
        match self {
            Service::Database | Service::Provider => Duration::from_secs(3),
            Service::Cache => Duration::from_secs(5),
        }
    }

    fn key(self) -> &'static str {
        match self {
            Service::Database => "links:outage:database",
            Service::Cache => "links:outage:cache",
            Service::Provider => "links:outage:admin_token",
        }
    }

    fn end_key(self) -> &'static str {
        match self {
            Service::Database => "links:outage-end:database",
            Service::Cache => "links:outage-end:cache",
            Service::Provider => "links:outage-end:admin_token",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Service::Database => "the database",
            Service::Cache => "the key-value store \"default\"",
            Service::Provider => "the provider of the variable admin_token",
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}
