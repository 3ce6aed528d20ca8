//! The id that nginx gives a request. It is the same for every attempt to serve the request.

use crate::hex;

/// nginx's `$request_id`: 16 random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// Parses nginx's form, 32 lower-case hexadecimal digits. Anything else counts as no id.
    pub fn parse(header: &[u8]) -> Option<RequestId> {
        hex::decode(header).map(RequestId)
    }

    /// An id for a request that did not come through nginx.
    pub fn new(bytes: [u8; 16]) -> RequestId {
        RequestId(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_nginx_writes() {
        let id = RequestId::parse(b"000102030405060708090a0b0c0d0eff");
        assert_eq!(
            id,
            Some(RequestId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]))
        );
    }

    #[test]
    fn everything_else_is_ignored() {
        let long = "0".repeat(100_000);
        for text in [
            "",
            "0",
            "000102030405060708090a0b0c0d0ef",
            "000102030405060708090a0b0c0d0eff0",
            "000102030405060708090a0b0c0d0eff00",
            "000102030405060708090A0B0C0D0EFF",
            "000102030405060708090a0b0c0d0efg",
            " 00102030405060708090a0b0c0d0eff",
            "+00102030405060708090a0b0c0d0eff",
            "00010203-0405-0607-0809-0a0b0c0d0eff",
            long.as_str(),
        ] {
            assert_eq!(RequestId::parse(text.as_bytes()), None, "{:.40}", text);
        }
        assert_eq!(RequestId::parse(&[0xff; 32]), None);
    }
}
