//! Measures the database for metrics: its size and the number of links. This has a thread of its own because counting many
//! links takes long.

use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use links_store::size::DatabaseSize;
use nix::sys::statvfs::statvfs;

use super::instances::{Instances, Question};
use links_base::layout::Layout;
use links_base::log;
use links_config::load;
use links_config::runtime::Database;
use links_db::database;
use links_release::{Snapshots, sqlite};

/// The minimum time between two measurements.
const INTERVAL: Duration = Duration::from_secs(60);
/// The minimum time between two measurements of a libSQL server. Every link counted is a row read, and some providers bill
/// for those.
const SERVER_INTERVAL: Duration = Duration::from_secs(3600);
/// The component's endpoint.
const PATH: &str = "/internal/database";

/// The result of the last measurement. `None` is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub bytes: Option<u64>,
    /// Free space on the file system of a local database.
    pub free_bytes: Option<u64>,
    pub links: Option<u64>,
}

/// Measures the database on demand, at most once every [`INTERVAL`].
#[derive(Debug)]
pub struct Observer {
    facts: Arc<Mutex<Facts>>,
    ask: SyncSender<()>,
}

impl Observer {
    /// Starts the thread, which takes the first measurement at once.
    pub fn start(layout: Layout) -> Self {
        let facts = Arc::new(Mutex::new(Facts::default()));
        let (ask, asked) = mpsc::sync_channel(1);
        let measured = Arc::clone(&facts);
        let mut probe = Probe::new(layout);
        std::thread::spawn(move || {
            loop {
                let begun = Instant::now();
                let now = probe.measure();
                *measured.lock().unwrap_or_else(PoisonError::into_inner) = now;
                loop {
                    // The observer was dropped because the agent is stopping.
                    if asked.recv().is_err() {
                        return;
                    }
                    if begun.elapsed() >= INTERVAL || probe.can_retry() {
                        break;
                    }
                }
            }
        });
        Self { facts, ask }
    }

    /// The last measurement. If it is old enough, this also starts a new one.
    pub fn facts(&self) -> Facts {
        // If the channel is full, a request is already waiting.
        let _ = self.ask.try_send(());
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Measures the database that the instances are configured with.
struct Probe {
    layout: Layout,
    instances: Instances,
    server: Option<Server>,
    /// Why the last measurement failed.
    last_error: Option<String>,
}

/// A libSQL server.
struct Server {
    url: String,
    /// The last measurement and its time.
    last: Option<(Instant, DatabaseSize)>,
    /// Whether a measurement was due but no instance was ready to take it.
    is_overdue: bool,
}

impl Probe {
    fn new(layout: Layout) -> Self {
        Self {
            instances: Instances::new(layout.clone()),
            layout,
            server: None,
            last_error: None,
        }
    }

    /// Whether the last measurement found no instance to ask, and there is one now.
    fn can_retry(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.is_overdue) && self.instances.is_any_ready()
    }

    fn measure(&mut self) -> Facts {
        let (applied, _) = Snapshots::new(&self.layout).of_instance(1);
        let Some(database) = load::database(&applied) else {
            return Facts::default();
        };
        match (database.file(applied.places()), database) {
            (None, Database::LibSql(url)) => self.measure_server(url),
            (path, _) => {
                self.server = None;
                path.map_or_else(Facts::default, |path| self.measure_file(&path))
            }
        }
    }

    fn measure_file(&mut self, path: &Path) -> Facts {
        let links = database::count_links(path);
        self.log_error(links.as_ref().err().map(|error| format!("{error:#}")));
        let free = statvfs(path.parent().unwrap_or(Path::new("/"))).ok();
        Facts {
            bytes: sqlite::size(path).ok(),
            free_bytes: free.map(|disk| disk.blocks_available() * disk.fragment_size()),
            links: links.ok().flatten(),
        }
    }

    /// The last measurement remains valid while the server cannot be asked.
    fn measure_server(&mut self, url: String) -> Facts {
        let last = self
            .server
            .take()
            .filter(|server| server.url == url)
            .and_then(|server| server.last);
        let is_due = last.is_none_or(|(when, _)| when.elapsed() >= SERVER_INTERVAL);
        let is_any_ready = self.instances.is_any_ready();
        let last = match is_due && is_any_ready {
            true => self.ask().map(|size| (Instant::now(), size)).or(last),
            false => last,
        };
        let size = last.map(|(_, size)| size);
        self.server = Some(Server {
            url,
            last,
            is_overdue: is_due && !is_any_ready,
        });
        Facts {
            bytes: size.and_then(|size| size.bytes),
            free_bytes: None,
            links: size.map(|size| size.links),
        }
    }

    fn ask(&mut self) -> Option<DatabaseSize> {
        let answer = self.instances.ask::<DatabaseSize>(PATH, Question::Get(None));
        self.log_error(answer.as_ref().err().cloned());
        answer.ok()
    }

    /// Logs an error unless the last measurement failed for the same reason.
    fn log_error(&mut self, error: Option<String>) {
        if let Some(text) = &error
            && self.last_error != error
        {
            log::error!("counting links: {text}");
        }
        self.last_error = error;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rusqlite::Connection;

    use super::*;
    use crate::instances::tests::host;
    use links_base::layout::temporary;

    const REMOTE: &str = "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"\"";

    #[test]
    fn a_local_database_is_measured() {
        let (_root, layout) = temporary(&[Layout::data_dir, Layout::config_dir]);
        std::fs::write(layout.runtime_toml(), "").unwrap();
        let mut probe = Probe::new(layout.clone());
        let nothing_yet = probe.measure();
        assert_eq!((nothing_yet.bytes, nothing_yet.links), (None, None));
        assert!(nothing_yet.free_bytes.unwrap() > 0);

        let writer = Connection::open(layout.data_dir().join("links.db")).unwrap();
        writer
            .execute_batch("CREATE TABLE links (slug); INSERT INTO links VALUES ('a'), ('b')")
            .unwrap();
        let facts = probe.measure();
        assert_eq!((facts.links, probe.last_error.as_deref()), (Some(2), None));
        assert!(facts.bytes.unwrap() >= 4096);
    }

    #[test]
    fn the_size_of_a_server_is_requested_at_most_once_an_hour() {
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

        let mut probe = Probe::new(layout.clone());
        assert_eq!(probe.measure(), Facts::default());
        assert!(!probe.can_retry(), "no instance is ready");
        std::fs::write(layout.ready_flag(1), b"").unwrap();
        assert!(probe.can_retry());

        assert_eq!(probe.measure(), Facts::default());
        assert!(probe.last_error.is_some() && !probe.can_retry());
        let measured = Facts {
            links: Some(3),
            ..Facts::default()
        };
        assert_eq!([probe.measure(), probe.measure()], [measured, measured]);
        assert_eq!((asked.load(Ordering::Relaxed), probe.last_error.as_deref()), (2, None));

        // The measurement of one server says nothing about another.
        std::fs::write(layout.runtime_toml(), REMOTE.replace("x.example", "y.example")).unwrap();
        std::fs::remove_file(layout.ready_flag(1)).unwrap();
        assert_eq!(probe.measure(), Facts::default());
    }
}
