//! A link as a row that is copied, and the checksum of many.

use std::fmt;

use anyhow::{Context as _, bail};
use links_store::schema::LINK_COLUMNS;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::libsql::Cell;

/// The values that both databases must agree on. Each database has IDs of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub slug: String,
    /// The values of [`LINK_COLUMNS`], the slug among them. Blobs are in hexadecimal.
    columns: Vec<Cell>,
}

impl Link {
    /// Reads a link from a row with the values of [`LINK_COLUMNS`]. The table is STRICT, so each has the type of its column.
    ///
    /// # Errors
    /// Fails if the row has other columns.
    pub fn of_row(columns: &[Cell]) -> anyhow::Result<Self> {
        match columns {
            [Cell::Text(slug), ..] if columns.len() == LINK_COLUMNS.len() => Ok(Self {
                slug: slug.clone(),
                columns: columns.to_vec(),
            }),
            _ => bail!("a link has unexpected columns"),
        }
    }
}

/// An object with the names of the columns.
impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(LINK_COLUMNS.iter().zip(&self.columns))
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
        let link = |slug: &str| {
            let mut columns = vec![Cell::Null; LINK_COLUMNS.len()];
            columns[0] = Cell::Text(slug.to_owned());
            Link::of_row(&columns).unwrap()
        };
        let sum = |links: &[&Link]| {
            let mut sum = Sum::default();
            links.iter().for_each(|link| sum.add(link).unwrap());
            sum
        };
        let (a, b) = (link("a"), link("b"));
        assert_eq!(sum(&[&a, &b]), sum(&[&b, &a]));
        for column in 0..LINK_COLUMNS.len() {
            let mut changed = b.clone();
            changed.columns[column] = Cell::Integer(0);
            assert_ne!(sum(&[&a, &b]), sum(&[&a, &changed]));
        }
        assert_ne!(sum(&[&a, &b]), sum(&[&a]));
        assert_eq!(sum(&[]).to_string(), "0".repeat(32));
    }
}
