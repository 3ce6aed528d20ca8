//! Limits on how often a link may be followed.

use crate::error::Refused;

/// The limit requested for a new link, from 1 to [`MaxClicks::MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxClicks(i64);

impl MaxClicks {
    pub const MOST: i64 = 1_000_000_000;

    /// Checks that the number is in range.
    ///
    /// # Errors
    /// The number is out of range.
    pub fn parse(number: i64) -> Result<MaxClicks, Refused> {
        if (1..=Self::MOST).contains(&number) {
            return Ok(MaxClicks(number));
        }
        Err(Refused::new(format!(
            "The field max_clicks must be from 1 to {}.",
            Self::MOST
        )))
    }

    pub fn get(self) -> i64 {
        self.0
    }
}

/// The limit of a stored link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The number of clicks allowed in total.
    pub most: i64,
    /// The number of clicks left.
    pub left: i64,
}
