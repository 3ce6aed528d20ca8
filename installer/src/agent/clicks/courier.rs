//! How clicks get from the journal into the database, each of them once: what to do next, by what came of what was done.
//! It does nothing itself.
//!
//! The database is the only one who knows what is counted: up to which position of the journal. It takes a batch only if
//! that begins right there, so a batch that comes again, or another one over the same lines, changes nothing, whatever of
//! this process's knowledge was lost. What is written down here is for knowing the journal again.

use std::time::Duration;

/// Clicks wait this long for others to travel with.
pub const LINGER: Duration = Duration::from_secs(10);
/// Those of very many links wait longer: the next clicks are of the same links, and cost nothing more.
pub const LONG_LINGER: Duration = Duration::from_secs(60);
/// Yet no longer than until the journal has this many bytes that are not counted.
pub const UNCOUNTED: u64 = 256 * 1024 * 1024;
/// Between two looks at a journal that has nothing new.
pub const POLL: Duration = Duration::from_millis(500);
/// A journal that was replaced is left after it was quiet for this long: nginx writes at least once a second what it has.
pub const QUIET: Duration = Duration::from_secs(5);
/// Lines without a click are counted as read after this many bytes.
pub const BARREN: u64 = 1024 * 1024;
/// What was counted is given back in pieces of this size, or after this time.
pub const RELEASE: u64 = 1024 * 1024;
pub const RELEASE_AFTER: Duration = Duration::from_secs(60);
/// When this much is counted, its blocks are removed from the journal: so long it gets at most, beside what is not counted
/// and the last [`RELEASE`].
pub const COLLAPSE: u64 = 4 * 1024 * 1024;
/// A range that another copy of the journal has begun to send is left to it, unless nothing happens to it for this long.
pub const STALE: Duration = Duration::from_secs(300);
/// A journal that cannot have holes is emptied when it is longer than this.
pub const TRUNCATE: u64 = 64 * 1024 * 1024;
/// Between attempts at what failed; doubled each time, up to the second.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The journal; if `leave`, another one than now.
    Open {
        leave: bool,
    },
    /// The same file is another journal: what it held is gone, or another copy of it uses its name.
    Renew,
    /// What comes next in the file has another name.
    Next,
    /// Ask the database for the journal's position.
    Locate,
    /// Forget what was gathered.
    Discard,
    /// Add lines from a position on to what was gathered; up to another position, if there is one.
    Gather {
        from: u64,
        until: Option<u64>,
    },
    /// Send what was gathered, or the next part of it.
    Ship {
        start: u64,
        stop: u64,
    },
    /// Write down where the journal is known again.
    Save {
        position: u64,
    },
    /// Give back what is before.
    Release {
        position: u64,
    },
    /// Remove what is before from the journal.
    Collapse {
        position: u64,
    },
    /// Empty the journal, if it ends there.
    Truncate {
        position: u64,
    },
    Wait(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The action was done, or the time is over.
    Done,
    /// It was not; why is told elsewhere.
    Failed,
    /// The journal is open and has this many bytes.
    Opened {
        size: u64,
        /// What is behind has another name.
        ends: Option<u64>,
    },
    /// The database is ahead, by lines that are not in this file.
    Foreign,
    /// Up to where the database has counted, as an answer to [`Action::Locate`] and [`Action::Ship`].
    Position(Counted),
    /// It has another part of what is being shipped, and there are more.
    Shipped,
    /// It took nothing: clicks that were gathered belong to a link that is gone. The lines must be gathered again.
    Outdated(Counted),
    Gathered(Gathered),
    /// The journal cannot have holes.
    Unsupported,
    /// The journal has grown since it was read.
    Kept,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub position: u64,
    /// Up to here some parts are counted, too. What is left of them must be gathered from the same lines.
    pub begun: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gathered {
    /// After the last line.
    pub position: u64,
    /// Of the journal.
    pub size: u64,
    pub fill: Fill,
    /// Of the first click among the lines that were added, by its own time; zero if there is none.
    pub age: Duration,
    pub end: End,
}

/// How much is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// No click.
    Empty,
    Light,
    /// So much that sending it costs something.
    Heavy,
    /// There is no room for more.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There is more to read.
    More,
    /// Not now.
    CaughtUp,
    /// Nor later, perhaps: nginx writes to another file of that name.
    Replaced,
    /// What was read is not in the file any more.
    Truncated,
    /// What comes next has another name.
    Ended,
}

#[derive(Debug)]
pub struct Courier {
    /// What was asked for last.
    action: Action,
    /// What to do after waiting.
    after: Option<Action>,
    /// Of the journal, when it was last looked at.
    size: u64,
    /// Up to here the database has counted.
    accepted: u64,
    /// The name of the lines ends there.
    ends: Option<u64>,
    /// What is gathered has to end there: some parts of it are counted.
    until: Option<u64>,
    /// Since when a range of another copy is as it is.
    foreign: Option<(Counted, Duration)>,
    /// Up to here lines were gathered.
    gathered: u64,
    /// When the first click that was gathered was found, and how old it was by then.
    first_click: Option<(Duration, Duration)>,
    /// Since when nothing came to a journal that was replaced.
    quiet: Option<Duration>,
    released: u64,
    released_at: Duration,
    can_release: bool,
    can_collapse: bool,
    release_from: u64,
    collapse_from: u64,
    failures: u32,
}

impl Courier {
    pub fn new() -> Self {
        Self {
            action: Action::Open { leave: false },
            after: None,
            size: 0,
            accepted: 0,
            ends: None,
            until: None,
            foreign: None,
            gathered: 0,
            first_click: None,
            quiet: None,
            released: 0,
            released_at: Duration::ZERO,
            can_release: true,
            can_collapse: true,
            release_from: RELEASE,
            collapse_from: COLLAPSE,
            failures: 0,
        }
    }

    #[cfg(test)]
    pub fn collapsing_from(collapse_from: u64) -> Self {
        Self {
            release_from: RELEASE.min(collapse_from),
            collapse_from,
            ..Self::new()
        }
    }

    pub fn action(&self) -> Action {
        self.action
    }

    /// What comes next. `now` is the time since some moment.
    pub fn next(&mut self, event: Event, now: Duration) -> Action {
        self.action = self.decide(event, now);
        self.action
    }

    fn decide(&mut self, event: Event, now: Duration) -> Action {
        if event == Event::Failed {
            return self.failed(now);
        }
        if !matches!(self.action, Action::Wait(_)) {
            self.failures = 0;
        }
        match (self.action, event) {
            (Action::Wait(_), _) => self.after.take().unwrap_or(self.gather(self.gathered)),
            (
                Action::Open { .. } | Action::Renew | Action::Next | Action::Collapse { .. },
                Event::Opened { size, ends },
            ) => {
                self.size = size;
                self.ends = ends;
                self.released = 0;
                self.released_at = now;
                self.can_release = true;
                self.can_collapse |= !matches!(self.action, Action::Collapse { .. } | Action::Next);
                Action::Locate
            }
            (Action::Locate, Event::Position(counted)) => self.go_on(counted),
            (Action::Locate | Action::Ship { .. }, Event::Foreign) => Action::Renew,
            (Action::Discard, _) => self.gather(self.accepted),
            (Action::Gather { .. }, Event::Gathered(gathered)) => self.gathered(gathered, now),
            (Action::Ship { .. }, Event::Position(counted)) => self.shipped(counted, now),
            (Action::Ship { .. }, Event::Shipped) => self.action,
            (Action::Ship { .. }, Event::Outdated(counted)) => self.go_on(counted),
            (Action::Save { .. }, _) => self.release(now),
            (Action::Release { position }, Event::Unsupported) => {
                self.can_release = false;
                self.released = position;
                self.release(now)
            }
            (Action::Release { position }, _) => {
                self.released = position;
                let is_long = position >= self.collapse_from && self.ends.is_none();
                match is_long && self.can_collapse {
                    true => Action::Collapse { position },
                    false => Action::Discard,
                }
            }
            (Action::Collapse { .. }, Event::Unsupported) => {
                self.can_collapse = false;
                Action::Discard
            }
            (Action::Collapse { .. }, _) => Action::Discard,
            (Action::Truncate { .. }, Event::Done) => Action::Renew,
            (Action::Truncate { .. }, _) => Action::Discard,
            // Nobody answers so; starting over is right in any case.
            (
                Action::Open { .. }
                | Action::Renew
                | Action::Next
                | Action::Locate
                | Action::Gather { .. }
                | Action::Ship { .. },
                _,
            ) => Action::Open { leave: false },
        }
    }

    fn failed(&mut self, now: Duration) -> Action {
        match self.action {
            // Nothing depends on these: the next batch brings them again.
            Action::Save { .. } => return self.release(now),
            Action::Release { .. } | Action::Truncate { .. } | Action::Discard | Action::Wait(_) => {
                return Action::Discard;
            }
            // The journal may be there under another name, or be gone.
            Action::Open { .. } | Action::Renew | Action::Next | Action::Collapse { .. } => {
                self.after = Some(Action::Open { leave: false });
            }
            // Some lines may have been read.
            Action::Gather { .. } => {
                self.gathered = self.accepted;
                self.first_click = None;
                self.after = Some(Action::Discard);
            }
            Action::Locate | Action::Ship { .. } => self.after = Some(self.action),
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        Action::Wait(pause.min(LONGEST_PAUSE))
    }

    fn gather(&self, from: u64) -> Action {
        Action::Gather {
            from,
            until: self.until,
        }
    }

    /// From where the database has got to, whatever was gathered.
    fn go_on(&mut self, counted: Counted) -> Action {
        let Counted { position, begun } = counted;
        self.first_click = None;
        self.quiet = None;
        self.accepted = position;
        self.until = begun;
        self.gathered = position;
        if self.ends.is_some_and(|ends| position >= ends) {
            return Action::Next;
        }
        // Another copy may have begun a range that goes on in lines of its own.
        if begun.unwrap_or(position) > self.size && self.ends.is_none() {
            // It was counted further than it is long: it was emptied, and nobody has seen it.
            return Action::Renew;
        }
        Action::Discard
    }

    fn gathered(&mut self, gathered: Gathered, now: Duration) -> Action {
        let Gathered {
            position,
            size,
            fill,
            age,
            end,
        } = gathered;
        let clicks = fill != Fill::Empty;
        if position > self.gathered {
            self.quiet = None;
        }
        self.gathered = position;
        self.size = self.size.max(size);
        if clicks && self.first_click.is_none() {
            self.first_click = Some((now, age));
        }
        let linger = match fill {
            Fill::Empty | Fill::Light => LINGER,
            Fill::Heavy | Fill::Full => LONG_LINGER,
        };
        // What has piled up is sent when there is no room for more of it, and its rest at once: it is old.
        let waited = fill == Fill::Full
            || end != End::More
                && self
                    .first_click
                    .is_some_and(|(found, age)| now.saturating_sub(found) + age >= linger);
        if let Some(stop) = self.until {
            return match end {
                _ if position == stop => Action::Ship {
                    start: self.accepted,
                    stop,
                },
                End::More => self.gather(position),
                End::Ended => self.wait_for_another_copy(stop, now),
                // The lines are not there any more.
                End::CaughtUp | End::Replaced | End::Truncated => Action::Renew,
            };
        }
        let last = matches!(end, End::Replaced | End::Truncated | End::Ended) && clicks;
        let long = position - self.accepted >= if clicks { UNCOUNTED } else { BARREN };
        if position > self.accepted && (waited || last || long) {
            return Action::Ship {
                start: self.accepted,
                stop: position,
            };
        }
        match end {
            End::More => self.gather(position),
            End::CaughtUp => self.wait(POLL, self.gather(position)),
            End::Truncated => Action::Renew,
            End::Ended => Action::Next,
            End::Replaced => {
                let since = *self.quiet.get_or_insert(now);
                if now.saturating_sub(since) >= QUIET {
                    return Action::Open { leave: true };
                }
                self.wait(POLL, self.gather(position))
            }
        }
    }

    /// The range that another copy has begun to send holds all that is gathered here, and lines that only the other has. If
    /// nothing happens to it any more, the other copy is gone, and its range is finished with what is here.
    fn wait_for_another_copy(&mut self, stop: u64, now: Duration) -> Action {
        let seen = Counted {
            position: self.accepted,
            begun: Some(stop),
        };
        let since = match self.foreign {
            Some((before, since)) if before == seen => since,
            _ => self.foreign.insert((seen, now)).1,
        };
        if now.saturating_sub(since) >= STALE {
            return Action::Ship {
                start: self.accepted,
                stop,
            };
        }
        self.wait(LINGER, Action::Locate)
    }

    fn shipped(&mut self, counted: Counted, now: Duration) -> Action {
        let Counted { position, begun } = counted;
        if position == self.accepted && begun == self.until {
            // It has neither taken nor had it. Not to be asked at once again.
            return self.failed(now);
        }
        let taken = position == self.gathered && begun.is_none();
        let next = self.go_on(counted);
        // If not, somebody else has sent batches of this journal, or the database was replaced by an older one.
        if taken { Action::Save { position } } else { next }
    }

    fn release(&mut self, now: Duration) -> Action {
        let counted = self.accepted;
        if !self.can_release {
            return match counted > TRUNCATE {
                true => Action::Truncate { position: counted },
                false => Action::Discard,
            };
        }
        let is_due = counted.saturating_sub(self.released) >= self.release_from
            || now.saturating_sub(self.released_at) >= RELEASE_AFTER;
        if !is_due {
            return Action::Discard;
        }
        self.released_at = now;
        Action::Release { position: counted }
    }

    fn wait(&mut self, time: Duration, after: Action) -> Action {
        self.after = Some(after);
        Action::Wait(time)
    }
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What outlives the process: the journal, the database, and what was written down. A line is one byte, `c` for a
    /// click and `-` for another.
    #[derive(Clone, Debug, Default)]
    struct World {
        journal: Vec<u8>,
        /// The time of the journal's contents: another one after each time it was emptied.
        epoch: u32,
        hole: usize,
        /// Generation, epoch and position.
        saved: Option<(u32, u32, usize)>,
        /// By generation.
        database: BTreeMap<u32, Account>,
        now: Duration,
        can_have_holes: bool,
        /// Bytes that are pretended to be in front of each journal's.
        steps: u32,
    }

    /// What the database has of a journal: it takes clicks two at a time.
    #[derive(Clone, Copy, Debug, Default)]
    struct Account {
        counted: Counted,
        clicks: u64,
        /// Of them those of a range that is not counted whole.
        part: u64,
    }

    const PART: u64 = 2;

    fn at(position: u64) -> Event {
        Event::Position(Counted { position, begun: None })
    }

    impl World {
        fn counted(&self) -> u64 {
            self.database.values().map(|account| account.clicks).sum()
        }

        fn write(&mut self, lines: &[u8]) {
            self.journal.extend(lines);
        }
    }

    /// What is lost with the process.
    #[derive(Debug)]
    struct Process {
        courier: Courier,
        generation: u32,
        epoch: u32,
        gathered: u64,
        /// Of them those that the database has taken.
        sent: u64,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fault {
        /// Killed before the action, or after it and before its outcome was known.
        KilledBefore,
        KilledAfter,
        /// The action fails, or is done and its answer lost.
        Fails,
        AnswerLost,
        /// Killed, and what was written down is gone.
        Forgets,
    }

    const FAULTS: [Fault; 5] = [
        Fault::KilledBefore,
        Fault::KilledAfter,
        Fault::Fails,
        Fault::AnswerLost,
        Fault::Forgets,
    ];

    impl Process {
        fn new() -> Self {
            Self {
                courier: Courier::new(),
                generation: 0,
                epoch: 0,
                gathered: 0,
                sent: 0,
            }
        }

        fn perform(&mut self, action: Action, world: &mut World) -> Event {
            let size = world.journal.len();
            let opened = Event::Opened {
                size: size as u64,
                ends: None,
            };
            match action {
                Action::Open { .. } => {
                    self.epoch = world.epoch;
                    self.generation = match world.saved {
                        Some((generation, epoch, position)) if epoch == world.epoch && position <= size => generation,
                        Some((generation, ..)) => generation + 1,
                        None => 0,
                    };
                    opened
                }
                Action::Renew => {
                    self.generation += 1;
                    self.epoch = world.epoch;
                    world.saved = Some((self.generation, self.epoch, 0));
                    opened
                }
                Action::Locate => {
                    let account = world.database.get(&self.generation).copied().unwrap_or_default();
                    self.sent = account.part;
                    Event::Position(account.counted)
                }
                Action::Discard => {
                    self.gathered = 0;
                    Event::Done
                }
                Action::Gather { from, until } => {
                    let truncated = self.epoch != world.epoch || size < from as usize;
                    let start = (from as usize).max(if truncated { 0 } else { world.hole });
                    // At most three lines at a time.
                    let new = if truncated {
                        &[][..]
                    } else {
                        let stop = until.map_or(size, |until| size.min(until as usize));
                        &world.journal[start.min(size)..(start + 3).min(stop)]
                    };
                    self.gathered += new.iter().filter(|line| **line == b'c').count() as u64;
                    let position = if truncated {
                        from
                    } else {
                        start.min(size) as u64 + new.len() as u64
                    };
                    Event::Gathered(Gathered {
                        position,
                        size: size as u64,
                        fill: match self.gathered {
                            0 => Fill::Empty,
                            1..5 => Fill::Light,
                            _ => Fill::Full,
                        },
                        age: Duration::ZERO,
                        end: match (truncated, position < size as u64) {
                            (true, _) => End::Truncated,
                            (_, true) => End::More,
                            _ => End::CaughtUp,
                        },
                    })
                }
                Action::Ship { start, stop } => {
                    let account = world.database.entry(self.generation).or_default();
                    let counted = account.counted;
                    // A part goes on where the one before ended.
                    let goes_on = match counted.begun {
                        None => counted.position == start && self.sent == 0,
                        Some(begun) => counted.position == start && begun == stop && account.part == self.sent,
                    };
                    if goes_on {
                        let part = PART.min(self.gathered - self.sent);
                        account.clicks += part;
                        account.part += part;
                        account.counted = Counted {
                            position: start,
                            begun: Some(stop),
                        };
                        if account.part == self.gathered {
                            account.part = 0;
                            account.counted = Counted {
                                position: stop,
                                begun: None,
                            };
                        }
                    }
                    let sent = std::mem::replace(&mut self.sent, account.part);
                    match account.counted.begun {
                        Some(begun) if begun == stop && account.part == sent + PART => Event::Shipped,
                        _ => Event::Position(account.counted),
                    }
                }
                Action::Save { position } => {
                    world.saved = Some((self.generation, self.epoch, position as usize));
                    Event::Done
                }
                Action::Release { position } => {
                    if !world.can_have_holes {
                        return Event::Unsupported;
                    }
                    world.hole = position as usize;
                    Event::Done
                }
                // See clicks/tests.rs.
                Action::Collapse { .. } => Event::Unsupported,
                Action::Next => opened,
                Action::Truncate { position } => {
                    if position as usize != size {
                        return Event::Kept;
                    }
                    world.journal.clear();
                    world.epoch += 1;
                    world.hole = 0;
                    Event::Done
                }
                Action::Wait(time) => {
                    world.now += time;
                    Event::Done
                }
            }
        }
    }

    /// Runs with faults at these steps until all is counted; nginx writes at every step at first.
    fn run(world: &mut World, faults: &[(u32, Fault)], each_step: impl Fn(u32, &mut World)) -> Vec<Action> {
        let mut process = Process::new();
        let mut actions = vec![];
        for step in 0..600 {
            each_step(step, world);
            world.steps = step;
            let action = process.courier.action();
            actions.push(action);
            let fault = faults.iter().find(|(at, _)| *at == step).map(|(_, fault)| *fault);
            if matches!(fault, Some(Fault::KilledBefore | Fault::Forgets)) {
                if fault == Some(Fault::Forgets) {
                    world.saved = None;
                }
                process = Process::new();
                continue;
            }
            let event = match fault {
                Some(Fault::Fails) => Event::Failed,
                _ => process.perform(action, world),
            };
            match fault {
                Some(Fault::KilledAfter) => process = Process::new(),
                Some(Fault::AnswerLost) => drop(process.courier.next(Event::Failed, world.now)),
                _ => drop(process.courier.next(event, world.now)),
            }
        }
        actions
    }

    fn writes(step: u32, world: &mut World) {
        if step < 40 {
            world.write(b"c-c");
        }
    }

    fn world() -> World {
        World {
            can_have_holes: true,
            ..World::default()
        }
    }

    #[test]
    fn every_click_is_counted() {
        let mut world = world();
        let actions = run(&mut world, &[], writes);
        assert_eq!(world.counted(), 80);
        assert_eq!(
            actions[..4],
            [
                Action::Open { leave: false },
                Action::Locate,
                Action::Discard,
                Action::Gather { from: 0, until: None }
            ]
        );
        let ship = actions
            .iter()
            .position(|action| matches!(action, Action::Ship { .. }))
            .unwrap();
        // Six clicks are three parts.
        assert_eq!(actions[ship..ship + 3], [Action::Ship { start: 0, stop: 9 }; 3]);
        assert_eq!(
            actions[ship + 3..ship + 5],
            [Action::Save { position: 9 }, Action::Discard]
        );
    }

    /// Whatever goes wrong at whichever step, and once more a little later: every click is counted, and none twice.
    #[test]
    fn a_fault_at_any_step_neither_loses_a_click_nor_doubles_one() {
        for first in 0..70 {
            for fault in FAULTS {
                for second in [None, Some(1), Some(2), Some(3), Some(5)] {
                    for other in FAULTS {
                        let mut faults = vec![(first, fault)];
                        faults.extend(second.map(|after| (first + after, other)));
                        let mut world = world();
                        run(&mut world, &faults, writes);
                        assert_eq!(world.counted(), 80, "{faults:?}");
                        if second.is_none() {
                            break;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn killed_at_every_other_step_it_still_gets_on() {
        let faults: Vec<_> = (0..60).map(|n| (n * 8, FAULTS[n as usize % FAULTS.len()])).collect();
        let mut world = world();
        run(&mut world, &faults, writes);
        assert_eq!(world.counted(), 80);
    }

    /// The database is back as it was some batches ago: what the journal still holds is counted again there.
    #[test]
    fn a_database_that_was_put_back_gets_what_is_still_there() {
        let mut world = world();
        run(&mut world, &[], |step, world| {
            writes(step, world);
            if step == 300 {
                let early = world.database.get_mut(&0).unwrap();
                early.counted.position = 9;
                early.clicks = 6;
            }
            if step == 301 {
                world.write(b"c");
            }
        });
        assert_eq!(world.counted(), 81);
    }

    #[test]
    fn a_new_database_gets_what_is_still_there() {
        let mut world = world();
        run(&mut world, &[], |step, world| {
            writes(step, world);
            if step == 300 {
                world.database.clear();
                world.write(b"cc");
            }
        });
        assert_eq!(world.counted(), 82);
    }

    /// Two agents at once, by a mistake: the database takes a batch from one of them.
    #[test]
    fn two_at_once_count_once() {
        let mut world = world();
        let mut processes = [Process::new(), Process::new()];
        for step in 0..1200 {
            writes(step, &mut world);
            let process = &mut processes[(step % 5 % 2) as usize];
            let event = process.perform(process.courier.action(), &mut world);
            process.courier.next(event, world.now);
        }
        assert_eq!(world.counted(), 80);
    }

    /// An operator empties the journal: what was read is counted, what was not is gone, nothing is doubled.
    #[test]
    fn an_emptied_journal_begins_anew() {
        for emptied in 1..60 {
            for killed in [None, Some(emptied), Some(emptied + 1), Some(emptied + 4)] {
                let faults: Vec<_> = killed.map(|at| (at, Fault::KilledBefore)).into_iter().collect();
                let mut world = world();
                run(&mut world, &faults, |step, world| {
                    if step == emptied {
                        world.journal.clear();
                        world.epoch += 1;
                        world.hole = 0;
                    }
                    // Enough that the new one is soon as long as the old one was.
                    if step < 10 || (emptied..emptied + 20).contains(&step) {
                        world.write(b"c");
                    }
                });
                let before = emptied.min(10);
                let all = u64::from(before) + 20 + u64::from(10 - before);
                assert!(world.counted() <= all, "{} at {emptied}", world.counted());
                assert!(world.counted() >= 20, "{} at {emptied}, {killed:?}", world.counted());
            }
        }
    }

    #[test]
    fn while_the_database_is_silent_nothing_more_is_read() {
        let mut courier = Courier::new();
        let mut now = Duration::ZERO;
        courier.next(Event::Opened { size: 100, ends: None }, now);
        courier.next(Event::Position(Counted::default()), now);
        courier.next(Event::Done, now);
        let full = Gathered {
            position: 100,
            size: 100,
            fill: Fill::Full,
            age: Duration::ZERO,
            end: End::CaughtUp,
        };
        let ship = courier.next(Event::Gathered(full), now);
        assert_eq!(ship, Action::Ship { start: 0, stop: 100 });
        let mut pauses = vec![];
        for _ in 0..8 {
            let Action::Wait(pause) = courier.next(Event::Failed, now) else {
                panic!("{:?}", courier.action());
            };
            pauses.push(pause.as_millis());
            now += pause;
            assert_eq!(courier.next(Event::Done, now), ship);
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
        assert_eq!(courier.next(at(100), now), Action::Save { position: 100 });
    }

    fn caught_up(position: u64, fill: Fill, end: End) -> Event {
        Event::Gathered(Gathered {
            position,
            size: position,
            fill,
            age: Duration::ZERO,
            end,
        })
    }

    fn at_work(position: u64) -> Courier {
        let mut courier = Courier::new();
        courier.next(
            Event::Opened {
                size: position,
                ends: None,
            },
            Duration::ZERO,
        );
        courier.next(at(position), Duration::ZERO);
        courier.next(Event::Done, Duration::ZERO);
        courier
    }

    #[test]
    fn a_journal_that_was_replaced_is_read_to_its_end_and_left_when_it_is_quiet() {
        let mut courier = at_work(50);
        let mut now = Duration::ZERO;
        // What was gathered of it goes first.
        let action = courier.next(caught_up(60, Fill::Light, End::Replaced), now);
        assert_eq!(action, Action::Ship { start: 50, stop: 60 });
        courier.next(at(60), now);
        courier.next(Event::Done, now);
        let mut looks = 0;
        let action = loop {
            let action = match courier.action() {
                Action::Wait(time) => {
                    now += time;
                    courier.next(Event::Done, now)
                }
                Action::Gather { .. } => {
                    looks += 1;
                    courier.next(caught_up(60, Fill::Empty, End::Replaced), now)
                }
                _ => courier.next(Event::Done, now),
            };
            if matches!(action, Action::Open { .. }) {
                break action;
            }
        };
        assert_eq!(action, Action::Open { leave: true });
        assert_eq!((now, looks), (QUIET, 11));
    }

    #[test]
    fn lines_without_clicks_are_counted_as_read_now_and_then() {
        let mut courier = at_work(0);
        let action = courier.next(caught_up(BARREN - 1, Fill::Empty, End::CaughtUp), Duration::ZERO);
        assert_eq!(action, Action::Wait(POLL));
        courier.next(Event::Done, POLL);
        let action = courier.next(caught_up(BARREN, Fill::Empty, End::CaughtUp), POLL);
        assert_eq!(action, Action::Ship { start: 0, stop: BARREN });
    }

    #[test]
    fn clicks_of_very_many_links_wait_longer_unless_the_journal_gets_long() {
        for (fill, stop, linger) in [
            (Fill::Light, 100, LINGER),
            (Fill::Heavy, 100, LONG_LINGER),
            (Fill::Heavy, UNCOUNTED, Duration::ZERO),
            (Fill::Full, 100, Duration::ZERO),
        ] {
            let mut courier = at_work(0);
            let mut now = Duration::ZERO;
            let ship = loop {
                match courier.next(caught_up(stop, fill, End::CaughtUp), now) {
                    Action::Wait(time) => now += time,
                    action => break action,
                }
                courier.next(Event::Done, now);
            };
            assert_eq!((ship, now), (Action::Ship { start: 0, stop }, linger), "{fill:?}");
        }
    }

    #[test]
    fn what_has_piled_up_is_sent_in_large_batches_and_its_rest_at_once() {
        let mut courier = at_work(0);
        let now = Duration::ZERO;
        let mut found = |position, fill, end| {
            let gathered = Gathered {
                position,
                size: 300,
                fill,
                age: LONG_LINGER,
                end,
            };
            courier.next(Event::Gathered(gathered), now)
        };
        let more = found(100, Fill::Heavy, End::More);
        assert_eq!(more, Action::Gather { from: 100, until: None });
        let rest = found(300, Fill::Heavy, End::CaughtUp);
        assert_eq!(rest, Action::Ship { start: 0, stop: 300 });
    }

    #[test]
    fn what_was_counted_is_given_back_in_pieces_or_in_time() {
        let mut courier = at_work(0);
        let mut ship = |stop: u64, now: Duration| {
            courier.next(caught_up(stop, Fill::Light, End::Truncated), now);
            courier.next(at(stop), now);
            let action = courier.next(Event::Done, now);
            while !matches!(courier.action(), Action::Gather { .. }) {
                courier.next(Event::Done, now);
            }
            action
        };
        assert_eq!(ship(100, Duration::ZERO), Action::Discard);
        let piece = RELEASE + 50;
        assert_eq!(ship(piece, Duration::ZERO), Action::Release { position: piece });
        assert_eq!(ship(piece + 100, Duration::ZERO), Action::Discard);
        let later = ship(piece + 200, RELEASE_AFTER);
        assert_eq!(later, Action::Release { position: piece + 200 });
    }

    #[test]
    fn a_long_journal_is_collapsed_and_goes_on_under_another_name() {
        let mut courier = at_work(COLLAPSE);
        let stop = COLLAPSE + RELEASE;
        let now = Duration::ZERO;
        courier.next(caught_up(stop, Fill::Light, End::Truncated), now);
        courier.next(at(stop), now);
        assert_eq!(courier.next(Event::Done, now), Action::Release { position: stop });
        assert_eq!(courier.next(Event::Done, now), Action::Collapse { position: stop });
        let opened = Event::Opened { size: 10, ends: None };
        assert_eq!(courier.next(opened, now), Action::Locate);
        assert_eq!(courier.next(at(10), now), Action::Discard);
    }

    #[test]
    fn a_removal_is_tried_again_only_where_the_file_system_supports_it() {
        for (answer, is_tried_again) in [(Event::Unsupported, false), (Event::Done, true)] {
            let mut courier = at_work(COLLAPSE);
            let now = Duration::ZERO;
            let mut release = |stop| {
                courier.next(caught_up(stop, Fill::Light, End::Truncated), now);
                courier.next(at(stop), now);
                assert_eq!(courier.next(Event::Done, now), Action::Release { position: stop });
                let next = courier.next(Event::Done, now);
                if next != Action::Discard {
                    assert_eq!(next, Action::Collapse { position: stop });
                    assert_eq!(courier.next(answer, now), Action::Discard);
                }
                courier.next(Event::Done, now);
                next != Action::Discard
            };
            assert!(release(COLLAPSE + RELEASE));
            assert_eq!(release(COLLAPSE + 2 * RELEASE), is_tried_again, "{answer:?}");
        }
    }

    /// As far as `ends`, of which `counted` is counted.
    fn in_a_segment(counted: Counted, ends: u64) -> (Courier, Action) {
        let mut courier = Courier::new();
        let ends = Some(ends);
        courier.next(Event::Opened { size: 100, ends }, Duration::ZERO);
        let action = courier.next(Event::Position(counted), Duration::ZERO);
        (courier, action)
    }

    #[test]
    fn what_is_left_of_a_name_is_sent_at_once_and_then_comes_the_next_name() {
        let now = Duration::ZERO;
        let (mut courier, action) = in_a_segment(Counted::default(), 60);
        assert_eq!(action, Action::Discard);
        courier.next(Event::Done, now);
        let ship = courier.next(caught_up(60, Fill::Light, End::Ended), now);
        assert_eq!(ship, Action::Ship { start: 0, stop: 60 });
        // Another copy was faster, or has gone on.
        for position in [60, 80, 900] {
            assert_eq!(in_a_segment(Counted { position, begun: None }, 60).1, Action::Next);
        }
        // No click is left.
        let (mut courier, _) = in_a_segment(Counted::default(), 60);
        courier.next(Event::Done, now);
        assert_eq!(courier.next(caught_up(60, Fill::Empty, End::Ended), now), Action::Next);
    }

    #[test]
    fn a_range_of_another_copy_is_finished_only_if_that_copy_is_gone() {
        let begun = Counted {
            position: 40,
            begun: Some(900),
        };
        let (mut courier, action) = in_a_segment(begun, 60);
        assert_eq!(action, Action::Discard);
        let mut now = Duration::ZERO;
        let action = loop {
            let action = match courier.action() {
                Action::Gather { until, .. } => {
                    assert_eq!(until, Some(900));
                    courier.next(caught_up(60, Fill::Light, End::Ended), now)
                }
                Action::Wait(time) => {
                    now += time;
                    courier.next(Event::Done, now)
                }
                Action::Locate => courier.next(Event::Position(begun), now),
                _ => courier.next(Event::Done, now),
            };
            if matches!(action, Action::Ship { .. }) {
                break action;
            }
        };
        assert_eq!((action, now), (Action::Ship { start: 40, stop: 900 }, STALE));
        // Nothing is given back: what is behind the end of the name is not counted.
        assert_eq!(courier.next(at(900), now), Action::Next);
    }

    #[test]
    fn a_database_ahead_by_lines_of_others_begins_another_name() {
        let mut courier = Courier::new();
        courier.next(Event::Opened { size: 100, ends: None }, Duration::ZERO);
        assert_eq!(courier.next(Event::Foreign, Duration::ZERO), Action::Renew);
        let mut courier = Courier::new();
        courier.next(Event::Opened { size: 100, ends: None }, Duration::ZERO);
        assert_eq!(courier.next(at(101), Duration::ZERO), Action::Renew);
    }

    #[test]
    fn a_journal_that_cannot_have_holes_is_emptied_when_it_is_long() {
        let mut courier = at_work(TRUNCATE);
        let stop = TRUNCATE + RELEASE;
        let now = Duration::ZERO;
        courier.next(caught_up(stop, Fill::Light, End::Truncated), now);
        courier.next(at(stop), now);
        assert_eq!(courier.next(Event::Done, now), Action::Release { position: stop });
        let empty = courier.next(Event::Unsupported, now);
        assert_eq!(empty, Action::Truncate { position: stop });
        assert_eq!(courier.next(Event::Done, now), Action::Renew);
        assert_eq!(courier.next(Event::Opened { size: 0, ends: None }, now), Action::Locate);
        assert_eq!(courier.next(Event::Position(Counted::default()), now), Action::Discard);
        assert_eq!(courier.next(Event::Done, now), Action::Gather { from: 0, until: None });
    }
}
