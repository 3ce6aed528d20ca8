//! What there is to tell of the local database, by a thread of its own: counting takes long where there is much.

use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use crate::config::load::local_database;
use crate::layout::Layout;
use crate::rollout::snapshot;
use crate::{database, log};

/// Between two looks, at least.
const PAUSE: Duration = Duration::from_secs(60);

/// As of the last look. Each may not be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    pub links: Option<u64>,
}

/// Looks when it is asked to, not more often than once a minute.
#[derive(Debug)]
pub struct Observer {
    facts: Arc<Mutex<Facts>>,
    ask: SyncSender<()>,
}

impl Observer {
    /// The first look is made at once.
    pub fn start(layout: Layout) -> Self {
        let facts = Arc::new(Mutex::new(Facts::default()));
        let (ask, asked) = mpsc::sync_channel(1);
        let seen = Arc::clone(&facts);
        std::thread::spawn(move || {
            let mut trouble = None;
            loop {
                let begun = Instant::now();
                let now = look(&layout, &mut trouble);
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
                loop {
                    // Nobody asks any more: the agent ends.
                    if asked.recv().is_err() {
                        return;
                    }
                    if begun.elapsed() >= PAUSE {
                        break;
                    }
                }
            }
        });
        Self { facts, ask }
    }

    /// As of the last look; a new one may begin.
    pub fn facts(&self) -> Facts {
        // It is asked already, or looks right now.
        let _ = self.ask.try_send(());
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At what the instances run with.
fn look(layout: &Layout, trouble: &mut Option<String>) -> Facts {
    let (applied, _) = snapshot::of_instance(layout, 1);
    let Some(path) = local_database(&applied) else {
        return Facts::default();
    };
    let links = database::count_links(&path);
    let now = links.as_ref().err().map(|error| format!("{error:#}"));
    if let Some(why) = &now
        && *trouble != now
    {
        log::error!("counting links: {why}");
    }
    *trouble = now;
    let free = statvfs(path.parent().unwrap_or(Path::new("/"))).ok();
    Facts {
        bytes: database::size(&path).ok(),
        free_bytes: free.map(|disk| disk.blocks_available() * disk.fragment_size()),
        links: links.ok().flatten(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::layout::temporary;

    #[test]
    fn a_local_database_is_looked_at_and_a_remote_one_is_not() {
        let (_root, layout) = temporary(&[Layout::data_dir, Layout::config_dir]);
        std::fs::write(layout.runtime_toml(), "").unwrap();
        let mut trouble = None;
        let nothing_yet = look(&layout, &mut trouble);
        assert_eq!((nothing_yet.bytes, nothing_yet.links), (None, None));
        assert!(nothing_yet.free_bytes.unwrap() > 0);

        let writer = Connection::open(layout.data_dir().join("links.db")).unwrap();
        writer
            .execute_batch("CREATE TABLE links (slug); INSERT INTO links VALUES ('a'), ('b')")
            .unwrap();
        let facts = look(&layout, &mut trouble);
        assert_eq!((facts.links, trouble), (Some(2), None));
        assert!(facts.bytes.unwrap() >= 4096);

        let remote = "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"\"";
        std::fs::write(layout.runtime_toml(), remote).unwrap();
        assert_eq!(look(&layout, &mut None), Facts::default());
    }
}
