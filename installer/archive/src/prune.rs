//! Decides which old backups are removed. Only those are that this host has written under a name with a time, has read again
//! afterwards, and finds as it left them.

use std::collections::BTreeMap;

use crate::names;
use links_release::backups::Written;

/// What is to be done about the backups in a location.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The names of the backups to remove, the oldest first.
    pub remove: Vec<String>,
    /// The names of recorded backups that somebody else has removed.
    pub forget: Vec<String>,
}

/// Keeps the latest `keep` backups in `location`, or all of them if that is 0. `written` are the recorded backups in the order in
/// which they were written, which no clock that is set back changes. `present` are the names and sizes of all files there.
pub fn decide(written: &[Written], location: &str, present: &BTreeMap<String, u64>, keep: usize) -> Decision {
    let here = || written.iter().filter(|written| written.location == location);
    let is_intact = |written: &&Written| present.get(&written.name) == Some(&written.bytes);
    // A backup to which a person gave a name stays.
    let intact: Vec<_> = here()
        .filter(|written| names::time_of(&written.name).is_some())
        .filter(is_intact)
        .collect();
    let surplus = match keep {
        0 => 0,
        keep => intact.len().saturating_sub(keep),
    };
    let mut missing: Vec<_> = here().filter(|written| !present.contains_key(&written.name)).collect();
    // If only the backup that was just written is there, the file system with the others may not be mounted.
    if missing.len() + 1 >= here().count() {
        missing.clear();
    }
    Decision {
        remove: intact[..surplus].iter().map(|written| written.name.clone()).collect(),
        forget: missing.iter().map(|written| written.name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of the backup of an hour.
    fn of(hour: u64) -> String {
        names::backup(1_900_000_000 + hour * 3600, false)
    }

    fn location(hours: &[u64]) -> BTreeMap<String, u64> {
        hours.iter().map(|hour| (of(*hour), 1000)).collect()
    }

    fn at(location: &str, hour: u64) -> Written {
        Written::at(location, &of(hour), 1_900_000_000 + hour * 3600)
    }

    fn written() -> Vec<Written> {
        vec![at("/b", 1), at("/other", 0), at("/b", 2), at("/b", 3)]
    }

    fn removed(written: &[Written], present: &BTreeMap<String, u64>, keep: usize) -> Vec<String> {
        decide(written, "/b", present, keep).remove
    }

    #[test]
    fn the_oldest_are_removed() {
        let present = location(&[1, 2, 3]);
        for (keep, expected) in [
            (4, vec![]),
            (3, vec![]),
            (2, vec![of(1)]),
            (1, vec![of(1), of(2)]),
            (0, vec![]),
        ] {
            assert_eq!(removed(&written(), &present, keep), expected, "{keep}");
        }
    }

    #[test]
    fn a_backup_after_the_clock_was_set_back_is_not_the_oldest() {
        let mut written = written();
        written.push(at("/b", 0));
        assert_eq!(removed(&written, &location(&[0, 1, 2, 3]), 1), [of(1), of(2), of(3)]);
    }

    #[test]
    fn what_somebody_else_has_written_or_changed_stays_and_does_not_count() {
        let mut present = location(&[0, 1, 2, 3]);
        present.insert(of(2), 999);
        present.insert("links-19990101T000000Z.tar.zst".to_owned(), 7);
        assert_eq!(decide(&written(), "/b", &present, 2), Decision::default());
        assert_eq!(removed(&written(), &present, 1), [of(1)]);
    }

    #[test]
    fn a_backup_that_a_person_named_stays_and_does_not_count() {
        let mut written = written();
        let name = "before-the-move.tar.zst".to_owned();
        written.insert(0, Written::at("/b", &name, 5));
        let mut present = location(&[1, 2, 3]);
        present.insert(name, 1000);
        assert_eq!(removed(&written, &present, 3), [""; 0]);
        assert_eq!(removed(&written, &present, 2), [of(1)]);
    }

    #[test]
    fn what_somebody_else_has_removed_is_forgotten() {
        let decision = decide(&written(), "/b", &location(&[2, 3]), 2);
        assert_eq!(decision.forget, [of(1)]);
        assert_eq!(decision.remove, [""; 0]);
    }

    #[test]
    fn nothing_is_forgotten_if_the_directory_seems_to_be_another_one() {
        assert_eq!(decide(&written(), "/b", &location(&[3]), 1), Decision::default());
    }
}
