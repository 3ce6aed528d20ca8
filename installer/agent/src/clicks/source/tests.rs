#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::io::Write as _;

use nix::fcntl::FallocateFlags;

use super::lines::{End, Reached};
use super::mark::{TAIL, mark};
use super::*;

struct Journal {
    directory: tempfile::TempDir,
}

impl Journal {
    fn new(contents: &[u8]) -> Self {
        let journal = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        journal.append(contents);
        journal
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("clicks.log")
    }

    fn append(&self, contents: &[u8]) {
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).open(self.path()).unwrap();
        file.write_all(contents).unwrap();
    }

    fn source(&self) -> Source {
        Source::open(&self.path()).unwrap()
    }
}

fn lines(source: &mut Source, from: u64) -> (Vec<String>, u64) {
    let mut lines = vec![];
    let reached = source.read(from, |line, _| {
        lines.push(String::from_utf8_lossy(line).into_owned());
        true
    });
    let reached = reached.unwrap();
    assert_eq!(reached.end, End::CaughtUp);
    (lines, reached.position)
}

#[test]
fn an_incomplete_line_waits_for_its_end() {
    let journal = Journal::new(b"one\ntwo\nthr");
    let mut source = journal.source();
    assert_eq!(lines(&mut source, 0), (vec!["one".into(), "two".into()], 8));
    assert_eq!(lines(&mut source, 8), (vec![], 8));
    journal.append(b"ee\nfour\n");
    assert_eq!(lines(&mut source, 8), (vec!["three".into(), "four".into()], 19));
}

#[test]
fn the_callback_can_stop_the_reading() {
    let journal = Journal::new(b"one\ntwo\nthree\n");
    let mut taken = 0;
    let reached = journal.source().read(0, |_, _| {
        taken += 1;
        taken < 2
    });
    let wanted = Reached {
        position: 8,
        end: End::Enough,
    };
    assert_eq!((reached.unwrap(), taken), (wanted, 2));
}

#[test]
fn a_line_longer_than_the_buffer_is_one_empty_line() {
    let long = vec![b'x'; 3 * BUFFER + 5];
    let journal = Journal::new(&long);
    journal.append(b"\nafter\n");
    let mut source = journal.source();
    let (found, position) = lines(&mut source, 0);
    assert_eq!(found, ["", "after"]);
    assert_eq!(position, source.size().unwrap());
    // The same if the line arrives in parts.
    let journal = Journal::new(&long[..BUFFER]);
    let mut source = journal.source();
    let (found, position) = lines(&mut source, 0);
    assert_eq!((found, position), (vec![String::new()], BUFFER as u64));
    journal.append(b"xxx\nafter\n");
    assert_eq!(lines(&mut source, position).0, ["after"]);
}

#[test]
fn released_lines_are_skipped() {
    let text: String = (0..5000).map(|number| format!("line {number:06}\n")).collect();
    let journal = Journal::new(text.as_bytes());
    let mut source = journal.source();
    let position = 12 * 2000;
    assert_eq!(source.release(position).unwrap(), position);
    assert_eq!(source.size().unwrap(), text.len() as u64);
    assert_eq!(source.first_data().unwrap(), position);
    let (found, end) = lines(&mut source, 0);
    assert_eq!(end, text.len() as u64);
    let first = position / 12;
    assert_eq!(found.first(), Some(&format!("line {first:06}")));
    assert_eq!(found.len() as u64, 5000 - first);
    assert_eq!(lines(&mut source, position).0.len(), 3000);
    // The released blocks are gone; the others are not.
    let blocks = fs::metadata(journal.path()).unwrap().blocks();
    assert!(blocks * 512 < text.len() as u64 - 2 * BLOCK, "{blocks}");
    assert!(
        source
            .continues(
                position,
                &mark(&text.as_bytes()[position as usize - TAIL..position as usize])
            )
            .unwrap()
    );
    assert!(source.continues(BLOCK, &mark(b"whatever it was")).unwrap());
}

/// Version 0.1.0 releases whole blocks. The line in which such a hole ends is lost.
#[test]
fn a_hole_of_0_1_0_ends_within_a_line() {
    let text: String = (0..1000).map(|number| format!("line {number:06}\n")).collect();
    let journal = Journal::new(text.as_bytes());
    let mut source = journal.source();
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    source.allocate(flags, BLOCK).unwrap();
    let first = BLOCK.div_ceil(12);
    assert_eq!(lines(&mut source, 0).0.first(), Some(&format!("line {first:06}")));
}

#[test]
fn a_hole_that_ends_with_a_block_loses_no_line() {
    let journal = Journal::new(&[b'x'; BLOCK as usize - 1]);
    journal.append(b"\nnext\n");
    let mut source = journal.source();
    assert_eq!(source.release(BLOCK).unwrap(), BLOCK - 1);
    assert_eq!(lines(&mut source, 0).0, ["next"]);
}

/// Runs only if the temporary directory supports it, as on ext4 and xfs.
#[test]
fn released_blocks_can_be_removed_while_nginx_appends() {
    let line = |number: u32| format!("line {number:06}\n");
    let text: String = (0..5000).map(line).collect();
    let journal = Journal::new(text.as_bytes());
    let mut source = journal.source();
    let position = 12 * 3000;
    source.release(position).unwrap();
    let length = source.removable(position).unwrap();
    assert_eq!(length, position / BLOCK * BLOCK);
    match source.remove(length) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
        removed => removed.unwrap(),
    }
    assert_eq!(source.size().unwrap(), text.len() as u64 - length);
    assert_eq!(source.first_data().unwrap(), position - length);
    journal.append(line(5000).as_bytes());
    let (found, _) = lines(&mut source, 0);
    assert_eq!(
        (found.first(), found.last()),
        (Some(&line(3000).trim().to_owned()), Some(&line(5000).trim().to_owned()))
    );
    assert_eq!(found.len(), 2001);
    // Never the last block of the file.
    let all = Journal::new(&[0; 2 * BLOCK as usize]);
    assert_eq!(all.source().removable(2 * BLOCK).unwrap(), BLOCK);
}

#[test]
fn only_lines_that_begin_before_the_limit_are_read() {
    let journal = Journal::new(b"one\ntwo\nthree\n");
    let mut source = journal.source();
    let mut until = |from, limit| {
        let mut found = 0;
        let reached = source.read_until(from, limit, |_, _| {
            found += 1;
            true
        });
        (found, reached.unwrap())
    };
    let reached = |position, end| Reached { position, end };
    assert_eq!(until(0, 8), (2, reached(8, End::Limit)));
    assert_eq!(until(8, 8), (0, reached(8, End::Limit)));
    assert_eq!(until(0, 14), (3, reached(14, End::Limit)));
    assert_eq!(until(0, 100), (3, reached(14, End::CaughtUp)));
    // A limit inside a hole.
    let journal = Journal::new(b"one\n");
    journal.append(&[0; 100]);
    journal.append(b"two\n");
    let reached = journal.source().read_until(0, 50, |_, _| true).unwrap();
    assert_eq!((reached.position, reached.end), (50, End::Limit));
}

#[test]
fn a_line_can_end_after_a_line_feed_or_a_hole() {
    let journal = Journal::new(b"one\ntwo\n\0\0thr");
    let source = journal.source();
    let ends: Vec<_> = (0..15).filter(|at| source.ends_line(*at).unwrap()).collect();
    assert_eq!(ends, [0, 4, 8, 9, 10]);
}

#[test]
fn bytes_that_were_never_written_are_skipped() {
    let journal = Journal::new(b"one\n");
    journal.append(&[0; 100]);
    journal.append(b"two\n");
    journal.append(&[0; 2 * BUFFER]);
    journal.append(b"three\n");
    assert_eq!(lines(&mut journal.source(), 0).0, ["one", "two", "three"]);
}

#[test]
fn a_truncated_or_rewritten_file_does_not_continue() {
    let text = "0123456789".repeat(20);
    let journal = Journal::new(text.as_bytes());
    let source = journal.source();
    let known = source.mark(150).unwrap();
    journal.append(b"more");
    assert!(source.continues(150, &known).unwrap());
    fs::write(journal.path(), b"short").unwrap();
    assert!(!source.continues(150, &known).unwrap());
    journal.append("another".repeat(50).as_bytes());
    assert!(!source.continues(150, &known).unwrap());
    assert!(source.continues(0, &mark(b"")).unwrap());
}

#[test]
fn a_renamed_file_is_found_again() {
    let journal = Journal::new(b"old\n");
    let mut source = journal.source();
    assert!(!source.is_replaced(&journal.path()));
    let renamed = journal.directory.path().join("clicks.log.1");
    fs::rename(journal.path(), &renamed).unwrap();
    assert!(!source.is_replaced(&journal.path()), "there is no new file yet");
    journal.append(b"new\n");
    assert!(source.is_replaced(&journal.path()));
    assert_eq!(lines(&mut source, 0).0, ["old"]);
    let found = Source::find(journal.directory.path(), source.inode()).unwrap();
    assert_eq!(found.path(), renamed);
    fs::remove_file(renamed).unwrap();
    assert!(Source::find(journal.directory.path(), source.inode()).is_none());
}

#[test]
fn a_file_is_emptied_only_if_all_of_it_was_read() {
    let journal = Journal::new(b"one\ntwo\n");
    let source = journal.source();
    assert!(!source.truncate(4).unwrap());
    assert!(source.truncate(8).unwrap());
    assert_eq!(source.size().unwrap(), 0);
}

#[test]
fn only_regular_files_are_opened() {
    let directory = tempfile::tempdir().unwrap();
    assert!(Source::open(directory.path()).is_err());
    let missing = Source::open(&directory.path().join("missing"));
    assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(Source::open(&pipe).is_err());
    fs::write(directory.path().join("file"), b"one\n").unwrap();
    let link = directory.path().join("clicks.log");
    std::os::unix::fs::symlink("file", &link).unwrap();
    assert!(Source::open(&link).is_err());
    let source = Source::open(&directory.path().join("file")).unwrap();
    assert!(!source.is_replaced(&link), "a symbolic link is not nginx's journal");
}
