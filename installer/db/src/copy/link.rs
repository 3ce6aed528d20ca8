//! A link as a row that is copied, and the checksum of many.

use std::fmt;

use anyhow::{Context as _, bail};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::libsql::Cell;

/// The columns that both databases must agree on. Each database has IDs of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    pub slug: String,
    url: String,
    created_at: i64,
    expires_at: Option<i64>,
    /// The ID of the request that created the link, in hexadecimal.
    request_id: Option<String>,
    max_clicks: Option<i64>,
    clicks_left: Option<i64>,
    /// The expiry of a link with `max_clicks`, in Unix seconds.
    limited_until: Option<i64>,
}

impl Link {
    /// Reads a link from a row. The table is STRICT, so each column has only the types that are handled here.
    ///
    /// # Errors
    /// Fails if the row has other columns.
    pub fn of_row(columns: &[Cell]) -> anyhow::Result<Self> {
        let [
            Cell::Text(slug),
            Cell::Text(url),
            Cell::Integer(created_at),
            expires_at,
            request_id,
            max_clicks,
            clicks_left,
            limited_until,
        ] = columns
        else {
            bail!("a link has unexpected columns");
        };
        let number = |cell: &Cell| match cell {
            Cell::Integer(number) => Some(*number),
            _ => None,
        };
        Ok(Self {
            slug: slug.clone(),
            url: url.clone(),
            created_at: *created_at,
            expires_at: number(expires_at),
            request_id: match request_id {
                Cell::Text(id) => Some(id.clone()),
                _ => None,
            },
            max_clicks: number(max_clicks),
            clicks_left: number(clicks_left),
            limited_until: number(limited_until),
        })
    }
}

/// `1 link`, `2 links`
pub fn counted(links: u64) -> String {
    format!("{links} link{}", if links == 1 { "" } else { "s" })
}

/// A checksum that does not depend on the order of the links: the sum of the first 128 bits of each link's SHA-256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u128);

impl Sum {
    /// Adds a link.
    ///
    /// # Errors
    /// Fails if the link cannot be serialized.
    pub fn add(&mut self, link: &Link) -> anyhow::Result<()> {
        let digest = Sha256::digest(serde_json::to_vec(link)?);
        let (first, _) = digest.as_slice().split_first_chunk().context("a digest has 32 bytes")?;
        self.0 = self.0.wrapping_add(u128::from_be_bytes(*first));
        Ok(())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_depends_on_everything_but_the_order() {
        let link = |slug: &str| Link {
            slug: slug.to_owned(),
            url: "https://example.com/".to_owned(),
            created_at: 1,
            expires_at: None,
            request_id: None,
            max_clicks: None,
            clicks_left: None,
            limited_until: None,
        };
        let sum = |links: &[&Link]| {
            let mut sum = Sum::default();
            links.iter().for_each(|link| sum.add(link).unwrap());
            sum
        };
        let (a, b) = (link("a"), link("b"));
        assert_eq!(sum(&[&a, &b]), sum(&[&b, &a]));
        let changed = Link {
            expires_at: Some(0),
            ..b.clone()
        };
        assert_ne!(sum(&[&a, &b]), sum(&[&a, &changed]));
        assert_ne!(sum(&[&a, &b]), sum(&[&a]));
        assert_eq!(sum(&[]).to_string(), "0".repeat(32));
    }
}
