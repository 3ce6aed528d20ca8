//! Whether a `user-agent` is a person's browser, or a bot or another program. The statistics and the limits of links go by
//! the same rule.
//!
//! A table of our own: the libraries for it bring regular expressions by the thousand, and know fewer of today's bots than
//! these few words do.

/// No more than this of it is looked at, in bytes: what counts stands before.
pub const LONGEST: usize = 512;

/// In the middle of what otherwise looks like a browser. An address (`+https://...`) is where a bot's owner explains it.
const BOTS: &[&str] = &[
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
];

/// Names that hold one of [`BOTS`] by chance: a maker of phones.
const NO_BOTS: &[&str] = &["cubot"];

/// `(compatible; NAME ...)` is how bots introduce themselves, and these did, too.
const COMPATIBLE: &[&str] = &["msie", "konqueror"];

/// The user agent of a person in lower case; `None`: a bot or another program, or nothing was sent.
pub fn of_person(agent: &[u8]) -> Option<String> {
    let agent = &agent[..agent.len().min(LONGEST)];
    let text = String::from_utf8_lossy(agent).to_ascii_lowercase();
    // Every browser starts with one of these; curl, and an app that fetches a preview, do not.
    if !text.starts_with("mozilla/") && !text.starts_with("opera/") {
        return None;
    }
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let is_bot = says(BOTS) && !says(NO_BOTS) || text.contains("(compatible;") && !says(COMPATIBLE);
    (!is_bot).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_people() {
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
    fn previews_crawlers_and_programs_are_not() {
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
