//! Classifies clients by their `User-Agent`: a bot, or a person with a device, a browser and an operating system.
//!
//! The tables are our own because only a handful of each are told apart. Libraries bring rules for thousands, as regular
//! expressions. `links_domain::user_agent` decides which clients are bots.

use links_domain::user_agent;
pub use links_domain::user_agent::LONGEST;
use links_domain::visit::{Browser, Device, System, Visit};

const TELEVISIONS: &[&str] = &[
    "smart-tv",
    "smarttv",
    "googletv",
    "appletv",
    "apple tv",
    "android tv",
    "hbbtv",
    "netcast",
    "web0s",
    "bravia",
    "roku",
    "crkey",
    "aftb",
    "aftm",
    "afts",
    "aftt",
    "playstation",
    "xbox",
    "nintendo",
];

const TABLETS: &[&str] = &["ipad", "tablet", "kindle", "silk/", "playbook", "sm-t", "sm-x"];

/// Browsers inside other apps.
const APPS: &[&str] = &[
    "fban/",
    "fbav/",
    "fb_iab",
    "instagram",
    "micromessenger",
    "snapchat",
    "pinterest",
    "linkedinapp",
    "musical_ly",
    "bytedancewebview",
    "gsa/",
    "twitter",
    " line/",
    "; wv)",
];

/// The first entry that matches decides.
const BROWSERS: &[(&str, Browser)] = &[
    ("edg/", Browser::Edge),
    ("edge/", Browser::Edge),
    ("edga/", Browser::Edge),
    ("edgios/", Browser::Edge),
    ("opr/", Browser::Opera),
    ("opera", Browser::Opera),
    ("opt/", Browser::Opera),
    ("samsungbrowser/", Browser::Samsung),
    ("firefox/", Browser::Firefox),
    ("fxios/", Browser::Firefox),
    ("msie ", Browser::InternetExplorer),
    ("trident/", Browser::InternetExplorer),
    ("chrome/", Browser::Chrome),
    ("crios/", Browser::Chrome),
    ("chromium/", Browser::Chrome),
    ("safari/", Browser::Safari),
];

/// The first entry that matches decides.
const SYSTEMS: &[(&str, System)] = &[
    ("windows phone", System::Other),
    ("windows", System::Windows),
    ("iphone", System::Ios),
    ("ipad", System::Ios),
    ("ipod", System::Ios),
    ("android", System::Android),
    (" cros ", System::ChromeOs),
    ("macintosh", System::MacOs),
    ("linux", System::Linux),
    ("x11", System::Linux),
];

/// Classifies a client. Returns `None` for a bot or another program. `agent` has no escapes.
pub fn visit(agent: &[u8]) -> Option<Visit> {
    let text = user_agent::of_person(agent)?;
    let contains = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let first = |table: &[(&str, System)]| {
        table
            .iter()
            .find(|(word, _)| text.contains(word))
            .map(|(_, system)| *system)
    };
    let system = first(SYSTEMS).unwrap_or(System::Other);
    let is_mobile = contains(&["mobile", "iphone", "ipod", "windows phone"]);
    let device = if contains(TELEVISIONS) {
        Device::Television
    } else if contains(TABLETS) || system == System::Android && !is_mobile {
        Device::Tablet
    } else if is_mobile {
        Device::Phone
    } else if system == System::Other {
        Device::Other
    } else {
        Device::Desktop
    };
    let browser = BROWSERS
        .iter()
        .find(|(word, _)| text.contains(word))
        .map(|(_, browser)| *browser);
    let browser = match browser {
        _ if contains(APPS) => Browser::App,
        Some(browser) => browser,
        // On iOS a client that names no browser is a web view inside an app.
        None if system == System::Ios => Browser::App,
        None => Browser::Other,
    };
    Some(Visit {
        device,
        browser,
        system,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn named(agent: &str) -> Option<(&'static str, &'static str, &'static str)> {
        let visit = visit(agent.as_bytes())?;
        Some((visit.device.name(), visit.browser.name(), visit.system.name()))
    }

    #[test]
    fn people_are_classified_by_device_browser_and_system() {
        for (agent, device, browser, system) in [
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36",
                "desktop",
                "Chrome",
                "Windows",
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36 Edg/124.0.2478.67",
                "desktop",
                "Edge",
                "Windows",
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Safari/605.1.15",
                "desktop",
                "Safari",
                "macOS",
            ),
            (
                "Mozilla/5.0 (X11; Linux x86_64; rv:125.0) Gecko/20100101 Firefox/125.0",
                "desktop",
                "Firefox",
                "Linux",
            ),
            (
                "Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36",
                "desktop",
                "Chrome",
                "ChromeOS",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4.1 Mobile/15E148 Safari/604.1",
                "phone",
                "Safari",
                "iOS",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/124.0.6367.62 Mobile/15E148 Safari/604.1",
                "phone",
                "Chrome",
                "iOS",
            ),
            (
                "Mozilla/5.0 (iPad; CPU OS 16_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/16.6 Mobile/15E148 Safari/604.1",
                "tablet",
                "Safari",
                "iOS",
            ),
            (
                "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36",
                "phone",
                "Chrome",
                "Android",
            ),
            (
                "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36",
                "tablet",
                "Chrome",
                "Android",
            ),
            (
                "Mozilla/5.0 (Linux; Android 14; SAMSUNG SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/24.0 Chrome/117.0.0.0 Mobile Safari/537.36",
                "phone",
                "Samsung Internet",
                "Android",
            ),
            (
                "Mozilla/5.0 (Linux; Android 13; CUBOT KINGKONG) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile Safari/537.36",
                "phone",
                "Chrome",
                "Android",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 Instagram 329.0.0.29.93",
                "phone",
                "in an app",
                "iOS",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
                "phone",
                "in an app",
                "iOS",
            ),
            (
                "Mozilla/5.0 (Linux; Android 14; Pixel 8 Build/UD1A; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/124.0 Mobile Safari/537.36",
                "phone",
                "in an app",
                "Android",
            ),
            (
                "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/94.0.4606.128 Safari/537.36",
                "tv",
                "Chrome",
                "Linux",
            ),
            (
                "Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.2; Trident/6.0)",
                "desktop",
                "Internet Explorer",
                "Windows",
            ),
            (
                "Opera/9.80 (Windows NT 6.1; U; en) Presto/2.8.131 Version/11.11",
                "desktop",
                "Opera",
                "Windows",
            ),
            ("Mozilla/5.0", "other", "other", "other"),
        ] {
            assert_eq!(named(agent), Some((device, browser, system)), "{agent}");
        }
    }

    #[test]
    fn bots_and_programs_are_not_people() {
        for agent in [
            "",
            "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            "Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/99.0 Mobile Safari/537.36 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
            "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; ClaudeBot/1.0; +claudebot@anthropic.com)",
            "Mozilla/5.0 (compatible; YandexImages/3.0)",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/124.0.0.0 Safari/537.36",
            "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
            "WhatsApp/2.23.20.0 A",
            "TelegramBot (like TwitterBot)",
            "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
            "curl/8.5.0",
            "python-requests/2.31.0",
            "Go-http-client/2.0",
            "okhttp/4.12.0",
        ] {
            assert_eq!(named(agent), None, "{agent}");
        }
    }

    #[test]
    fn any_bytes_are_accepted() {
        assert_eq!(visit(&[0xff; 10_000]), None);
        let mut long = b"Mozilla/5.0 (Windows NT 10.0)".to_vec();
        long.extend([0xff; 10_000]);
        long.extend(b"bot");
        assert!(visit(&long).is_some());
    }
}
