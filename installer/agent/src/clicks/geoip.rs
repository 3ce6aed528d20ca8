//! GeoIP: the countries of clients, from the file that `clicks.countries` names. The file is reloaded when it changes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use links_base::layout::Layout;
use links_config::countries::{Countries, Country};
use links_config::files::ConfigFiles;
use links_config::load::load_links;

/// The interval between two checks for a changed file.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// The maximum number of cached addresses.
const MAX_CACHED: usize = 4096;

/// The GeoIP database. Without a file every country is unknown.
#[derive(Debug, Default)]
pub struct GeoIp {
    checked: Option<Instant>,
    /// The file that was last loaded, successfully or not.
    tried: Option<(PathBuf, FileVersion)>,
    countries: Option<Countries>,
    /// Results by address.
    cache: HashMap<Box<[u8]>, Option<Country>>,
}

/// What shows whether a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileVersion {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl GeoIp {
    /// Loads the file again if it has changed. Returns `None` if it is not time to check yet, or if links.toml is invalid.
    ///
    /// # Errors
    /// Fails with a message if the configured file cannot be used. If the file is only missing, the countries that were loaded
    /// before remain in use.
    pub fn refresh(&mut self, layout: &Layout) -> Option<Result<(), String>> {
        if self.checked.is_some_and(|checked| checked.elapsed() < CHECK_INTERVAL) {
            return None;
        }
        self.checked = Some(Instant::now());
        // links.toml may be invalid while it is being edited.
        let config = load_links(&ConfigFiles::new(layout)).ok()?;
        Some(match config.clicks.countries {
            Some(path) => self.open(&path),
            None => {
                *self = Self {
                    checked: self.checked,
                    ..Self::default()
                };
                Ok(())
            }
        })
    }

    fn open(&mut self, path: &Path) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("clicks.countries, {}: {error}", path.display());
        let version = version(path).map_err(|error| failed(&error))?;
        if self
            .tried
            .as_ref()
            .is_some_and(|tried| (tried.0.as_path(), tried.1) == (path, version))
        {
            return match self.countries {
                Some(_) => Ok(()),
                None => Err(failed(&"is not in MaxMind's format")),
            };
        }
        // The old data is freed first, because a file with cities has more than 100 MB.
        self.countries = None;
        self.cache.clear();
        let bytes = fs::read(path).map_err(|error| failed(&error))?;
        let countries = Countries::new(bytes);
        self.tried = Some((path.to_owned(), version));
        let outcome = countries.as_ref().map(drop).map_err(|error| failed(error));
        self.countries = countries.ok();
        outcome
    }

    /// The country of an address, in the form in which nginx writes it.
    pub fn country(&mut self, address: &[u8]) -> Option<Country> {
        let countries = self.countries.as_ref()?;
        if let Some(country) = self.cache.get(address) {
            return *country;
        }
        let parsed = std::str::from_utf8(address)
            .ok()
            .and_then(|text| text.parse::<IpAddr>().ok());
        let country = parsed.and_then(|address| countries.of(address.to_canonical()));
        if self.cache.len() >= MAX_CACHED {
            self.cache.clear();
        }
        self.cache.insert(address.into(), country);
        country
    }
}

fn version(path: &Path) -> io::Result<FileVersion> {
    let metadata = fs::metadata(path)?;
    Ok(FileVersion {
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::temporary;
    use links_config::countries::testing::file;

    /// Refreshes as if the interval were over.
    fn refresh(geoip: &mut GeoIp, layout: &Layout) -> Result<(), String> {
        geoip.checked = None;
        geoip.refresh(layout).unwrap()
    }

    #[test]
    fn a_changed_file_is_loaded_again() {
        let (root, layout) = temporary(&[Layout::config_dir]);
        let path = root.path().join("countries.mmdb");
        let mut geoip = GeoIp::default();
        fs::write(layout.links_toml(), "").unwrap();
        assert_eq!(refresh(&mut geoip, &layout), Ok(()));
        assert_eq!(geoip.country(b"192.0.2.1"), None);

        fs::write(layout.links_toml(), format!("clicks.countries = {path:?}")).unwrap();
        assert!(refresh(&mut geoip, &layout).unwrap_err().contains("countries.mmdb"));
        assert_eq!(geoip.refresh(&layout), None, "the minute is not over");

        fs::write(&path, file(&[("::192.0.2.0", 120, "DE")])).unwrap();
        assert_eq!(refresh(&mut geoip, &layout), Ok(()));
        let of = |geoip: &mut GeoIp, address: &str| geoip.country(address.as_bytes());
        assert_eq!(of(&mut geoip, "192.0.2.1"), Some(*b"DE"));
        assert_eq!(of(&mut geoip, "::ffff:192.0.2.2"), Some(*b"DE"));
        assert_eq!(of(&mut geoip, "unix:"), None);

        let next = root.path().join("next");
        fs::write(&next, file(&[("::192.0.2.0", 120, "FR")])).unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(refresh(&mut geoip, &layout), Ok(()));
        assert_eq!(of(&mut geoip, "192.0.2.1"), Some(*b"FR"));

        fs::remove_file(&path).unwrap();
        assert!(refresh(&mut geoip, &layout).is_err());
        assert_eq!(of(&mut geoip, "192.0.2.1"), Some(*b"FR"), "the file may come back");
        fs::write(&path, "no such file").unwrap();
        assert!(refresh(&mut geoip, &layout).is_err() && refresh(&mut geoip, &layout).is_err());
        assert_eq!(of(&mut geoip, "192.0.2.1"), None);

        fs::write(layout.links_toml(), "clicks = 1").unwrap();
        geoip.checked = None;
        assert_eq!(geoip.refresh(&layout), None);
    }
}
