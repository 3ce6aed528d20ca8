//! Distinguishes the browsers of people from bots and other programs, by their `user-agent`. The statistics and the limits of
//! links use the same rule.
//!
//! The table is our own: libraries for this purpose bring thousands of regular expressions, and recognise fewer of today's bots
//! than these few words do.

/// The maximum number of bytes that are examined. Everything that matters comes within them.
pub const LONGEST: usize = 512;

/// Words of bots that otherwise look like a browser. A URL (`+https://...`) leads to a page about the bot.
static BOTS: Words = Words::new(&[
    "bot",
    "crawl",
    "spider",
    "slurp",
    "headless",
    "lighthouse",
    "preview",
    "http:",
    "https:",
    "phantomjs",
    "monitor",
    "scanner",
    "validator",
    "archive",
    "pingdom",
    "uptime",
    "inspection",
    "facebookexternal",
    "feedfetcher",
    "prerender",
    "synthetic",
    "puppeteer",
    "selenium",
]);

/// Words that contain one of [`BOTS`] by chance. Cubot makes phones.
static NOT_BOTS: Words = Words::new(&["cubot"]);

/// How most bots introduce themselves: `(compatible; NAME ...)`.
static COMPATIBLE: Words = Words::new(&["(compatible;"]);

/// Browsers that introduced themselves in the same way.
static COMPATIBLE_BROWSERS: Words = Words::new(&["msie", "konqueror"]);

/// The user agent of a person's browser in lower case. `None` for a bot or another program, or if nothing was sent.
pub fn of_person(agent: &[u8]) -> Option<String> {
    let agent = &agent[..agent.len().min(LONGEST)];
    let text = String::from_utf8_lossy(agent).to_ascii_lowercase();
    // Every browser starts with one of these. curl and apps that fetch a preview do not.
    if !text.starts_with("mozilla/") && !text.starts_with("opera/") {
        return None;
    }
    let has = |words: &Words| words.any_in(text.as_bytes());
    let is_bot = has(&BOTS) && !has(&NOT_BOTS) || has(&COMPATIBLE) && !has(&COMPATIBLE_BROWSERS);
    (!is_bot).then_some(text)
}

/// Words that are looked for in one pass. This is faster than `str::contains` for each of them, and smaller in a component.
struct Words {
    words: &'static [&'static str],
    /// For each byte, which words begin with it: one bit for each word.
    starts: [u32; 256],
}

impl Words {
    /// At most 32 words, none of them empty.
    const fn new(words: &'static [&'static str]) -> Words {
        let mut starts = [0; 256];
        let mut number = 0;
        while number < words.len() {
            starts[words[number].as_bytes()[0] as usize] |= 1 << number;
            number += 1;
        }
        Words { words, starts }
    }

    /// Never inlined, because it is called in four places.
    #[inline(never)]
    fn any_in(&self, mut text: &[u8]) -> bool {
        while let [_, rest @ ..] = text {
            if self.any_begins(text) {
                return true;
            }
            text = rest;
        }
        false
    }

    fn any_begins(&self, text: &[u8]) -> bool {
        let mut candidates = text.first().map_or(0, |first| self.starts[usize::from(*first)]);
        while candidates != 0 {
            let word = self.words.get(candidates.trailing_zeros() as usize);
            if word.is_some_and(|word| text.starts_with(word.as_bytes())) {
                return true;
            }
            candidates &= candidates - 1;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_belong_to_people() {
        for agent in [
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            "Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.2; Trident/6.0)",
            "Mozilla/5.0 (Linux; Android 13; CUBOT KINGKONG) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36",
            "Opera/9.80 (Windows NT 6.1; U; en) Presto/2.8.131 Version/11.11",
        ] {
            assert_eq!(of_person(agent.as_bytes()), Some(agent.to_ascii_lowercase()), "{agent}");
        }
    }

    #[test]
    fn previews_crawlers_and_programs_do_not() {
        for agent in [
            "",
            "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
            "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
            "WhatsApp/2.23.20.0 A",
            "TelegramBot (like TwitterBot)",
            "Mozilla/5.0 (compatible; Discordbot/2.0; +https://discordapp.com)",
            "Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5 skype-url-preview@microsoft.com",
            "curl/8.5.0",
        ] {
            assert_eq!(of_person(agent.as_bytes()), None, "{agent}");
        }
    }
}
