//! Reads lines of the journal into the aggregate.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::aggregator::{Aggregator, NeedsSalt, Taken};
use super::journal::OpenJournal;
use super::line;
use super::pipeline::{Aggregated, End, Fill};
use super::progress::Progress;
use super::report::{Report, Topic};
use super::salts;
use super::source::lines;
use crate::limits::Limits;
use links_base::layout::Layout;

/// The maximum number of lines that are read at once.
const MAX_LINES: u32 = 100_000;

#[derive(Debug)]
pub struct Reader<'a> {
    pub open: &'a mut OpenJournal,
    pub aggregator: &'a mut Aggregator,
    pub report: &'a mut Report,
    pub layout: &'a Layout,
    pub limits: Option<&'a Mutex<Limits>>,
}

impl Reader<'_> {
    /// Reads the lines from one position on, up to another one if it is given, or until there is enough.
    ///
    /// # Errors
    /// Fails if the journal cannot be read, or if the kernel provides no random bytes.
    pub fn read(self, from: u64, until: Option<u64>) -> io::Result<Aggregated> {
        let open = self.open;
        let size = open.source.size()?;
        let is_known = match &open.known {
            Some((position, mark)) if *position == from && size != from => open.source.continues(from, mark)?,
            _ => size >= from,
        };
        if !is_known {
            let fill = self.aggregator.fill();
            if fill == Fill::Empty {
                self.report.emptied(open.source.path());
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
        let (aggregator, layout, reported) = (&mut *self.aggregator, self.layout, &mut open.reported);
        let limits = self.limits;
        let mut salts = Ok(());
        let mut oldest = None;
        let mut fault = None;
        let reached = open.source.read_until(from, limit, |bytes, position| {
            let line = line::parse(bytes).or_else(|| line::parse_torn(bytes));
            let taken = match &line {
                None => Ok(Taken::Other),
                Some(line) => match aggregator.take(line) {
                    Err(NeedsSalt(day)) => match salts::random() {
                        Ok(salt) => {
                            aggregator.set_salt(day, salt);
                            salts = salts::save(layout, aggregator.salts());
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
                    Some(line) => {
                        progress.traffic.take(line);
                        if let Some(limits) = limits.filter(|_| Limits::concern(line)) {
                            limits.lock().unwrap_or_else(PoisonError::into_inner).take(line);
                        }
                    }
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
        // Lines without clicks may wait to be accepted together with later clicks.
        let counted = match self.aggregator.fill() {
            Fill::Empty => reached.position,
            _ => open.accepted,
        };
        let end = match reached.end {
            lines::End::Enough => End::More,
            lines::End::Limit => End::Ended,
            lines::End::CaughtUp if open.source.is_replaced(&self.layout.journal()) => End::Replaced,
            lines::End::CaughtUp => End::CaughtUp,
        };
        match salts {
            Ok(()) => self.report.resolve(Topic::Salts),
            Err(error) => self.report.fail(Topic::Salts, format!("{error:#}")),
        }
        self.report.update(|all| {
            all.lines += progress.lines;
            all.malformed += progress.malformed;
            all.traffic.add(&progress.traffic);
            all.lag_bytes = size.saturating_sub(counted);
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
}

/// The age of an event, from its time in Unix milliseconds.
fn age(at: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(at))
}
