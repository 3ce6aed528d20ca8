//! Services that users run beside the appliance. Each is a systemd unit inside the machine, on its loopback interface, except
//! the collector: the tests read what it has received, so it runs in the test process, in the machine's network.

mod collector;
pub(crate) mod libsql;
mod pebble;
mod prometheus;
mod redis;
mod rotel;
mod s3;
mod squatter;
mod unit;
mod vault;

pub use collector::{Collected, Collector};
pub use libsql::LibSql;
pub use pebble::Pebble;
pub use prometheus::Prometheus;
pub use redis::redis;
pub use rotel::rotel;
pub use s3::S3;
pub use squatter::Squatter;
pub use unit::Server;
pub use vault::Vault;
