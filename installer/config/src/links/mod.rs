//! `links.toml`, the settings of links, and the files in `links.toml.d`, which extend it. Every key has a default, so all of them
//! may be empty.

mod backup;
mod earlier;
pub(crate) mod input;
pub mod keys;
mod read;
mod settings;
mod tls;

pub use earlier::{Earlier, Setting, for_0_1_0};
pub use input::{Input, inputs, is_read};
pub use read::{Reading, read, read_all};
pub use settings::*;
pub use tls::{PlainHttp, TLS_PORT, Tls, TlsMode, host_name, is_email, is_profile};

#[cfg(test)]
mod tests;
