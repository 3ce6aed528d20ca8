//! The SQL statements: `build.rs` makes the constant `FIND_LINK` of `sql/find_link.sql`, and so on. Each file explains its
//! parameters and columns.

include!(concat!(env!("OUT_DIR"), "/sql.rs"));
