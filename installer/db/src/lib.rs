//! Access to the databases of links from outside the instances: SQLite files, and servers over the network.

pub mod connectivity;
pub mod copy;
pub mod database;
mod libsql;
pub mod swap;

use links_http as remote;
