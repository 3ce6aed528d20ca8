//! Country files for tests.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::net::Ipv6Addr;

/// What follows a bit in a node of the search tree.
#[derive(Clone, Copy)]
enum Next {
    Nothing,
    Node(usize),
    /// An offset in the data section.
    Data(usize),
}

/// A file with these networks: address, prefix length in bits, country code. IPv4 networks are below ::/96.
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

/// A value: a control byte with its type and size, and its bytes. Types from 8 on have a byte of their own.
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
