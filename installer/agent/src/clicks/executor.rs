//! Performs the pipeline's actions on the journal, the instances and the agent's own files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use links_domain::clicks::Position;
use rand::TryRng as _;
use rand::rngs::SysRng;

use super::aggregator::{Aggregator, NeedsSalt, Salt, Taken};
use super::identity::{Collapse, Host, Record, Relation, Segment, legacy_name, random_name, relation};
use super::line;
use super::pipeline::{Action, Aggregated, Counted, End, Event, Fill};
use super::sink::Sink;
use super::source::{self, Inode, Mark, Source};
use super::traffic::Traffic;
use links_base::layout::{Layout, USER};
use links_base::{files, log};

/// The maximum number of lines that one action reads.
const MAX_LINES: u32 = 100_000;

/// The state of click counting, for metrics. A line that is read again after a fault counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub lines: u64,
    /// How many of the lines are not in nginx's format.
    pub malformed: u64,
    /// The requests that the lines describe.
    pub traffic: Traffic,
    /// Clicks of people that the database has counted.
    pub clicks: u64,
    /// Clicks of bots that the database has counted.
    pub bots: u64,
    pub batches: u64,
    /// Bytes of the journal that are not counted yet.
    pub lag_bytes: u64,
    /// The time of the first click that has been read but not counted yet, in milliseconds since 1970.
    pub oldest: Option<u64>,
    /// How many times another file replaced the journal.
    pub replaced: u64,
    /// How many times somebody emptied the journal.
    pub emptied: u64,
    /// Why clicks are not being counted, or another problem with them.
    pub error: Option<String>,
}

/// The journal that is being read.
#[derive(Debug)]
struct Open {
    source: Source,
    /// The record as it was last saved, or will be with the next position.
    record: Record,
    /// The index of the segment that is being counted.
    index: usize,
    /// Whether 0.1.0 may have begun this journal without having saved a record. The database knows.
    is_unsure: bool,
    /// The position up to which the journal was read, and its mark there.
    known: Option<(u64, Mark)>,
    /// The position up to which the lines are included in [`Progress`].
    reported: u64,
    /// The offset up to which the database has counted the segment.
    accepted: u64,
    /// The database's own value for `accepted`. The database begins each name at 0.
    database: u64,
    /// The last link of the parts that were sent of the lines after `accepted`.
    through: Option<String>,
}

impl Open {
    fn segments(&self) -> &[Segment] {
        self.record.journal.as_ref().map_or(&[], |journal| &journal.segments)
    }

    fn segment(&self) -> Option<&Segment> {
        self.segments().get(self.index)
    }

    fn name(&self) -> &str {
        self.segment().map_or("", |segment| &segment.name)
    }

    fn ends(&self) -> Option<u64> {
        self.segment().and_then(|segment| segment.ends)
    }

    fn is_legacy(&self) -> bool {
        self.record.journal.as_ref().is_some_and(|journal| journal.is_legacy)
    }
}

/// A journal that was found.
struct Found {
    source: Source,
    record: Record,
    is_unsure: bool,
    /// Whether the record has new names, which must be on the disk before they are used.
    is_new: bool,
}

/// The outcome of removing counted blocks from the front of a journal.
enum Removal {
    /// The blocks were removed. The file continues as another journal.
    Removed(Box<Found>),
    /// There is no whole block to remove yet, or another name's lines are still in the file.
    Nothing,
    /// The file system does not support removing blocks.
    Unsupported,
}

/// What an error is about. Each error is logged once per topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    Journal,
    Database,
    Saving,
    Releasing,
    Salts,
    Countries,
}

#[derive(Debug)]
pub struct Executor<S> {
    layout: Layout,
    host: Host,
    sink: S,
    open: Option<Open>,
    /// The last journal that was left, after it was replaced and read to its end.
    left: Option<Inode>,
    aggregator: Aggregator,
    progress: Arc<Mutex<Progress>>,
    errors: BTreeMap<Topic, String>,
    /// Whether an older version is being installed, which will count everything that follows.
    hands_over: bool,
}

impl<S: Sink> Executor<S> {
    pub fn new(layout: Layout, host: Host, sink: S, progress: Arc<Mutex<Progress>>) -> Self {
        progress.lock().unwrap_or_else(PoisonError::into_inner).error = None;
        let salts = fs::read(layout.visitor_salts()).ok();
        // Salts that cannot be read are replaced by new ones. Then some of today's visitors count twice.
        let salts = salts
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            layout,
            host,
            sink,
            open: None,
            left: None,
            aggregator: Aggregator::new(salts),
            progress,
            errors: BTreeMap::new(),
            hands_over: false,
        }
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
                self.update(|progress| progress.oldest = None);
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

    fn update<T>(&self, change: impl FnOnce(&mut Progress) -> T) -> T {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reports an error, and returns the event for the action that failed.
    fn fail(&mut self, topic: Topic, text: String) -> Event {
        if self.errors.get(&topic) != Some(&text) {
            log::error!("clicks: {text}");
        }
        self.update(|progress| progress.error = Some(text.clone()));
        self.errors.insert(topic, text);
        Event::Failed
    }

    /// Reports that the error of a topic is over.
    fn resolve(&mut self, topic: Topic) {
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
        match self.find() {
            Ok(found) => {
                self.resolve(Topic::Journal);
                self.adopt(found)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = self.layout.journal();
                let text = format!("the journal {} does not exist yet; nginx creates it", path.display());
                if self.errors.insert(Topic::Journal, text.clone()).as_ref() != Some(&text) {
                    log::notice!("clicks: {text}");
                }
                Event::Failed
            }
            Err(error) => {
                let path = self.layout.journal();
                self.fail(Topic::Journal, format!("opening {}: {error}", path.display()))
            }
        }
    }

    /// Finds the journal to read, and its name; see [`super::identity`].
    fn find(&self) -> io::Result<Found> {
        let current = Source::open(&self.layout.journal());
        let Some(record) = self.record()? else {
            return self.fresh(current?, true);
        };
        let is_same = current.as_ref().is_ok_and(|source| source.inode() == record.inode());
        let directory = self.layout.journal_dir();
        if is_same {
            return self.known_or_emptied(current?, record);
        }
        let is_unsure = record.journal.is_none();
        if self.left.is_none() {
            if let Some(mut former) = Source::find(&directory, record.inode()) {
                let settled = settled(record.clone(), &mut former)?;
                if former.continues(settled.position, &settled.mark)? {
                    log::notice!("clicks: reading the rest of {}", former.path().display());
                    return self.known(former, settled);
                }
            }
            if let Some((copy, settled)) = self.copy(&directory, &record)? {
                log::notice!(
                    "clicks: {} is a copy of the journal that was counted up to byte {}; continuing from there",
                    copy.path().display(),
                    settled.position
                );
                return self.known(copy, settled);
            }
        }
        // The next journal, which may have been replaced as well by now.
        let before = self.left.unwrap_or(record.inode());
        let source = match Source::following(&directory, before) {
            Some(next) => next,
            None => current?,
        };
        if source.inode() == record.inode() {
            return self.known_or_emptied(source, record);
        }
        log::notice!("clicks: {} is a different file than before", source.path().display());
        self.update(|progress| progress.replaced += 1);
        self.fresh(source, is_unsure)
    }

    /// The recorded journal, in a file with the same inode. The file may have been emptied.
    fn known_or_emptied(&self, mut source: Source, record: Record) -> io::Result<Found> {
        let settled = settled(record, &mut source)?;
        if source.continues(settled.position, &settled.mark)? {
            return self.known(source, settled);
        }
        self.report_emptied(&source);
        self.under_new_name(source, settled, 0)
    }

    /// Finds a copy of the recorded file that has taken its place.
    fn copy(&self, directory: &Path, record: &Record) -> io::Result<Option<(Source, Record)>> {
        if let Ok(mut source) = Source::open(&self.layout.journal()) {
            let settled = settled(record.clone(), &mut source)?;
            let is_copy = match settled.position {
                // At position 0 any file would match.
                0 => source.is_copy()?,
                // It may have been copied before the position was saved.
                position if source.size()? < position => source.is_copy()?,
                position => source.continues(position, &settled.mark)?,
            };
            if is_copy {
                return Ok(Some((source, settled)));
            }
        }
        let renamed = Source::copy_of(directory, record.position, &record.mark);
        Ok(renamed.map(|source| (source, record.clone())))
    }

    /// The recorded journal, in the recorded file or a copy of it.
    fn known(&self, mut source: Source, record: Record) -> io::Result<Found> {
        let is_of_0_1_0 = record.journal.is_none();
        let (inode, device) = (source.inode(), source.device());
        let relation = relation(&record, inode, device, &self.host);
        let mut record = record.with_names(&self.host, device);
        let origin = self.host.origin(device);
        let Relation::Copied { since } = relation else {
            return Ok(Found {
                source,
                record: record.at(inode, origin),
                is_unsure: false,
                is_new: false,
            });
        };
        let counted = record.position.min(source.size()?);
        if let Some(journal) = &mut record.journal
            && let Some(last) = journal.segments.last_mut()
        {
            // The database does not know the name that 0.1.0 would use on this machine.
            if is_of_0_1_0 {
                last.begins = counted;
            }
        }
        let begins = record.journal.as_ref().and_then(|journal| journal.segments.last());
        let from = begins.map_or(counted, |last| last.begins.max(counted));
        let boundary = source.boundary(from, since)?;
        Ok(Found {
            source,
            record: record.split(boundary, random_name()?).at(inode, origin),
            is_unsure: false,
            is_new: true,
        })
    }

    /// A journal without a record. If 0.1.0 may have begun it, the database is asked first.
    fn fresh(&self, source: Source, is_unsure: bool) -> io::Result<Found> {
        let (inode, device) = (source.inode(), source.device());
        let record = Record {
            inode: inode.number,
            born: inode.born,
            generation: 0,
            position: 0,
            mark: Mark::new(),
            journal: None,
        };
        let mut record = record.with_names(&self.host, device);
        if !is_unsure {
            record = record.renamed(0, random_name()?, false);
            record.generation = 0;
        }
        Ok(Found {
            source,
            record,
            is_unsure,
            is_new: !is_unsure,
        })
    }

    /// The same file under a new name from `begins` on.
    fn under_new_name(&self, source: Source, record: Record, begins: u64) -> io::Result<Found> {
        let (inode, device) = (source.inode(), source.device());
        let record = record.with_names(&self.host, device);
        let is_legacy = begins == 0 && record.journal.as_ref().is_some_and(|journal| journal.is_legacy);
        let name = match is_legacy {
            true => legacy_name(&self.host.machine, inode, record.generation.saturating_add(1)),
            false => random_name()?,
        };
        let record = record.renamed(begins, name, is_legacy);
        Ok(Found {
            source,
            record: record.at(inode, self.host.origin(device)),
            is_unsure: false,
            is_new: true,
        })
    }

    fn report_emptied(&self, source: &Source) {
        log::error!(
            "clicks: somebody has emptied {}; clicks that had not been read are lost",
            source.path().display()
        );
        self.update(|progress| progress.emptied += 1);
    }

    /// Reads the record. Returns `None` if there is none, or if it cannot be parsed.
    fn record(&self) -> io::Result<Option<Record>> {
        let path = self.layout.journal_position();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Continuing without the record would give the journal another name and count it again.
            Err(error) => return Err(io::Error::other(format!("{}: {error}", path.display()))),
        };
        let record = serde_json::from_slice(&bytes);
        Ok(record
            .inspect_err(|error| log::error!("clicks: ignoring {}: {error}", path.display()))
            .ok())
    }

    /// Opens a journal that was found.
    fn adopt(&mut self, found: Found) -> Event {
        let Found {
            source,
            record,
            is_unsure,
            is_new,
        } = found;
        let size = match source.size() {
            Ok(size) => size,
            Err(error) => return self.fail(Topic::Journal, format!("reading the journal: {error}")),
        };
        let open = Open {
            source,
            index: 0,
            is_unsure,
            known: None,
            reported: 0,
            accepted: 0,
            database: 0,
            through: None,
            record,
        };
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
        match self.under_new_name(open.source, open.record, begins) {
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
        self.resolve(Topic::Database);
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
            Some(Ok(())) => self.resolve(Topic::Countries),
            // Clicks are counted without countries.
            Some(Err(why)) => drop(self.fail(Topic::Countries, why)),
            None => {}
        }
        match self.read(from, until) {
            Ok(aggregated) => {
                self.resolve(Topic::Journal);
                Event::Aggregated(aggregated)
            }
            Err(error) => self.fail(Topic::Journal, io_text(&error)),
        }
    }

    fn read(&mut self, from: u64, until: Option<u64>) -> io::Result<Aggregated> {
        let open = self.open.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let size = open.source.size()?;
        let is_known = match &open.known {
            Some((position, mark)) if *position == from && size != from => open.source.continues(from, mark)?,
            _ => size >= from,
        };
        if !is_known {
            let fill = self.aggregator.fill();
            if fill == Fill::Empty
                && let Some(open) = &self.open
            {
                self.report_emptied(&open.source);
            }
            return Ok(Aggregated {
                position: from,
                size,
                fill,
                age: Duration::ZERO,
                end: End::Truncated,
            });
        }
        let mut progress = Progress::default();
        let mut left = MAX_LINES;
        let limit = open.ends().unwrap_or(u64::MAX);
        let (aggregator, layout, reported) = (&mut self.aggregator, &self.layout, &mut open.reported);
        let mut salts = Ok(());
        let mut oldest = None;
        let mut fault = None;
        let reached = open.source.read_until(from, limit, |bytes, position| {
            let line = line::parse(bytes).or_else(|| line::parse_torn(bytes));
            let taken = match &line {
                None => Ok(Taken::Other),
                Some(line) => match aggregator.take(line) {
                    Err(NeedsSalt(day)) => match new_salt() {
                        Ok(salt) => {
                            aggregator.set_salt(day, salt);
                            salts = keep_salts(layout, aggregator.salts());
                            aggregator.take(line)
                        }
                        Err(error) => {
                            fault = Some(error);
                            return false;
                        }
                    },
                    taken => taken,
                },
            };
            if oldest.is_none() && taken != Ok(Taken::Other) {
                oldest = line.as_ref().map(|line| line.at);
            }
            if position > *reported {
                *reported = position;
                progress.lines += 1;
                match &line {
                    Some(line) => progress.traffic.take(line),
                    None => progress.malformed += 1,
                }
            }
            left -= 1;
            left > 0 && until.map_or(aggregator.fill() != Fill::Full, |until| position < until)
        })?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        if reached.position != from || open.known.is_none() {
            open.known = Some((reached.position, open.source.mark(reached.position)?));
        }
        let size = open.source.size()?.max(reached.position);
        let accepted = open.accepted;
        let end = match reached.end {
            source::End::Enough => End::More,
            source::End::Limit => End::Ended,
            source::End::CaughtUp if open.source.is_replaced(&self.layout.journal()) => End::Replaced,
            source::End::CaughtUp => End::CaughtUp,
        };
        match salts {
            Ok(()) => self.resolve(Topic::Salts),
            Err(error) => drop(self.fail(Topic::Salts, format!("{error:#}"))),
        }
        self.update(|all| {
            all.lines += progress.lines;
            all.malformed += progress.malformed;
            all.traffic.add(&progress.traffic);
            all.lag_bytes = size.saturating_sub(accepted);
            all.oldest = all.oldest.or(oldest);
        });
        Ok(Aggregated {
            position: reached.position,
            size,
            fill: self.aggregator.fill(),
            age: oldest.map_or(Duration::ZERO, age),
            end,
        })
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
                        self.resolve(Topic::Database);
                        if let Some(open) = &mut self.open {
                            open.through = batch.through;
                        }
                        return Event::Shipped;
                    }
                    let of_all = batch.clicks.iter().filter(|entry| entry.0.is_empty());
                    let sums = of_all.fold((0, 0), |sums, entry| {
                        (sums.0 + u64::from(entry.2), sums.1 + u64::from(entry.3))
                    });
                    self.update(|progress| {
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
        match self.try_save(position) {
            Ok(()) => {
                self.resolve(Topic::Saving);
                Event::Done
            }
            Err(error) => self.fail(Topic::Saving, format!("{error:#}")),
        }
    }

    fn try_save(&mut self, position: u64) -> anyhow::Result<()> {
        let open = self.open.as_mut().context("No journal is open")?;
        open.record.mark = open.source.mark(position).context("Reading the journal")?;
        open.record.position = position;
        files::replace(
            &self.layout.journal_position(),
            &serde_json::to_vec(&open.record)?,
            0o600,
        )
    }

    fn release(&mut self, position: u64) -> Event {
        let Some(open) = &mut self.open else {
            return Event::Failed;
        };
        let released = open.source.make_writable().and_then(|()| open.source.release(position));
        match released {
            Ok(_) => {
                // The lines of earlier segments are gone, so their names are not needed any more.
                if let Some(journal) = &mut open.record.journal {
                    let gone = open.index;
                    journal.segments.drain(..gone);
                    open.index = 0;
                }
                self.resolve(Topic::Releasing);
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
        match self.try_collapse(position) {
            Ok(Removal::Removed(found)) => {
                self.resolve(Topic::Releasing);
                self.adopt(*found)
            }
            Ok(Removal::Nothing) => Event::Done,
            Ok(Removal::Unsupported) => Event::Unsupported,
            Err(error) => self.fail(Topic::Releasing, format!("removing counted lines: {error:#}")),
        }
    }

    fn try_collapse(&mut self, position: u64) -> anyhow::Result<Removal> {
        let open = self.open.as_mut().context("No journal is open")?;
        let length = open.source.removable(position)?;
        if length == 0 || open.index > 0 || open.ends().is_some() {
            return Ok(Removal::Nothing);
        }
        let data = open.source.release(position)?;
        let name = match open.is_legacy() {
            true => legacy_name(
                &self.host.machine,
                open.source.inode(),
                open.record.generation.saturating_add(1),
            ),
            false => random_name()?,
        };
        // After a power failure the record must not be ahead of the file.
        open.source.sync()?;
        if let Some(journal) = &mut open.record.journal {
            journal.collapse = Some(Collapse { length, data, name });
        }
        self.try_save(position)?;
        let open = self.open.as_mut().context("No journal is open")?;
        let removed = open.source.remove(length).and_then(|()| open.source.sync());
        let mut open = self.open.take().context("No journal is open")?;
        // Whatever the result of the call was, the file shows what happened.
        open.record = settled(open.record, &mut open.source)?;
        let is_removed = open.record.position != position;
        match removed {
            Err(error) if !is_removed => {
                self.open = Some(open);
                self.try_save(position)?;
                match error.kind() {
                    io::ErrorKind::Unsupported => Ok(Removal::Unsupported),
                    _ => Err(error.into()),
                }
            }
            _ => Ok(Removal::Removed(Box::new(Found {
                source: open.source,
                record: open.record,
                is_unsure: false,
                is_new: true,
            }))),
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

/// The record of a file, after a removal that was begun is resolved.
fn settled(record: Record, source: &mut Source) -> io::Result<Record> {
    if record.journal.as_ref().is_none_or(|journal| journal.collapse.is_none()) {
        return Ok(record);
    }
    let data = source.first_data()?;
    let mut failed = None;
    let settled = record.settled(data, |position| {
        source.mark(position).unwrap_or_else(|error| {
            failed = Some(error);
            Mark::new()
        })
    });
    failed.map_or(Ok(settled), Err)
}

fn io_text(error: &io::Error) -> String {
    format!("reading the journal: {error}")
}

/// The age of an event, from its time in Unix milliseconds.
fn age(at: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(at))
}

fn new_salt() -> io::Result<Salt> {
    let mut salt = Salt::default();
    SysRng.try_fill_bytes(&mut salt).map_err(io::Error::other)?;
    Ok(salt)
}

fn keep_salts(layout: &Layout, salts: &BTreeMap<u32, Salt>) -> anyhow::Result<()> {
    files::replace(&layout.visitor_salts(), &serde_json::to_vec(salts)?, 0o600)
}
