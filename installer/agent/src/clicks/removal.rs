//! Removes counted lines from the journal: releases their disk space, or takes whole blocks out of the file; see
//! [`super::identity`].

use std::io;

use super::identity::{Collapse, Host, legacy_name, random_name};
use super::journal::{Found, OpenJournal, settled};
use links_base::layout::Layout;

/// The outcome of removing blocks from the front of a journal.
pub enum Removal {
    /// The blocks were removed. The file continues as another journal.
    Done(Box<Found>),
    /// The journal is as it was before.
    Failed(Box<OpenJournal>, io::Error),
}

/// Releases what is before the position.
///
/// # Errors
/// Fails like [`Source::make_writable`] and [`Source::release`].
///
/// [`Source::make_writable`]: super::source::Source::make_writable
/// [`Source::release`]: super::source::Source::release
pub fn release(open: &mut OpenJournal, position: u64) -> io::Result<()> {
    open.source.make_writable()?;
    open.source.release(position)?;
    // The lines of earlier segments are gone, so their names are not needed any more.
    if let Some(journal) = &mut open.record.journal {
        journal.segments.drain(..open.index);
        open.index = 0;
    }
    Ok(())
}

/// Saves the intent to remove whole blocks before the position. Returns how many bytes to remove, or `None` if there is no
/// whole block to remove yet, or another name's lines are still in the file.
///
/// # Errors
/// Fails if the journal cannot be changed or the record cannot be saved.
pub fn begin(open: &mut OpenJournal, position: u64, host: &Host, layout: &Layout) -> anyhow::Result<Option<u64>> {
    let length = open.source.removable(position)?;
    if length == 0 || open.index > 0 || open.ends().is_some() {
        return Ok(None);
    }
    let data = open.source.release(position)?;
    let name = match open.is_legacy() {
        true => legacy_name(
            &host.machine,
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
    open.save(position, layout)?;
    Ok(Some(length))
}

/// Removes the bytes after [`begin`].
///
/// # Errors
/// Fails if the file cannot be read afterwards, so that nobody knows what happened. The journal has to be opened again.
pub fn finish(mut open: OpenJournal, length: u64) -> io::Result<Removal> {
    let removed = open.source.remove(length).and_then(|()| open.source.sync());
    let before = open.record.position;
    // Whatever the result of the call was, the file shows what happened.
    open.record = settled(open.record, &mut open.source)?;
    Ok(match removed {
        Err(error) if open.record.position == before => Removal::Failed(Box::new(open), error),
        _ => Removal::Done(Box::new(Found {
            source: open.source,
            record: open.record,
            is_unsure: false,
            is_new: true,
        })),
    })
}
