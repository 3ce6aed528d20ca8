//! Tests of the decisions against a simulated journal and database, with faults at every step.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::collections::BTreeMap;

use super::*;

/// What outlives the process: the journal, the database and the record. A line is one byte: `c` for a click, `-` for any
/// other line.
#[derive(Clone, Debug, Default)]
struct World {
    journal: Vec<u8>,
    /// How many times the journal has been emptied.
    epoch: u32,
    hole: usize,
    /// Generation, epoch and position.
    saved: Option<(u32, u32, usize)>,
    /// The journals in the database, by generation.
    database: BTreeMap<u32, Account>,
    now: Duration,
    can_have_holes: bool,
}

/// What the database has counted of a journal. It accepts two clicks at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    counted: Counted,
    clicks: u64,
    /// The number of these clicks that belong to an unfinished range.
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
    pipeline: Pipeline,
    generation: u32,
    epoch: u32,
    aggregated: u64,
    /// How many of the aggregated clicks the database has accepted.
    sent: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The process is killed before the action.
    KilledBefore,
    /// The process is killed after the action, before it knows the outcome.
    KilledAfter,
    /// The action fails.
    Fails,
    /// The action is done, but its outcome is lost.
    AnswerLost,
    /// The process is killed, and its record is lost.
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
            pipeline: Pipeline::new(),
            generation: 0,
            epoch: 0,
            aggregated: 0,
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
                self.aggregated = 0;
                Event::Done
            }
            Action::Aggregate { from, until } => {
                let truncated = self.epoch != world.epoch || size < from as usize;
                let start = (from as usize).max(if truncated { 0 } else { world.hole });
                // Reads at most three lines at a time.
                let new = if truncated {
                    &[][..]
                } else {
                    let stop = until.map_or(size, |until| size.min(until as usize));
                    &world.journal[start.min(size)..(start + 3).min(stop)]
                };
                self.aggregated += new.iter().filter(|line| **line == b'c').count() as u64;
                let position = if truncated {
                    from
                } else {
                    start.min(size) as u64 + new.len() as u64
                };
                Event::Aggregated(Aggregated {
                    position,
                    size: size as u64,
                    fill: match self.aggregated {
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
                // A part must begin where the previous one ended.
                let continues = match counted.begun {
                    None => counted.position == start && self.sent == 0,
                    Some(begun) => counted.position == start && begun == stop && account.part == self.sent,
                };
                if continues {
                    let part = PART.min(self.aggregated - self.sent);
                    account.clicks += part;
                    account.part += part;
                    account.counted = Counted {
                        position: start,
                        begun: Some(stop),
                    };
                    if account.part == self.aggregated {
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
            // clicks/tests.rs tests this.
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

/// Runs 600 steps, enough to count everything, with faults at the given steps.
fn run(world: &mut World, faults: &[(u32, Fault)], each_step: impl Fn(u32, &mut World)) -> Vec<Action> {
    let mut process = Process::new();
    let mut actions = vec![];
    for step in 0..600 {
        each_step(step, world);
        let action = process.pipeline.action();
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
            Some(Fault::AnswerLost) => drop(process.pipeline.next(Event::Failed, world.now)),
            _ => drop(process.pipeline.next(event, world.now)),
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
            Action::Aggregate { from: 0, until: None }
        ]
    );
    let ship = actions
        .iter()
        .position(|action| matches!(action, Action::Ship { .. }))
        .unwrap();
    // Six clicks make three parts.
    assert_eq!(actions[ship..ship + 3], [Action::Ship { start: 0, stop: 9 }; 3]);
    assert_eq!(
        actions[ship + 3..ship + 5],
        [Action::Save { position: 9 }, Action::Discard]
    );
}

/// Every fault at every step, and every combination with a second fault a little later.
#[test]
fn a_fault_at_any_step_neither_loses_nor_doubles_a_click() {
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
fn frequent_faults_do_not_stop_the_pipeline() {
    let faults: Vec<_> = (0..60).map(|n| (n * 8, FAULTS[n as usize % FAULTS.len()])).collect();
    let mut world = world();
    run(&mut world, &faults, writes);
    assert_eq!(world.counted(), 80);
}

/// The database is restored to its state of some batches ago.
#[test]
fn a_restored_database_gets_what_the_journal_still_has() {
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
fn a_new_database_gets_what_the_journal_still_has() {
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

/// Two agents run at once by mistake. The database accepts each batch from one of them.
#[test]
fn two_agents_at_once_count_each_click_once() {
    let mut world = world();
    let mut processes = [Process::new(), Process::new()];
    for step in 0..1200 {
        writes(step, &mut world);
        let process = &mut processes[(step % 5 % 2) as usize];
        let event = process.perform(process.pipeline.action(), &mut world);
        process.pipeline.next(event, world.now);
    }
    assert_eq!(world.counted(), 80);
}

/// An operator empties the journal. Lines that were read are counted, the others are lost, and none is counted twice.
#[test]
fn an_emptied_journal_is_counted_from_its_beginning() {
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
                // Enough lines that the new contents are soon as long as the old ones.
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
fn while_the_database_does_not_respond_nothing_more_is_read() {
    let mut pipeline = Pipeline::new();
    let mut now = Duration::ZERO;
    pipeline.next(Event::Opened { size: 100, ends: None }, now);
    pipeline.next(Event::Position(Counted::default()), now);
    pipeline.next(Event::Done, now);
    let full = Aggregated {
        position: 100,
        size: 100,
        fill: Fill::Full,
        age: Duration::ZERO,
        end: End::CaughtUp,
    };
    let ship = pipeline.next(Event::Aggregated(full), now);
    assert_eq!(ship, Action::Ship { start: 0, stop: 100 });
    let mut pauses = vec![];
    for _ in 0..8 {
        let Action::Wait(pause) = pipeline.next(Event::Failed, now) else {
            panic!("{:?}", pipeline.action());
        };
        pauses.push(pause.as_millis());
        now += pause;
        assert_eq!(pipeline.next(Event::Done, now), ship);
    }
    assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
    assert_eq!(pipeline.next(at(100), now), Action::Save { position: 100 });
}

fn caught_up(position: u64, fill: Fill, end: End) -> Event {
    Event::Aggregated(Aggregated {
        position,
        size: position,
        fill,
        age: Duration::ZERO,
        end,
    })
}

fn at_work(position: u64) -> Pipeline {
    let mut pipeline = Pipeline::new();
    pipeline.next(
        Event::Opened {
            size: position,
            ends: None,
        },
        Duration::ZERO,
    );
    pipeline.next(at(position), Duration::ZERO);
    pipeline.next(Event::Done, Duration::ZERO);
    pipeline
}

#[test]
fn a_replaced_journal_is_read_to_its_end_and_left_when_it_is_quiet() {
    let mut pipeline = at_work(50);
    let mut now = Duration::ZERO;
    // What has been aggregated is sent first.
    let action = pipeline.next(caught_up(60, Fill::Light, End::Replaced), now);
    assert_eq!(action, Action::Ship { start: 50, stop: 60 });
    pipeline.next(at(60), now);
    pipeline.next(Event::Done, now);
    let mut reads = 0;
    let action = loop {
        let action = match pipeline.action() {
            Action::Wait(time) => {
                now += time;
                pipeline.next(Event::Done, now)
            }
            Action::Aggregate { .. } => {
                reads += 1;
                pipeline.next(caught_up(60, Fill::Empty, End::Replaced), now)
            }
            _ => pipeline.next(Event::Done, now),
        };
        if matches!(action, Action::Open { .. }) {
            break action;
        }
    };
    assert_eq!(action, Action::Open { leave: true });
    assert_eq!((now, reads), (QUIET, 11));
}

#[test]
fn the_position_advances_over_lines_without_clicks() {
    let mut pipeline = at_work(0);
    let action = pipeline.next(caught_up(MAX_CLICKLESS - 1, Fill::Empty, End::CaughtUp), Duration::ZERO);
    assert_eq!(action, Action::Wait(POLL));
    pipeline.next(Event::Done, POLL);
    let action = pipeline.next(caught_up(MAX_CLICKLESS, Fill::Empty, End::CaughtUp), POLL);
    assert_eq!(
        action,
        Action::Ship {
            start: 0,
            stop: MAX_CLICKLESS
        }
    );
}

#[test]
fn clicks_on_very_many_links_wait_longer_unless_the_journal_gets_long() {
    for (fill, stop, linger) in [
        (Fill::Light, 100, LINGER),
        (Fill::Heavy, 100, LONG_LINGER),
        (Fill::Heavy, MAX_UNCOUNTED, Duration::ZERO),
        (Fill::Full, 100, Duration::ZERO),
    ] {
        let mut pipeline = at_work(0);
        let mut now = Duration::ZERO;
        let ship = loop {
            match pipeline.next(caught_up(stop, fill, End::CaughtUp), now) {
                Action::Wait(time) => now += time,
                action => break action,
            }
            pipeline.next(Event::Done, now);
        };
        assert_eq!((ship, now), (Action::Ship { start: 0, stop }, linger), "{fill:?}");
    }
}

#[test]
fn a_backlog_is_sent_in_large_batches_and_its_rest_at_once() {
    let mut pipeline = at_work(0);
    let now = Duration::ZERO;
    let mut found = |position, fill, end| {
        let aggregated = Aggregated {
            position,
            size: 300,
            fill,
            age: LONG_LINGER,
            end,
        };
        pipeline.next(Event::Aggregated(aggregated), now)
    };
    let more = found(100, Fill::Heavy, End::More);
    assert_eq!(more, Action::Aggregate { from: 100, until: None });
    let rest = found(300, Fill::Heavy, End::CaughtUp);
    assert_eq!(rest, Action::Ship { start: 0, stop: 300 });
}

#[test]
fn counted_lines_are_released_by_size_or_by_time() {
    let mut pipeline = at_work(0);
    let mut ship = |stop: u64, now: Duration| {
        pipeline.next(caught_up(stop, Fill::Light, End::Truncated), now);
        pipeline.next(at(stop), now);
        let action = pipeline.next(Event::Done, now);
        while !matches!(pipeline.action(), Action::Aggregate { .. }) {
            pipeline.next(Event::Done, now);
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
fn a_long_journal_is_collapsed_and_continues_under_another_name() {
    let mut pipeline = at_work(COLLAPSE);
    let stop = COLLAPSE + RELEASE;
    let now = Duration::ZERO;
    pipeline.next(caught_up(stop, Fill::Light, End::Truncated), now);
    pipeline.next(at(stop), now);
    assert_eq!(pipeline.next(Event::Done, now), Action::Release { position: stop });
    assert_eq!(pipeline.next(Event::Done, now), Action::Collapse { position: stop });
    let opened = Event::Opened { size: 10, ends: None };
    assert_eq!(pipeline.next(opened, now), Action::Locate);
    assert_eq!(pipeline.next(at(10), now), Action::Discard);
}

#[test]
fn a_removal_is_tried_again_only_where_the_file_system_supports_it() {
    for (answer, is_tried_again) in [(Event::Unsupported, false), (Event::Done, true)] {
        let mut pipeline = at_work(COLLAPSE);
        let now = Duration::ZERO;
        let mut release = |stop| {
            pipeline.next(caught_up(stop, Fill::Light, End::Truncated), now);
            pipeline.next(at(stop), now);
            assert_eq!(pipeline.next(Event::Done, now), Action::Release { position: stop });
            let next = pipeline.next(Event::Done, now);
            if next != Action::Discard {
                assert_eq!(next, Action::Collapse { position: stop });
                assert_eq!(pipeline.next(answer, now), Action::Discard);
            }
            pipeline.next(Event::Done, now);
            next != Action::Discard
        };
        assert!(release(COLLAPSE + RELEASE));
        assert_eq!(release(COLLAPSE + 2 * RELEASE), is_tried_again, "{answer:?}");
    }
}

/// A pipeline whose current name ends at `ends`, when the database has counted `counted`.
fn in_a_segment(counted: Counted, ends: u64) -> (Pipeline, Action) {
    let mut pipeline = Pipeline::new();
    let ends = Some(ends);
    pipeline.next(Event::Opened { size: 100, ends }, Duration::ZERO);
    let action = pipeline.next(Event::Position(counted), Duration::ZERO);
    (pipeline, action)
}

#[test]
fn the_rest_of_a_name_is_sent_at_once_before_the_next_name() {
    let now = Duration::ZERO;
    let (mut pipeline, action) = in_a_segment(Counted::default(), 60);
    assert_eq!(action, Action::Discard);
    pipeline.next(Event::Done, now);
    let ship = pipeline.next(caught_up(60, Fill::Light, End::Ended), now);
    assert_eq!(ship, Action::Ship { start: 0, stop: 60 });
    // Another copy was faster, or has continued under the name.
    for position in [60, 80, 900] {
        assert_eq!(in_a_segment(Counted { position, begun: None }, 60).1, Action::Next);
    }
    // There is no click left under the name.
    let (mut pipeline, _) = in_a_segment(Counted::default(), 60);
    pipeline.next(Event::Done, now);
    assert_eq!(pipeline.next(caught_up(60, Fill::Empty, End::Ended), now), Action::Next);
}

#[test]
fn a_range_of_another_copy_is_finished_only_if_that_copy_is_gone() {
    let begun = Counted {
        position: 40,
        begun: Some(900),
    };
    let (mut pipeline, action) = in_a_segment(begun, 60);
    assert_eq!(action, Action::Discard);
    let mut now = Duration::ZERO;
    let action = loop {
        let action = match pipeline.action() {
            Action::Aggregate { until, .. } => {
                assert_eq!(until, Some(900));
                pipeline.next(caught_up(60, Fill::Light, End::Ended), now)
            }
            Action::Wait(time) => {
                now += time;
                pipeline.next(Event::Done, now)
            }
            Action::Locate => pipeline.next(Event::Position(begun), now),
            _ => pipeline.next(Event::Done, now),
        };
        if matches!(action, Action::Ship { .. }) {
            break action;
        }
    };
    assert_eq!((action, now), (Action::Ship { start: 40, stop: 900 }, STALE));
    // Nothing is released, because what follows the end of the name is not counted.
    assert_eq!(pipeline.next(at(900), now), Action::Next);
}

#[test]
fn another_name_begins_if_the_database_is_ahead_of_the_journal() {
    let mut pipeline = Pipeline::new();
    pipeline.next(Event::Opened { size: 100, ends: None }, Duration::ZERO);
    assert_eq!(pipeline.next(Event::Foreign, Duration::ZERO), Action::Renew);
    let mut pipeline = Pipeline::new();
    pipeline.next(Event::Opened { size: 100, ends: None }, Duration::ZERO);
    assert_eq!(pipeline.next(at(101), Duration::ZERO), Action::Renew);
}

#[test]
fn without_holes_a_long_journal_is_emptied() {
    let mut pipeline = at_work(TRUNCATE);
    let stop = TRUNCATE + RELEASE;
    let now = Duration::ZERO;
    pipeline.next(caught_up(stop, Fill::Light, End::Truncated), now);
    pipeline.next(at(stop), now);
    assert_eq!(pipeline.next(Event::Done, now), Action::Release { position: stop });
    let empty = pipeline.next(Event::Unsupported, now);
    assert_eq!(empty, Action::Truncate { position: stop });
    assert_eq!(pipeline.next(Event::Done, now), Action::Renew);
    assert_eq!(
        pipeline.next(Event::Opened { size: 0, ends: None }, now),
        Action::Locate
    );
    assert_eq!(pipeline.next(Event::Position(Counted::default()), now), Action::Discard);
    assert_eq!(
        pipeline.next(Event::Done, now),
        Action::Aggregate { from: 0, until: None }
    );
}
