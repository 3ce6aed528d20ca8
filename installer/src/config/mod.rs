//! links.toml, runtime.toml and the credentials: parsed and checked, purely.
//!
//! * [`links`] is the appliance's own file, [`runtime`] is the Spin runtime's.
//! * [`check`] looks at all of it at once, and [`command`] is `linksctl check`.
//! * [`telemetry`] says what is exported where.
//! * [`render`] makes what an instance's runtime is started with.

pub mod check;
pub mod command;
pub mod credentials;
mod document;
pub mod duration;
pub mod finding;
pub mod links;
pub mod load;
pub mod network;
pub mod reader;
pub mod render;
pub mod runtime;
mod section;
pub mod telemetry;
#[cfg(test)]
pub mod testing;
mod value;
