//! What there is to tell of the database, by a thread of its own: counting takes long where there is much.

use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use links_store::size::DatabaseSize;
use nix::sys::statvfs::statvfs;

use super::instances::{Instances, Question};
use crate::config::load;
use crate::config::runtime::Database;
use crate::layout::Layout;
use crate::rollout::snapshot;
use crate::{database, log};

/// Between two looks, at least.
const PAUSE: Duration = Duration::from_secs(60);
/// Between two looks at a server, at least: every link that is counted is a row read, for which some of them bill.
const PAUSE_OF_SERVERS: Duration = Duration::from_secs(3600);
/// Answered by the component.
const PATH: &str = "/internal/database";

/// As of the last look. Each may not be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub bytes: Option<u64>,
    /// Where the database is a local file.
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
        let mut looks = Looks::new(layout);
        std::thread::spawn(move || {
            loop {
                let begun = Instant::now();
                let now = looks.look();
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
                loop {
                    // Nobody asks any more: the agent ends.
                    if asked.recv().is_err() {
                        return;
                    }
                    if begun.elapsed() >= PAUSE || looks.is_to_come() {
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

/// The looks at what instances run with, one after the other.
struct Looks {
    layout: Layout,
    instances: Instances,
    server: Option<Server>,
    /// Why the last one failed.
    trouble: Option<String>,
}

/// What is known of a libSQL server.
struct Server {
    url: String,
    /// When it last told; none until it has.
    told: Option<(Instant, DatabaseSize)>,
    /// No instance was there to ask it.
    is_unasked: bool,
}

impl Looks {
    fn new(layout: Layout) -> Self {
        Self {
            instances: Instances::new(layout.clone()),
            layout,
            server: None,
            trouble: None,
        }
    }

    /// Whether the last look was too early, and another may find more.
    fn is_to_come(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.is_unasked) && self.instances.is_any_ready()
    }

    fn look(&mut self) -> Facts {
        let (applied, _) = snapshot::of_instance(&self.layout, 1);
        let Some(database) = load::database(&applied) else {
            return Facts::default();
        };
        match (database.file(&applied), database) {
            (None, Database::LibSql(url)) => self.look_at_server(url),
            (path, _) => {
                self.server = None;
                path.map_or_else(Facts::default, |path| self.look_at_file(&path))
            }
        }
    }

    fn look_at_file(&mut self, path: &Path) -> Facts {
        let links = database::count_links(path);
        self.tell(links.as_ref().err().map(|error| format!("{error:#}")));
        let free = statvfs(path.parent().unwrap_or(Path::new("/"))).ok();
        Facts {
            bytes: database::size(path).ok(),
            free_bytes: free.map(|disk| disk.blocks_available() * disk.fragment_size()),
            links: links.ok().flatten(),
        }
    }

    /// What it told last stays, while it cannot be asked.
    fn look_at_server(&mut self, url: String) -> Facts {
        let told = self
            .server
            .take()
            .filter(|server| server.url == url)
            .and_then(|server| server.told);
        let is_due = told.is_none_or(|(when, _)| when.elapsed() >= PAUSE_OF_SERVERS);
        let is_any_ready = self.instances.is_any_ready();
        let told = match is_due && is_any_ready {
            true => self.ask().map(|held| (Instant::now(), held)).or(told),
            false => told,
        };
        let held = told.map(|(_, held)| held);
        self.server = Some(Server {
            url,
            told,
            is_unasked: is_due && !is_any_ready,
        });
        Facts {
            bytes: held.and_then(|held| held.bytes),
            free_bytes: None,
            links: held.map(|held| held.links),
        }
    }

    fn ask(&mut self) -> Option<DatabaseSize> {
        let answer = self.instances.ask::<DatabaseSize>(PATH, Question::Get(None));
        self.tell(answer.as_ref().err().cloned());
        answer.ok()
    }

    /// Once for each reason.
    fn tell(&mut self, now: Option<String>) {
        if let Some(why) = &now
            && self.trouble != now
        {
            log::error!("counting links: {why}");
        }
        self.trouble = now;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rusqlite::Connection;

    use super::*;
    use crate::agent::instances::tests::host;
    use crate::layout::temporary;

    const REMOTE: &str = "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"\"";

    #[test]
    fn a_local_database_is_looked_at() {
        let (_root, layout) = temporary(&[Layout::data_dir, Layout::config_dir]);
        std::fs::write(layout.runtime_toml(), "").unwrap();
        let mut looks = Looks::new(layout.clone());
        let nothing_yet = looks.look();
        assert_eq!((nothing_yet.bytes, nothing_yet.links), (None, None));
        assert!(nothing_yet.free_bytes.unwrap() > 0);

        let writer = Connection::open(layout.data_dir().join("links.db")).unwrap();
        writer
            .execute_batch("CREATE TABLE links (slug); INSERT INTO links VALUES ('a'), ('b')")
            .unwrap();
        let facts = looks.look();
        assert_eq!((facts.links, looks.trouble.as_deref()), (Some(2), None));
        assert!(facts.bytes.unwrap() >= 4096);
    }

    #[test]
    fn an_instance_is_asked_for_what_a_server_holds_and_not_again_within_the_hour() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let (root, _) = host(&[], move |request| {
            assert_eq!(request.path, PATH);
            match count.fetch_add(1, Ordering::Relaxed) {
                0 => (503, String::new()),
                _ => (200, "{\"links\":3,\"bytes\":null}".to_owned()),
            }
        });
        let layout = Layout::new(root.path());
        std::fs::write(layout.runtime_toml(), REMOTE).unwrap();

        let mut looks = Looks::new(layout.clone());
        assert_eq!(looks.look(), Facts::default());
        assert!(!looks.is_to_come(), "nobody is there to ask");
        std::fs::write(layout.ready_flag(1), b"").unwrap();
        assert!(looks.is_to_come());

        assert_eq!(looks.look(), Facts::default());
        assert!(looks.trouble.is_some() && !looks.is_to_come());
        let told = Facts {
            links: Some(3),
            ..Facts::default()
        };
        assert_eq!([looks.look(), looks.look()], [told, told]);
        assert_eq!((asked.load(Ordering::Relaxed), looks.trouble.as_deref()), (2, None));

        // Another server: what the first one told is not true of it.
        std::fs::write(layout.runtime_toml(), REMOTE.replace("x.example", "y.example")).unwrap();
        std::fs::remove_file(layout.ready_flag(1)).unwrap();
        assert_eq!(looks.look(), Facts::default());
    }
}
