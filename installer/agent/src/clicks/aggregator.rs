//! Aggregates lines of the journal: decides what each line adds to the sums. All that remains of a client is the bit that it
//! sets in a day's sketch of visitors.

use std::collections::BTreeMap;

use foldhash::HashMap;
use links_domain::clicks::{Batch, Kind, Reuse};
use links_domain::visit::Visit;
use links_domain::visitors;

use super::batch::SortedBatch;
use super::client;
use super::geoip::GeoIp;
use super::line::{self, Line};
use super::pipeline::Fill;
use super::referrer;
use super::salts::Salt;
use super::sums::{Link, Sums};
use super::visitor::{Sent, hash, visitor};
use links_base::layout::Layout;

/// The maximum number of cached clients, and of cached referrers. Busy sites see the same few; a flood of invented ones only
/// empties the cache now and then.
const MAX_CACHED: usize = 4096;

/// The size at which the aggregate is full, in bytes as JSON. The larger a batch, the fewer entries are needed for the same
/// number of clicks. In memory the aggregate takes up to three times as much.
const MAX_SIZE: usize = 16 * 1024 * 1024;
/// The size from which it pays to wait for more clicks.
const HEAVY_SIZE: usize = MAX_SIZE / 16;

const DAY: u64 = 24 * 3600 * 1000;
const HOUR: u64 = 3600 * 1000;

/// What was done with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Click,
    Bot,
    /// The line is not a click.
    Other,
}

/// There is no salt yet for the day of a click.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsSalt(pub u32);

/// What the `User-Agent` of a client means.
#[derive(Clone, Copy, Debug)]
struct Client {
    visit: Option<Visit>,
    hash: u64,
}

/// Aggregates clicks, and cuts the aggregate into batches.
#[derive(Debug, Default)]
pub struct Aggregator {
    salts: BTreeMap<u32, Salt>,
    geoip: GeoIp,
    clients: HashMap<Box<[u8]>, Client>,
    hosts: HashMap<Box<[u8]>, Box<str>>,
    sums: Sums,
    /// When a slug was given to a new link, in Unix milliseconds, by slug; see [`Reuse`].
    reuses: HashMap<Box<[u8]>, u64>,
    /// The number of the latest reuse in `reuses`.
    heeded: i64,
    sent: Sent,
    /// The aggregate in its final order, once it is being sent.
    sorted_batch: Option<SortedBatch>,
}

impl Aggregator {
    pub fn new(salts: BTreeMap<u32, Salt>) -> Self {
        Self {
            salts,
            ..Self::default()
        }
    }

    /// Sets the salt of a day. Of the other salts only the latest is kept, because clicks of the previous day may still come.
    pub fn set_salt(&mut self, day: u32, salt: Salt) {
        self.salts.insert(day, salt);
        while self.salts.len() > 2 {
            let Some(oldest) = self.salts.keys().find(|other| **other != day).copied() else {
                break;
            };
            self.salts.remove(&oldest);
        }
    }

    pub fn salts(&self) -> &BTreeMap<u32, Salt> {
        &self.salts
    }

    /// Reloads the GeoIP file if it has changed; see [`GeoIp::refresh`].
    ///
    /// # Errors
    /// Fails with a message if the file cannot be used.
    pub fn refresh_countries(&mut self, layout: &Layout) -> Option<Result<(), String>> {
        self.geoip.refresh(layout)
    }

    pub fn fill(&self) -> Fill {
        match self.sums.size() {
            MAX_SIZE.. => Fill::Full,
            HEAVY_SIZE.. => Fill::Heavy,
            _ if self.sums.clicks.is_empty() && self.sorted_batch.is_none() => Fill::Empty,
            _ => Fill::Light,
        }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// Fails without any effect if the day of the click has no salt yet.
    pub fn take(&mut self, line: &Line<'_>) -> Result<Taken, NeedsSalt> {
        if !line.is_click() {
            return Ok(Taken::Other);
        }
        // `line` accepts only times that fit.
        let (day, hour) = ((line.at / DAY) as u32, (line.at / HOUR) as u32);
        let Some(salt) = self.salts.get(&day).copied() else {
            return Err(NeedsSalt(day));
        };
        // A click on a deleted link counts only in the sums of all links. No link has the empty slug.
        let slug = match self.reuses.get(line.slug.as_bytes()) {
            Some(at) if line.at < *at => &[],
            _ => line.slug.as_bytes(),
        };
        let link = self.sums.link(slug);
        let client = client(&mut self.clients, line.user_agent);
        let count = self.sums.count(link, hour);
        let Some(visit) = client.visit else {
            count.bots += 1;
            return Ok(Taken::Bot);
        };
        count.clicks += 1;
        let (word, bits) = visitors::place(visitor(&salt, line.address, client.hash));
        if !self.sent.has(slug, day, word, bits) {
            self.sums.add_visitor(link, day, word, bits);
        }
        self.add_referrer(link, day, line.referrer);
        self.sums.add_detail(link, day, Kind::Visit, visit.code().as_bytes());
        if let Some(country) = self.geoip.country(line.address) {
            self.sums.add_detail(link, day, Kind::Country, &country);
        }
        Ok(Taken::Click)
    }

    /// Notes that the database has this batch, so that its sketch bits are not sent again.
    pub fn sent(&mut self, batch: &Batch) {
        self.sent.add(batch);
    }

    /// Takes these reuses into account for all lines that are added from now on.
    pub fn heed(&mut self, reuses: Vec<Reuse>) {
        for Reuse(number, slug, at) in reuses {
            self.heeded = self.heeded.max(number);
            self.reuses.insert(slug.into_bytes().into(), at);
        }
        // The database has no visitors of the new links.
        self.sent.clear();
    }

    /// The number of the latest reuse that is taken into account; 0 if there is none.
    pub fn heeded(&self) -> i64 {
        self.heeded
    }

    /// Forgets what the database has, because that is unknown or it is another database.
    pub fn forget_database(&mut self) {
        self.sent.clear();
        self.reuses.clear();
        self.heeded = 0;
    }

    fn add_referrer(&mut self, link: Link, day: u32, referrer: &[u8]) {
        if let Some(host) = self.hosts.get(referrer) {
            self.sums.add_detail(link, day, Kind::Referrer, host.as_bytes());
            return;
        }
        let host = referrer::host(&line::unescaped(referrer));
        self.sums.add_detail(link, day, Kind::Referrer, host.as_bytes());
        // A long URL is rarely sent twice, so it is not cached.
        if referrer.len() <= client::LONGEST {
            if self.hosts.len() >= MAX_CACHED {
                self.hosts.clear();
            }
            self.hosts.insert(referrer.into(), host.into());
        }
    }

    /// Discards the aggregate.
    pub fn clear(&mut self) {
        self.sums.clear();
        self.sorted_batch = None;
    }

    /// The next part of the aggregate, which begins after the link `after`. No line may be added any more.
    pub fn part(&mut self, journal: &str, start: u64, stop: u64, after: Option<&str>) -> Batch {
        let sorted_batch = self
            .sorted_batch
            .get_or_insert_with(|| SortedBatch::new(&mut self.sums));
        let mut batch = Batch {
            journal: journal.to_owned(),
            start,
            stop,
            after: after.map(str::to_owned),
            through: None,
            clicks: vec![],
            visitors: vec![],
            details: vec![],
        };
        sorted_batch.fill(&mut batch, &self.sent);
        batch
    }
}

/// What a `User-Agent` means, from the ones that are known or by parsing it.
fn client(known: &mut HashMap<Box<[u8]>, Client>, user_agent: &[u8]) -> Client {
    // An escape has four bytes, so this is all that `client` looks at.
    let user_agent = &user_agent[..user_agent.len().min(4 * client::LONGEST)];
    if let Some(client) = known.get(user_agent) {
        return *client;
    }
    let client = Client {
        visit: client::visit(&line::unescaped(user_agent)),
        hash: hash(user_agent),
    };
    if known.len() >= MAX_CACHED {
        known.clear();
    }
    known.insert(user_agent.into(), client);
    client
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use links_domain::clicks::{Clicks, Detail, MAX_BODY, Visitors};
    use links_domain::visitors::Sketch;

    use super::super::batch::MAX_REFERRERS;
    use super::*;
    use links_base::layout::temporary;
    use links_config::countries::testing::file;

    const DAY_OF_TEST: u32 = 20_454;
    const AT: u64 = DAY_OF_TEST as u64 * DAY + 12 * HOUR + 5;
    const JOURNAL: &str = "0123456789abcdef0123456789abcdef";
    const PERSON: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:125.0) Gecko/20100101 Firefox/125.0";

    fn aggregator() -> Aggregator {
        Aggregator::new([(DAY_OF_TEST, [1; 16])].into())
    }

    fn line(slug: &str, at: u64, address: &str, referrer: &str, agent: &str) -> String {
        format!(
            "l1\t{}.{:03}\t302\t0.001\t-\tHIT\tGET\t/{slug}\t{address}\t{referrer}\t{agent}",
            at / 1000,
            at % 1000
        )
    }

    fn take(aggregator: &mut Aggregator, text: &str) -> Result<Taken, NeedsSalt> {
        aggregator.take(&line::parse(text.as_bytes()).unwrap())
    }

    /// The next part, as the database receives it.
    fn part(aggregator: &mut Aggregator, after: Option<&str>) -> Batch {
        let body = serde_json::to_vec(&aggregator.part(JOURNAL, 0, 100, after)).unwrap();
        assert!(body.len() <= MAX_BODY, "{} bytes", body.len());
        let batch: Batch = serde_json::from_slice(&body).unwrap();
        batch.check().unwrap();
        batch
    }

    fn parts(aggregator: &mut Aggregator) -> Vec<Batch> {
        let mut parts = vec![part(aggregator, None)];
        while let Some(through) = parts.last().and_then(|part| part.through.clone()) {
            parts.push(part(aggregator, Some(&through)));
        }
        parts
    }

    /// The aggregate, which must fit into one part.
    fn batch(aggregator: &mut Aggregator) -> Batch {
        let batch = part(aggregator, None);
        assert_eq!(batch.through, None);
        batch
    }

    fn sorted<T>(mut entries: Vec<T>, key: impl Fn(&T) -> String) -> Vec<T> {
        entries.sort_by_key(key);
        entries
    }

    #[test]
    fn clicks_are_summed_by_link_and_hour_and_over_all_links() {
        let mut aggregator = aggregator();
        assert_eq!(aggregator.fill(), Fill::Empty);
        for (slug, at, agent, taken) in [
            ("a", AT, PERSON, Taken::Click),
            ("a", AT + 10, PERSON, Taken::Click),
            ("a", AT, "curl/8", Taken::Bot),
            ("a", AT + HOUR, PERSON, Taken::Click),
            ("b", AT, "-", Taken::Bot),
        ] {
            assert_eq!(
                take(&mut aggregator, &line(slug, at, "192.0.2.1", "-", agent)),
                Ok(taken)
            );
        }
        assert_eq!(aggregator.fill(), Fill::Light);
        let hour = DAY_OF_TEST * 24 + 12;
        let entry = |slug: &str, hour, clicks, bots| Clicks(slug.to_owned(), hour, clicks, bots);
        assert_eq!(
            sorted(batch(&mut aggregator).clicks, |entry| format!("{}{}", entry.0, entry.1)),
            [
                entry("", hour, 2, 2),
                entry("", hour + 1, 1, 0),
                entry("a", hour, 2, 1),
                entry("a", hour + 1, 1, 0),
                entry("b", hour, 0, 1)
            ]
        );
        aggregator.clear();
        assert!(
            aggregator.fill() == Fill::Empty
                && batch(&mut aggregator).clicks.is_empty()
                && batch(&mut aggregator).details.is_empty()
        );
    }

    #[test]
    fn lines_that_are_not_clicks_are_ignored() {
        let mut aggregator = aggregator();
        for (old, new) in [("302", "404"), ("GET", "HEAD"), ("/a", "/a.b")] {
            let line = line("a", AT, "192.0.2.1", "-", PERSON).replace(old, new);
            assert_eq!(take(&mut aggregator, &line), Ok(Taken::Other));
        }
        assert_eq!(aggregator.fill(), Fill::Empty);
    }

    #[test]
    fn details_are_summed_for_people_only() {
        let mut aggregator = aggregator();
        for (referrer, agent) in [
            ("https://news.example/1", PERSON),
            ("https://news.example/2", PERSON),
            ("-", PERSON),
            ("https://bots.example/", "curl/8"),
        ] {
            take(&mut aggregator, &line("a", AT, "192.0.2.1", referrer, agent)).unwrap();
        }
        let details = batch(&mut aggregator).details;
        let of = |slug: &str| -> Vec<_> {
            let own = details.iter().filter(|detail| detail.0 == slug);
            own.map(|Detail(_, _, kind, name, clicks)| (*kind, name.clone(), *clicks))
                .collect()
        };
        let wanted = [
            (Kind::Referrer, "news.example".to_owned(), 2),
            (Kind::Referrer, String::new(), 1),
            (Kind::Visit, "dfl".to_owned(), 3),
        ];
        assert_eq!((of("a"), of("")), (wanted.to_vec(), wanted.to_vec()));
    }

    #[test]
    fn known_countries_are_counted() {
        let (root, layout) = temporary(&[Layout::config_dir]);
        let path = root.path().join("countries.mmdb");
        std::fs::write(&path, file(&[("::192.0.2.0", 120, "DE")])).unwrap();
        std::fs::write(layout.links_toml(), format!("clicks.countries = {path:?}")).unwrap();
        let mut aggregator = aggregator();
        assert_eq!(aggregator.refresh_countries(&layout), Some(Ok(())));
        for address in ["192.0.2.1", "192.0.2.9", "198.51.100.1"] {
            take(&mut aggregator, &line("a", AT, address, "-", PERSON)).unwrap();
        }
        let details = batch(&mut aggregator).details;
        let countries = details.iter().filter(|detail| detail.2 == Kind::Country);
        let countries: Vec<_> = countries
            .map(|detail| (detail.0.as_str(), detail.3.as_str(), detail.4))
            .collect();
        assert_eq!(countries, [("a", "DE", 2), ("", "DE", 2)]);
    }

    fn estimate(batch: &Batch, slug: &str) -> u64 {
        let mut sketch = Sketch::default();
        for Visitors(_, _, word, bits) in batch.visitors.iter().filter(|entry| entry.0 == slug) {
            sketch.join(*word, bits.cast_unsigned());
        }
        sketch.estimate()
    }

    #[test]
    fn a_visitor_is_an_address_and_a_client() {
        let mut aggregator = aggregator();
        let other = PERSON.replace("125", "126");
        for (slug, address, agent) in [
            ("a", "192.0.2.1", PERSON),
            ("a", "192.0.2.1", PERSON),
            ("a", "::ffff:192.0.2.1", PERSON),
            ("a", "192.0.2.2", PERSON),
            ("a", "192.0.2.1", &other),
            ("b", "192.0.2.1", PERSON),
            ("c", "2001:db8::1", PERSON),
            ("c", "2001:db8::2:3:4", PERSON),
            ("c", "2001:db8:1::1", PERSON),
            ("c", "192.0.2.1", "curl/8"),
        ] {
            take(&mut aggregator, &line(slug, AT, address, "-", agent)).unwrap();
        }
        let batch = batch(&mut aggregator);
        let estimates = ["a", "b", "c", ""].map(|slug| estimate(&batch, slug));
        assert_eq!(estimates, [3, 1, 2, 5]);
    }

    #[test]
    fn visitors_that_the_database_has_are_not_sent_again() {
        let mut aggregator = aggregator();
        let visit = |aggregator: &mut Aggregator, addresses: std::ops::Range<u32>| {
            aggregator.clear();
            for number in addresses {
                let address = format!("192.0.{}.{}", number / 256, number % 256);
                take(aggregator, &line("a", AT, &address, "-", PERSON)).unwrap();
            }
            batch(aggregator)
        };
        let first = visit(&mut aggregator, 0..500);
        assert!(first.visitors.len() > 10);
        assert_eq!(
            visit(&mut aggregator, 0..500),
            first,
            "until the database is known to have them"
        );
        aggregator.sent(&first);
        let again = visit(&mut aggregator, 100..400);
        assert_eq!(
            (again.visitors.len(), again.clicks.iter().map(|entry| entry.2).max()),
            (0, Some(300))
        );
        let more = visit(&mut aggregator, 0..1000);
        let mut sketch = Sketch::default();
        for Visitors(_, _, word, bits) in first
            .visitors
            .iter()
            .chain(&more.visitors)
            .filter(|entry| entry.0 == "a")
        {
            sketch.join(*word, bits.cast_unsigned());
        }
        aggregator.forget_database();
        assert_eq!(sketch.estimate(), estimate(&visit(&mut aggregator, 0..1000), "a"));
    }

    #[test]
    fn each_day_has_its_own_salt_and_two_salts_are_kept() {
        let mut aggregator = Aggregator::default();
        let of_day = |day: u32| line("a", u64::from(day) * DAY, "192.0.2.1", "-", PERSON);
        assert_eq!(take(&mut aggregator, &of_day(7)), Err(NeedsSalt(7)));
        assert_eq!(aggregator.fill(), Fill::Empty, "nothing was counted");
        for day in [7, 8, 9, 3] {
            aggregator.set_salt(day, [day as u8; 16]);
            assert_eq!(take(&mut aggregator, &of_day(day)), Ok(Taken::Click));
        }
        assert_eq!(aggregator.salts().keys().copied().collect::<Vec<_>>(), [3, 9]);
        let hash = |salt| visitor(&[salt; 16], b"192.0.2.1", 1);
        assert_ne!(hash(1), hash(2));
    }

    #[test]
    fn a_flood_of_referrers_keeps_the_frequent_ones_and_every_click() {
        let mut aggregator = aggregator();
        for number in 0..3000 {
            let referrer = format!("https://{number}.example/");
            take(&mut aggregator, &line("a", AT, "192.0.2.1", &referrer, PERSON)).unwrap();
            if number % 100 == 0 {
                take(&mut aggregator, &line("a", AT, "192.0.2.1", "real.example", PERSON)).unwrap();
            }
        }
        let details = batch(&mut aggregator).details;
        for slug in ["a", ""] {
            let own = details
                .iter()
                .filter(|detail| detail.0 == slug && detail.2 == Kind::Referrer);
            let own: Vec<_> = own.collect();
            assert_eq!(own.len(), MAX_REFERRERS + 1);
            assert_eq!((own[0].3.as_str(), own[0].4), ("real.example", 30));
            assert_eq!(own.iter().map(|detail| detail.4).sum::<u32>(), 3030);
        }
    }

    /// Another process that has read the same lines can continue with the next part.
    #[test]
    fn parts_depend_on_the_lines_alone() {
        let aggregated = || {
            let mut aggregator = aggregator();
            for number in 0..30_000_u32 {
                let slug = format!("s{:05}", number.wrapping_mul(7919) % 10_000);
                let address = format!("192.0.{}.{}", number / 256 % 256, number % 256);
                let referrer = format!("{}.example", number % 7);
                take(&mut aggregator, &line(&slug, AT, &address, &referrer, PERSON)).unwrap();
            }
            aggregator
        };
        let all = parts(&mut aggregated());
        assert!(all.len() > 2, "{} parts", all.len());
        for (index, wanted) in all.iter().enumerate() {
            let after = index.checked_sub(1).and_then(|before| all[before].through.as_deref());
            assert_eq!(part(&mut aggregated(), after), *wanted);
        }
        let slugs: Vec<_> = all.iter().flat_map(|part| &part.clicks).map(|entry| &entry.0).collect();
        let (sum, links) = slugs.split_last().unwrap();
        assert!(sum.is_empty() && links.len() == 10_000 && links.is_sorted());
    }

    /// Every part is small enough for the database, whatever the lines contain.
    #[test]
    fn the_aggregate_is_full_before_a_part_is_too_long() {
        let slug = |number: usize| format!("{number:064}");
        let agent = |number: usize| match number % 3 {
            0 => PERSON.to_owned(),
            1 => format!("Mozilla/5.0 (Windows NT {number})"),
            _ => "curl/8".to_owned(),
        };
        // The number of different links, and of different referrers.
        for (links, referrers) in [(usize::MAX, 1), (10, 100_000), (1, 100_000), (usize::MAX, 100_000)] {
            let mut aggregator = aggregator();
            let mut number = 0;
            while aggregator.fill() != Fill::Full && number < 60_000 {
                let referrer = format!("{}{:06}.example", "x".repeat(230), number % referrers);
                let address = format!("192.0.{}.{}", number / 256 % 256, number % 256);
                let at = AT + (number as u64 % 5) * HOUR;
                take(
                    &mut aggregator,
                    &line(&slug(number % links), at, &address, &referrer, &agent(number)),
                )
                .unwrap();
                number += 1;
            }
            assert!(number > 1000, "{number}");
            let parts = parts(&mut aggregator);
            let clicks = parts.iter().flat_map(|part| &part.clicks);
            let of_links = clicks.filter(|entry| !entry.0.is_empty());
            assert_eq!(
                of_links.map(|entry| (entry.2 + entry.3) as usize).sum::<usize>(),
                number
            );
        }
    }
}
