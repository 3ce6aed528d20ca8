//! A fixed value, or a range from which a random value is drawn.

use std::fmt;

use rand::RngExt as _;
use rand::distr::uniform::SampleUniform;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range<T> {
    One(T),
    /// From the first (inclusive) to the second (exclusive).
    Between(T, T),
}

impl<T: PartialOrd> Range<T> {
    /// Parses `N` or `N..M`.
    ///
    /// # Errors
    /// `parse` fails, or the range is empty.
    pub fn parse(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Self, String> {
        let Some((start, end)) = text.split_once("..") else {
            return Ok(Self::One(parse(text)?));
        };
        let (start, end) = (parse(start)?, parse(end)?);
        if start < end {
            Ok(Self::Between(start, end))
        } else {
            Err(format!("the range {text} is empty"))
        }
    }
}

impl<T: SampleUniform + PartialOrd + Copy> Range<T> {
    pub fn draw(&self) -> T {
        match *self {
            Self::One(value) => value,
            Self::Between(start, end) => rand::rng().random_range(start..end),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Range<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(value) => write!(f, "{value}"),
            Self::Between(start, end) => write!(f, "{start}..{end}"),
        }
    }
}
