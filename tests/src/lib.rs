//! The lab: Debian 12 with systemd as PID 1, in its own namespaces on the machine that runs the tests.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use links_tests::{Machine, Tree};
//!
//! let machine = Machine::boot(&Tree::with_nginx()?)?;
//! machine.ok(["systemctl", "reload", "nginx"])?;
//! assert_eq!(machine.http().get("/")?.status, 200);
//! # Ok(())
//! # }
//! ```
//!
//! The lab needs no virtual machine and no container engine, only root, `unshare` and overlayfs. A machine has no network
//! except its own loopback interface. Everything it did is gone when the [`Machine`] is dropped, and also when the test
//! process is killed.

mod appliance;
mod artifacts;
mod cache;
mod cgroup;
mod collector;
mod crowd;
mod failure;
mod host;
pub mod http;
pub mod load;
pub mod local;
mod machine;
mod namespace;
pub mod otlp;
mod process;
mod releases;
mod seed;
pub mod servers;
mod stream;
mod traffic;
mod tree;
mod wire;

pub use appliance::{Appliance, DATABASE, DEB, UNPACKED};
pub use artifacts::{Artifacts, RELEASED, Runtime, power_cut};
pub use collector::{Collected, Collector};
pub use crowd::{Broken, Counts, Crowd};
pub use host::{Host, RELEASED_DEB};
pub use machine::{Machine, Output};
pub use namespace::NetNamespace;
pub use process::eventually;
pub use releases::{Fault, Releases};
pub use seed::Seed;
pub use stream::{Address, Stream};
pub use traffic::{Traffic, verify};
pub use tree::Tree;
