//! The lab: Debian 12 or 13 with systemd as PID 1, in its own namespaces on the computer that runs the tests.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use links_tests::Host;
//!
//! let host = Host::builder().serving()?;
//! host.ok(["systemctl", "reload", "nginx"])?;
//! assert_eq!(host.http().get("/health")?.status, 200);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Host`] needs no virtual machine and no container engine, only root, `unshare` and overlayfs. It has no network except
//! its own loopback interface. Everything it did is gone when it is dropped, and also when the test process is killed.
//!
//! What runs without systemd is not a host, and needs neither root nor Debian's tree: [`local`] starts links-host and the
//! services that it talks to as processes of this computer.

mod artifacts;
mod cache;
mod cgroup;
mod check;
mod crowd;
mod events;
mod failure;
mod host;
pub mod http;
pub mod http2;
pub mod load;
pub mod local;
mod machine;
mod namespace;
pub mod otlp;
mod process;
mod releases;
mod repository;
mod seed;
pub mod servers;
mod stream;
mod suite;
mod traffic;
mod tree;
mod wire;
pub mod wording;

pub use artifacts::{Artifacts, RELEASED, Runtime, arm64_emulator, power_cut};
pub use check::{CHECK_ONLINE, Check, Finding};
pub use crowd::{Broken, Counts, Crowd};
pub use events::Events;
pub use host::Host;
pub use host::builder::Builder;
pub use host::database::DATABASE;
pub use host::packages::{DEB, RELEASED_DEB, UNPACKED};
pub use host::service::{LINKS_TOML, RUNTIME_TOML};
pub use machine::commands::Output;
pub use namespace::NetNamespace;
pub use process::eventually;
pub use releases::Fault;
pub use repository::{KeyFrom, Repository};
pub use seed::Seed;
pub use stream::{Address, Stream};
pub use suite::Suite;
pub use traffic::{Traffic, verify};
