//! Random moments that can be had again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What the random moments of a test follow from: `LINKS_SEED`, or else another one in each run. It is printed, so that a
/// run that failed can be repeated.
#[derive(Clone, Copy, Debug)]
pub struct Seed(u64);

impl Seed {
    const VARIABLE: &str = "LINKS_SEED";

    /// # Errors
    /// `LINKS_SEED` is no number.
    pub fn of_environment() -> Result<Self> {
        let seed = match std::env::var(Self::VARIABLE) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{}={text} is no number of 64 bits", Self::VARIABLE))?,
            Err(_) => RandomState::new().hash_one(()),
        };
        println!("{}={seed} repeats this test's random moments", Self::VARIABLE);
        Ok(Self(seed))
    }

    /// Less than `below`; always the same for this seed and this number.
    pub fn moment(self, number: u64, below: Duration) -> Duration {
        below.mul_f64(self.share(number))
    }

    /// From 0 to 1, evenly distributed: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
    fn share(self, number: u64) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut bits = self.0.wrapping_add(STEP.wrapping_mul(number.wrapping_add(1)));
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_moments_again_and_spreads_them() {
        let hour = Duration::from_secs(3600);
        let moments = |seed| -> Vec<_> { (0..1000).map(|number| Seed(seed).moment(number, hour)).collect() };
        assert_eq!(moments(7), moments(7));
        assert_ne!(moments(7), moments(8));
        for quarter in 0..4 {
            let (from, to) = (hour / 4 * quarter, hour / 4 * (quarter + 1));
            let within = moments(7).iter().filter(|moment| (from..to).contains(*moment)).count();
            assert!(
                (200..300).contains(&within),
                "{within} of 1000 in the quarter from {from:?}"
            );
        }
    }

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        // The first output of SplitMix64 for seed 0.
        let first = Seed(0).share(0) * (1_u64 << 53) as f64;
        assert_eq!(first as u64, 0xe220_a839_7b1d_cdaf >> 11);
    }
}
