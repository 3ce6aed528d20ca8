//! What is known of a visitor: the bit that it sets in a day's sketch, and whether the database has that bit.

use std::hash::Hasher as _;
use std::net::Ipv6Addr;

use foldhash::HashMap;
use links_domain::clicks::{Batch, Visitors};
use siphasher::sip::SipHasher13;

use super::salts::Salt;

/// The maximum number of sketch words that are remembered as sent.
const MAX_SENT: usize = 400_000;

/// A hash that is the same in every process.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The hash of a visitor. The same address and the same client are the same visitor. Of an IPv6 address only the network (/64)
/// counts, because devices keep changing the rest.
pub fn visitor(salt: &Salt, address: &[u8], client: u64) -> u64 {
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

/// The bits that the database already has, by the hash of slug, day and word. Most visitors of a busy link set no other bit.
#[derive(Debug, Default)]
pub struct Sent(HashMap<u64, u64>);

impl Sent {
    /// Whether the database has all of these bits.
    pub fn has(&self, slug: &[u8], day: u32, word: u8, bits: u64) -> bool {
        let sent = self.0.get(&word_of(slug, day, word));
        sent.is_some_and(|sent| bits & !sent == 0)
    }

    /// Notes that the database has the bits of this batch.
    pub fn add(&mut self, batch: &Batch) {
        if self.0.len() >= MAX_SENT {
            self.0.clear();
        }
        for Visitors(slug, day, word, bits) in &batch.visitors {
            *self.0.entry(word_of(slug.as_bytes(), *day, *word)).or_default() |= bits.cast_unsigned();
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// A hash that identifies a word of a sketch by its link, day and number.
fn word_of(slug: &[u8], day: u32, word: u8) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(slug);
    hasher.write_u32(day);
    hasher.write_u8(word);
    hasher.finish()
}
