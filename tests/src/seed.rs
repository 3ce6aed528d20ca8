//! Random moments that can be reproduced.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The seed of a test's random moments: `SEED`, or else a new one in each run. It is printed so that a failed run can be
/// repeated.
#[derive(Clone, Copy, Debug)]
pub struct Seed(u64);

impl Seed {
    const VARIABLE: &str = "SEED";

    /// Reads the seed from the environment, or makes one, and prints it.
    ///
    /// # Errors
    /// Fails if `SEED` is not a number.
    pub fn of_environment() -> Result<Self> {
        let seed = match std::env::var(Self::VARIABLE) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{}={text} is not a 64-bit number", Self::VARIABLE))?,
            Err(_) => RandomState::new().hash_one(()),
        };
        println!("{}={seed} repeats this test's random moments", Self::VARIABLE);
        Ok(Self(seed))
    }

    /// A duration less than `below`, determined by the seed and `number`.
    pub fn moment(self, number: u64, below: Duration) -> Duration {
        below.mul_f64(self.share(number))
    }

    /// A number from 0 to 1, evenly distributed, from SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
    /// Generators").
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
    fn moments_are_reproducible_and_evenly_spread() {
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
    fn the_generator_is_splitmix64() {
        // This is the first output of SplitMix64 for seed 0.
        let first = Seed(0).share(0) * (1_u64 << 53) as f64;
        assert_eq!(first as u64, 0xe220_a839_7b1d_cdaf >> 11);
    }
}
