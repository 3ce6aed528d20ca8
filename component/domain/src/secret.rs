//! Secrets of which only a digest is kept. That is enough to check whether somebody else has the secret.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::age::Age;
use crate::hex;
use crate::variable::{Invalid, seconds};

/// The prefix of the text form, with its version.
const FORM: &str = "secret1";

pub const SALT_LENGTH: usize = 16;

/// How long the digest of a secret is used, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// How long a digest is used before the provider is asked again. A new secret works within this time, and the old one
    /// stops.
    pub ttl: i64,
    /// How much longer a digest is used while the provider does not answer.
    pub stale: i64,
}

impl Lifetime {
    pub const DEFAULT_STALE: i64 = 900;

    /// Parses the two variables. `None` means that the provider is asked every time.
    ///
    /// # Errors
    /// One of the values is not a number of seconds.
    pub fn parse(secrets_ttl: &str, secrets_stale: &str) -> Result<Option<Lifetime>, Invalid> {
        let ttl = seconds("secrets_ttl", secrets_ttl, 0)?;
        let stale = seconds("secrets_stale", secrets_stale, Self::DEFAULT_STALE)?;
        Ok((ttl > 0).then_some(Lifetime { ttl, stale }))
    }
}

/// SHA-256 of a random salt and the secret. It does not protect a secret that can be guessed, so it is meant for machine-made
/// tokens, in a file that only the appliance can read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    salt: [u8; SALT_LENGTH],
    hash: [u8; 32],
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(...)")
    }
}

impl Digest {
    pub fn of(secret: &[u8], salt: [u8; SALT_LENGTH]) -> Digest {
        // The salt has a fixed length, so no two pairs of salt and secret are the same bytes.
        let hash = Sha256::new().chain_update(salt).chain_update(secret).finalize().into();
        Digest { salt, hash }
    }

    /// A hash of the message, keyed with this digest. The key has a fixed length, so no two pairs of key and message are the
    /// same bytes.
    pub fn sign(&self, message: &str) -> [u8; 32] {
        Sha256::new()
            .chain_update(self.hash)
            .chain_update(message)
            .finalize()
            .into()
    }

    /// Whether this is the digest of the secret. The time it takes does not depend on how much of the secret is right.
    pub fn is_of(&self, secret: &[u8]) -> bool {
        Digest::of(secret, self.salt).hash.ct_eq(&self.hash).into()
    }
}

/// The provider's answer for a secret, and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The digest; `None` if no provider has the secret.
    pub digest: Option<Digest>,
    /// When the provider was asked, in Unix seconds.
    pub asked_at: i64,
}

impl Snapshot {
    pub fn encode(&self) -> String {
        match &self.digest {
            Some(Digest { salt, hash }) => {
                format!("{FORM} {} {} {}", self.asked_at, hex::encode(salt), hex::encode(hash))
            }
            None => format!("{FORM} {} -", self.asked_at),
        }
    }

    /// Reads the text form. `None` if any part of it is malformed.
    pub fn decode(bytes: &[u8]) -> Option<Snapshot> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (asked_at, digest) = text.strip_prefix(FORM)?.strip_prefix(' ')?.split_once(' ')?;
        let digest = match digest.split_once(' ') {
            Some((salt, hash)) => Some(Digest {
                salt: hex::decode(salt.as_bytes())?,
                hash: hex::decode(hash.as_bytes())?,
            }),
            None if digest == "-" => None,
            None => return None,
        };
        Some(Snapshot {
            digest,
            asked_at: asked_at.parse().ok()?,
        })
    }

    /// The age of the answer; `now` is in Unix seconds.
    pub fn age(&self, now: i64, lifetime: &Lifetime) -> Age {
        let usable = if lifetime.stale == 0 {
            0
        } else {
            lifetime.ttl.saturating_add(lifetime.stale)
        };
        Age::of(self.asked_at, now, lifetime.ttl, usable)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const NOW: i64 = 1_767_225_600;
    const SALT: [u8; SALT_LENGTH] = [7; SALT_LENGTH];

    fn snapshot() -> Snapshot {
        Snapshot {
            digest: Some(Digest::of(b"s3cret", SALT)),
            asked_at: NOW,
        }
    }

    #[test]
    fn a_digest_matches_only_its_secret() {
        let digest = Digest::of(b"s3cret", SALT);
        assert!(digest.is_of(b"s3cret"));
        for other in [&b"s3cre"[..], b"s3cret2", b"S3cret", b"", b"\x07s3cret"] {
            assert!(!digest.is_of(other), "{other:?}");
        }
    }

    #[test]
    fn the_salt_makes_the_same_secret_look_different() {
        assert_ne!(Digest::of(b"s3cret", SALT).hash, Digest::of(b"s3cret", [8; 16]).hash);
        assert!(Digest::of(b"s3cret", [8; 16]).is_of(b"s3cret"));
    }

    /// printf '\7\7\7\7\7\7\7\7\7\7\7\7\7\7\7\7s3cret' | sha256sum
    #[test]
    fn other_releases_can_read_the_form() {
        assert_eq!(
            snapshot().encode(),
            "secret1 1767225600 07070707070707070707070707070707 \
             58a9afe64e4c8f6dc648809d3b1dcc328ba1f4f893b6b567cac9fd2aa2cfbab6"
        );
    }

    #[test]
    fn survives_a_round_trip_and_never_holds_the_secret() {
        for snapshot in [
            snapshot(),
            Snapshot {
                digest: None,
                asked_at: -5,
            },
        ] {
            let text = snapshot.encode();
            assert_eq!(Snapshot::decode(text.as_bytes()), Some(snapshot));
            assert!(!text.contains("s3cret") && !format!("{snapshot:?}").contains("0707"));
        }
    }

    #[test]
    fn other_texts_are_ignored() {
        let whole = snapshot().encode();
        for length in 0..whole.len() {
            assert_eq!(Snapshot::decode(&whole.as_bytes()[..length]), None, "{length} bytes");
        }
        for text in [
            "s3cret",
            "secret1 x -",
            "secret1 1767225600 - -",
            "secret2 1767225600 -",
        ] {
            assert_eq!(Snapshot::decode(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Snapshot::decode(&[0xff; 20]), None);
    }

    #[test]
    fn outlives_its_ttl_only_while_the_provider_is_silent() {
        let lifetime = Lifetime { ttl: 30, stale: 900 };
        for (after, age) in [(29, Age::Fresh), (30, Age::Stale), (929, Age::Stale), (930, Age::Gone)] {
            assert_eq!(snapshot().age(NOW + after, &lifetime), age, "after {after} s");
        }
        assert_eq!(snapshot().age(NOW + 30, &Lifetime { ttl: 30, stale: 0 }), Age::Gone);
    }

    #[test]
    fn secrets_are_kept_only_if_a_ttl_is_set() {
        assert_eq!(Lifetime::parse("", ""), Ok(None));
        assert_eq!(Lifetime::parse("0", "900"), Ok(None));
        assert_eq!(Lifetime::parse("30", ""), Ok(Some(Lifetime { ttl: 30, stale: 900 })));
        assert_eq!(Lifetime::parse("30s", "").unwrap_err().variable, "secrets_ttl");
        assert_eq!(Lifetime::parse("0", "x").unwrap_err().variable, "secrets_stale");
    }
}
