//! `linksctl restore`: puts the links and the configuration of a backup onto this host, and keeps what they replace.
//!
//! [`staging`] writes the backup beside what it will replace. [`observe`] looks at the host, [`plan`] decides the steps, and
//! [`apply`] carries them out on a `Host`, which [`executor`] implements. [`journal`] says how to undo them, also after a crash.

mod apply;
mod commands;
mod executor;
mod journal;
mod observe;
mod plan;
mod staging;

pub use commands::{Mode, Request, run, undo, unfinished};
