//! Another shortener, measured beside the appliance.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::load::{Wrk, wrk};

/// The other shortener that the environment names.
pub struct Peer {
    /// `$PEER`: the URL of one redirect, or of the shortener if there are slugs.
    url: String,
    /// `$PEER_SLUGS`: a file of slugs that redirect, one per line.
    slugs: Option<Slugs>,
}

struct Slugs {
    file: PathBuf,
    count: usize,
}

/// A load on the peer, which has its own row in the table.
#[derive(Clone, Debug)]
pub struct Load {
    pub name: String,
    arguments: Vec<String>,
}

impl Peer {
    /// `None` if `$PEER` is not set.
    ///
    /// # Errors
    /// Fails if the peer does not redirect, or if the file of slugs cannot be read or is empty.
    pub fn from_environment() -> Result<Option<Self>> {
        let Ok(url) = std::env::var("PEER") else {
            return Ok(None);
        };
        let slugs = std::env::var_os("PEER_SLUGS").map(|file| Slugs::read(file.into()));
        let peer = Self {
            url,
            slugs: slugs.transpose()?,
        };
        for url in peer.samples()? {
            redirects(&url)?;
        }
        Ok(Some(peer))
    }

    /// The loads: the one URL, or the slugs in the distributions in which the appliance's own links are requested.
    pub fn loads(&self, generator: &str, popular: u32) -> Vec<Load> {
        let Some(Slugs { file, count }) = &self.slugs else {
            return vec![Load {
                name: self.url.clone(),
                arguments: vec![self.url.clone()],
            }];
        };
        let popular = count.min(&(popular as usize)).to_string();
        let (count, file) = (count.to_string(), file.to_string_lossy().into_owned());
        let of = |name: String, kind: &str, links: &str| Load {
            name,
            arguments: ["--script", generator, &self.url, "--", kind, links, "0", &file]
                .map(str::to_owned)
                .into(),
        };
        vec![
            of(format!("peer, Zipf 1.1 of {popular}"), "zipf", &popular),
            of(format!("peer, any of {count}"), "uniform", &count),
        ]
    }

    /// The first and the last URL that is requested.
    fn samples(&self) -> Result<Vec<String>> {
        let Some(slugs) = &self.slugs else {
            return Ok(vec![self.url.clone()]);
        };
        let text = slugs.text()?;
        let ends = [text.lines().next(), text.lines().next_back()];
        let url = |slug: &str| format!("{}/{slug}", self.url.trim_end_matches('/'));
        Ok(ends.into_iter().flatten().map(url).collect())
    }
}

impl Slugs {
    fn read(file: PathBuf) -> Result<Self> {
        let mut slugs = Self { file, count: 0 };
        slugs.count = slugs.text()?.lines().count();
        ensure!(slugs.count > 0, "PEER_SLUGS={} is empty", slugs.file.display());
        Ok(slugs)
    }

    fn text(&self) -> Result<String> {
        fs::read_to_string(&self.file).with_context(|| format!("Reading PEER_SLUGS={}", self.file.display()))
    }
}

impl Load {
    /// # Errors
    /// Fails if wrk cannot be started, or if an answer is an error.
    pub fn run(&self, seconds: u32, connections: u32) -> Result<Wrk> {
        let arguments: Vec<_> = self.arguments.iter().map(String::as_str).collect();
        wrk(seconds, connections, &arguments).with_context(|| self.name.clone())
    }
}

/// Checks that a URL of another shortener redirects.
fn redirects(url: &str) -> Result<()> {
    let output = Command::new("curl")
        .args(["--silent", "--head", "--request", "GET", url])
        .output()
        .context("Starting curl")?;
    let head = String::from_utf8_lossy(&output.stdout).to_lowercase();
    let is_redirect = ["301", "302", "303", "307", "308"]
        .iter()
        .any(|status| head.lines().next().is_some_and(|line| line.contains(status)));
    ensure!(
        is_redirect && head.contains("\nlocation: "),
        "the peer's {url} does not redirect:\n{head}"
    );
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_peer_with_slugs_is_asked_in_both_distributions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "a\nb\nc\n").unwrap();
        let peer = Peer {
            url: "http://127.0.0.1:4567/".to_owned(),
            slugs: Some(Slugs::read(file.path().to_owned()).unwrap()),
        };
        assert_eq!(
            peer.samples().unwrap(),
            ["http://127.0.0.1:4567/a", "http://127.0.0.1:4567/c"]
        );
        let loads = peer.loads("links.lua", 2);
        let names: Vec<_> = loads.iter().map(|load| load.name.as_str()).collect();
        assert_eq!(names, ["peer, Zipf 1.1 of 2", "peer, any of 3"]);
        let path = file.path().to_str().unwrap();
        let expected = [
            "--script",
            "links.lua",
            "http://127.0.0.1:4567/",
            "--",
            "uniform",
            "3",
            "0",
            path,
        ];
        assert_eq!(loads[1].arguments, expected);
    }

    #[test]
    fn an_empty_file_of_slugs_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Slugs::read(file.path().to_owned()).is_err());
    }
}
