//! Does what the courier says: with the journal, the instances, and the agent's own files.

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

use super::courier::{Action, Counted, End, Event, Fill, Gathered};
use super::desk::Desk;
use super::gather::{Gatherer, NeedsSalt, Salt, Taken};
use super::identity::{Collapse, Host, Record, Relation, Segment, legacy_name, random_name, relation};
use super::line;
use super::source::{self, Inode, Mark, Source};
use super::traffic::Traffic;
use crate::layout::{Layout, USER};
use crate::{files, log};

/// Lines that are read before anything else gets a turn.
const TURN: u32 = 100_000;

/// What is told of the clicks, for metrics. A line that is read again after a fault counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub lines: u64,
    /// Of them those that are none of nginx's.
    pub malformed: u64,
    /// What they tell of requests.
    pub traffic: Traffic,
    /// In the database.
    pub clicks: u64,
    pub bots: u64,
    pub batches: u64,
    /// Bytes of the journal that are not counted yet.
    pub lag_bytes: u64,
    /// When the first click of those that were read and are not counted yet was answered, in milliseconds since 1970.
    pub oldest: Option<u64>,
    /// Times that the journal was replaced by another file, or emptied by somebody.
    pub replaced: u64,
    pub emptied: u64,
    /// Why clicks wait, if they do.
    pub trouble: Option<String>,
}

/// The journal that is being read.
#[derive(Debug)]
struct Open {
    source: Source,
    /// As it was written down last, or will be with the next position.
    record: Record,
    /// Which of its segments is being counted.
    index: usize,
    /// 0.1.0 may have begun it, and not have come to write that down: the database knows.
    is_unsure: bool,
    /// Up to here it was read, and how to know it.
    known: Option<(u64, Mark)>,
    /// Its lines up to here are told of.
    told: u64,
    /// Offset up to which the database has counted the segment.
    accepted: u64,
    /// The same as the database has it, which begins each name at 0.
    database: u64,
    /// What was shipped of the lines from there on goes through this link.
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
    /// Its names must be on the disk before they are used.
    is_new: bool,
}

/// The outcome of removing counted blocks from the front of a journal.
enum Removal {
    /// The file goes on as another journal.
    Removed(Box<Found>),
    /// There is no whole block to remove yet, or another name's lines are still in the file.
    Nothing,
    /// The file system cannot.
    Unsupported,
}

/// What is wrong, told once each.
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
pub struct Clerk<D> {
    layout: Layout,
    host: Host,
    desk: D,
    open: Option<Open>,
    /// A journal that was read to its end and replaced.
    left: Option<Inode>,
    gatherer: Gatherer,
    progress: Arc<Mutex<Progress>>,
    troubles: BTreeMap<Topic, String>,
    /// An older version comes and is to count what follows.
    hands_over: bool,
}

impl<D: Desk> Clerk<D> {
    pub fn new(layout: Layout, host: Host, desk: D, progress: Arc<Mutex<Progress>>) -> Self {
        progress.lock().unwrap_or_else(PoisonError::into_inner).trouble = None;
        let salts = fs::read(layout.visitor_salts()).ok();
        // What cannot be read is made anew; some visitors of today then count as two.
        let salts = salts
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            layout,
            host,
            desk,
            open: None,
            left: None,
            gatherer: Gatherer::new(salts),
            progress,
            troubles: BTreeMap::new(),
            hands_over: false,
        }
    }

    /// Everything but waiting.
    pub fn perform(&mut self, action: Action) -> Event {
        let hands_over = self.layout.downgrade_marker().exists();
        if hands_over && !self.hands_over {
            // Now: if the host failed later, nobody would do it before the older version starts.
            self.leave();
        }
        self.hands_over = hands_over;
        match action {
            Action::Ship { .. } if hands_over => self.trouble(
                Topic::Database,
                "an older version of links is being installed and will count them".to_owned(),
            ),
            Action::Open { leave } => self.open(leave),
            Action::Renew => self.renew(),
            Action::Next => self.next(),
            Action::Locate => self.locate(),
            Action::Discard => {
                self.gatherer.clear();
                self.told(|progress| progress.oldest = None);
                Event::Done
            }
            Action::Gather { from, until } => self.gather(from, until),
            Action::Ship { start, stop } => self.ship(start, stop),
            Action::Save { position } => self.save(position),
            Action::Release { position } => self.release(position),
            Action::Collapse { position } => self.collapse(position),
            Action::Truncate { position } => self.truncate(position),
            Action::Wait(_) => Event::Done,
        }
    }

    fn told<T>(&self, tell: impl FnOnce(&mut Progress) -> T) -> T {
        tell(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn trouble(&mut self, topic: Topic, text: String) -> Event {
        if self.troubles.get(&topic) != Some(&text) {
            log::error!("clicks: {text}");
        }
        self.told(|progress| progress.trouble = Some(text.clone()));
        self.troubles.insert(topic, text);
        Event::Failed
    }

    fn no_trouble(&mut self, topic: Topic) {
        if self.troubles.remove(&topic).is_some() {
            let text = match topic {
                Topic::Journal => "the journal can be read",
                Topic::Database => "the database takes them again",
                Topic::Saving => "the position can be written down again",
                Topic::Releasing => "what was counted can be given back again",
                Topic::Salts => "the salts can be written down again",
                Topic::Countries => "countries are told again",
            };
            log::notice!("clicks: {text}");
            let left = self.troubles.values().next().cloned();
            self.told(|progress| progress.trouble = left);
        }
    }

    fn open(&mut self, leave: bool) -> Event {
        if leave {
            // Nobody shall take what is counted in it for something else.
            self.leave();
        }
        if let Some(open) = self.open.take()
            && leave
        {
            self.left = Some(open.source.inode());
        }
        match self.find() {
            Ok(found) => {
                self.no_trouble(Topic::Journal);
                self.adopt(found)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = self.layout.journal();
                let text = format!("there is no journal {} yet; nginx makes it", path.display());
                if self.troubles.insert(Topic::Journal, text.clone()).as_ref() != Some(&text) {
                    log::notice!("clicks: {text}");
                }
                Event::Failed
            }
            Err(error) => {
                let path = self.layout.journal();
                self.trouble(Topic::Journal, format!("opening {}: {error}", path.display()))
            }
        }
    }

    /// The journal to read, and what it is called; see [`super::identity`].
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
                    log::notice!("clicks: reading what is left in {}", former.path().display());
                    return self.known(former, settled);
                }
            }
            if let Some((copy, settled)) = self.copy(&directory, &record)? {
                log::notice!(
                    "clicks: {} is a copy of the journal that was counted up to byte {}; going on from there",
                    copy.path().display(),
                    settled.position
                );
                return self.known(copy, settled);
            }
        }
        // The next one, which may have been replaced as well meanwhile.
        let before = self.left.unwrap_or(record.inode());
        let source = match Source::following(&directory, before) {
            Some(next) => next,
            None => current?,
        };
        if source.inode() == record.inode() {
            return self.known_or_emptied(source, record);
        }
        log::notice!("clicks: {} is another file than before", source.path().display());
        self.told(|progress| progress.replaced += 1);
        self.fresh(source, is_unsure)
    }

    /// It has the inode that is written down.
    fn known_or_emptied(&self, mut source: Source, record: Record) -> io::Result<Found> {
        let settled = settled(record, &mut source)?;
        if source.continues(settled.position, &settled.mark)? {
            return self.known(source, settled);
        }
        self.say_emptied(&source);
        self.anew(source, settled, 0)
    }

    /// A copy of the file that is written down, in its place.
    fn copy(&self, directory: &Path, record: &Record) -> io::Result<Option<(Source, Record)>> {
        if let Ok(mut source) = Source::open(&self.layout.journal()) {
            let settled = settled(record.clone(), &mut source)?;
            let is_copy = match settled.position {
                // Any file has these bytes.
                0 => source.is_copy()?,
                // It was copied before the position was written down.
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

    /// It is the file that is written down, or a copy of it.
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
            // On another machine the database does not know what 0.1.0 called it.
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

    /// A file that nothing is written down of. If 0.1.0 may have begun it, the database is asked first.
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

    /// The same file with another name, from `begins` on.
    fn anew(&self, source: Source, record: Record, begins: u64) -> io::Result<Found> {
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

    fn say_emptied(&self, source: &Source) {
        log::error!(
            "clicks: {} was emptied by somebody; clicks that were not read by then are not counted",
            source.path().display()
        );
        self.told(|progress| progress.emptied += 1);
    }

    /// None: there is nothing, or nothing that can be understood.
    fn record(&self) -> io::Result<Option<Record>> {
        let path = self.layout.journal_position();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Without it the journal would get another name, and be counted again.
            Err(error) => return Err(io::Error::other(format!("{}: {error}", path.display()))),
        };
        let record = serde_json::from_slice(&bytes);
        Ok(record
            .inspect_err(|error| log::error!("clicks: going on without {}: {error}", path.display()))
            .ok())
    }

    fn adopt(&mut self, found: Found) -> Event {
        let Found {
            source,
            record,
            is_unsure,
            is_new,
        } = found;
        let size = match source.size() {
            Ok(size) => size,
            Err(error) => return self.trouble(Topic::Journal, format!("reading the journal: {error}")),
        };
        let open = Open {
            source,
            index: 0,
            is_unsure,
            known: None,
            told: 0,
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

    /// What comes next in the file.
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
            (Err(error), _) => self.trouble(Topic::Journal, format!("reading the journal: {error}")),
            (Ok(_), None) => Event::Failed,
        }
    }

    fn renew(&mut self) -> Event {
        let Some(open) = self.open.take() else {
            return Event::Failed;
        };
        if open.ends().is_some() {
            // Its lines are not in this file; what is behind them is.
            self.open = Some(open);
            return self.next();
        }
        let (position, mark) = (open.record.position, open.record.mark.clone());
        let begins = match open.source.continues(position, &mark) {
            // The database is ahead: another copy of the journal uses its name.
            Ok(true) if position > 0 => position,
            Ok(_) => 0,
            Err(error) => return self.trouble(Topic::Journal, format!("reading the journal: {error}")),
        };
        match self.anew(open.source, open.record, begins) {
            Ok(found) => self.adopt(found),
            Err(error) => self.trouble(Topic::Journal, format!("naming the journal: {error}")),
        }
    }

    fn locate(&mut self) -> Event {
        match self.located() {
            Ok(Some(position)) => self.position(position),
            Ok(None) => Event::Failed,
            Err(error) => self.trouble(Topic::Database, format!("the database does not take them: {error}")),
        }
    }

    /// None: what was found out could not be written down.
    fn located(&mut self) -> Result<Option<Position>, String> {
        let open = self.open.as_ref().ok_or("no journal is open")?;
        let mut position = self.desk.position(open.name())?;
        if !open.is_unsure {
            return Ok(Some(position));
        }
        let inode = open.source.inode();
        let mut record = open.record.clone();
        if position.position.is_some() {
            // 0.1.0 began it. Its latest generation is the one that the database knows and nobody comes after.
            loop {
                let name = legacy_name(&self.host.machine, inode, record.generation + 1);
                let later = self.desk.position(&name)?;
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
        // Not before it is on the disk is a name used.
        if position.position.is_none() && self.save(0) == Event::Failed {
            return Ok(None);
        }
        if let Some(open) = &mut self.open {
            open.is_unsure = false;
        }
        Ok(Some(position))
    }

    fn position(&mut self, found: Position) -> Event {
        self.no_trouble(Topic::Database);
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
                    "clicks: the database has counted {} up to byte {}, which is not the end of a line in it: another copy \
                     of this host counts under the same name, or somebody has emptied the file; going on under another",
                    open.source.path().display(),
                    begun.unwrap_or(position)
                );
                return Event::Foreign;
            }
            Err(error) => return self.trouble(Topic::Journal, io_text(&error)),
        }
        open.database = found.position.unwrap_or(0);
        open.accepted = position;
        open.through = through;
        open.told = open.told.max(open.accepted);
        open.known = None;
        Event::Position(Counted { position, begun })
    }

    fn gather(&mut self, from: u64, until: Option<u64>) -> Event {
        match self.gatherer.look_for_countries(&self.layout) {
            Some(Ok(())) => self.no_trouble(Topic::Countries),
            // Clicks are counted without.
            Some(Err(why)) => drop(self.trouble(Topic::Countries, why)),
            None => {}
        }
        match self.read(from, until) {
            Ok(gathered) => {
                self.no_trouble(Topic::Journal);
                Event::Gathered(gathered)
            }
            Err(error) => self.trouble(Topic::Journal, io_text(&error)),
        }
    }

    fn read(&mut self, from: u64, until: Option<u64>) -> io::Result<Gathered> {
        let open = self.open.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let size = open.source.size()?;
        let is_known = match &open.known {
            Some((position, mark)) if *position == from && size != from => open.source.continues(from, mark)?,
            _ => size >= from,
        };
        if !is_known {
            let fill = self.gatherer.fill();
            if fill == Fill::Empty
                && let Some(open) = &self.open
            {
                self.say_emptied(&open.source);
            }
            return Ok(Gathered {
                position: from,
                size,
                fill,
                age: Duration::ZERO,
                end: End::Truncated,
            });
        }
        let mut progress = Progress::default();
        let mut turn = TURN;
        let limit = open.ends().unwrap_or(u64::MAX);
        let (gatherer, layout, told) = (&mut self.gatherer, &self.layout, &mut open.told);
        let mut salts = Ok(());
        let mut oldest = None;
        let mut fault = None;
        let reached = open.source.read_until(from, limit, |bytes, position| {
            let line = line::parse(bytes).or_else(|| line::parse_torn(bytes));
            let taken = match &line {
                None => Ok(Taken::Other),
                Some(line) => match gatherer.take(line) {
                    Err(NeedsSalt(day)) => match new_salt() {
                        Ok(salt) => {
                            gatherer.set_salt(day, salt);
                            salts = keep_salts(layout, gatherer.salts());
                            gatherer.take(line)
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
            if position > *told {
                *told = position;
                progress.lines += 1;
                match &line {
                    Some(line) => progress.traffic.take(line),
                    None => progress.malformed += 1,
                }
            }
            turn -= 1;
            turn > 0 && until.map_or(gatherer.fill() != Fill::Full, |until| position < until)
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
            Ok(()) => self.no_trouble(Topic::Salts),
            Err(error) => drop(self.trouble(Topic::Salts, format!("{error:#}"))),
        }
        self.told(|all| {
            all.lines += progress.lines;
            all.malformed += progress.malformed;
            all.traffic.add(&progress.traffic);
            all.lag_bytes = size.saturating_sub(accepted);
            all.oldest = all.oldest.or(oldest);
        });
        Ok(Gathered {
            position: reached.position,
            size,
            fill: self.gatherer.fill(),
            age: oldest.map_or(Duration::ZERO, age),
            end,
        })
    }

    fn ship(&mut self, start: u64, stop: u64) -> Event {
        let Some(open) = &self.open else {
            return Event::Failed;
        };
        let name = open.name().to_owned();
        let batch = self.gatherer.part(&name, open.database, stop, open.through.as_deref());
        match self.desk.send(&batch, self.gatherer.heeded()) {
            Ok(mut found) if !found.reuses.is_empty() => {
                self.gatherer.heed(std::mem::take(&mut found.reuses));
                match self.position(found) {
                    Event::Position(counted) => Event::Outdated(counted),
                    other => other,
                }
            }
            Ok(found) => {
                if found == Position::after(&batch) {
                    self.gatherer.sent(&batch);
                    if batch.through.is_some() {
                        self.no_trouble(Topic::Database);
                        if let Some(open) = &mut self.open {
                            open.through = batch.through;
                        }
                        return Event::Shipped;
                    }
                    let of_all = batch.clicks.iter().filter(|entry| entry.0.is_empty());
                    let sums = of_all.fold((0, 0), |sums, entry| {
                        (sums.0 + u64::from(entry.2), sums.1 + u64::from(entry.3))
                    });
                    self.told(|progress| {
                        progress.batches += 1;
                        progress.clicks += sums.0;
                        progress.bots += sums.1;
                        progress.lag_bytes = progress.lag_bytes.saturating_sub(stop - start);
                    });
                } else {
                    self.gatherer.forget_database();
                    log::error!("clicks: the database has already counted up to {found:?}; resuming there");
                }
                self.position(found)
            }
            Err(error) => self.trouble(Topic::Database, format!("the database does not take them: {error}")),
        }
    }

    fn save(&mut self, position: u64) -> Event {
        match self.saved(position) {
            Ok(()) => {
                self.no_trouble(Topic::Saving);
                Event::Done
            }
            Err(error) => self.trouble(Topic::Saving, format!("{error:#}")),
        }
    }

    fn saved(&mut self, position: u64) -> anyhow::Result<()> {
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
                // Of segments whose lines are gone, nothing could be counted again.
                if let Some(journal) = &mut open.record.journal {
                    let gone = open.index;
                    journal.segments.drain(..gone);
                    open.index = 0;
                }
                self.no_trouble(Topic::Releasing);
                Event::Done
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let path = open.source.path().display();
                let text = format!(
                    "the file system of {path} cannot punch holes, so the journal is emptied when it is long and all of it \
                     is counted; clicks that nginx writes at that instant are lost"
                );
                self.trouble(Topic::Releasing, text);
                Event::Unsupported
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let path = open.source.path().display();
                let text = format!(
                    "user {USER} may not write {path}, so what is counted stays in it; \"linksctl rollout\", run as root, corrects its mode"
                );
                self.trouble(Topic::Releasing, text)
            }
            Err(error) => self.trouble(Topic::Releasing, format!("giving back what was counted: {error}")),
        }
    }

    /// Before the agent ends: 0.1.0, if it comes next, counts from the beginning what it has no name for.
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
        match self.collapsed(position) {
            Ok(Removal::Removed(found)) => {
                self.no_trouble(Topic::Releasing);
                self.adopt(*found)
            }
            Ok(Removal::Nothing) => Event::Done,
            Ok(Removal::Unsupported) => Event::Unsupported,
            Err(error) => self.trouble(Topic::Releasing, format!("removing what was counted: {error:#}")),
        }
    }

    fn collapsed(&mut self, position: u64) -> anyhow::Result<Removal> {
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
        // After a power failure, what is written down must not be ahead of the file.
        open.source.sync()?;
        if let Some(journal) = &mut open.record.journal {
            journal.collapse = Some(Collapse { length, data, name });
        }
        self.saved(position)?;
        let open = self.open.as_mut().context("No journal is open")?;
        let removed = open.source.remove(length).and_then(|()| open.source.sync());
        let mut open = self.open.take().context("No journal is open")?;
        // Whatever the answer was, the file shows it.
        open.record = settled(open.record, &mut open.source)?;
        let is_removed = open.record.position != position;
        match removed {
            Err(error) if !is_removed => {
                self.open = Some(open);
                self.saved(position)?;
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
            Err(error) => self.trouble(Topic::Releasing, format!("emptying the journal: {error}")),
        }
    }
}

/// What is written down of a file, and what became of a removal that was begun.
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

/// Of what happened at that time, in Unix milliseconds.
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
