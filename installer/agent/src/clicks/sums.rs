//! The sums that clicks are added to: by link and hour, and by link and day.

use foldhash::HashMap;
use links_domain::clicks::Kind;

use super::names::Names;

/// The maximum size of a `Clicks` entry as JSON without its strings, in bytes.
pub const CLICKS_SIZE: usize = 30;
/// The same for a `Visitors` entry.
pub const VISITORS_SIZE: usize = 36;
/// The same for a `Detail` entry.
pub const DETAIL_SIZE: usize = 28;

/// Clicks of people and of bots.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub clicks: u32,
    pub bots: u32,
}

/// Link, day, kind, and number of the name.
pub type DetailKey = (u32, u32, Kind, u32);

/// A link whose clicks are summed.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    number: u32,
    /// The length of the slug in bytes.
    slug_size: usize,
}

/// Links and names are represented by their numbers.
#[derive(Debug, Default)]
pub struct Sums {
    pub links: Names,
    pub names: Names,
    /// By link and hour.
    pub clicks: HashMap<(u32, u32), Count>,
    /// The words of the sketches, by link, day and number of the word.
    pub visitors: HashMap<(u32, u32, u8), u64>,
    pub details: HashMap<DetailKey, u32>,
    /// The approximate size as JSON, in bytes.
    size: usize,
}

impl Sums {
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn link(&mut self, slug: &[u8]) -> Link {
        Link {
            number: self.links.number(slug),
            slug_size: slug.len(),
        }
    }

    /// The sums of a link in an hour.
    pub fn count(&mut self, link: Link, hour: u32) -> &mut Count {
        self.clicks.entry((link.number, hour)).or_insert_with(|| {
            self.size += link.slug_size + CLICKS_SIZE;
            Count::default()
        })
    }

    /// Sets bits in a word of a day's sketch.
    pub fn add_visitor(&mut self, link: Link, day: u32, word: u8, bits: u64) {
        let words = self.visitors.entry((link.number, day, word)).or_insert_with(|| {
            self.size += link.slug_size + VISITORS_SIZE;
            0
        });
        *words |= bits;
    }

    /// Counts a click with this name.
    pub fn add_detail(&mut self, link: Link, day: u32, kind: Kind, name: &[u8]) {
        let number = self.names.number(name);
        let count = self.details.entry((link.number, day, kind, number)).or_insert_with(|| {
            self.size += link.slug_size + name.len() + DETAIL_SIZE;
            0
        });
        *count += 1;
    }

    pub fn clear(&mut self) {
        self.links.clear();
        self.names.clear();
        self.clicks.clear();
        self.visitors.clear();
        self.details.clear();
        self.size = 0;
    }
}
