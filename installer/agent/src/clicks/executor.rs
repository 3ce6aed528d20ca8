//! Performs the pipeline's actions on the journal, the instances and the agent's own files.

use std::io;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use links_domain::clicks::Position;

use super::aggregator::Aggregator;
use super::identity::{Host, Record, legacy_name, random_name};
use super::inode::Inode;
use super::journal::{Found, OpenJournal};
use super::pipeline::{Action, Counted, Event};
use super::progress::Progress;
use super::reader::Reader;
use super::removal::{self, Removal};
use super::report::{Report, Topic};
use super::salts;
use super::search::{Search, under_new_name};
use super::sink::Sink;
use crate::limits::Limits;
use links_base::layout::{Layout, USER};
use links_base::log;

#[derive(Debug)]
pub struct Executor<S> {
    layout: Layout,
    host: Host,
    sink: S,
    open: Option<OpenJournal>,
    /// The last journal that was left, after it was replaced and read to its end.
    left: Option<Inode>,
    aggregator: Aggregator,
    report: Report,
    /// Whether an older version is being installed, which will count everything that follows.
    hands_over: bool,
    /// Learns of every request.
    limits: Option<Arc<Mutex<Limits>>>,
}

impl<S: Sink> Executor<S> {
    pub fn new(layout: Layout, host: Host, sink: S, progress: Arc<Mutex<Progress>>) -> Self {
        Self {
            aggregator: Aggregator::new(salts::load(&layout)),
            layout,
            host,
            sink,
            open: None,
            left: None,
            report: Report::new(progress),
            hands_over: false,
            limits: None,
        }
    }

    /// Makes the executor report every request to `limits`.
    pub fn limiting(mut self, limits: Arc<Mutex<Limits>>) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Performs an action. Waiting is left to the caller.
    pub fn perform(&mut self, action: Action) -> Event {
        let hands_over = self.layout.downgrade_marker().exists();
        if hands_over && !self.hands_over {
            // Releases counted lines now. If the host crashed later, nobody would do so before the older version starts.
            self.leave();
        }
        self.hands_over = hands_over;
        match action {
            // A restore that fails puts the former database back, which has to get them.
            Action::Ship { .. } if self.layout.restore_journal().exists() => self.fail(
                Topic::Database,
                "a restore is under way or was interrupted; until it has ended, none is counted".to_owned(),
            ),
            Action::Ship { .. } if hands_over => self.fail(
                Topic::Database,
                "an older version of links is being installed, which will count them".to_owned(),
            ),
            Action::Open { leave } => self.open(leave),
            Action::Renew => self.renew(),
            Action::Next => self.next(),
            Action::Locate => self.locate(),
            Action::Discard => {
                self.aggregator.clear();
                self.report.update(|progress| progress.oldest = None);
                Event::Done
            }
            Action::Aggregate { from, until } => self.aggregate(from, until),
            Action::Ship { start, stop } => self.ship(start, stop),
            Action::Save { position } => self.save(position),
            Action::Release { position } => self.release(position),
            Action::Collapse { position } => self.collapse(position),
            Action::Truncate { position } => self.truncate(position),
            Action::Wait(_) => Event::Done,
        }
    }

    /// Reports an error, and returns the event for the action that failed.
    fn fail(&mut self, topic: Topic, text: String) -> Event {
        self.report.fail(topic, text);
        Event::Failed
    }

    fn open(&mut self, leave: bool) -> Event {
        if leave {
            // Releases the counted lines, so that no other version counts them again.
            self.leave();
        }
        if let Some(open) = self.open.take()
            && leave
        {
            self.left = Some(open.source.inode());
        }
        let search = Search {
            layout: &self.layout,
            host: &self.host,
            report: &self.report,
            left: self.left,
        };
        match search.find() {
            Ok(found) => {
                self.report.resolve(Topic::Journal);
                self.adopt(found)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = self.layout.journal();
                let text = format!("the journal {} does not exist yet; nginx creates it", path.display());
                self.report.wait(Topic::Journal, text);
                Event::Failed
            }
            Err(error) => {
                let path = self.layout.journal();
                self.fail(Topic::Journal, format!("opening {}: {error}", path.display()))
            }
        }
    }

    /// Opens a journal that was found.
    fn adopt(&mut self, found: Found) -> Event {
        let size = match found.source.size() {
            Ok(size) => size,
            Err(error) => return self.fail(Topic::Journal, format!("reading the journal: {error}")),
        };
        let is_new = found.is_new;
        let open = OpenJournal::from(found);
        let ends = open.ends();
        let position = open.record.position.min(size);
        self.open = Some(open);
        if is_new && self.save(position) == Event::Failed {
            self.open = None;
            return Event::Failed;
        }
        Event::Opened { size, ends }
    }

    /// Continues with the next segment of the file.
    fn next(&mut self) -> Event {
        let Some(open) = &mut self.open else {
            return Event::Failed;
        };
        open.accepted = open.ends().unwrap_or(open.accepted);
        open.index += 1;
        let size = open.source.size();
        match (size, open.segment()) {
            (Ok(size), Some(segment)) => Event::Opened {
                size,
                ends: segment.ends,
            },
            (Err(error), _) => self.fail(Topic::Journal, format!("reading the journal: {error}")),
            (Ok(_), None) => Event::Failed,
        }
    }

    fn renew(&mut self) -> Event {
        let Some(open) = self.open.take() else {
            return Event::Failed;
        };
        if open.ends().is_some() {
            // The missing lines of this segment are not in this file, but those of the next segment are.
            self.open = Some(open);
            return self.next();
        }
        let (position, mark) = (open.record.position, open.record.mark.clone());
        let begins = match open.source.continues(position, &mark) {
            // The database is ahead: another copy of the journal uses its name.
            Ok(true) if position > 0 => position,
            Ok(_) => 0,
            Err(error) => return self.fail(Topic::Journal, format!("reading the journal: {error}")),
        };
        match under_new_name(&self.host, open.source, open.record, begins) {
            Ok(found) => self.adopt(found),
            Err(error) => self.fail(Topic::Journal, format!("naming the journal: {error}")),
        }
    }

    fn locate(&mut self) -> Event {
        match self.try_locate() {
            Ok(Some(position)) => self.position(position),
            Ok(None) => Event::Failed,
            Err(error) => self.fail(Topic::Database, format!("the database does not take them: {error}")),
        }
    }

    /// Asks the database for the position. Returns `None` if a new name could not be saved.
    fn try_locate(&mut self) -> Result<Option<Position>, String> {
        let open = self.open.as_ref().ok_or("no journal is open")?;
        let mut position = self.sink.position(open.name())?;
        if !open.is_unsure {
            return Ok(Some(position));
        }
        let inode = open.source.inode();
        let mut record = open.record.clone();
        if position.position.is_some() {
            // 0.1.0 began the journal. The current generation is the last one that the database knows.
            loop {
                let name = legacy_name(&self.host.machine, inode, record.generation + 1);
                let later = self.sink.position(&name)?;
                if later.position.is_none() {
                    break;
                }
                position = later;
                let generation = record.generation + 1;
                record = Record {
                    generation,
                    ..record.renamed(0, name, true)
                };
            }
        } else {
            let name = random_name().map_err(|error| error.to_string())?;
            record = Record {
                generation: record.generation,
                ..record.renamed(0, name, false)
            };
        }
        if let Some(open) = &mut self.open {
            open.record = record;
        }
        // A name must be on the disk before it is used.
        if position.position.is_none() && self.save(0) == Event::Failed {
            return Ok(None);
        }
        if let Some(open) = &mut self.open {
            open.is_unsure = false;
        }
        Ok(Some(position))
    }

    /// Starts over from the database's position.
    fn position(&mut self, found: Position) -> Event {
        self.report.resolve(Topic::Database);
        let Some(open) = &mut self.open else {
            return Event::Failed;
        };
        let (begun, through) = found.part.map(|part| (part.stop, part.through)).unzip();
        let begins = open.segment().map_or(0, |segment| segment.begins);
        let position = match found.position {
            None | Some(0) => begins,
            Some(position) => position,
        };
        let is_ours = match open.ends() {
            Some(_) => Ok(true),
            None => [Some(position), begun]
                .into_iter()
                .flatten()
                .filter(|position| *position != begins)
                .try_fold(true, |all, position| Ok(all && open.source.ends_line(position)?)),
        };
        match is_ours {
            Ok(true) => {}
            Ok(false) => {
                log::error!(
                    "clicks: the database has counted {} up to byte {}, where no line ends in it: another copy of this host \
                     counts under the same name, or somebody has emptied the file; continuing under a new name",
                    open.source.path().display(),
                    begun.unwrap_or(position)
                );
                return Event::Foreign;
            }
            Err(error) => return self.fail(Topic::Journal, io_text(&error)),
        }
        open.database = found.position.unwrap_or(0);
        open.accepted = position;
        open.through = through;
        open.reported = open.reported.max(open.accepted);
        open.known = None;
        Event::Position(Counted { position, begun })
    }

    fn aggregate(&mut self, from: u64, until: Option<u64>) -> Event {
        match self.aggregator.refresh_countries(&self.layout) {
            Some(Ok(())) => self.report.resolve(Topic::Countries),
            // Clicks are counted without countries.
            Some(Err(why)) => self.report.fail(Topic::Countries, why),
            None => {}
        }
        let Some(open) = &mut self.open else {
            return self.fail(Topic::Journal, io_text(&io::ErrorKind::NotFound.into()));
        };
        let reader = Reader {
            open,
            aggregator: &mut self.aggregator,
            report: &mut self.report,
            layout: &self.layout,
            limits: self.limits.as_deref(),
        };
        match reader.read(from, until) {
            Ok(aggregated) => {
                self.report.resolve(Topic::Journal);
                Event::Aggregated(aggregated)
            }
            Err(error) => self.fail(Topic::Journal, io_text(&error)),
        }
    }

    fn ship(&mut self, start: u64, stop: u64) -> Event {
        let Some(open) = &self.open else {
            return Event::Failed;
        };
        let name = open.name().to_owned();
        let batch = self
            .aggregator
            .part(&name, open.database, stop, open.through.as_deref());
        match self.sink.send(&batch, self.aggregator.heeded()) {
            Ok(mut found) if !found.reuses.is_empty() => {
                self.aggregator.heed(std::mem::take(&mut found.reuses));
                match self.position(found) {
                    Event::Position(counted) => Event::Outdated(counted),
                    other => other,
                }
            }
            Ok(found) => {
                if found == Position::after(&batch) {
                    self.aggregator.sent(&batch);
                    if batch.through.is_some() {
                        self.report.resolve(Topic::Database);
                        if let Some(open) = &mut self.open {
                            open.through = batch.through;
                        }
                        return Event::Shipped;
                    }
                    let of_all = batch.clicks.iter().filter(|entry| entry.0.is_empty());
                    let sums = of_all.fold((0, 0), |sums, entry| {
                        (sums.0 + u64::from(entry.2), sums.1 + u64::from(entry.3))
                    });
                    self.report.update(|progress| {
                        progress.batches += 1;
                        progress.clicks += sums.0;
                        progress.bots += sums.1;
                        progress.lag_bytes = progress.lag_bytes.saturating_sub(stop - start);
                    });
                } else {
                    self.aggregator.forget_database();
                    log::error!("clicks: the database is already at {found:?}; resuming there");
                }
                self.position(found)
            }
            Err(error) => self.fail(Topic::Database, format!("the database does not take them: {error}")),
        }
    }

    fn save(&mut self, position: u64) -> Event {
        let open = self.open.as_mut().context("No journal is open");
        match open.and_then(|open| open.save(position, &self.layout)) {
            Ok(()) => {
                self.report.resolve(Topic::Saving);
                Event::Done
            }
            Err(error) => self.fail(Topic::Saving, format!("{error:#}")),
        }
    }

    fn release(&mut self, position: u64) -> Event {
        let Some(open) = &mut self.open else {
            return Event::Failed;
        };
        match removal::release(open, position) {
            Ok(()) => {
                self.report.resolve(Topic::Releasing);
                Event::Done
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let path = open.source.path().display();
                let text = format!(
                    "the file system of {path} does not support holes, so the journal is emptied when it is long and fully \
                     counted; clicks that nginx writes at that instant are lost"
                );
                self.fail(Topic::Releasing, text);
                Event::Unsupported
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let path = open.source.path().display();
                let text = format!(
                    "user {USER} may not write {path}, so counted lines stay in it; run \"linksctl rollout\" as root to fix \
                     its mode"
                );
                self.fail(Topic::Releasing, text)
            }
            Err(error) => self.fail(Topic::Releasing, format!("releasing counted lines: {error}")),
        }
    }

    /// Releases all counted lines before the agent stops. If 0.1.0 runs next and has no name for the journal, it counts the
    /// file from its beginning.
    pub fn leave(&mut self) {
        let counted = self.open.as_ref().filter(|open| !open.is_unsure).map(|open| {
            let ends = open.ends().unwrap_or(u64::MAX);
            open.accepted.min(ends)
        });
        if let Some(counted) = counted.filter(|counted| *counted > 0) {
            self.release(counted);
        }
    }

    fn collapse(&mut self, position: u64) -> Event {
        let outcome = self.try_collapse(position);
        outcome.unwrap_or_else(|error| self.fail(Topic::Releasing, format!("removing counted lines: {error:#}")))
    }

    fn try_collapse(&mut self, position: u64) -> anyhow::Result<Event> {
        let open = self.open.as_mut().context("No journal is open")?;
        let Some(length) = removal::begin(open, position, &self.host, &self.layout)? else {
            return Ok(Event::Done);
        };
        let open = self.open.take().context("No journal is open")?;
        match removal::finish(open, length)? {
            Removal::Done(found) => {
                self.report.resolve(Topic::Releasing);
                Ok(self.adopt(*found))
            }
            Removal::Failed(open, error) => {
                self.open.insert(*open).save(position, &self.layout)?;
                match error.kind() {
                    io::ErrorKind::Unsupported => Ok(Event::Unsupported),
                    _ => Err(error.into()),
                }
            }
        }
    }

    fn truncate(&mut self, position: u64) -> Event {
        let Some(open) = &self.open else {
            return Event::Failed;
        };
        match open.source.truncate(position) {
            Ok(true) => Event::Done,
            Ok(false) => Event::Kept,
            Err(error) => self.fail(Topic::Releasing, format!("emptying the journal: {error}")),
        }
    }
}

fn io_text(error: &io::Error) -> String {
    format!("reading the journal: {error}")
}
