//! The file for the hosts that install from the repository (sources.list(5), "DEB822-STYLE FORMAT").

use super::base_url::BaseUrl;
use super::layout;

const TEMPLATE: &str = include_str!("../../../../packaging/apt/links.sources");

/// The file with the URL of the repository and the key that signs it, so that a host needs nothing else.
///
/// # Errors
/// Fails if the template lacks a placeholder.
pub fn text(url: &BaseUrl, public_key: &str) -> anyhow::Result<String> {
    let key = folded(public_key);
    let mut text = TEMPLATE.to_owned();
    for (placeholder, value) in [
        ("@URL@", url.as_str()),
        ("@SUITE@", layout::SUITE),
        ("@COMPONENT@", layout::COMPONENT),
        ("@KEY@", &key),
    ] {
        anyhow::ensure!(
            text.contains(placeholder),
            "packaging/apt/links.sources has no {placeholder}"
        );
        text = text.replace(placeholder, value);
    }
    Ok(text)
}

/// The lines as the value of a field: each starts with a space, and an empty one contains a dot (deb822(5)).
fn folded(lines: &str) -> String {
    let folded: Vec<_> = lines
        .trim_end()
        .lines()
        .map(|line| format!(" {}", if line.is_empty() { "." } else { line }))
        .collect();
    folded.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_in_the_file() {
        let url = BaseUrl::new(Some("https://apt.example.org")).unwrap();
        let text = text(&url, "-----BEGIN-----\n\nabc\n-----END-----\n").unwrap();
        let fields: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            fields,
            [
                "Types: deb",
                "URIs: https://apt.example.org",
                "Suites: stable",
                "Components: main",
                "Signed-By:",
                " -----BEGIN-----",
                " .",
                " abc",
                " -----END-----",
            ]
        );
        assert!(text.ends_with("-----END-----\n"), "{text:?}");
    }
}
