//! The journal that is being read, with its record.

use std::io;

use anyhow::Context as _;

use super::identity::{Record, Segment};
use super::source::Source;
use super::source::mark::Mark;
use links_base::files;
use links_base::layout::Layout;

/// A journal that was found.
pub struct Found {
    pub source: Source,
    pub record: Record,
    pub is_unsure: bool,
    /// Whether the record has new names, which must be on the disk before they are used.
    pub is_new: bool,
}

/// The journal that is being read.
#[derive(Debug)]
pub struct OpenJournal {
    pub source: Source,
    /// The record as it was last saved, or will be with the next position.
    pub record: Record,
    /// The index of the segment that is being counted.
    pub index: usize,
    /// Whether 0.1.0 may have begun this journal without having saved a record. The database knows.
    pub is_unsure: bool,
    /// The position up to which the journal was read, and its mark there.
    pub known: Option<(u64, Mark)>,
    /// The position up to which the lines are included in [`Progress`].
    pub reported: u64,
    /// The offset up to which the database has counted the segment.
    pub accepted: u64,
    /// The database's own value for `accepted`. The database begins each name at 0.
    pub database: u64,
    /// The last link of the parts that were sent of the lines after `accepted`.
    pub through: Option<String>,
}

impl OpenJournal {
    fn segments(&self) -> &[Segment] {
        self.record.journal.as_ref().map_or(&[], |journal| &journal.segments)
    }

    pub fn segment(&self) -> Option<&Segment> {
        self.segments().get(self.index)
    }

    pub fn name(&self) -> &str {
        self.segment().map_or("", |segment| &segment.name)
    }

    pub fn ends(&self) -> Option<u64> {
        self.segment().and_then(|segment| segment.ends)
    }

    pub fn is_legacy(&self) -> bool {
        self.record.journal.as_ref().is_some_and(|journal| journal.is_legacy)
    }

    /// Records the position on the disk, with the mark there.
    ///
    /// # Errors
    /// Fails if the journal cannot be read or the record cannot be written.
    pub fn save(&mut self, position: u64, layout: &Layout) -> anyhow::Result<()> {
        self.record.mark = self.source.mark(position).context("Reading the journal")?;
        self.record.position = position;
        files::replace(&layout.journal_position(), &serde_json::to_vec(&self.record)?, 0o600)
    }
}

impl From<Found> for OpenJournal {
    fn from(found: Found) -> Self {
        Self {
            source: found.source,
            index: 0,
            is_unsure: found.is_unsure,
            known: None,
            reported: 0,
            accepted: 0,
            database: 0,
            through: None,
            record: found.record,
        }
    }
}

/// The record of a file, after a removal that was begun is resolved.
///
/// # Errors
/// Fails if the file cannot be read.
pub fn settled(record: Record, source: &mut Source) -> io::Result<Record> {
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
