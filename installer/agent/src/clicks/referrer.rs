//! The referrer of a click, of which only the host is kept.

use links_domain::clicks::{MAX_NAME, OTHER, is_host};

/// The host of a referrer, which is a URL or the part of one that nginx has kept, without escapes. Returns an empty string if
/// no referrer was sent, and [`OTHER`] if it names no host.
pub fn host(referrer: &[u8]) -> String {
    if referrer.is_empty() {
        return String::new();
    }
    let authority = match memchr::memmem::find(referrer, b"://") {
        Some(scheme) => &referrer[scheme + 3..],
        None => referrer,
    };
    let end = authority.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
    let authority = &authority[..end.unwrap_or(authority.len())];
    // Drops a user name and a password.
    let host = authority.rsplit(|byte| *byte == b'@').next().unwrap_or_default();
    // Longer than any host with its port.
    if host.len() > MAX_NAME + 10 {
        return OTHER.to_owned();
    }
    let host = String::from_utf8_lossy(host).to_ascii_lowercase();
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => &host,
    };
    let host = host.trim_end_matches('.');
    let host = host.strip_prefix("www.").unwrap_or(host);
    if host.is_empty() || !is_host(host) {
        return OTHER.to_owned();
    }
    host.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_is_kept() {
        for (referrer, wanted) in [
            ("", ""),
            ("news.example", "news.example"),
            ("https://news.example/a?b=c#d", "news.example"),
            ("https://WWW.News.Example./", "news.example"),
            ("https://news.example:8443/", "news.example"),
            ("https://user:secret@news.example/", "news.example"),
            ("http://192.0.2.1:80/", "192.0.2.1"),
            ("http://[2001:db8::1]:80/", "[2001:db8::1]"),
            ("http://[2001:db8::1]/", "[2001:db8::1]"),
            ("android-app://com.google.android.gm/", "com.google.android.gm"),
            ("https://news.example?q", "news.example"),
            ("https://", "*"),
            ("https:///path", "*"),
            ("ümlaut.example", "*"),
            ("two words", "*"),
            ("\"><script>", "*"),
            ("*", "*"),
        ] {
            assert_eq!(host(referrer.as_bytes()), wanted, "{referrer}");
        }
        assert_eq!(host(&[0xff; 20]), "*");
        assert_eq!(host(&[b'a'; 8192]), "*");
        assert_eq!(host(&[b'a'; 253]), "a".repeat(253));
    }
}
