//! A batch of clicks: what the agent makes of a part of nginx's journal, and sends to `POST /internal/clicks`.
//!
//! Hours and days are whole ones since 1970 in UTC. The empty slug stands for all links together.

use serde::{Deserialize, Serialize};

use crate::error::Refused;
use crate::slug::Slug;
use crate::visit::Visit;
use crate::visitors;

/// Largest body, in bytes. Agents end a part at half of it ([`GOAL`]); what its last link brings has room in the rest.
pub const MAX_BODY: usize = 2 * 1024 * 1024;
pub const GOAL: usize = MAX_BODY / 2;

/// Longest name of a [`Detail`]: that of a host in DNS.
pub const MAX_NAME: usize = 253;

/// The name of a referrer that is not told by itself: one of many, or no host at all.
pub const OTHER: &str = "*";

/// 16 bytes in hexadecimal: which journal. Another file is another journal.
const JOURNAL_LENGTH: usize = 32;

/// No clock goes that far: the year 9999.
const LAST_DAY: u32 = 2_932_896;

/// What is counted in the whole range, as the database has it: no slug comes after it, by its bytes.
pub const WHOLE: &str = "~";

/// The clicks of a range of the journal, or a part of them: those of some links, in the order of their slugs. The parts of a
/// range come one after the other, so that much can be summed up before it is sent and no part holds up the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    pub journal: String,
    /// Position in the journal of the first byte that is counted here.
    pub start: u64,
    /// Position after the last one.
    pub stop: u64,
    /// The last link of the part before; none: this is the first part.
    pub after: Option<String>,
    /// The last link of this part; none: this is the last part, with the sums of all links.
    pub through: Option<String>,
    pub clicks: Vec<Clicks>,
    pub visitors: Vec<Visitors>,
    pub details: Vec<Detail>,
}

/// Slug, hour, clicks, and clicks of bots, which are not among the others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Clicks(pub String, pub u32, pub u32, pub u32);

/// Slug, day, and a word of the visitors' sketch with its bits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Visitors(pub String, pub u32, pub u8, pub i64);

/// Slug, day, kind, name, clicks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail(pub String, pub u32, pub Kind, pub String, pub u32);

/// As the database has them, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Kind {
    /// The host that referred; empty where none is told, [`OTHER`] for the rest.
    Referrer = 1,
    /// The code of a [`Visit`].
    Visit = 2,
    /// Two capital letters (ISO 3166-1).
    Country = 3,
}

impl TryFrom<u8> for Kind {
    type Error = String;

    fn try_from(number: u8) -> Result<Kind, String> {
        match number {
            1 => Ok(Kind::Referrer),
            2 => Ok(Kind::Visit),
            3 => Ok(Kind::Country),
            _ => Err(format!("there is no kind {number}")),
        }
    }
}

impl From<Kind> for u8 {
    fn from(kind: Kind) -> u8 {
        kind as u8
    }
}

impl Kind {
    fn knows(self, name: &str) -> bool {
        match self {
            Kind::Referrer => name == OTHER || is_host(name),
            Kind::Visit => Visit::from_code(name).is_some(),
            Kind::Country => name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_uppercase()),
        }
    }
}

/// Whether this can be told as the host of a referrer. The empty one is: no referrer was sent.
pub fn is_host(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]".contains(&byte))
}

impl Batch {
    /// Checks all that is not in the types: an accepted batch goes into the database as it is.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), Refused> {
        match self.fault() {
            Some(fault) => Err(Refused::new(format!("Invalid batch: {fault}."))),
            None => Ok(()),
        }
    }

    fn fault(&self) -> Option<String> {
        if !is_journal_name(&self.journal) {
            return Some(format!("there is no journal {:?}", self.journal));
        }
        // The database's integers have 63 bits.
        if self.start >= self.stop || i64::try_from(self.stop).is_err() {
            return Some(format!("it cannot be from {} to {}", self.start, self.stop));
        }
        let is_slug = |slug: &str| slug.is_empty() || Slug::in_path(slug).is_some();
        let bounds = [&self.after, &self.through].into_iter().flatten();
        if let Some(bound) = bounds.into_iter().find(|bound| bound.is_empty() || !is_slug(bound)) {
            return Some(format!("there is no link {bound:?}"));
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
            .find(|Detail(slug, day, kind, name, _)| !is_slug(slug) || *day > LAST_DAY || !kind.knows(name));
        let fault = clicks.map(|entry| format!("{entry:?}"));
        fault
            .or_else(|| visitors.map(|entry| format!("{entry:?}")))
            .or_else(|| details.map(|entry| format!("{entry:?}")))
    }
}

/// Whether this names a journal: 32 lower-case hexadecimal digits.
pub fn is_journal_name(text: &str) -> bool {
    text.len() == JOURNAL_LENGTH
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// What both questions about clicks are answered with: up to where the journal is counted, whoever sent the batches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// None: nothing of it is. (Or else an answer without it would be one.)
    #[serde(deserialize_with = "Option::deserialize")]
    pub position: Option<u64>,
    /// What is counted of the range that begins there.
    #[serde(deserialize_with = "Option::deserialize")]
    pub part: Option<Part>,
    /// The batch was not taken because it does not heed these, and perhaps more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reuses: Vec<Reuse>,
}

/// A slug whose link was deleted and that was given to a new link: number of the reuse, slug, and when, in Unix milliseconds.
/// Clicks on the slug before that are not the new link's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reuse(pub i64, pub String, pub u64);

/// Most reuses in one answer.
pub const MAX_REUSES: i64 = 250;

/// Some parts of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Position after the range.
    pub stop: u64,
    /// The last link that is counted.
    pub through: String,
}

impl Position {
    /// As the database has it: where the latest batch starts and stops, and through which link it is counted.
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

    /// After this batch.
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
    fn comes_back_as_it_was() {
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
    fn what_the_database_must_not_see_is_refused() {
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

    /// An older release must not take a batch for what it is not.
    #[test]
    fn what_is_not_known_is_refused() {
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
    fn a_position_is_told_even_where_there_is_none() {
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
