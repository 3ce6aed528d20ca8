//! Countries of addresses, by a file that the user brings, in MaxMind's format ("MaxMind DB File Format Specification",
//! version 2): GeoLite2 Country, DB-IP Country Lite and others.

use std::fmt;
use std::net::IpAddr;

use maxminddb::{MaxMindDbError, Reader, path};

/// Two capital letters (ISO 3166-1).
pub type Country = [u8; 2];

/// The file, in memory.
pub struct Countries(Reader<Vec<u8>>);

impl Countries {
    /// # Errors
    /// It is no such file.
    pub fn new(bytes: Vec<u8>) -> Result<Self, MaxMindDbError> {
        Reader::from_source(bytes).map(Self)
    }

    /// None: the file does not tell.
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    /// A node of the search tree: what follows a bit 0 and a bit 1.
    #[derive(Clone, Copy)]
    enum Next {
        Nothing,
        Node(usize),
        /// Where in the data section.
        Data(usize),
    }

    /// A file that knows these networks (address, bits of 128, code); those of IPv4 are below ::/96.
    pub fn file(networks: &[(&str, usize, &str)]) -> Vec<u8> {
        let mut nodes = vec![[Next::Nothing; 2]];
        let mut data = vec![];
        for (address, length, code) in networks {
            let bits = u128::from(address.parse::<Ipv6Addr>().unwrap());
            let bit = |index: usize| (bits >> (127 - index) & 1) as usize;
            let mut at = 0;
            for index in 0..length - 1 {
                at = match nodes[at][bit(index)] {
                    Next::Node(next) => next,
                    _ => {
                        nodes.push([Next::Nothing; 2]);
                        let next = nodes.len() - 1;
                        nodes[at][bit(index)] = Next::Node(next);
                        next
                    }
                };
            }
            nodes[at][bit(length - 1)] = Next::Data(data.len());
            data.extend(map(&[("country", map(&[("iso_code", text(code))]))]));
        }
        let mut file = vec![];
        for node in &nodes {
            for next in node {
                let record = match next {
                    Next::Nothing => nodes.len(),
                    Next::Node(node) => *node,
                    Next::Data(offset) => nodes.len() + 16 + offset,
                };
                file.extend(&(record as u32).to_be_bytes()[1..]);
            }
        }
        file.extend([0; 16]);
        file.extend(data);
        file.extend(b"\xab\xcd\xefMaxMind.com");
        file.extend(map(&[
            ("binary_format_major_version", number(5, &2_u16.to_be_bytes())),
            ("binary_format_minor_version", number(5, &0_u16.to_be_bytes())),
            ("build_epoch", number(9, &1_u64.to_be_bytes())),
            ("database_type", text("Country")),
            ("description", map(&[])),
            ("ip_version", number(5, &6_u16.to_be_bytes())),
            ("languages", number(11, &[])),
            ("node_count", number(6, &(nodes.len() as u32).to_be_bytes())),
            ("record_size", number(5, &24_u16.to_be_bytes())),
        ]));
        file
    }

    /// A value: its type and size, and its bytes. Types from 8 on have a byte of their own.
    fn number(kind: u8, bytes: &[u8]) -> Vec<u8> {
        let size = bytes.len() as u8;
        let control = if kind < 8 {
            vec![kind << 5 | size]
        } else {
            vec![size, kind - 7]
        };
        [&control, bytes].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        number(2, text.as_bytes())
    }

    fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut map = vec![7 << 5 | entries.len() as u8];
        for (key, value) in entries {
            map.extend(text(key));
            map.extend(value);
        }
        map
    }

    #[test]
    fn addresses_of_both_kinds_have_countries() {
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
