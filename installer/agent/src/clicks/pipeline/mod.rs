//! Decides how clicks get from the journal into the database exactly once. The pipeline is a state machine: from the outcome of
//! each action it derives the next one, and performs none itself.
//!
//! The database alone knows up to which position the journal is counted. It accepts a batch only if the batch begins exactly
//! there. Therefore a batch that is sent again, or another batch with the same lines, changes nothing, whatever this process
//! has forgotten. The agent's own record only serves to recognize the journal.

use std::time::Duration;

/// How long clicks wait for others before they are sent together.
pub const LINGER: Duration = Duration::from_secs(10);
/// How long clicks on very many links wait. Further clicks on the same links cost nothing more.
pub const LONG_LINGER: Duration = Duration::from_secs(60);
/// The maximum number of uncounted bytes in the journal while clicks wait.
pub const MAX_UNCOUNTED: u64 = 256 * 1024 * 1024;
/// The interval between two reads of a journal that has nothing new.
pub const POLL: Duration = Duration::from_millis(500);
/// How long a replaced journal must be quiet before it is left. nginx flushes its lines at least once a second.
pub const QUIET: Duration = Duration::from_secs(5);
/// After this many bytes without a click the position is sent to the database nevertheless.
pub const MAX_CLICKLESS: u64 = 1024 * 1024;
/// How many counted bytes are released at a time.
pub const RELEASE: u64 = 1024 * 1024;
/// The time after which fewer counted bytes are released.
pub const RELEASE_AFTER: Duration = Duration::from_secs(60);
/// The number of counted bytes at which their blocks are removed from the journal. The journal gets no longer than this plus
/// the uncounted bytes and one [`RELEASE`].
pub const COLLAPSE: u64 = 4 * 1024 * 1024;
/// How long a range that another copy of the journal has begun to send may be unchanged before this copy finishes it.
pub const STALE: Duration = Duration::from_secs(300);
/// The length, in bytes, above which a journal on a file system without holes is emptied.
pub const TRUNCATE: u64 = 64 * 1024 * 1024;
/// The pause after a failure. It doubles with each further failure in a row.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after a failure.
pub const MAX_PAUSE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open the journal. With `leave` the present one is finished, and the next one is opened.
    Open {
        leave: bool,
    },
    /// Give the same file a new name, because its contents were removed or another copy uses its name.
    Renew,
    /// Continue with the next name in the file.
    Next,
    /// Ask the database for the position up to which the journal is counted.
    Locate,
    /// Discard what was aggregated.
    Discard,
    /// Aggregate lines from one position on, up to another one if it is given.
    Aggregate {
        from: u64,
        until: Option<u64>,
    },
    /// Send the aggregate, or the next part of it.
    Ship {
        start: u64,
        stop: u64,
    },
    /// Record the position and the mark by which the journal is recognized.
    Save {
        position: u64,
    },
    /// Release what is before the position.
    Release {
        position: u64,
    },
    /// Remove what is before the position from the journal.
    Collapse {
        position: u64,
    },
    /// Empty the journal if it ends at the position.
    Truncate {
        position: u64,
    },
    Wait(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The action was done.
    Done,
    /// The action failed. The executor has reported the reason.
    Failed,
    /// The journal is open.
    Opened {
        /// The size of the journal in bytes.
        size: u64,
        /// Where the current name ends and another one begins.
        ends: Option<u64>,
    },
    /// The database is ahead by lines that are not in this file.
    Foreign,
    /// The position up to which the database has counted, after [`Action::Locate`] or [`Action::Ship`].
    Position(Counted),
    /// The database has accepted a part of the aggregate, and more parts follow.
    Shipped,
    /// The database accepted nothing, because some clicks belong to a deleted link. The lines must be aggregated again.
    Outdated(Counted),
    Aggregated(Aggregated),
    /// The file system does not support the action.
    Unsupported,
    /// The journal was not emptied, because it has grown since it was read.
    Kept,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Lines before this position are counted.
    pub position: u64,
    /// The end of a range of which only some parts are counted. The other parts must be aggregated from the same lines.
    pub begun: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregated {
    /// The position after the last line.
    pub position: u64,
    /// The size of the journal in bytes.
    pub size: u64,
    pub fill: Fill,
    /// The age of the first click among the new lines, by its own time; zero if there is none.
    pub age: Duration,
    pub end: End,
}

/// How much has been aggregated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// No click.
    Empty,
    Light,
    /// So much that sending it is expensive.
    Heavy,
    /// There is no room for more.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// There is more to read.
    More,
    /// There is nothing more to read at present.
    CaughtUp,
    /// There is nothing more to read, and nginx already writes to another file.
    Replaced,
    /// The lines that were read are not in the file any more.
    Truncated,
    /// The current name ends here.
    Ended,
}

/// The state machine.
#[derive(Debug)]
pub struct Pipeline {
    /// The action that is being performed.
    action: Action,
    /// The action after the present wait.
    after: Option<Action>,
    /// The last known size of the journal.
    size: u64,
    /// The position up to which the database has counted.
    accepted: u64,
    /// Where the current name ends.
    ends: Option<u64>,
    /// Where the aggregate has to end, because some parts of that range are counted already.
    until: Option<u64>,
    /// A range that another copy has begun to send, and since when it is unchanged.
    foreign: Option<(Counted, Duration)>,
    /// The position up to which lines have been aggregated.
    aggregated: u64,
    /// When the first click of the aggregate was read, and how old it was at that time.
    first_click: Option<(Duration, Duration)>,
    /// Since when a replaced journal has been quiet.
    quiet: Option<Duration>,
    /// The position up to which lines have been released.
    released: u64,
    released_at: Duration,
    can_release: bool,
    can_collapse: bool,
    release_from: u64,
    collapse_from: u64,
    failures: u32,
}

impl Pipeline {
    pub fn new() -> Self {
        Self {
            action: Action::Open { leave: false },
            after: None,
            size: 0,
            accepted: 0,
            ends: None,
            until: None,
            foreign: None,
            aggregated: 0,
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

    /// The next action, from the outcome of the last one. `now` is the time since an arbitrary moment.
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
            (Action::Wait(_), _) => self.after.take().unwrap_or(self.aggregate(self.aggregated)),
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
            (Action::Locate, Event::Position(counted)) => self.resume(counted),
            (Action::Locate | Action::Ship { .. }, Event::Foreign) => Action::Renew,
            (Action::Discard, _) => self.aggregate(self.accepted),
            (Action::Aggregate { .. }, Event::Aggregated(aggregated)) => self.aggregated(aggregated, now),
            (Action::Ship { .. }, Event::Position(counted)) => self.shipped(counted, now),
            (Action::Ship { .. }, Event::Shipped) => self.action,
            (Action::Ship { .. }, Event::Outdated(counted)) => self.resume(counted),
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
            // The executor never returns these; starting over is always safe.
            (
                Action::Open { .. }
                | Action::Renew
                | Action::Next
                | Action::Locate
                | Action::Aggregate { .. }
                | Action::Ship { .. },
                _,
            ) => Action::Open { leave: false },
        }
    }

    fn failed(&mut self, now: Duration) -> Action {
        match self.action {
            // Nothing depends on these; they are repeated after the next batch.
            Action::Save { .. } => return self.release(now),
            Action::Release { .. } | Action::Truncate { .. } | Action::Discard | Action::Wait(_) => {
                return Action::Discard;
            }
            // The journal may have been renamed or removed.
            Action::Open { .. } | Action::Renew | Action::Next | Action::Collapse { .. } => {
                self.after = Some(Action::Open { leave: false });
            }
            // Some lines may already have been aggregated.
            Action::Aggregate { .. } => {
                self.aggregated = self.accepted;
                self.first_click = None;
                self.after = Some(Action::Discard);
            }
            Action::Locate | Action::Ship { .. } => self.after = Some(self.action),
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        Action::Wait(pause.min(MAX_PAUSE))
    }

    fn aggregate(&self, from: u64) -> Action {
        Action::Aggregate {
            from,
            until: self.until,
        }
    }

    /// Starts over from the position of the database, whatever has been aggregated.
    fn resume(&mut self, counted: Counted) -> Action {
        let Counted { position, begun } = counted;
        self.first_click = None;
        self.quiet = None;
        self.accepted = position;
        self.until = begun;
        self.aggregated = position;
        if self.ends.is_some_and(|ends| position >= ends) {
            return Action::Next;
        }
        // Before the end of a name, another copy may have begun a range that continues with its own lines.
        if begun.unwrap_or(position) > self.size && self.ends.is_none() {
            // The journal is shorter than what was counted: it was emptied unnoticed.
            return Action::Renew;
        }
        Action::Discard
    }

    fn aggregated(&mut self, aggregated: Aggregated, now: Duration) -> Action {
        let Aggregated {
            position,
            size,
            fill,
            age,
            end,
        } = aggregated;
        let clicks = fill != Fill::Empty;
        if position > self.aggregated {
            self.quiet = None;
        }
        self.aggregated = position;
        self.size = self.size.max(size);
        if clicks && self.first_click.is_none() {
            self.first_click = Some((now, age));
        }
        let linger = match fill {
            Fill::Empty | Fill::Light => LINGER,
            Fill::Heavy | Fill::Full => LONG_LINGER,
        };
        // A backlog is sent whenever the aggregate is full. The rest of the backlog is sent at once because it is old.
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
                End::More => self.aggregate(position),
                End::Ended => self.wait_for_another_copy(stop, now),
                // The lines do not exist any more.
                End::CaughtUp | End::Replaced | End::Truncated => Action::Renew,
            };
        }
        let last = matches!(end, End::Replaced | End::Truncated | End::Ended) && clicks;
        let long = position - self.accepted >= if clicks { MAX_UNCOUNTED } else { MAX_CLICKLESS };
        if position > self.accepted && (waited || last || long) {
            return Action::Ship {
                start: self.accepted,
                stop: position,
            };
        }
        match end {
            End::More => self.aggregate(position),
            End::CaughtUp => self.wait(POLL, self.aggregate(position)),
            End::Truncated => Action::Renew,
            End::Ended => Action::Next,
            End::Replaced => {
                let since = *self.quiet.get_or_insert(now);
                if now.saturating_sub(since) >= QUIET {
                    return Action::Open { leave: true };
                }
                self.wait(POLL, self.aggregate(position))
            }
        }
    }

    /// Waits for another copy of the journal to finish the range that it has begun to send. The range contains everything
    /// aggregated here and lines that only the other copy has. If the range stays unchanged for long, the other copy is gone,
    /// and the range is finished with the lines that exist here.
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
            // The database has neither accepted the batch nor had it before. Pauses before the next attempt.
            return self.failed(now);
        }
        let taken = position == self.aggregated && begun.is_none();
        let next = self.resume(counted);
        // Otherwise somebody else has sent batches of this journal, or the database was restored to an older state.
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
mod tests;
