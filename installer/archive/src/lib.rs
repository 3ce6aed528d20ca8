//! Backups: what they contain, how they are made, and how a host is restored from one.
//!
//! A backup is a tar archive, compressed and perhaps encrypted by links-backup. Root, who may read the secrets, writes and reads
//! the archive here. links-backup and links-db do everything else as user links: compression, encryption, the network, SQLite.
//!
//! * [`manifest`] is the first entry of each backup and lists all others. [`items`] decides what belongs to one.
//! * [`make`] makes a backup, [`schedule`] decides when, and [`prune`] which old ones are removed.
//! * [`check`] reads a backup without changing anything, [`list`] finds backups.
//! * [`restore`] plans and applies a restore.

mod archive;
mod child;
mod collect;
mod directory;
mod items;
mod location;
mod manifest;
mod names;
mod prune;
mod report;
mod schedule;
mod source;
mod space;

mod certificates;
pub mod check;
pub mod list;
pub mod make;
pub mod restore;

pub use report::Style;
