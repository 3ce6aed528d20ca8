//! links.toml, runtime.toml and the credentials: parsing, checking, and rendering for the runtime.
//!
//! * [`links`] reads links' own files, and [`runtime`] reads the file of the Spin runtime. Both are pure.
//! * [`check`] finds everything that is wrong in the files and the credentials.
//! * [`backup`] says where backups go.
//! * [`telemetry`] decides which telemetry is sent where.
//! * [`render`] writes the file with which an instance's runtime is started.

pub mod acme;
pub mod admin_token;
pub mod arguments;
pub mod backup;
pub mod check;
pub mod connectivity;
pub mod countries;
pub mod credentials;
mod document;
pub mod files;
pub mod finding;
pub mod links;
pub mod load;
pub mod network;
pub mod proxies;
pub mod reader;
pub mod render;
pub mod runtime;
mod section;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod unresolved;
mod value;
