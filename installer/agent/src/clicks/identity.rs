//! The name under which the database counts a journal, and when a new name begins.
//!
//! The database accepts a range of a journal only if it begins where the previous range ended, so lines that are sent twice
//! under one name count once. A name is 16 random bytes, kept in journal.json together with the position. One name must never
//! stand for two different files, because then lines of one would be taken for lines of the other and skipped.
//!
//! Two files can share their beginning: after a backup is restored, a host is moved or a virtual machine is cloned, each copy
//! grows by itself, perhaps with one libSQL server behind all of them. Therefore a name ends, and another one begins, whenever
//! the file may be a copy:
//!
//! * its inode number or birth time differs from the record, but the bytes before the position are the same;
//! * the machine ID has changed;
//! * the boot ID has changed (a clone of a virtual machine shares everything else);
//! * the device has changed within one boot;
//! * the database was restored from a backup (`linksctl restore`): it may have counted lines that this file does not have.
//!
//! The boundary between the old name and the new one is the beginning of a line ([`Segment`]). Lines written before the copy
//! was made are common to all copies: each copy sends them under the old name, and the database counts them once, from
//! whichever copy comes first. Lines written since then belong to one copy and have a name of their own. The boundary is the
//! first line that is not older than the file (if the inode differs) or the boot (in all other cases). If that time is
//! unknown, or the database was restored, the boundary is the end of the file as it is found. It has to be right only if
//! several copies share one database: with a database of its own, a copy counts each line once wherever the boundary is.
//!
//! Positions in the database are offsets in the file. However, the first range of a name starts at 0 in the database and
//! contains the lines from the beginning of its segment on.
//!
//! A new name is on the disk before anything is sent under it. Segments that have ended remain in the record until their lines
//! are released, so that a database that was restored to an older state gets them again.
//!
//! The database can be ahead of journal.json, either because a response was lost, or because a copy that shares everything
//! including the boot ID uses the same name. In the first case its position is the end of one of our lines, and counting
//! continues from there. Otherwise the name now belongs to another copy, and a new one begins where this copy was last counted.
//!
//! # Removal of counted lines
//!
//! Counted lines are replaced by a hole, which reads as NULs and which no reader takes for lines. When the hole is long, its
//! whole blocks are removed (`FALLOC_FL_COLLAPSE_RANGE`). Offsets shrink, so this needs a new name as well. The intent is saved
//! first ([`Collapse`]). Whether it was carried out can be seen from the offset of the first byte in the file that is not NUL.
//!
//! # Version 0.1.0
//!
//! Its agent names a journal by a digest of the machine ID, inode number, birth time, and how often the file was emptied (the
//! generation). A journal that 0.1.0 began keeps such names while the same file continues, even across reboots, so each of the
//! two versions continues where the other stopped. A collapse increments the generation, as emptying the file does in 0.1.0. A
//! random name increments the generation, too. Then 0.1.0 computes a name that the database does not know, and reads the file
//! from its beginning. It finds only NULs before the uncounted lines, because the agent releases counted lines when it stops.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use nix::time::{ClockId, clock_gettime};
use rand::TryRng as _;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::inode::Inode;
use super::source::mark::Mark;
use links_base::layout::Layout;

/// The variable in which links.service passes the boot ID, because the unit's sandbox hides the kernel's file of it.
const BOOT_ID_VARIABLE: &str = "LINKS_BOOT_ID";

/// The contents of journal.json. All fields except `journal` also exist in 0.1.0, which ignores `journal` and does not write
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub inode: u64,
    pub born: u64,
    pub generation: u32,
    /// The offset before which all lines are counted.
    pub position: u64,
    pub mark: Mark,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The segments in the order of the file. Only the last one has no end.
    pub segments: Vec<Segment>,
    /// Whether the names are those of 0.1.0.
    pub is_legacy: bool,
    #[serde(flatten)]
    pub origin: Origin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse: Option<Collapse>,
}

/// The part of a file whose lines have one name in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub name: String,
    /// The offset of the first line.
    pub begins: u64,
    /// The offset after the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
}

/// A removal of counted blocks that was begun, and may have been carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collapse {
    /// The number of bytes to remove from the front.
    pub length: u64,
    /// The offset before which all bytes were NUL before the removal.
    pub data: u64,
    /// The name of the journal after the removal.
    pub name: String,
}

/// Where a file was written. An empty string is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub machine: String,
    pub boot: String,
    pub device: u64,
    /// The restore of the database after which the name began. Here, an empty string is a database that was never restored.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub restore: String,
}

/// The facts about this host that tell copies apart. An empty string is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub machine: String,
    pub boot: String,
    /// Random bytes that identify the last restore of the database. Empty if it was never restored.
    pub restore: String,
    /// When the host was booted, in milliseconds since 1970.
    pub booted: Option<u64>,
}

impl Host {
    pub fn this(layout: &Layout) -> Self {
        let machine = fs::read_to_string(layout.machine_id()).unwrap_or_default();
        let boot = std::env::var(BOOT_ID_VARIABLE)
            .or_else(|_| fs::read_to_string("/proc/sys/kernel/random/boot_id"))
            .unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let booted = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .ok()
            .and_then(|since| now.checked_sub(since.into()))
            .and_then(|booted| u64::try_from(booted.as_millis()).ok());
        let restore = fs::read_to_string(layout.restored_marker()).unwrap_or_default();
        Self {
            machine: machine.trim().to_owned(),
            boot: boot.trim().replace('-', ""),
            restore: restore.trim().to_owned(),
            booted,
        }
    }

    pub fn origin(&self, device: u64) -> Origin {
        Origin {
            machine: self.machine.clone(),
            boot: self.boot.clone(),
            device,
            restore: self.restore.clone(),
        }
    }
}

/// How a file that may be the recorded one is related to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is the recorded file. Nothing suggests that it is a copy.
    Continued,
    /// It may be a copy. Lines that are not older than `since` (milliseconds since 1970) are its own. If `since` is `None`,
    /// only lines after its present end are.
    Copied { since: Option<u64> },
}

/// How a file whose bytes match the record is related to the recorded file.
pub fn relation(record: &Record, inode: Inode, device: u64, host: &Host) -> Relation {
    if inode != record.inode() {
        let born = (inode.born > 0).then_some(inode.born / 1_000_000);
        return Relation::Copied { since: born };
    }
    // 0.1.0 recorded nothing else.
    let Some(journal) = &record.journal else {
        return Relation::Continued;
    };
    if journal.origin.restore != host.restore {
        return Relation::Copied { since: None };
    }
    let differs = |then: &str, now: &str| !then.is_empty() && !now.is_empty() && then != now;
    let is_other_boot = differs(&journal.origin.boot, &host.boot);
    if differs(&journal.origin.machine, &host.machine) || is_other_boot && !journal.is_legacy {
        return Relation::Copied { since: host.booted };
    }
    // After a reboot the device number proves nothing: some file systems get a new one with each mount.
    if !is_other_boot && journal.origin.device != device {
        return Relation::Copied { since: None };
    }
    Relation::Continued
}

impl Record {
    pub fn inode(&self) -> Inode {
        Inode {
            number: self.inode,
            born: self.born,
        }
    }

    /// Adds to a record of 0.1.0 the name that 0.1.0 uses on this machine.
    pub fn with_names(self, host: &Host, device: u64) -> Self {
        if self.journal.is_some() {
            return self;
        }
        let name = legacy_name(&host.machine, self.inode(), self.generation);
        Self {
            journal: Some(Journal {
                segments: vec![Segment {
                    name,
                    begins: 0,
                    ends: None,
                }],
                is_legacy: true,
                origin: host.origin(device),
                collapse: None,
            }),
            ..self
        }
    }

    /// The record with another inode and origin.
    pub fn at(mut self, inode: Inode, origin: Origin) -> Self {
        (self.inode, self.born) = (inode.number, inode.born);
        if let Some(journal) = &mut self.journal {
            journal.origin = origin;
        }
        self
    }

    /// Ends the last name at `boundary`, where `name` begins.
    pub fn split(mut self, boundary: u64, name: String) -> Self {
        if let Some(journal) = &mut self.journal {
            // Drops segments that have no line in this file.
            while journal.segments.last().is_some_and(|last| last.begins >= boundary) {
                journal.segments.pop();
            }
            if let Some(last) = journal.segments.last_mut() {
                last.ends = Some(boundary);
            }
            journal.segments.push(Segment {
                name,
                begins: boundary,
                ends: None,
            });
            journal.is_legacy = false;
            journal.collapse = None;
        }
        self.generation = self.generation.saturating_add(1);
        self
    }

    /// Gives one name to all lines from `begins` on.
    pub fn renamed(mut self, begins: u64, name: String, is_legacy: bool) -> Self {
        if let Some(journal) = &mut self.journal {
            journal.segments = vec![Segment {
                name,
                begins,
                ends: None,
            }];
            journal.is_legacy = is_legacy;
            journal.collapse = None;
        }
        self.generation = self.generation.saturating_add(1);
        self
    }

    /// Resolves a removal that was begun: applies it if it was carried out, and forgets it otherwise. `data` is the offset of
    /// the first byte in the file that is not NUL, or its size. `mark_at` returns the mark of an offset.
    pub fn settled(mut self, data: u64, mark_at: impl FnOnce(u64) -> Mark) -> Self {
        let Some(journal) = &mut self.journal else {
            return self;
        };
        let Some(collapse) = journal.collapse.take() else {
            return self;
        };
        if data >= collapse.data {
            return self;
        }
        let is_legacy = journal.is_legacy;
        let position = self.position.saturating_sub(collapse.length);
        self.position = position;
        self.mark = mark_at(position);
        self.renamed(position, collapse.name, is_legacy)
    }
}

/// The name that 0.1.0 gives to a journal.
pub fn legacy_name(machine: &str, inode: Inode, generation: u32) -> String {
    let mut digest = Sha256::new();
    digest.update(machine);
    digest.update(b"\0");
    digest.update(inode.number.to_le_bytes());
    digest.update(inode.born.to_le_bytes());
    digest.update(generation.to_le_bytes());
    HEXLOWER.encode(&digest.finalize()[..16])
}

/// A new name.
///
/// # Errors
/// Fails if the kernel provides no random bytes.
pub fn random_name() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    SysRng.try_fill_bytes(&mut bytes).map_err(std::io::Error::other)?;
    Ok(HEXLOWER.encode(&bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    const FILE: Inode = Inode {
        number: 7,
        born: 5_000_000,
    };

    fn host(machine: &str, boot: &str) -> Host {
        Host {
            machine: machine.to_owned(),
            boot: boot.to_owned(),
            booted: Some(9),
            ..Host::default()
        }
    }

    fn record(is_legacy: bool) -> Record {
        let mut record = Record {
            inode: FILE.number,
            born: FILE.born,
            generation: 3,
            position: 100,
            mark: Mark::new(),
            journal: None,
        }
        .with_names(&host("m", "b"), 1);
        record.journal.as_mut().unwrap().is_legacy = is_legacy;
        record
    }

    #[test]
    fn a_file_that_may_be_a_copy_is_treated_as_one() {
        let since_boot = Relation::Copied { since: Some(9) };
        let other = Inode { number: 8, ..FILE };
        let unborn = Inode { born: 0, ..FILE };
        for (is_legacy, inode, device, host, expected) in [
            (false, FILE, 1, host("m", "b"), Relation::Continued),
            (false, other, 1, host("m", "b"), Relation::Copied { since: Some(5) }),
            (false, unborn, 1, host("m", "b"), Relation::Copied { since: None }),
            (false, FILE, 1, host("n", "b"), since_boot),
            (false, FILE, 1, host("m", "c"), since_boot),
            (false, FILE, 2, host("m", "c"), since_boot),
            (false, FILE, 2, host("m", "b"), Relation::Copied { since: None }),
            (false, FILE, 1, host("", ""), Relation::Continued),
            (true, other, 1, host("m", "b"), Relation::Copied { since: Some(5) }),
            (true, FILE, 1, host("n", "b"), since_boot),
            (true, FILE, 2, host("m", "c"), Relation::Continued),
        ] {
            let found = relation(&record(is_legacy), inode, device, &host);
            assert_eq!(found, expected, "{is_legacy} {inode:?} {device} {host:?}");
        }
        // The first restore, another one, and the same one again.
        let mut restored = host("m", "b");
        restored.restore = "r".to_owned();
        let at_the_end = Relation::Copied { since: None };
        assert_eq!(relation(&record(false), FILE, 1, &restored), at_the_end);
        let after = record(false).at(FILE, restored.origin(1));
        assert_eq!(relation(&after, FILE, 1, &host("m", "b")), at_the_end);
        assert_eq!(relation(&after, FILE, 1, &restored), Relation::Continued);

        let of_0_1_0 = Record {
            journal: None,
            ..record(true)
        };
        assert_eq!(relation(&of_0_1_0, FILE, 2, &host("n", "c")), Relation::Continued);
    }

    #[test]
    fn segments_without_a_line_are_dropped() {
        let names = |record: &Record| -> Vec<(String, u64, Option<u64>)> {
            let segments = &record.journal.as_ref().unwrap().segments;
            let parts = segments.iter().map(|is| (is.name.clone(), is.begins, is.ends));
            parts.collect()
        };
        let first = legacy_name("m", FILE, 3);
        let split = record(true).split(200, "x".to_owned());
        assert_eq!(split.generation, 4);
        assert!(!split.journal.as_ref().unwrap().is_legacy);
        let once = [(first.clone(), 0, Some(200)), ("x".to_owned(), 200, None)];
        assert_eq!(names(&split), once);
        let again = split.split(200, "y".to_owned());
        assert_eq!(names(&again), [(first, 0, Some(200)), ("y".to_owned(), 200, None)]);
        assert_eq!(names(&again.split(0, "z".to_owned())), [("z".to_owned(), 0, None)]);
    }

    #[test]
    fn the_file_shows_whether_a_removal_was_carried_out() {
        let mut begun = record(false);
        begun.position = 5000;
        begun.journal.as_mut().unwrap().collapse = Some(Collapse {
            length: 4096,
            data: 5000,
            name: "x".to_owned(),
        });
        let mark_at = |position: u64| format!("mark of {position}");
        let not = begun.clone().settled(5000, mark_at);
        assert_eq!((not.position, not.generation), (5000, 3));
        assert_eq!(not.journal.unwrap().collapse, None);
        let done = begun.settled(904, mark_at);
        assert_eq!(
            (done.position, done.generation, done.mark.as_str()),
            (904, 4, "mark of 904")
        );
        let journal = done.journal.unwrap();
        assert_eq!(
            (journal.segments[0].begins, journal.segments[0].name.as_str()),
            (904, "x")
        );
    }

    #[test]
    fn records_are_compatible_with_version_0_1_0() {
        let text = serde_json::to_string(&record(true)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for key in ["inode", "born", "generation", "position", "mark"] {
            assert!(value.get(key).is_some(), "{key}: {text}");
        }
        let old = r#"{"inode":7,"born":5000000,"generation":3,"position":100,"mark":""}"#;
        let read: Record = serde_json::from_str(old).unwrap();
        assert_eq!(read.with_names(&host("m", "b"), 1), record(true));
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record(true));
    }
}
