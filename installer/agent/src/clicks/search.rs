//! Finds the journal to read, and the name under which it is counted; see [`super::identity`].

use std::fs;
use std::io;
use std::path::Path;

use super::identity::{Host, Record, Relation, legacy_name, random_name, relation};
use super::inode::Inode;
use super::journal::{Found, settled};
use super::report::Report;
use super::source::Source;
use super::source::mark::Mark;
use links_base::layout::Layout;
use links_base::log;

#[derive(Debug)]
pub struct Search<'a> {
    pub layout: &'a Layout,
    pub host: &'a Host,
    pub report: &'a Report,
    /// The last journal that was left, after it was replaced and read to its end.
    pub left: Option<Inode>,
}

impl Search<'_> {
    /// Finds the journal to read, and its name; see [`super::identity`].
    ///
    /// # Errors
    /// Fails if a file or the record cannot be read, or if there is no journal.
    pub fn find(&self) -> io::Result<Found> {
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
        self.report.update(|progress| progress.replaced += 1);
        self.fresh(source, is_unsure)
    }

    /// The recorded journal, in a file with the same inode. The file may have been emptied.
    fn known_or_emptied(&self, mut source: Source, record: Record) -> io::Result<Found> {
        let settled = settled(record, &mut source)?;
        if source.continues(settled.position, &settled.mark)? {
            return self.known(source, settled);
        }
        self.report.emptied(source.path());
        under_new_name(self.host, source, settled, 0)
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
        let relation = relation(&record, inode, device, self.host);
        let mut record = record.with_names(self.host, device);
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
        let mut record = record.with_names(self.host, device);
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
}

/// The same file under a new name from `begins` on.
///
/// # Errors
/// Fails if the kernel provides no random bytes.
pub fn under_new_name(host: &Host, source: Source, record: Record, begins: u64) -> io::Result<Found> {
    let (inode, device) = (source.inode(), source.device());
    let record = record.with_names(host, device);
    let is_legacy = begins == 0 && record.journal.as_ref().is_some_and(|journal| journal.is_legacy);
    let name = match is_legacy {
        true => legacy_name(&host.machine, inode, record.generation.saturating_add(1)),
        false => random_name()?,
    };
    let record = record.renamed(begins, name, is_legacy);
    Ok(Found {
        source,
        record: record.at(inode, host.origin(device)),
        is_unsure: false,
        is_new: true,
    })
}
