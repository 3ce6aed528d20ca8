//! Slugs: the last part of a short URL.

use std::borrow::Cow;
use std::fmt;
use std::iter;

use percent_encoding::percent_decode_str;
use rand::{Rng, RngExt};

use crate::error::Refused;

/// The maximum length of a slug, in characters.
pub const MAX_LENGTH: usize = 64;

/// The initial length of a generated slug: 36^6 is about 2.2 billion.
const GENERATED_LENGTH: usize = 6;

/// The number of attempts before a generated slug gets longer. Three collisions in a row mean that this length is filling up:
/// with a thousandth of its slugs taken, that happens once in a billion requests.
const ATTEMPTS_PER_LENGTH: usize = 3;

/// The maximum number of attempts for one request.
pub const MAX_ATTEMPTS: usize = 12;

/// The maximum length of stray text after a slug in a path, in bytes.
const MAX_STRAY: usize = 16;

/// Words that no new link may have as its slug, compared without regard to case: paths that have a meaning here or may get one,
/// and paths that browsers, crawlers and certificate issuers request on their own. Adding a word never hides an existing link.
const RESERVED: &[&str] = &[
    ".well-known",
    "_",
    "about",
    "account",
    "admin",
    "administrator",
    "api",
    "assets",
    "auth",
    "dashboard",
    "docs",
    "edit",
    "export",
    "favicon",
    "favicon.ico",
    "graphql",
    "health",
    "healthz",
    "help",
    "import",
    "index",
    "index.html",
    "internal",
    "links",
    "live",
    "login",
    "logout",
    "manifest.json",
    "metrics",
    "new",
    "oauth",
    "openapi.json",
    "preview",
    "privacy",
    "public",
    "qr",
    "ready",
    "robots.txt",
    "root",
    "security.txt",
    "settings",
    "setup",
    "shorten",
    "signin",
    "signup",
    "sitemap.xml",
    "static",
    "stats",
    "status",
    "terms",
    "user",
    "users",
    "version",
    "www",
];

/// A slug: `[A-Za-z0-9_-]{1,64}`, case-sensitive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slug(String);

impl Slug {
    /// A slug in a path: any that may have been stored, whether or not it is reserved today.
    pub fn in_path(text: &str) -> Option<Slug> {
        has_shape(text).then(|| Slug(text.to_owned()))
    }

    /// Like the function [`as_sent`], for a path that may be percent-encoded.
    pub fn as_sent(text: &str) -> Option<Slug> {
        let decoded: Cow<'_, [u8]> = percent_decode_str(text).into();
        as_sent(&decoded).map(|slug| Slug(slug.to_owned()))
    }

    /// A slug that a client asks for.
    ///
    /// # Errors
    /// The slug is malformed or reserved.
    pub fn custom(text: &str) -> Result<Slug, Refused> {
        // Checked before the shape, so that `robots.txt` is refused as a reserved word and not for its dot.
        if is_reserved(text) {
            return Err(Refused::new(format!(
                "The slug \"{text}\" is reserved. Choose another one."
            )));
        }
        if !has_shape(text) {
            return Err(Refused::new(
                "The slug must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -. Leave it out to get a generated one.",
            ));
        }
        Ok(Slug(text.to_owned()))
    }

    /// A random slug for one of a request's attempts, counted from 0. `None` if the slug is a reserved word, which counts as an
    /// attempt like a slug that is taken.
    pub fn generate(rng: &mut impl Rng, attempt: usize) -> Option<Slug> {
        let length = GENERATED_LENGTH + attempt / ATTEMPTS_PER_LENGTH;
        let text: String = iter::repeat_with(|| char::from_digit(rng.random_range(0..36), 36))
            .flatten()
            .take(length)
            .collect();
        (!is_reserved(&text)).then_some(Slug(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The slug in a path as people send it. `path` has no leading `/` and no escapes. The slug may be followed by stray characters
/// of the text that the short URL stood in, such as `abc/`, `abc.`, `abc,"` or `abc>`. Letters and digits are never stray: they
/// make it another address.
///
/// nginx serves the same link under all of these paths, and the agent counts clicks by the same rule.
pub fn as_sent(path: &[u8]) -> Option<&str> {
    let length = path.iter().take_while(|byte| is_slug_byte(**byte)).count();
    let (slug, stray) = path.split_at_checked(length)?;
    if !(1..=MAX_LENGTH).contains(&length) || stray.len() > MAX_STRAY {
        return None;
    }
    let is_link = stray.is_empty()
        || std::str::from_utf8(stray).is_ok_and(|text| !text.contains(char::is_alphanumeric)) && !is_own_path(slug);
    is_link.then(|| std::str::from_utf8(slug).ok()).flatten()
}

/// Whether one of our own paths begins with this: `/shorten/` is not a link, whatever follows.
fn is_own_path(slug: &[u8]) -> bool {
    [&b"api"[..], b"health", b"internal", b"shorten"].contains(&slug)
}

fn has_shape(text: &str) -> bool {
    (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_slug_byte)
}

fn is_slug_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

fn is_reserved(text: &str) -> bool {
    RESERVED.iter().any(|word| word.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    use super::*;

    #[test]
    fn accepts_letters_digits_underscore_and_hyphen() {
        let longest = "x".repeat(64);
        for text in ["a", "Z", "0", "-", "__", "My-Link_2", "shortened", longest.as_str()] {
            assert_eq!(Slug::custom(text).unwrap().as_str(), text);
            assert_eq!(Slug::in_path(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn refuses_every_other_shape() {
        let too_long = "x".repeat(65);
        for text in [
            "",
            " ",
            "a b",
            "a/b",
            "a.b",
            "..",
            "ü",
            "a\n",
            "a%20",
            "a+b",
            too_long.as_str(),
        ] {
            let refused = Slug::custom(text).unwrap_err();
            assert!(refused.reason().contains("1 to 64"), "{text:?}: {}", refused);
            assert_eq!(Slug::in_path(text), None, "{text:?}");
        }
    }

    #[test]
    fn stray_text_after_a_slug_is_ignored() {
        let longest = "x".repeat(64);
        for (path, slug) in [
            ("abc", "abc"),
            ("abc/", "abc"),
            ("abc//", "abc"),
            ("abc.", "abc"),
            ("abc...", "abc"),
            ("abc,", "abc"),
            ("abc)", "abc"),
            ("abc).", "abc"),
            ("abc]", "abc"),
            ("abc!", "abc"),
            ("abc:", "abc"),
            ("abc;", "abc"),
            ("abc\"", "abc"),
            ("abc'", "abc"),
            ("abc>", "abc"),
            ("abc**", "abc"),
            ("abc ", "abc"),
            ("abc\n", "abc"),
            ("abc%22", "abc"),
            ("abc%3E,", "abc"),
            ("abc%2F", "abc"),
            ("abc%3f", "abc"),
            ("abc%20", "abc"),
            ("abc%E2%80%9D", "abc"),
            ("abc%e3%80%82", "abc"),
            ("abc\u{bb}.", "abc"),
            ("%61bc.", "abc"),
            ("a-b_.", "a-b_"),
            ("abc-", "abc-"),
            (&format!("{longest}."), &longest),
        ] {
            assert_eq!(Slug::as_sent(path).unwrap().as_str(), slug, "{path:?}");
        }
    }

    #[test]
    fn other_addresses_are_not_slugs() {
        let too_long = "x".repeat(65);
        let far_too_long = format!("abc{}", ".".repeat(17));
        for path in [
            "",
            ".",
            "/",
            "/abc",
            "\"abc",
            "abc.x",
            "abc/x",
            "abc.html",
            "abc/../x",
            "abc%C3%BC",
            "abc.%C3%BC",
            "abc%",
            "abc%2",
            "abc%ff",
            "abc%2561",
            ".well-known/",
            "robots.txt",
            "shorten/",
            "health.",
            "api/",
            "internal/",
            too_long.as_str(),
            far_too_long.as_str(),
        ] {
            // A `%` that does not begin an escape is kept, and is not a letter.
            let wanted = (path == "abc%").then(|| "abc".to_owned());
            let found = Slug::as_sent(path).map(|slug| slug.to_string());
            assert_eq!(found, wanted, "{path:?}");
        }
    }

    #[test]
    fn refuses_reserved_words_in_any_case() {
        for text in [
            "shorten",
            "Health",
            "ADMIN",
            "api",
            "internal",
            ".well-known",
            "robots.txt",
            "Favicon.ico",
            "login",
        ] {
            let refused = Slug::custom(text).unwrap_err();
            assert!(refused.reason().contains("reserved"), "{text:?}: {}", refused);
        }
    }

    #[test]
    fn the_reserved_words_are_sorted_and_in_lower_case() {
        assert!(RESERVED.is_sorted());
        assert!(RESERVED.iter().all(|word| *word == word.to_ascii_lowercase()));
    }

    #[test]
    fn a_link_created_before_its_slug_was_reserved_is_still_found() {
        assert!(Slug::in_path("admin").is_some());
    }

    #[test]
    fn generates_slugs_that_a_client_could_have_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut seen = HashSet::new();
        for _ in 0..10_000 {
            let slug = Slug::generate(&mut rng, 0).unwrap();
            assert_eq!(slug.as_str().len(), 6);
            assert!(
                slug.as_str()
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
            );
            assert_eq!(Slug::custom(slug.as_str()).as_ref(), Ok(&slug));
            seen.insert(slug);
        }
        assert!(seen.len() > 9_990, "{} different slugs of 10,000", seen.len());
    }

    #[test]
    fn uses_the_whole_alphabet() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let text: String = (0..500)
            .filter_map(|_| Slug::generate(&mut rng, 0))
            .map(|slug| slug.0)
            .collect();
        assert_eq!(text.chars().collect::<HashSet<_>>().len(), 36);
    }

    #[test]
    fn grows_while_attempts_fail() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let lengths: Vec<_> = (0..MAX_ATTEMPTS)
            .map(|attempt| Slug::generate(&mut rng, attempt).unwrap().as_str().len())
            .collect();
        assert_eq!(lengths, [6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9]);
    }
}
