//! Lines of the journal become a batch: sums by link, hour and day. What is kept of a client here and there is the bit
//! that it sets in a day's sketch of visitors.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::net::Ipv6Addr;

use foldhash::HashMap;
use links_domain::clicks::{Batch, Clicks, Detail, GOAL, Kind, OTHER, Reuse, Visitors};
use links_domain::visit::Visit;
use links_domain::visitors;
use siphasher::sip::SipHasher13;

use super::atlas::Atlas;
use super::client;
use super::courier::Fill;
use super::line::{self, Line};
use super::referrer;
use crate::layout::Layout;

/// Referrers that are named for one link and day in one batch; the rest is [`OTHER`].
const NAMED_REFERRERS: usize = 20;

/// Clients and referrers that are remembered, by what they sent. Busy sites see the same few; a flood of made-up ones
/// empties the memory now and then.
const REMEMBERED: usize = 4096;

/// Words of sketches that the database is known to have.
const SENT: usize = 400_000;

/// What is gathered before it is sent, in bytes as JSON: the more, the fewer entries there are for as many clicks. In
/// memory it takes up to three times as much.
const ROOM: usize = 16 * 1024 * 1024;
/// From here on it is worth it to wait for more.
const HEAVY: usize = ROOM / 16;

/// What an entry takes as JSON beside its texts, in bytes, at most.
const CLICKS_SIZE: usize = 30;
const VISITORS_SIZE: usize = 36;
const DETAIL_SIZE: usize = 28;

const DAY: u64 = 24 * 3600 * 1000;
const HOUR: u64 = 3600 * 1000;

/// The key of a day's hash.
pub type Salt = [u8; 16];

/// What was done with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Click,
    Bot,
    /// Nothing to count here.
    Other,
}

/// A click of a day that there is no salt for yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeedsSalt(pub u32);

/// By number, in the order in which they came.
#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<Box<[u8]>, u32>,
    names: Vec<Box<[u8]>>,
}

impl Names {
    fn number(&mut self, name: &[u8]) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        // There is room for fewer than 2^32 in a batch.
        let number = self.names.len() as u32;
        self.numbers.insert(name.into(), number);
        self.names.push(name.into());
        number
    }

    fn bytes(&self, number: u32) -> &[u8] {
        self.names.get(number as usize).map_or(&[], |name| name)
    }

    /// They are slugs, hosts and codes: ASCII.
    fn name(&self, number: u32) -> String {
        String::from_utf8_lossy(self.bytes(number)).into_owned()
    }

    fn clear(&mut self) {
        self.numbers.clear();
        self.names.clear();
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    clicks: u32,
    bots: u32,
}

/// Link, day, kind, number of the name.
type DetailKey = (u32, u32, Kind, u32);

/// What a client's name for itself means.
#[derive(Clone, Copy, Debug)]
struct Client {
    visit: Option<Visit>,
    hash: u64,
}

/// Collects a batch.
#[derive(Debug, Default)]
pub struct Gatherer {
    salts: BTreeMap<u32, Salt>,
    atlas: Atlas,
    clients: HashMap<Box<[u8]>, Client>,
    hosts: HashMap<Box<[u8]>, Box<str>>,
    links: Names,
    names: Names,
    clicks: HashMap<(u32, u32), Count>,
    visitors: HashMap<(u32, u32, u8), u64>,
    details: HashMap<DetailKey, u32>,
    /// Slugs that were given to a new link, and when, in Unix milliseconds; see [`Reuse`].
    reuses: HashMap<Box<[u8]>, u64>,
    /// The number of the latest of them.
    heeded: i64,
    /// Bits that need not be sent again, by the hash of the slug, day and word. Most visitors of a busy link set none.
    sent: HashMap<u64, u64>,
    size: usize,
    /// What was gathered, once it is being sent.
    sheaf: Option<Sheaf>,
}

/// All that was gathered, by link in the order of their slugs: what is a part of it follows from the lines alone.
#[derive(Debug)]
struct Sheaf {
    /// The links' numbers.
    links: Vec<u32>,
    /// Each by its link's place in `links`.
    clicks: Vec<((u32, u32), Count)>,
    visitors: Vec<((u32, u32, u8), u64)>,
    details: Vec<(DetailKey, u32)>,
}

/// What belongs to a link, of what is sorted by links.
fn of_link<T>(all: &[T], link: u32, place: impl Fn(&T) -> u32) -> &[T] {
    let start = all.partition_point(|entry| place(entry) < link);
    let count = all[start..].partition_point(|entry| place(entry) == link);
    &all[start..start + count]
}

impl Gatherer {
    pub fn new(salts: BTreeMap<u32, Salt>) -> Self {
        Self {
            salts,
            ..Self::default()
        }
    }

    /// For the clicks of a day. Of the others only the latest is kept: clicks of the day before may still come.
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

    /// Whether another file of countries counts now; see [`Atlas::look`].
    ///
    /// # Errors
    /// It cannot be used.
    pub fn look_for_countries(&mut self, layout: &Layout) -> Option<Result<(), String>> {
        self.atlas.look(layout)
    }

    pub fn fill(&self) -> Fill {
        match self.size {
            ROOM.. => Fill::Full,
            HEAVY.. => Fill::Heavy,
            _ if self.clicks.is_empty() && self.sheaf.is_none() => Fill::Empty,
            _ => Fill::Light,
        }
    }

    /// # Errors
    /// Nothing was done: a salt is needed first.
    pub fn take(&mut self, line: &Line<'_>) -> Result<Taken, NeedsSalt> {
        if !line.is_click() {
            return Ok(Taken::Other);
        }
        // What `line` takes for a time fits.
        let (day, hour) = ((line.at / DAY) as u32, (line.at / HOUR) as u32);
        let Some(salt) = self.salts.get(&day).copied() else {
            return Err(NeedsSalt(day));
        };
        // A click on a link that is gone is among the sums of all links, and nobody's: the empty slug is no link's.
        let slug = match self.reuses.get(line.slug.as_bytes()) {
            Some(at) if line.at < *at => &[],
            _ => line.slug.as_bytes(),
        };
        let slug_size = slug.len();
        let link = self.links.number(slug);
        let client = self.client(line.user_agent);
        let count = self.clicks.entry((link, hour)).or_insert_with(|| {
            self.size += slug_size + CLICKS_SIZE;
            Count::default()
        });
        let Some(visit) = client.visit else {
            count.bots += 1;
            return Ok(Taken::Bot);
        };
        count.clicks += 1;
        let (word, bits) = visitors::place(visitor(&salt, line.address, client.hash));
        if !self.is_sent(slug, day, word, bits) {
            let words = self.visitors.entry((link, day, word)).or_insert_with(|| {
                self.size += slug_size + VISITORS_SIZE;
                0
            });
            *words |= bits;
        }
        let host = self.host_number(line.referrer);
        self.add_detail((link, day, Kind::Referrer, host), slug_size);
        let visit = self.names.number(visit.code().as_bytes());
        self.add_detail((link, day, Kind::Visit, visit), slug_size);
        if let Some(country) = self.atlas.country(line.address) {
            let country = self.names.number(&country);
            self.add_detail((link, day, Kind::Country, country), slug_size);
        }
        Ok(Taken::Click)
    }

    fn is_sent(&self, slug: &[u8], day: u32, word: u8, bits: u64) -> bool {
        let sent = self.sent.get(&word_of(slug, day, word));
        sent.is_some_and(|sent| bits & !sent == 0)
    }

    /// The database has this batch: what is in the sketches need not be sent once more.
    pub fn sent(&mut self, batch: &Batch) {
        if self.sent.len() >= SENT {
            self.sent.clear();
        }
        for Visitors(slug, day, word, bits) in &batch.visitors {
            *self.sent.entry(word_of(slug.as_bytes(), *day, *word)).or_default() |= bits.cast_unsigned();
        }
    }

    /// Lines that are taken from now on heed these.
    pub fn heed(&mut self, reuses: Vec<Reuse>) {
        for Reuse(number, slug, at) in reuses {
            self.heeded = self.heeded.max(number);
            self.reuses.insert(slug.into_bytes().into(), at);
        }
        // Of the new links the database has no visitors.
        self.sent.clear();
    }

    /// The number of the latest reuse that is heeded; 0: none is.
    pub fn heeded(&self) -> i64 {
        self.heeded
    }

    /// Nobody knows what the database has, or it is another one.
    pub fn forget_database(&mut self) {
        self.sent.clear();
        self.reuses.clear();
        self.heeded = 0;
    }

    fn add_detail(&mut self, key: DetailKey, slug_size: usize) {
        let count = self.details.entry(key).or_insert_with(|| {
            let name = self.names.names.get(key.3 as usize).map_or(0, |name| name.len());
            self.size += slug_size + name + DETAIL_SIZE;
            0
        });
        *count += 1;
    }

    fn client(&mut self, user_agent: &[u8]) -> Client {
        // The escapes of all that is looked at.
        let user_agent = &user_agent[..user_agent.len().min(4 * client::LONGEST)];
        if let Some(client) = self.clients.get(user_agent) {
            return *client;
        }
        let client = Client {
            visit: client::visit(&line::unescaped(user_agent)),
            hash: hash(user_agent),
        };
        if self.clients.len() >= REMEMBERED {
            self.clients.clear();
        }
        self.clients.insert(user_agent.into(), client);
        client
    }

    fn host_number(&mut self, referrer: &[u8]) -> u32 {
        if let Some(host) = self.hosts.get(referrer) {
            return self.names.number(host.as_bytes());
        }
        let host = referrer::host(&line::unescaped(referrer));
        let number = self.names.number(host.as_bytes());
        // A whole URL is long, and not often sent twice.
        if referrer.len() <= client::LONGEST {
            if self.hosts.len() >= REMEMBERED {
                self.hosts.clear();
            }
            self.hosts.insert(referrer.into(), host.into());
        }
        number
    }

    /// Forgets what was gathered.
    pub fn clear(&mut self) {
        self.links.clear();
        self.names.clear();
        self.clicks.clear();
        self.visitors.clear();
        self.details.clear();
        self.sheaf = None;
        self.size = 0;
    }

    /// The next part of what was gathered, after that of the link `after`. Nothing more is to be added then.
    pub fn part(&mut self, journal: &str, start: u64, stop: u64, after: Option<&str>) -> Batch {
        if self.sheaf.is_none() {
            self.sheaf = Some(self.bind());
        }
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
        let Some(sheaf) = &self.sheaf else { return batch };
        let after = after.unwrap_or_default().as_bytes();
        let done = sheaf.links.partition_point(|link| self.links.bytes(*link) <= after);
        let mut size = 0;
        for (place, link) in (0_u32..).zip(&sheaf.links).skip(done) {
            let slug = self.links.name(*link);
            if size >= GOAL {
                return batch;
            }
            size += self.add(&mut batch, sheaf, place, &slug);
            batch.through = Some(slug);
        }
        batch.through = None;
        self.add_sums(&mut batch, sheaf);
        batch
    }

    /// Puts it into order.
    fn bind(&mut self) -> Sheaf {
        // There are fewer than 2^32 numbers.
        let mut links: Vec<_> = (0..self.links.names.len() as u32).collect();
        links.sort_unstable_by_key(|link| self.links.bytes(*link));
        let mut places = vec![0; links.len()];
        for (place, link) in (0_u32..).zip(&links) {
            if let Some(known) = places.get_mut(*link as usize) {
                *known = place;
            }
        }
        let place = |link: u32| places.get(link as usize).copied().unwrap_or(0);
        let clicks = std::mem::take(&mut self.clicks).into_iter();
        let mut clicks: Vec<_> = clicks
            .map(|((link, hour), count)| ((place(link), hour), count))
            .collect();
        clicks.sort_unstable_by_key(|(key, _)| *key);
        let visitors = std::mem::take(&mut self.visitors).into_iter();
        let mut visitors: Vec<_> = visitors
            .map(|((link, day, word), bits)| ((place(link), day, word), bits))
            .collect();
        visitors.sort_unstable();
        let details = std::mem::take(&mut self.details).into_iter();
        let mut details: Vec<_> = details
            .map(|((link, day, kind, name), clicks)| ((place(link), day, kind, name), clicks))
            .collect();
        details.sort_unstable_by_key(|((place, day, kind, name), clicks)| {
            (*place, *day, *kind, Reverse(*clicks), self.names.bytes(*name))
        });
        Sheaf {
            links,
            clicks,
            visitors,
            details,
        }
    }

    /// Adds what belongs to one link, and tells what that takes as JSON, in bytes.
    fn add(&self, batch: &mut Batch, sheaf: &Sheaf, place: u32, slug: &str) -> usize {
        let before = (batch.clicks.len(), batch.visitors.len(), batch.details.len());
        for ((_, hour), count) in of_link(&sheaf.clicks, place, |entry| entry.0.0) {
            batch
                .clicks
                .push(Clicks(slug.to_owned(), *hour, count.clicks, count.bots));
        }
        for ((_, day, word), bits) in of_link(&sheaf.visitors, place, |entry| entry.0.0) {
            batch
                .visitors
                .push(Visitors(slug.to_owned(), *day, *word, bits.cast_signed()));
        }
        let details = of_link(&sheaf.details, place, |entry| entry.0.0);
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

    /// `named`: the most frequent first.
    fn add_group(
        &self,
        batch: &mut Batch,
        slug: &str,
        (day, kind): (u32, Kind),
        named: impl Iterator<Item = (u32, u32)>,
    ) {
        let most = match kind {
            Kind::Referrer => NAMED_REFERRERS,
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
    fn add_sums(&self, batch: &mut Batch, sheaf: &Sheaf) {
        let mut clicks = BTreeMap::<u32, Count>::new();
        for ((_, hour), count) in &sheaf.clicks {
            let all = clicks.entry(*hour).or_default();
            all.clicks = all.clicks.saturating_add(count.clicks);
            all.bots = all.bots.saturating_add(count.bots);
        }
        let clicks = clicks.into_iter();
        batch
            .clicks
            .extend(clicks.map(|(hour, count)| Clicks(String::new(), hour, count.clicks, count.bots)));

        let mut visitors = BTreeMap::<(u32, u8), u64>::new();
        for ((_, day, word), bits) in &sheaf.visitors {
            *visitors.entry((*day, *word)).or_default() |= bits;
        }
        let visitors = visitors.into_iter();
        let visitors = visitors.filter(|((day, word), bits)| !self.is_sent(b"", *day, *word, *bits));
        batch
            .visitors
            .extend(visitors.map(|((day, word), bits)| Visitors(String::new(), day, word, bits.cast_signed())));

        let mut details = BTreeMap::<(u32, Kind), HashMap<u32, u32>>::new();
        for ((_, day, kind, name), clicks) in &sheaf.details {
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

/// Of a word of a sketch, in place of its link, day and number.
fn word_of(slug: &[u8], day: u32, word: u8) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(slug);
    hasher.write_u32(day);
    hasher.write_u8(word);
    hasher.finish()
}

/// The same in every process.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Who has the same address and the same client is the same visitor. Of IPv6, a household has a whole network, of which
/// its devices change their addresses all the time.
fn visitor(salt: &Salt, address: &[u8], client: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_key(salt);
    let v6 = address
        .contains(&b':')
        .then(|| std::str::from_utf8(address).ok()?.parse::<Ipv6Addr>().ok());
    match v6.flatten() {
        Some(v6) if v6.to_ipv4_mapped().is_none() => hasher.write(&v6.octets()[..8]),
        Some(v6) => hasher.write(v6.to_string().trim_start_matches("::ffff:").as_bytes()),
        None => hasher.write(address),
    }
    hasher.write_u64(client);
    hasher.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use links_domain::clicks::MAX_BODY;
    use links_domain::visitors::Sketch;

    use super::*;
    use crate::countries::tests::file;
    use crate::layout::temporary;

    const DAY_OF_TEST: u32 = 20_454;
    const AT: u64 = DAY_OF_TEST as u64 * DAY + 12 * HOUR + 5;
    const JOURNAL: &str = "0123456789abcdef0123456789abcdef";
    const PERSON: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:125.0) Gecko/20100101 Firefox/125.0";

    fn gatherer() -> Gatherer {
        Gatherer::new([(DAY_OF_TEST, [1; 16])].into())
    }

    fn line(slug: &str, at: u64, address: &str, referrer: &str, agent: &str) -> String {
        format!(
            "l1\t{}.{:03}\t302\t0.001\t-\tHIT\tGET\t/{slug}\t{address}\t{referrer}\t{agent}",
            at / 1000,
            at % 1000
        )
    }

    fn take(gatherer: &mut Gatherer, text: &str) -> Result<Taken, NeedsSalt> {
        gatherer.take(&line::parse(text.as_bytes()).unwrap())
    }

    /// As the database will take it.
    fn part(gatherer: &mut Gatherer, after: Option<&str>) -> Batch {
        let body = serde_json::to_vec(&gatherer.part(JOURNAL, 0, 100, after)).unwrap();
        assert!(body.len() <= MAX_BODY, "{} bytes", body.len());
        let batch: Batch = serde_json::from_slice(&body).unwrap();
        batch.check().unwrap();
        batch
    }

    fn parts(gatherer: &mut Gatherer) -> Vec<Batch> {
        let mut parts = vec![part(gatherer, None)];
        while let Some(through) = parts.last().and_then(|part| part.through.clone()) {
            parts.push(part(gatherer, Some(&through)));
        }
        parts
    }

    /// What is one part.
    fn batch(gatherer: &mut Gatherer) -> Batch {
        let batch = part(gatherer, None);
        assert_eq!(batch.through, None);
        batch
    }

    fn sorted<T>(mut entries: Vec<T>, key: impl Fn(&T) -> String) -> Vec<T> {
        entries.sort_by_key(key);
        entries
    }

    #[test]
    fn clicks_are_summed_by_link_and_hour_and_for_all() {
        let mut gatherer = gatherer();
        assert_eq!(gatherer.fill(), Fill::Empty);
        for (slug, at, agent, taken) in [
            ("a", AT, PERSON, Taken::Click),
            ("a", AT + 10, PERSON, Taken::Click),
            ("a", AT, "curl/8", Taken::Bot),
            ("a", AT + HOUR, PERSON, Taken::Click),
            ("b", AT, "-", Taken::Bot),
        ] {
            assert_eq!(take(&mut gatherer, &line(slug, at, "192.0.2.1", "-", agent)), Ok(taken));
        }
        assert_eq!(gatherer.fill(), Fill::Light);
        let hour = DAY_OF_TEST * 24 + 12;
        let entry = |slug: &str, hour, clicks, bots| Clicks(slug.to_owned(), hour, clicks, bots);
        assert_eq!(
            sorted(batch(&mut gatherer).clicks, |entry| format!("{}{}", entry.0, entry.1)),
            [
                entry("", hour, 2, 2),
                entry("", hour + 1, 1, 0),
                entry("a", hour, 2, 1),
                entry("a", hour + 1, 1, 0),
                entry("b", hour, 0, 1)
            ]
        );
        gatherer.clear();
        assert!(
            gatherer.fill() == Fill::Empty
                && batch(&mut gatherer).clicks.is_empty()
                && batch(&mut gatherer).details.is_empty()
        );
    }

    #[test]
    fn what_is_no_click_leaves_no_trace() {
        let mut gatherer = gatherer();
        for (old, new) in [("302", "404"), ("GET", "HEAD"), ("/a", "/a.b")] {
            let line = line("a", AT, "192.0.2.1", "-", PERSON).replace(old, new);
            assert_eq!(take(&mut gatherer, &line), Ok(Taken::Other));
        }
        assert_eq!(gatherer.fill(), Fill::Empty);
    }

    #[test]
    fn details_are_summed_and_bots_have_none() {
        let mut gatherer = gatherer();
        for (referrer, agent) in [
            ("https://news.example/1", PERSON),
            ("https://news.example/2", PERSON),
            ("-", PERSON),
            ("https://bots.example/", "curl/8"),
        ] {
            take(&mut gatherer, &line("a", AT, "192.0.2.1", referrer, agent)).unwrap();
        }
        let details = batch(&mut gatherer).details;
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
    fn countries_are_told_where_they_are_known() {
        let (root, layout) = temporary(&[Layout::config_dir]);
        let path = root.path().join("countries.mmdb");
        std::fs::write(&path, file(&[("::192.0.2.0", 120, "DE")])).unwrap();
        std::fs::write(layout.links_toml(), format!("clicks.countries = {path:?}")).unwrap();
        let mut gatherer = gatherer();
        assert_eq!(gatherer.look_for_countries(&layout), Some(Ok(())));
        for address in ["192.0.2.1", "192.0.2.9", "198.51.100.1"] {
            take(&mut gatherer, &line("a", AT, address, "-", PERSON)).unwrap();
        }
        let details = batch(&mut gatherer).details;
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
        let mut gatherer = gatherer();
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
            take(&mut gatherer, &line(slug, AT, address, "-", agent)).unwrap();
        }
        let batch = batch(&mut gatherer);
        let estimates = ["a", "b", "c", ""].map(|slug| estimate(&batch, slug));
        assert_eq!(estimates, [3, 1, 2, 5]);
    }

    #[test]
    fn what_the_database_has_of_visitors_is_not_sent_again() {
        let mut gatherer = gatherer();
        let visit = |gatherer: &mut Gatherer, addresses: std::ops::Range<u32>| {
            gatherer.clear();
            for number in addresses {
                let address = format!("192.0.{}.{}", number / 256, number % 256);
                take(gatherer, &line("a", AT, &address, "-", PERSON)).unwrap();
            }
            batch(gatherer)
        };
        let first = visit(&mut gatherer, 0..500);
        assert!(first.visitors.len() > 10);
        assert_eq!(
            visit(&mut gatherer, 0..500),
            first,
            "as long as it is not known to be there"
        );
        gatherer.sent(&first);
        let again = visit(&mut gatherer, 100..400);
        assert_eq!(
            (again.visitors.len(), again.clicks.iter().map(|entry| entry.2).max()),
            (0, Some(300))
        );
        let more = visit(&mut gatherer, 0..1000);
        let mut sketch = Sketch::default();
        for Visitors(_, _, word, bits) in first
            .visitors
            .iter()
            .chain(&more.visitors)
            .filter(|entry| entry.0 == "a")
        {
            sketch.join(*word, bits.cast_unsigned());
        }
        gatherer.forget_database();
        assert_eq!(sketch.estimate(), estimate(&visit(&mut gatherer, 0..1000), "a"));
    }

    #[test]
    fn each_day_has_a_salt_of_its_own_and_two_are_kept() {
        let mut gatherer = Gatherer::default();
        let of_day = |day: u32| line("a", u64::from(day) * DAY, "192.0.2.1", "-", PERSON);
        assert_eq!(take(&mut gatherer, &of_day(7)), Err(NeedsSalt(7)));
        assert_eq!(gatherer.fill(), Fill::Empty, "nothing of it was counted");
        for day in [7, 8, 9, 3] {
            gatherer.set_salt(day, [day as u8; 16]);
            assert_eq!(take(&mut gatherer, &of_day(day)), Ok(Taken::Click));
        }
        assert_eq!(gatherer.salts().keys().copied().collect::<Vec<_>>(), [3, 9]);
        let hash = |salt| visitor(&[salt; 16], b"192.0.2.1", 1);
        assert_ne!(hash(1), hash(2));
    }

    #[test]
    fn a_flood_of_referrers_keeps_the_frequent_ones_and_every_click() {
        let mut gatherer = gatherer();
        for number in 0..3000 {
            let referrer = format!("https://{number}.example/");
            take(&mut gatherer, &line("a", AT, "192.0.2.1", &referrer, PERSON)).unwrap();
            if number % 100 == 0 {
                take(&mut gatherer, &line("a", AT, "192.0.2.1", "real.example", PERSON)).unwrap();
            }
        }
        let details = batch(&mut gatherer).details;
        for slug in ["a", ""] {
            let own = details
                .iter()
                .filter(|detail| detail.0 == slug && detail.2 == Kind::Referrer);
            let own: Vec<_> = own.collect();
            assert_eq!(own.len(), NAMED_REFERRERS + 1);
            assert_eq!((own[0].3.as_str(), own[0].4), ("real.example", 30));
            assert_eq!(own.iter().map(|detail| detail.4).sum::<u32>(), 3030);
        }
    }

    /// Another process, which has read the same lines, goes on with them.
    #[test]
    fn what_is_in_a_part_follows_from_the_lines() {
        let gathered = || {
            let mut gatherer = gatherer();
            for number in 0..30_000_u32 {
                let slug = format!("s{:05}", number.wrapping_mul(7919) % 10_000);
                let address = format!("192.0.{}.{}", number / 256 % 256, number % 256);
                let referrer = format!("{}.example", number % 7);
                take(&mut gatherer, &line(&slug, AT, &address, &referrer, PERSON)).unwrap();
            }
            gatherer
        };
        let all = parts(&mut gathered());
        assert!(all.len() > 2, "{} parts", all.len());
        for (index, wanted) in all.iter().enumerate() {
            let after = index.checked_sub(1).and_then(|before| all[before].through.as_deref());
            assert_eq!(part(&mut gathered(), after), *wanted);
        }
        let slugs: Vec<_> = all.iter().flat_map(|part| &part.clicks).map(|entry| &entry.0).collect();
        let (sum, links) = slugs.split_last().unwrap();
        assert!(sum.is_empty() && links.len() == 10_000 && links.is_sorted());
    }

    /// Whatever comes, a part is one that the database takes.
    #[test]
    fn it_is_full_before_it_is_too_long() {
        let slug = |number: usize| format!("{number:064}");
        let agent = |number: usize| match number % 3 {
            0 => PERSON.to_owned(),
            1 => format!("Mozilla/5.0 (Windows NT {number})"),
            _ => "curl/8".to_owned(),
        };
        // Long referrers for few links, short ones for many.
        for (links, referrers) in [(usize::MAX, 1), (10, 100_000), (1, 100_000), (usize::MAX, 100_000)] {
            let mut gatherer = gatherer();
            let mut number = 0;
            while gatherer.fill() != Fill::Full && number < 60_000 {
                let referrer = format!("{}{:06}.example", "x".repeat(230), number % referrers);
                let address = format!("192.0.{}.{}", number / 256 % 256, number % 256);
                let at = AT + (number as u64 % 5) * HOUR;
                take(
                    &mut gatherer,
                    &line(&slug(number % links), at, &address, &referrer, &agent(number)),
                )
                .unwrap();
                number += 1;
            }
            assert!(number > 1000, "{number}");
            let parts = parts(&mut gatherer);
            let clicks = parts.iter().flat_map(|part| &part.clicks);
            let of_links = clicks.filter(|entry| !entry.0.is_empty());
            assert_eq!(
                of_links.map(|entry| (entry.2 + entry.3) as usize).sum::<usize>(),
                number
            );
        }
    }
}
