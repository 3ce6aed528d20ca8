//! Cuts the sums into parts that are small enough for the database.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use foldhash::HashMap;
use links_domain::clicks::{Batch, Clicks, Detail, GOAL, Kind, OTHER, Visitors};

use super::names::Names;
use super::sums::{CLICKS_SIZE, Count, DETAIL_SIZE, DetailKey, Sums, VISITORS_SIZE};
use super::visitor::Sent;

/// The maximum number of referrers that a batch names for one link and day. The rest is summed up as [`OTHER`].
pub const MAX_REFERRERS: usize = 20;

/// The whole aggregate, sorted by slug, so that the contents of each part depend on the lines alone.
#[derive(Debug)]
pub struct SortedBatch {
    slugs: Names,
    names: Names,
    /// The numbers of the links in `slugs`, in the order of their slugs.
    links: Vec<u32>,
    /// The clicks, by the link's index in `links`.
    clicks: Vec<((u32, u32), Count)>,
    /// The visitors, by the link's index in `links`.
    visitors: Vec<((u32, u32, u8), u64)>,
    /// The details, by the link's index in `links`.
    details: Vec<(DetailKey, u32)>,
}

impl SortedBatch {
    pub fn new(sums: &mut Sums) -> Self {
        let (slugs, names) = (std::mem::take(&mut sums.links), std::mem::take(&mut sums.names));
        let mut links: Vec<_> = (0..slugs.count()).collect();
        links.sort_unstable_by_key(|link| slugs.bytes(*link));
        let mut places = vec![0; links.len()];
        for (place, link) in (0_u32..).zip(&links) {
            if let Some(known) = places.get_mut(*link as usize) {
                *known = place;
            }
        }
        let place = |link: u32| places.get(link as usize).copied().unwrap_or(0);
        let clicks = std::mem::take(&mut sums.clicks).into_iter();
        let mut clicks: Vec<_> = clicks
            .map(|((link, hour), count)| ((place(link), hour), count))
            .collect();
        clicks.sort_unstable_by_key(|(key, _)| *key);
        let visitors = std::mem::take(&mut sums.visitors).into_iter();
        let mut visitors: Vec<_> = visitors
            .map(|((link, day, word), bits)| ((place(link), day, word), bits))
            .collect();
        visitors.sort_unstable();
        let details = std::mem::take(&mut sums.details).into_iter();
        let mut details: Vec<_> = details
            .map(|((link, day, kind, name), clicks)| ((place(link), day, kind, name), clicks))
            .collect();
        details.sort_unstable_by_key(|((place, day, kind, name), clicks)| {
            (*place, *day, *kind, Reverse(*clicks), names.bytes(*name))
        });
        Self {
            slugs,
            names,
            links,
            clicks,
            visitors,
            details,
        }
    }

    /// Fills an empty batch with the next part, which begins after the link `batch.after`. The last part also has the sums of
    /// all links, without the visitors that were already sent.
    pub fn fill(&self, batch: &mut Batch, sent: &Sent) {
        let after = batch.after.as_deref().unwrap_or_default().as_bytes();
        let done = self.links.partition_point(|link| self.slugs.bytes(*link) <= after);
        let mut size = 0;
        for (place, link) in (0_u32..).zip(&self.links).skip(done) {
            let slug = self.slugs.name(*link);
            if size >= GOAL {
                return;
            }
            size += self.add(batch, place, &slug);
            batch.through = Some(slug);
        }
        batch.through = None;
        self.add_sums(batch, sent);
    }

    /// Adds the entries of one link, and returns their size as JSON, in bytes.
    fn add(&self, batch: &mut Batch, place: u32, slug: &str) -> usize {
        let before = (batch.clicks.len(), batch.visitors.len(), batch.details.len());
        for ((_, hour), count) in of_link(&self.clicks, place, |entry| entry.0.0) {
            batch
                .clicks
                .push(Clicks(slug.to_owned(), *hour, count.clicks, count.bots));
        }
        for ((_, day, word), bits) in of_link(&self.visitors, place, |entry| entry.0.0) {
            batch
                .visitors
                .push(Visitors(slug.to_owned(), *day, *word, bits.cast_signed()));
        }
        let details = of_link(&self.details, place, |entry| entry.0.0);
        let groups = details.chunk_by(|a, b| (a.0.1, a.0.2) == (b.0.1, b.0.2));
        for group in groups {
            let named = group.iter().map(|((.., name), clicks)| (*name, *clicks));
            if let Some(((_, day, kind, _), _)) = group.first() {
                self.add_group(batch, slug, (*day, *kind), named);
            }
        }
        let names = batch.details[before.2..]
            .iter()
            .map(|detail| detail.3.len())
            .sum::<usize>();
        let added = (
            batch.clicks.len() - before.0,
            batch.visitors.len() - before.1,
            batch.details.len() - before.2,
        );
        added.0 * (slug.len() + CLICKS_SIZE)
            + added.1 * (slug.len() + VISITORS_SIZE)
            + added.2 * (slug.len() + DETAIL_SIZE)
            + names
    }

    /// Adds the details of one link, day and kind. `named` is sorted by frequency, the most frequent name first.
    fn add_group(
        &self,
        batch: &mut Batch,
        slug: &str,
        (day, kind): (u32, Kind),
        named: impl Iterator<Item = (u32, u32)>,
    ) {
        let most = match kind {
            Kind::Referrer => MAX_REFERRERS,
            Kind::Visit | Kind::Country => usize::MAX,
        };
        let mut rest = 0_u32;
        for (index, (name, clicks)) in named.enumerate() {
            if index < most {
                let name = self.names.name(name);
                batch.details.push(Detail(slug.to_owned(), day, kind, name, clicks));
            } else {
                rest = rest.saturating_add(clicks);
            }
        }
        if rest > 0 {
            batch
                .details
                .push(Detail(slug.to_owned(), day, kind, OTHER.to_owned(), rest));
        }
    }

    /// Adds the sums of all links.
    fn add_sums(&self, batch: &mut Batch, sent: &Sent) {
        let mut clicks = BTreeMap::<u32, Count>::new();
        for ((_, hour), count) in &self.clicks {
            let all = clicks.entry(*hour).or_default();
            all.clicks = all.clicks.saturating_add(count.clicks);
            all.bots = all.bots.saturating_add(count.bots);
        }
        let clicks = clicks.into_iter();
        batch
            .clicks
            .extend(clicks.map(|(hour, count)| Clicks(String::new(), hour, count.clicks, count.bots)));

        let mut visitors = BTreeMap::<(u32, u8), u64>::new();
        for ((_, day, word), bits) in &self.visitors {
            *visitors.entry((*day, *word)).or_default() |= bits;
        }
        let visitors = visitors.into_iter();
        let visitors = visitors.filter(|((day, word), bits)| !sent.has(b"", *day, *word, *bits));
        batch
            .visitors
            .extend(visitors.map(|((day, word), bits)| Visitors(String::new(), day, word, bits.cast_signed())));

        let mut details = BTreeMap::<(u32, Kind), HashMap<u32, u32>>::new();
        for ((_, day, kind, name), clicks) in &self.details {
            let all = details.entry((*day, *kind)).or_default().entry(*name).or_default();
            *all = all.saturating_add(*clicks);
        }
        for (group, names) in details {
            let mut names: Vec<_> = names.into_iter().collect();
            names.sort_unstable_by_key(|(name, clicks)| (Reverse(*clicks), self.names.bytes(*name)));
            self.add_group(batch, "", group, names.into_iter());
        }
    }
}

/// The entries of one link, from entries that are sorted by link.
fn of_link<T>(all: &[T], link: u32, place: impl Fn(&T) -> u32) -> &[T] {
    let start = all.partition_point(|entry| place(entry) < link);
    let count = all[start..].partition_point(|entry| place(entry) == link);
    &all[start..start + count]
}
