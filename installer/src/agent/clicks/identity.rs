//! Which journal the database counts: its name there, and when a new name begins.
//!
//! The database takes a range of a journal only if it begins where the range before it ended, so lines that are sent
//! twice under one name count once. A name is 16 random bytes, kept in journal.json with the position, and it must never
//! stand for two different files: then lines of one would be taken for lines of the other, and skipped.
//!
//! Two files can share a beginning. A backup is restored, a host is moved, or a virtual machine is cloned, and each copy
//! is then written on by itself, perhaps with one libSQL server behind all of them. Therefore a name ends, and another
//! begins, whenever the file may be a copy:
//!
//! * it has another inode number or birth time than written down, but the same bytes before the position;
//! * the machine ID is another one;
//! * the boot ID is another one (a clone of a virtual machine shares all the rest);
//! * within one boot, the device is another one.
//!
//! The old name ends, and the new one begins, at a line ([`Segment`]). What was written before the copy was made is
//! common to all copies: each sends it under the old name, and the database counts it once, from whoever comes first.
//! What was written since is a copy's own, and has a name of its own. The boundary is the first line that is not older
//! than the file (for another inode) or than the boot (for the rest); without either time it is the end of the file as it is
//! found. That moment has to be right only where several copies share one database: with a database of its own, a copy
//! counts each line once wherever the boundary is.
//!
//! Positions in the database are offsets in the file. The first range of a name starts at 0 there and holds the lines from
//! the beginning of its segment on.
//!
//! A new name is on the disk before anything is sent under it. Ended segments stay written down until their lines are
//! given back, so that a database that was put back to an older state gets them again.
//!
//! The database can be ahead of journal.json: an answer was lost, or a copy that shares everything, the boot ID included,
//! uses the name. In the first case its position is the end of one of our lines and counting goes on from there. Otherwise
//! the name is another copy's by now, and a new one begins where this copy has last been counted.
//!
//! # What counted lines leave
//!
//! Counted lines are overwritten with NULs (a hole), which no reader takes for lines. When the hole is long, its whole
//! blocks are removed (`FALLOC_FL_COLLAPSE_RANGE`) and offsets shrink, which is a new name as well. The intent is written
//! down first ([`Collapse`]); whether it was carried out shows in the file, by where its first byte is that is not NUL.
//!
//! # Version 0.1.0
//!
//! Its agent names a journal by a digest of the machine ID, inode number, birth time, and how often the file was emptied
//! (the generation). A journal that it began keeps these names while that file is continued, over reboots as well, so each
//! of the two versions goes on where the other stopped. After a collapse the generation grows by one, as after 0.1.0's
//! own emptying. Under a random name the generation grows too, so 0.1.0 finds a name that the database does not know, reads
//! the file from its beginning, and finds only NULs before the lines that are not counted: the agent overwrites what is
//! counted when it is stopped.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use nix::time::{ClockId, clock_gettime};
use rand::TryRng as _;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::source::{Inode, Mark};
use crate::layout::Layout;

/// In links.service: systemd knows the boot ID, and the unit's sandbox hides the kernel's file of it.
const BOOT_ID_VARIABLE: &str = "LINKS_BOOT_ID";

/// journal.json. The fields of 0.1.0 come first; it ignores `journal`, and does not write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub inode: u64,
    pub born: u64,
    pub generation: u32,
    /// Lines before this offset in the file are counted.
    pub position: u64,
    pub mark: Mark,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// In the order of the file; only the last one has no end.
    pub segments: Vec<Segment>,
    /// Named as 0.1.0 does.
    pub is_legacy: bool,
    #[serde(flatten)]
    pub origin: Origin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse: Option<Collapse>,
}

/// The lines of a file that have one name in the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub name: String,
    /// Offset of the first line.
    pub begins: u64,
    /// Offset after the last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<u64>,
}

/// A removal of counted blocks that may have been carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collapse {
    /// Bytes that are removed at the front.
    pub length: u64,
    /// Before the removal no byte in front of this offset is anything but NUL.
    pub data: u64,
    /// What the journal is called after it.
    pub name: String,
}

/// Where a file was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub machine: String,
    pub boot: String,
    pub device: u64,
}

/// What is known of this host. An empty text is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub machine: String,
    pub boot: String,
    /// When it was booted, in milliseconds since 1970.
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
        Self {
            machine: machine.trim().to_owned(),
            boot: boot.trim().replace('-', ""),
            booted,
        }
    }

    pub fn origin(&self, device: u64) -> Origin {
        Origin {
            machine: self.machine.clone(),
            boot: self.boot.clone(),
            device,
        }
    }
}

/// What a file that may be the one written down is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// That file, and no copy of it as far as can be seen.
    Continued,
    /// Perhaps a copy. Lines that are not older than this (milliseconds since 1970) are its own; None: those after its
    /// end are.
    Copied { since: Option<u64> },
}

/// For a file with the bytes that are written down.
pub fn relation(record: &Record, inode: Inode, device: u64, host: &Host) -> Relation {
    if inode != record.inode() {
        let born = (inode.born > 0).then_some(inode.born / 1_000_000);
        return Relation::Copied { since: born };
    }
    // 0.1.0 wrote down nothing else.
    let Some(journal) = &record.journal else {
        return Relation::Continued;
    };
    let differs = |then: &str, now: &str| !then.is_empty() && !now.is_empty() && then != now;
    let is_other_boot = differs(&journal.origin.boot, &host.boot);
    if differs(&journal.origin.machine, &host.machine) || is_other_boot && !journal.is_legacy {
        return Relation::Copied { since: host.booted };
    }
    // Some file systems get a new device number with each mount.
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

    /// What 0.1.0 wrote down, with the name that it means on this machine.
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

    /// Where it is known from now on.
    pub fn at(mut self, inode: Inode, origin: Origin) -> Self {
        (self.inode, self.born) = (inode.number, inode.born);
        if let Some(journal) = &mut self.journal {
            journal.origin = origin;
        }
        self
    }

    /// The last name ends at `boundary`, where another one begins.
    pub fn split(mut self, boundary: u64, name: String) -> Self {
        if let Some(journal) = &mut self.journal {
            // Segments without a line in this file say nothing.
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

    /// One name for all lines from `begins` on.
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

    /// With what a removal that was begun has come to. `data`: the offset of the file's first byte that is not NUL, or
    /// its size; `mark_at` gives the mark of an offset.
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

/// The name that 0.1.0 gives.
pub fn legacy_name(machine: &str, inode: Inode, generation: u32) -> String {
    let mut digest = Sha256::new();
    digest.update(machine);
    digest.update(b"\0");
    digest.update(inode.number.to_le_bytes());
    digest.update(inode.born.to_le_bytes());
    digest.update(generation.to_le_bytes());
    HEXLOWER.encode(&digest.finalize()[..16])
}

/// # Errors
/// The kernel gives no random bytes.
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
    fn what_may_be_a_copy_is_taken_for_one() {
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
        let of_0_1_0 = Record {
            journal: None,
            ..record(true)
        };
        assert_eq!(relation(&of_0_1_0, FILE, 2, &host("n", "c")), Relation::Continued);
    }

    #[test]
    fn segments_without_a_line_make_way() {
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
    fn a_removal_that_was_begun_was_carried_out_or_not() {
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
    fn version_0_1_0_reads_what_is_written_and_the_other_way_round() {
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
