//! The networks of the proxies that nginx trusts.

use std::io;

use ipnet::IpNet;

use super::files::ConfigFiles;
use super::finding::Finding;
use super::links::{Config, TrustedProxy, network};
use super::reader::Reader;

/// Cloudflare's networks when this version was made.
const CLOUDFLARE: &str = include_str!("../../../packaging/nginx/cloudflare.txt");

/// The networks of all trusted proxies, without duplicates.
///
/// # Errors
/// The file with the networks of Cloudflare cannot be read, or has errors.
pub fn networks(config: &Config, files: &ConfigFiles, reader: &impl Reader) -> Result<Vec<IpNet>, Vec<Finding>> {
    let mut all = vec![];
    for proxy in &config.nginx.trusted_proxies {
        match proxy {
            TrustedProxy::Network(network) => all.push(*network),
            TrustedProxy::Cloudflare => all.extend(cloudflare(files, reader)?),
        }
    }
    Ok(IpNet::aggregate(&all))
}

/// The networks of Cloudflare: those in the administrator's file, or else the shipped ones.
fn cloudflare(files: &ConfigFiles, reader: &impl Reader) -> Result<Vec<IpNet>, Vec<Finding>> {
    let file = files.cloudflare();
    let shown = file.display().to_string();
    let wrong = |message: String| vec![Finding::error(&shown, message)];
    match reader.read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => parse(CLOUDFLARE, "cloudflare.txt"),
        Err(error) => Err(wrong(format!("cannot be read: {error}"))),
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => parse(&text, &shown),
            Err(_) => Err(wrong("is not UTF-8 text".to_owned())),
        },
    }
}

/// Parses a file with one network per line. Lines that begin with `#` are comments.
fn parse(text: &str, file: &str) -> Result<Vec<IpNet>, Vec<Finding>> {
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let (mut networks, mut findings) = (vec![], vec![]);
    for (number, line) in lines {
        match network(line) {
            Some(network) => networks.push(network),
            None => findings.push(
                Finding::error(file, format!("must be a network, found \"{}\"", line.escape_debug()))
                    .at((number, 1))
                    .help("write one network per line, such as 192.0.2.0/24"),
            ),
        }
    }
    if networks.is_empty() && findings.is_empty() {
        findings.push(
            Finding::error(file, "names no network").help("without this file, the networks that links ships count"),
        );
    }
    match findings.is_empty() {
        true => Ok(networks),
        false => Err(findings),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::testing::Files;
    use links_base::layout::Layout;

    fn found(links: &str, files: &Files) -> Result<Vec<String>, Vec<String>> {
        let config = Config::parse(links, "links.toml").unwrap();
        let found = networks(&config, &ConfigFiles::new(&Layout::new("/")), files);
        let text = |networks: Vec<IpNet>| networks.iter().map(ToString::to_string).collect();
        found
            .map(text)
            .map_err(|findings| findings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn networks_and_addresses_are_trusted_once_each() {
        let links = "nginx.trusted_proxies = [\"10.1.2.3/8\", \"10.0.0.0/9\", \"2001:db8::1\", \"192.0.2.1\"]";
        assert_eq!(
            found(links, &Files::default()).unwrap(),
            ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128"]
        );
        assert_eq!(found("", &Files::default()).unwrap(), [""; 0]);
    }

    #[test]
    fn the_shipped_networks_of_cloudflare_count_until_a_file_replaces_them() {
        const LINKS: &str = "nginx.trusted_proxies = \"cloudflare\"";
        const FILE: &str = "/etc/links/cloudflare.txt";
        let shipped = found(LINKS, &Files::default()).unwrap();
        assert!(
            shipped.contains(&"173.245.48.0/20".to_owned()) && shipped.contains(&"2400:cb00::/32".to_owned()),
            "{shipped:?}"
        );
        let file = |text: &str| found(LINKS, &Files::default().with(FILE, text, 0o644));
        assert_eq!(file("# own\n\n198.51.100.0/24\n").unwrap(), ["198.51.100.0/24"]);
        assert_eq!(
            file("198.51.100.0/24\n198.51.100.0/33\nnone").unwrap_err(),
            [
                "/etc/links/cloudflare.txt:2:1: must be a network, found \"198.51.100.0/33\"; write one network per line, such as 192.0.2.0/24",
                "/etc/links/cloudflare.txt:3:1: must be a network, found \"none\"; write one network per line, such as 192.0.2.0/24",
            ]
        );
        assert_eq!(
            file("# empty\n").unwrap_err(),
            ["/etc/links/cloudflare.txt: names no network; without this file, the networks that links ships count"]
        );
        // The file counts only if links.toml names it.
        let unused = Files::default().with(FILE, "none", 0o644);
        assert_eq!(found("", &unused).unwrap(), [""; 0]);
    }
}
