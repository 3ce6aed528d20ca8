//! Does what the courier says: with the journal, the instances, and the agent's own files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use links_core::clicks::Position;
use rand::TryRng as _;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::courier::{Action, Counted, End, Event, Fill, Gathered};
use super::desk::Desk;
use super::gather::{Gatherer, NeedsSalt, Salt, Taken};
use super::line;
use super::source::{self, Inode, Mark, Source};
use super::traffic::Traffic;
use crate::layout::Layout;
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

/// What is written down of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    inode: u64,
    born: u64,
    /// How often the file was emptied.
    generation: u32,
    position: u64,
    mark: Mark,
}

impl Saved {
    fn inode(&self) -> Inode {
        Inode {
            number: self.inode,
            born: self.born,
        }
    }
}

/// The journal that is being read.
#[derive(Debug)]
struct Open {
    source: Source,
    generation: u32,
    /// Whether a later generation may be known to the database: nothing was written down of this file.
    is_unsure: bool,
    name: String,
    /// Up to here it was read, and how to know it.
    known: Option<(u64, Mark)>,
    /// Its lines up to here are told of.
    told: u64,
    accepted: u64,
    /// What was shipped of the lines from there on goes through this link.
    through: Option<String>,
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
    desk: D,
    open: Option<Open>,
    /// A journal that was read to its end and replaced.
    left: Option<Inode>,
    gatherer: Gatherer,
    progress: Arc<Mutex<Progress>>,
    troubles: BTreeMap<Topic, String>,
}

impl<D: Desk> Clerk<D> {
    pub fn new(layout: Layout, desk: D, progress: Arc<Mutex<Progress>>) -> Self {
        progress.lock().unwrap_or_else(PoisonError::into_inner).trouble = None;
        let salts = fs::read(layout.visitor_salts()).ok();
        // What cannot be read is made anew; some visitors of today then count as two.
        let salts = salts
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            layout,
            desk,
            open: None,
            left: None,
            gatherer: Gatherer::new(salts),
            progress,
            troubles: BTreeMap::new(),
        }
    }

    /// Everything but waiting.
    pub fn perform(&mut self, action: Action) -> Event {
        match action {
            Action::Open { leave } => self.open(leave),
            Action::Renew => self.renew(),
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
        if let Some(open) = self.open.take()
            && leave
        {
            self.left = Some(open.source.inode());
        }
        match self.opened() {
            Ok(open) => {
                self.no_trouble(Topic::Journal);
                self.adopt(open)
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

    /// The journal to read, and its generation where that is known.
    fn opened(&mut self) -> io::Result<(Source, Option<u32>)> {
        let saved = self.saved();
        let source = Source::open(&self.layout.journal());
        let Some(saved) = saved else {
            return Ok((source?, None));
        };
        let is_same = source.as_ref().is_ok_and(|source| source.inode() == saved.inode());
        let directory = self.layout.journal_dir();
        if !is_same
            && self.left.is_none()
            && let Some(former) = Source::find(&directory, saved.inode())
            && former.continues(saved.position, &saved.mark)?
        {
            log::notice!("clicks: reading what is left in {}", former.path().display());
            return Ok((former, Some(saved.generation)));
        }
        // The next one, which may have been replaced as well meanwhile.
        let before = self.left.unwrap_or(saved.inode());
        let source = match Source::following(&directory, before) {
            Some(next) if !is_same => next,
            _ => source?,
        };
        let is_same = source.inode() == saved.inode();
        if !is_same {
            log::notice!("clicks: {} is another file than before", source.path().display());
            self.told(|progress| progress.replaced += 1);
            return Ok((source, None));
        }
        if source.continues(saved.position, &saved.mark)? {
            return Ok((source, Some(saved.generation)));
        }
        self.say_emptied(&source);
        Ok((source, Some(saved.generation.saturating_add(1))))
    }

    fn say_emptied(&self, source: &Source) {
        log::error!(
            "clicks: {} was emptied by somebody; clicks that were not read by then are not counted",
            source.path().display()
        );
        self.told(|progress| progress.emptied += 1);
    }

    fn saved(&self) -> Option<Saved> {
        let path = self.layout.journal_position();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                log::error!("clicks: going on without {}: {error}", path.display());
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .inspect_err(|error| log::error!("clicks: going on without {}: {error}", path.display()))
            .ok()
    }

    fn adopt(&mut self, (source, known): (Source, Option<u32>)) -> Event {
        let size = match source.size() {
            Ok(size) => size,
            Err(error) => return self.trouble(Topic::Journal, format!("reading the journal: {error}")),
        };
        let generation = known.unwrap_or(0);
        let name = self.name(source.inode(), generation);
        self.open = Some(Open {
            source,
            generation,
            is_unsure: known.is_none(),
            name,
            known: None,
            told: 0,
            accepted: 0,
            through: None,
        });
        Event::Opened { size }
    }

    /// The journal's name in the database. By it alone the database tells journals apart, also those of other hosts that
    /// use it.
    fn name(&self, inode: Inode, generation: u32) -> String {
        let machine = fs::read(self.layout.machine_id()).unwrap_or_default();
        let mut digest = Sha256::new();
        digest.update(machine.trim_ascii());
        digest.update(b"\0");
        digest.update(inode.number.to_le_bytes());
        digest.update(inode.born.to_le_bytes());
        digest.update(generation.to_le_bytes());
        digest
            .finalize()
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn renew(&mut self) -> Event {
        let Some(open) = self.open.take() else {
            return Event::Failed;
        };
        let event = self.adopt((open.source, Some(open.generation.saturating_add(1))));
        // Otherwise a start anew finds out again, and gets to the same.
        if matches!(event, Event::Opened { .. }) {
            self.save(0);
        }
        event
    }

    fn locate(&mut self) -> Event {
        match self.located() {
            Ok(position) => self.position(position),
            Err(error) => self.trouble(Topic::Database, format!("the database does not take them: {error}")),
        }
    }

    /// The position of the latest generation that the database knows, where nobody else does.
    fn located(&mut self) -> Result<Position, String> {
        let open = self.open.as_ref().ok_or("no journal is open")?;
        let (inode, mut generation, is_unsure) = (open.source.inode(), open.generation, open.is_unsure);
        let mut position = self.desk.position(&open.name)?;
        while is_unsure && position.position.is_some() {
            let later = self.desk.position(&self.name(inode, generation + 1))?;
            if later.position.is_none() {
                break;
            }
            position = later;
            generation += 1;
        }
        let name = self.name(inode, generation);
        if let Some(open) = &mut self.open {
            (open.generation, open.name, open.is_unsure) = (generation, name, false);
        }
        Ok(position)
    }

    fn position(&mut self, found: Position) -> Event {
        self.no_trouble(Topic::Database);
        let (begun, through) = found.part.map(|part| (part.stop, part.through)).unzip();
        let position = found.position.unwrap_or(0);
        if let Some(open) = &mut self.open {
            open.accepted = position;
            open.through = through;
            open.told = open.told.max(open.accepted);
            open.known = None;
        }
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
            Err(error) => self.trouble(Topic::Journal, format!("reading the journal: {error}")),
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
        let (gatherer, layout, told) = (&mut self.gatherer, &self.layout, &mut open.told);
        let mut salts = Ok(());
        let mut oldest = None;
        let mut fault = None;
        let reached = open.source.read(from, |bytes, position| {
            let line = line::parse(bytes);
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
        let batch = self.gatherer.part(&open.name, start, stop, open.through.as_deref());
        match self.desk.send(&batch) {
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
                    self.gatherer.forget_sent();
                    log::error!("clicks: the database has the journal to {found:?}; going on from there");
                }
                self.position(found)
            }
            Err(error) => self.trouble(Topic::Database, format!("the database does not take them: {error}")),
        }
    }

    fn save(&mut self, position: u64) -> Event {
        let Some(open) = &self.open else {
            return Event::Failed;
        };
        let saved = || -> anyhow::Result<()> {
            let Inode { number, born } = open.source.inode();
            let saved = Saved {
                inode: number,
                born,
                generation: open.generation,
                position,
                mark: open.source.mark(position).context("Reading the journal")?,
            };
            files::replace(&self.layout.journal_position(), &serde_json::to_vec(&saved)?, 0o600)
        };
        match saved() {
            Ok(()) => {
                self.no_trouble(Topic::Saving);
                Event::Done
            }
            Err(error) => self.trouble(Topic::Saving, format!("{error:#}")),
        }
    }

    fn release(&mut self, position: u64) -> Event {
        let Some(open) = &self.open else {
            return Event::Failed;
        };
        match open.source.release(position) {
            Ok(()) => {
                self.no_trouble(Topic::Releasing);
                Event::Done
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let path = open.source.path().display();
                let text = match open.source.can_write() {
                    true => format!(
                        "the file system of {path} knows no holes: it is emptied when it is long and all of it is \
                         counted, and a click that nginx writes in that very moment is lost"
                    ),
                    false => format!("{path} may not be written by the agent: what is counted stays in it"),
                };
                self.trouble(Topic::Releasing, text);
                Event::Unsupported
            }
            Err(error) => self.trouble(Topic::Releasing, format!("giving back what was counted: {error}")),
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
