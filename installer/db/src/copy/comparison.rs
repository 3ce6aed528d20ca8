//! Compares the links of two databases.

use std::collections::HashMap;
use std::fmt;

use anyhow::bail;
use links_store::sql::COPY_FIND as FIND;

use super::endpoint::Endpoint;
use super::link::{Link, Sum, counted};
use crate::libsql::Cell;

/// The maximum number of slugs that an error names.
const NAMED: usize = 5;

/// Links of the source differ in the target, or are missing there. The field is the message.
#[derive(Debug)]
pub struct Different(String);

impl fmt::Display for Different {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Different {}

/// Compares the links of the source with those that the target has for the same slugs.
#[derive(Debug, Default)]
pub struct Comparison {
    /// The number of links of the source so far.
    pub links: u64,
    found: u64,
    ours: Sum,
    theirs: Sum,
    different: u64,
    named: Vec<String>,
}

impl Comparison {
    /// Compares some links of the source.
    ///
    /// # Errors
    /// Fails if the target does.
    pub fn part(&mut self, links: &[Link], target: &mut dyn Endpoint) -> anyhow::Result<()> {
        let slugs: Vec<_> = links.iter().map(|link| &link.slug).collect();
        let mut there = HashMap::new();
        for row in target.rows(FIND, &[Cell::Text(serde_json::to_string(&slugs)?)])? {
            let link = Link::of_row(&row)?;
            there.insert(link.slug.clone(), link);
        }
        for own in links {
            self.links += 1;
            self.ours.add(own)?;
            let other = there.get(&own.slug);
            if let Some(other) = other {
                self.found += 1;
                self.theirs.add(other)?;
            }
            if other != Some(own) {
                self.different += 1;
                if self.named.len() < NAMED {
                    self.named.push(own.slug.clone());
                }
            }
        }
        Ok(())
    }

    /// The checksum of the links of the source.
    pub fn checksum(&self) -> String {
        self.ours.to_string()
    }

    /// The result, after all links are compared.
    ///
    /// # Errors
    /// Fails with [`Different`] if a link of the source differs in the target, or is missing there.
    pub fn verdict(&self) -> anyhow::Result<()> {
        if self.different == 0 && self.found == self.links && self.ours == self.theirs {
            return Ok(());
        }
        bail!(Different(format!(
            "{} of {} differ between the two databases, or are missing in one: {}{}. The checksums are {} and {}. Existing \
             links are never changed: decide for each of these which database is right",
            self.different,
            counted(self.links),
            self.named.join(", "),
            if self.different > NAMED as u64 { ", ..." } else { "" },
            self.ours,
            self.theirs
        )))
    }
}
