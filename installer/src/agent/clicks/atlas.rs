//! Where clients are: the file of `clicks.countries`, read again when it is another one.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::load::load_links;
use crate::countries::{Countries, Country};
use crate::layout::Layout;

/// Between two looks at whether the file is another one.
const PAUSE: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
const REMEMBERED: usize = 4096;

/// Nobody is anywhere, until a file is there.
#[derive(Debug, Default)]
pub struct Atlas {
    looked: Option<Instant>,
    /// The file that was tried last.
    tried: Option<(PathBuf, Seen)>,
    countries: Option<Countries>,
    known: HashMap<Box<[u8]>, Option<Country>>,
}

/// By what one file is told from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Atlas {
    /// Looks whether another file counts now; not more often than once a minute. None: nothing to tell.
    ///
    /// # Errors
    /// There is one and it cannot be used, in words. What was read before counts on while it is only not there.
    pub fn look(&mut self, layout: &Layout) -> Option<Result<(), String>> {
        if self.looked.is_some_and(|looked| looked.elapsed() < PAUSE) {
            return None;
        }
        self.looked = Some(Instant::now());
        // While a person edits links.toml, it may be wrong for a while.
        let config = load_links(layout).ok()?;
        Some(match config.clicks.countries {
            Some(path) => self.open(&path),
            None => {
                *self = Self {
                    looked: self.looked,
                    ..Self::default()
                };
                Ok(())
            }
        })
    }

    fn open(&mut self, path: &Path) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("clicks.countries, {}: {error}", path.display());
        let seen = seen(path).map_err(|error| failed(&error))?;
        if self
            .tried
            .as_ref()
            .is_some_and(|tried| (tried.0.as_path(), tried.1) == (path, seen))
        {
            return match self.countries {
                Some(_) => Ok(()),
                None => Err(failed(&"is not in MaxMind's format")),
            };
        }
        // Not both at once: a file with cities has more than 100 MB.
        self.countries = None;
        self.known.clear();
        let bytes = fs::read(path).map_err(|error| failed(&error))?;
        let countries = Countries::new(bytes);
        self.tried = Some((path.to_owned(), seen));
        let outcome = countries.as_ref().map(drop).map_err(|error| failed(error));
        self.countries = countries.ok();
        outcome
    }

    /// `address` as nginx writes it.
    pub fn country(&mut self, address: &[u8]) -> Option<Country> {
        let countries = self.countries.as_ref()?;
        if let Some(country) = self.known.get(address) {
            return *country;
        }
        let parsed = std::str::from_utf8(address)
            .ok()
            .and_then(|text| text.parse::<IpAddr>().ok());
        let country = parsed.and_then(|address| countries.of(address.to_canonical()));
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(address.into(), country);
        country
    }
}

fn seen(path: &Path) -> io::Result<Seen> {
    let metadata = fs::metadata(path)?;
    Ok(Seen {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::countries::tests::file;
    use crate::layout::temporary;

    /// As if the pause were over.
    fn look(atlas: &mut Atlas, layout: &Layout) -> Result<(), String> {
        atlas.looked = None;
        atlas.look(layout).unwrap()
    }

    #[test]
    fn the_file_is_read_again_when_it_is_another_one() {
        let (root, layout) = temporary(&[Layout::config_dir]);
        let path = root.path().join("countries.mmdb");
        let mut atlas = Atlas::default();
        fs::write(layout.links_toml(), "").unwrap();
        assert_eq!(look(&mut atlas, &layout), Ok(()));
        assert_eq!(atlas.country(b"192.0.2.1"), None);

        fs::write(layout.links_toml(), format!("clicks.countries = {path:?}")).unwrap();
        assert!(look(&mut atlas, &layout).unwrap_err().contains("countries.mmdb"));
        assert_eq!(atlas.look(&layout), None, "a minute is not over");

        fs::write(&path, file(&[("::192.0.2.0", 120, "DE")])).unwrap();
        assert_eq!(look(&mut atlas, &layout), Ok(()));
        let of = |atlas: &mut Atlas, address: &str| atlas.country(address.as_bytes());
        assert_eq!(of(&mut atlas, "192.0.2.1"), Some(*b"DE"));
        assert_eq!(of(&mut atlas, "::ffff:192.0.2.2"), Some(*b"DE"));
        assert_eq!(of(&mut atlas, "unix:"), None);

        let next = root.path().join("next");
        fs::write(&next, file(&[("::192.0.2.0", 120, "FR")])).unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(look(&mut atlas, &layout), Ok(()));
        assert_eq!(of(&mut atlas, "192.0.2.1"), Some(*b"FR"));

        fs::remove_file(&path).unwrap();
        assert!(look(&mut atlas, &layout).is_err());
        assert_eq!(of(&mut atlas, "192.0.2.1"), Some(*b"FR"), "it may come back");
        fs::write(&path, "no such file").unwrap();
        assert!(look(&mut atlas, &layout).is_err() && look(&mut atlas, &layout).is_err());
        assert_eq!(of(&mut atlas, "192.0.2.1"), None);

        fs::write(layout.links_toml(), "clicks = 1").unwrap();
        atlas.looked = None;
        assert_eq!(atlas.look(&layout), None);
    }
}
