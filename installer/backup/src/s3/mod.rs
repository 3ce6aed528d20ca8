//! Backups in S3 or on a server with its interface. [`server`] signs and sends requests, [`upload`] and [`download`] transfer
//! objects in parts, so that a part that fails is repeated and nothing more.

pub mod download;
pub mod server;
pub mod upload;
