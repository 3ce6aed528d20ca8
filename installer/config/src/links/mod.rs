//! `links.toml`, the settings of links. Every key has a default, so the file may be empty.

mod backup;
mod read;
mod settings;

pub use read::read;
pub use settings::*;

#[cfg(test)]
mod tests;
