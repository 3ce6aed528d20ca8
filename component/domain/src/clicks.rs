//! Batches of clicks. The agent makes them from nginx's journal and sends them to `POST /internal/clicks`.
//!
//! Hours and days are numbered from 1970-01-01T00:00:00Z. The empty slug stands for all links together.

use serde::{Deserialize, Serialize};

use crate::error::Refused;
use crate::slug::Slug;
use crate::visit::Visit;
use crate::visitors;

/// The maximum size of a body, in bytes. Agents end a part at half of it ([`GOAL`]), so the part's last link always fits.
pub const MAX_BODY: usize = 2 * 1024 * 1024;

/// The size at which agents end a part, in bytes.
pub const GOAL: usize = MAX_BODY / 2;

/// The maximum length of a [`Detail`]'s name in bytes: that of a host name in DNS.
pub const MAX_NAME: usize = 253;

/// Stands for the referrers that are not listed by name: too many others, or texts that are not host names.
pub const OTHER: &str = "*";

/// The length of a journal's name: 16 bytes in hexadecimal. Each file has a name of its own.
const JOURNAL_LENGTH: usize = 32;

/// 9999-12-31, as a day since 1970.
const LAST_DAY: u32 = 2_932_896;

/// Stands in the database for the last link of a range that is counted completely. It sorts after every slug.
pub const WHOLE: &str = "~";

/// The clicks in a range of the journal, or the part of them that belongs to some of the links, in the order of their slugs.
/// The parts of a range are sent one after the other. So a range can sum up many clicks, and no part blocks the database for
/// long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    pub journal: String,
    /// The position of the first byte that is counted.
    pub start: u64,
    /// The position after the last byte that is counted.
    pub stop: u64,
    /// The last link of the previous part; `None` for the first part.
    pub after: Option<String>,
    /// The last link of this part; `None` for the last part, which also has the sums of all links.
    pub through: Option<String>,
    pub clicks: Vec<Clicks>,
    pub visitors: Vec<Visitors>,
    pub details: Vec<Detail>,
}

/// Slug, hour, clicks without those of bots, clicks of bots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Clicks(pub String, pub u32, pub u32, pub u32);

/// Slug, day, index of a word in the [`visitors::Sketch`], bits of that word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Visitors(pub String, pub u32, pub u8, pub i64);

/// Slug, day, kind, name, clicks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail(pub String, pub u32, pub Kind, pub String, pub u32);

/// What a [`Detail`] names. The database stores the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Kind {
    /// The host of the referrer; empty if none was sent, [`OTHER`] for the rest.
    Referrer = 1,
    /// The code of a [`Visit`].
    Visit = 2,
    /// The two capital letters of a country (ISO 3166-1).
    Country = 3,
}

impl TryFrom<u8> for Kind {
    type Error = String;

    fn try_from(number: u8) -> Result<Kind, String> {
        match number {
            1 => Ok(Kind::Referrer),
            2 => Ok(Kind::Visit),
            3 => Ok(Kind::Country),
            _ => Err(format!("unknown kind {number}")),
        }
    }
}

impl From<Kind> for u8 {
    fn from(kind: Kind) -> u8 {
        kind as u8
    }
}

impl Kind {
    fn allows(self, name: &str) -> bool {
        match self {
            Kind::Referrer => name == OTHER || is_host(name),
            Kind::Visit => Visit::from_code(name).is_some(),
            Kind::Country => name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_uppercase()),
        }
    }
}

/// Whether this can be the host of a referrer. The empty text can: it means that no referrer was sent.
pub fn is_host(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]".contains(&byte))
}

impl Batch {
    /// Checks everything that the types do not. An accepted batch goes into the database as it is.
    ///
    /// # Errors
    /// The batch is invalid; the error names the first fault.
    pub fn check(&self) -> Result<(), Refused> {
        match self.fault() {
            Some(fault) => Err(Refused::new(format!("Invalid batch: {fault}."))),
            None => Ok(()),
        }
    }

    fn fault(&self) -> Option<String> {
        if !is_journal_name(&self.journal) {
            return Some(format!("\"{}\" is not a journal name", self.journal));
        }
        // The database's integers are signed.
        if self.start >= self.stop || i64::try_from(self.stop).is_err() {
            return Some(format!("the range from {} to {} is not valid", self.start, self.stop));
        }
        let is_slug = |slug: &str| slug.is_empty() || Slug::in_path(slug).is_some();
        let bounds = [&self.after, &self.through].into_iter().flatten();
        if let Some(bound) = bounds.into_iter().find(|bound| bound.is_empty() || !is_slug(bound)) {
            return Some(format!("\"{bound}\" is not a slug"));
        }
        let clicks = self
            .clicks
            .iter()
            .find(|Clicks(slug, hour, ..)| !is_slug(slug) || hour / 24 > LAST_DAY);
        let visitors = self.visitors.iter().find(|Visitors(slug, day, word, _)| {
            !is_slug(slug) || *day > LAST_DAY || usize::from(*word) >= visitors::WORDS
        });
        let details = self
            .details
            .iter()
            .find(|Detail(slug, day, kind, name, _)| !is_slug(slug) || *day > LAST_DAY || !kind.allows(name));
        let invalid = |what: &str, slug: &str, day: u32| format!("the {what} of \"{slug}\" on day {day} are not valid");
        let clicks = clicks.map(|Clicks(slug, hour, ..)| invalid("clicks", slug, hour / 24));
        clicks
            .or_else(|| visitors.map(|Visitors(slug, day, ..)| invalid("visitors", slug, *day)))
            .or_else(|| details.map(|Detail(slug, day, ..)| invalid("details", slug, *day)))
    }
}

/// Whether this is a journal's name: 32 lower-case hexadecimal digits.
pub fn is_journal_name(text: &str) -> bool {
    text.len() == JOURNAL_LENGTH
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The answer to `GET` and `POST /internal/clicks`: up to where the journal is counted, whoever sent the batches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The position up to which the journal is counted; `None` if nothing is. The key is required, so that no other JSON object
    /// passes as an answer.
    #[serde(deserialize_with = "Option::deserialize")]
    pub position: Option<u64>,
    /// How much is counted of the range that begins at `position`.
    #[serde(deserialize_with = "Option::deserialize")]
    pub part: Option<Part>,
    /// The reuses that the batch did not take into account, which is why it was refused. There may be more of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reuses: Vec<Reuse>,
}

/// A slug that was given to a new link after its old one was deleted: number of the reuse, slug, time in Unix milliseconds.
/// Earlier clicks on the slug do not belong to the new link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reuse(pub i64, pub String, pub u64);

/// The maximum number of reuses in one answer.
pub const MAX_REUSES: i64 = 250;

/// How much of a range is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The position after the range.
    pub stop: u64,
    /// The last link that is counted.
    pub through: String,
}

impl Position {
    /// The position from what the database stores: the start and stop of the latest batch, and the last link that is counted.
    pub fn of(start: u64, stop: u64, through: String) -> Position {
        match through.as_str() {
            WHOLE => Position {
                position: Some(stop),
                ..Position::default()
            },
            _ => Position {
                position: Some(start),
                part: Some(Part { stop, through }),
                reuses: vec![],
            },
        }
    }

    /// The position once this batch is counted.
    pub fn after(batch: &Batch) -> Position {
        let through = batch.through.as_deref().unwrap_or(WHOLE);
        Position::of(batch.start, batch.stop, through.to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn batch() -> Batch {
        Batch {
            journal: "0123456789abcdef0123456789abcdef".into(),
            start: 0,
            stop: 700,
            after: None,
            through: Some("abc".into()),
            clicks: vec![
                Clicks("abc".into(), 490_896, 3, 1),
                Clicks(String::new(), 490_896, 3, 1),
            ],
            visitors: vec![Visitors("abc".into(), 20_454, 15, i64::MIN)],
            details: vec![
                Detail("abc".into(), 20_454, Kind::Referrer, "news.example".into(), 2),
                Detail("abc".into(), 20_454, Kind::Referrer, OTHER.into(), 1),
                Detail("abc".into(), 20_454, Kind::Visit, "dcw".into(), 3),
                Detail("abc".into(), 20_454, Kind::Country, "DE".into(), 3),
            ],
        }
    }

    #[test]
    fn survives_a_round_trip() {
        let text = serde_json::to_string(&batch()).unwrap();
        assert_eq!(serde_json::from_str::<Batch>(&text).unwrap(), batch());
        assert_eq!(batch().check(), Ok(()));
    }

    /// The database's trigger reads a batch by these names and positions (component/store/sql/0003_clicks.sql).
    #[test]
    fn has_the_form_that_the_database_reads() {
        let text = serde_json::to_string(&batch()).unwrap();
        assert_eq!(
            text,
            r#"{"journal":"0123456789abcdef0123456789abcdef","start":0,"stop":700,"after":null,"through":"abc","#
                .to_owned()
                + r#""clicks":[["abc",490896,3,1],["",490896,3,1]],"visitors":[["abc",20454,15,-9223372036854775808]],"#
                + r#""details":[["abc",20454,1,"news.example",2],["abc",20454,1,"*",1],["abc",20454,2,"dcw",3],["abc",20454,3,"DE",3]]}"#
        );
    }

    #[test]
    fn invalid_batches_are_refused() {
        let wrong: [fn(&mut Batch); 16] = [
            |batch| batch.after = Some(String::new()),
            |batch| batch.through = Some(WHOLE.into()),
            |batch| batch.journal = "x".into(),
            |batch| batch.journal = "0123456789ABCDEF0123456789ABCDEF".into(),
            |batch| batch.start = 700,
            |batch| batch.stop = u64::MAX,
            |batch| batch.clicks[0].0 = "a/b".into(),
            |batch| batch.clicks[0].1 = u32::MAX,
            |batch| batch.visitors[0].0 = "ü".into(),
            |batch| batch.visitors[0].1 = u32::MAX,
            |batch| batch.visitors[0].2 = 16,
            |batch| batch.details[0].0 = "a b".into(),
            |batch| batch.details[0].1 = u32::MAX,
            |batch| batch.details[0].3 = "News.example".into(),
            |batch| batch.details[2].3 = "dc".into(),
            |batch| batch.details[3].3 = "de".into(),
        ];
        for (index, spoil) in wrong.into_iter().enumerate() {
            let mut batch = batch();
            spoil(&mut batch);
            assert!(batch.check().is_err(), "case {index}");
        }
    }

    /// An older release must not misread the batch of a newer one.
    #[test]
    fn unknown_fields_and_kinds_are_refused() {
        let text = serde_json::to_string(&batch()).unwrap();
        for other in [
            text.replace("\"start\"", "\"since\":1,\"start\""),
            text.replace(",3,\"DE\"", ",4,\"DE\""),
            text.replace("\"abc\",490896,3,1", "\"abc\",490896,3,1,7"),
            text.replace("490896,3,1", "490896,-3,1"),
        ] {
            assert_ne!(other, text);
            assert!(serde_json::from_str::<Batch>(&other).is_err(), "{other}");
        }
    }

    #[test]
    fn the_position_is_required_even_if_it_is_null() {
        let read = |text| {
            serde_json::from_str::<Position>(text)
                .ok()
                .map(|answer| answer.position)
        };
        assert_eq!(read(r#"{"position":5,"part":null}"#), Some(Some(5)));
        assert_eq!(read(r#"{"position":null,"part":null}"#), Some(None));
        assert_eq!(read(r#"{"position":5}"#), None);
        assert_eq!(read("{}"), None);
        let text = |position: Position| serde_json::to_string(&position).unwrap();
        assert_eq!(text(Position::default()), r#"{"position":null,"part":null}"#);
        assert_eq!(
            text(Position::after(&batch())),
            r#"{"position":0,"part":{"stop":700,"through":"abc"}}"#
        );
        let whole = Batch {
            through: None,
            ..batch()
        };
        assert_eq!(text(Position::after(&whole)), r#"{"position":700,"part":null}"#);
    }
}
