//! Decides which old backups are removed. Only those are that this host has written, has read again afterwards, and finds as it
//! left them.

use std::collections::BTreeMap;

use links_release::backups::Written;

/// What is to be done about the backups in a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The names of the backups to remove, the oldest first.
    pub remove: Vec<String>,
    /// The names of recorded backups that somebody else has removed.
    pub forget: Vec<String>,
}

/// Keeps the latest `keep` backups in `place`, or all of them if that is 0. `present` are the names and sizes of all files there.
pub fn decide(written: &[Written], place: &str, present: &BTreeMap<String, u64>, keep: usize) -> Decision {
    let here = || written.iter().filter(|written| written.place == place);
    let mut intact: Vec<_> = here()
        .filter(|written| present.get(&written.name) == Some(&written.bytes))
        .collect();
    intact.sort_by_key(|written| (written.begun, written.name.clone()));
    let surplus = match keep {
        0 => 0,
        keep => intact.len().saturating_sub(keep),
    };
    let missing = here().filter(|written| !present.contains_key(&written.name));
    Decision {
        remove: intact[..surplus].iter().map(|written| written.name.clone()).collect(),
        forget: missing.map(|written| written.name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(names: &[(&str, u64)]) -> BTreeMap<String, u64> {
        names.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
    }

    fn written() -> Vec<Written> {
        let at = |name: &str, begun| Written::at("/b", name, begun);
        vec![at("2", 20), at("1", 10), at("3", 30), Written::at("/other", "0", 5)]
    }

    #[test]
    fn the_oldest_are_removed() {
        let present = place(&[("1", 1000), ("2", 1000), ("3", 1000)]);
        for (keep, removed) in [
            (4, vec![]),
            (3, vec![]),
            (2, vec!["1"]),
            (1, vec!["1", "2"]),
            (0, vec![]),
        ] {
            assert_eq!(decide(&written(), "/b", &present, keep).remove, removed, "{keep}");
        }
    }

    #[test]
    fn what_somebody_else_has_written_or_changed_stays_and_does_not_count() {
        let present = place(&[
            ("0", 1000),
            ("1", 1000),
            ("2", 999),
            ("3", 1000),
            ("links-19990101T000000Z.tar.zst", 7),
        ]);
        assert_eq!(decide(&written(), "/b", &present, 2), Decision::default());
        assert_eq!(decide(&written(), "/b", &present, 1).remove, ["1"]);
    }

    #[test]
    fn what_somebody_else_has_removed_is_forgotten() {
        let decision = decide(&written(), "/b", &place(&[("2", 1000)]), 1);
        assert_eq!(decision.forget, ["1", "3"]);
        assert_eq!(decision.remove, [""; 0]);
    }
}
