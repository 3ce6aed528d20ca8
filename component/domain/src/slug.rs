//! Slugs: the last part of a short URL.

use std::borrow::Cow;
use std::fmt;
use std::iter;

use percent_encoding::percent_decode_str;
use rand::{Rng, RngExt};

use crate::error::Refused;

/// Longest slug, in characters.
pub const MAX_LENGTH: usize = 64;

/// Length of a generated slug: 36^6 is about 2.2 billion.
const GENERATED_LENGTH: usize = 6;

/// Attempts for one request before a generated slug gets longer, and in all. Three misses in a row at one length mean
/// that the space of that length fills up: with a thousandth of it taken that happens once in a billion
/// requests.
const ATTEMPTS_PER_LENGTH: usize = 3;
pub const MAX_ATTEMPTS: usize = 12;

/// Longest remains of a text that follow a slug in a path, in bytes.
const MAX_REMAINS: usize = 16;

/// Words no link may take, in lower case; compared without regard to case. Paths that mean something here, that will,
/// or that browsers, crawlers and certificate issuers ask for by themselves. Adding a word never hides a link that
/// exists.
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

/// `[A-Za-z0-9_-]{1,64}`; upper and lower case are different slugs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slug(String);

impl Slug {
    /// A slug as it stands in a path: any that could have been stored, reserved today or not.
    pub fn in_path(text: &str) -> Option<Slug> {
        has_shape(text).then(|| Slug(text.to_owned()))
    }

    /// As [`as_sent`], of a path that may be percent-encoded.
    pub fn as_sent(text: &str) -> Option<Slug> {
        let decoded: Cow<'_, [u8]> = percent_decode_str(text).into();
        as_sent(&decoded).map(|slug| Slug(slug.to_owned()))
    }

    /// A slug somebody asks for.
    ///
    /// # Errors
    /// It has another shape or is reserved.
    pub fn custom(text: &str) -> Result<Slug, Refused> {
        // Before the shape: `robots.txt` is refused for what it is, not for its dot.
        if is_reserved(text) {
            return Err(Refused::new(format!(
                "The slug {text:?} is reserved. Choose another one."
            )));
        }
        if !has_shape(text) {
            return Err(Refused::new(
                "The slug must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -. Leave it out to get a generated one.",
            ));
        }
        Ok(Slug(text.to_owned()))
    }

    /// A random slug for the given attempt, counted from 0, of one request. `None` if a reserved word came out, which
    /// is an attempt like one whose slug is taken.
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

/// The slug in a path as people send it, without its first `/` and with its escapes undone: a slug, or one followed by what is
/// left of the text that the short URL stood in, such as `abc/`, `abc.`, `abc,"` or `abc>`. That is anything but letters and
/// digits: with one of those it is another address, and not ours.
///
/// nginx has the same link under each of these paths, and the agent counts by this rule what nginx has answered.
pub fn as_sent(path: &[u8]) -> Option<&str> {
    let length = path.iter().take_while(|byte| is_slug_byte(**byte)).count();
    let (slug, remains) = path.split_at_checked(length)?;
    if !(1..=MAX_LENGTH).contains(&length) || remains.len() > MAX_REMAINS {
        return None;
    }
    let is_left_over = remains.is_empty()
        || std::str::from_utf8(remains).is_ok_and(|text| !text.contains(char::is_alphanumeric)) && !is_of_path(slug);
    is_left_over.then(|| std::str::from_utf8(slug).ok()).flatten()
}

/// What a path of ours begins with: `/shorten/` is no link, whatever follows.
fn is_of_path(slug: &[u8]) -> bool {
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
    fn takes_letters_digits_underscore_and_hyphen() {
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
    fn what_is_left_of_a_sentence_is_no_part_of_it() {
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
    fn another_address_is_no_slug() {
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
            // A `%` that begins no escape stays what it is, and is no letter.
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
    fn a_link_made_before_its_word_was_reserved_is_still_found() {
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
        assert!(seen.len() > 9_990, "{} different ones of 10,000", seen.len());
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
