//! The countries of IP addresses, from a file that the administrator provides in MaxMind's format ("MaxMind DB File Format
//! Specification", version 2), such as GeoLite2 Country or DB-IP Country Lite.

use std::fmt;
use std::net::IpAddr;

use maxminddb::{MaxMindDbError, Reader, path};

/// A country code of two capital letters (ISO 3166-1).
pub type Country = [u8; 2];

/// The contents of the file.
pub struct Countries(Reader<Vec<u8>>);

impl Countries {
    /// Parses the contents of the file.
    ///
    /// # Errors
    /// The file is not in this format.
    pub fn new(bytes: Vec<u8>) -> Result<Self, MaxMindDbError> {
        Reader::from_source(bytes).map(Self)
    }

    /// The country of an address. `None` if it is not in the file.
    pub fn of(&self, address: IpAddr) -> Option<Country> {
        let found = self.0.lookup(address).ok()?;
        let code: &str = found.decode_path(&path!["country", "iso_code"]).ok()??;
        let code: Country = code.as_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_uppercase).then_some(code)
    }
}

impl fmt::Debug for Countries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Countries").finish_non_exhaustive()
    }
}

#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::testing::file;
    use super::*;

    #[test]
    fn ipv4_and_ipv6_addresses_have_countries() {
        let file = file(&[
            ("::192.0.2.0", 120, "DE"),
            ("2001:db8::", 32, "FR"),
            ("::198.51.100.0", 120, "xx"),
        ]);
        let countries = Countries::new(file).unwrap();
        let of = |address: &str| countries.of(address.parse().unwrap());
        assert_eq!(of("192.0.2.200"), Some(*b"DE"));
        assert_eq!(of("2001:db8:1::1"), Some(*b"FR"));
        for address in ["192.0.3.1", "2001:db9::1", "198.51.100.1"] {
            assert_eq!(of(address), None, "{address}");
        }
    }

    #[test]
    fn another_file_is_refused() {
        assert!(Countries::new(b"something else".to_vec()).is_err());
    }
}
