//! The migration scripts, and the columns of a link that they create.

/// The statements of the scripts that lead from each version of the tables to the next: `sql/0001_*.sql` and so on. Version 0
/// has no tables.
pub const SCHEMA: &[&[&str]] = &include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// The columns of the table of links, in the order in which the scripts create them. `id` is not among them, because it belongs
/// to one database.
pub const LINK_COLUMNS: &[&str] = &include!(concat!(env!("OUT_DIR"), "/link_columns.rs"));
