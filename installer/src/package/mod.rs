//! From files to a bundle, and from a bundle to a .deb and a tarball.

pub mod manifest;
pub mod payload;
