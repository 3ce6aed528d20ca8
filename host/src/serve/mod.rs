//! Serving: connections, requests, and the component instances that handle them.

pub mod address_space;
mod body;
pub mod component;
pub mod endpoint;
pub mod engine;
pub mod instances;
mod lazy_timer;
pub mod listen;
mod pace;
pub mod precompiled;
pub mod range;
mod request;
pub mod respond;
pub mod route;
pub mod server;
mod socket_file;
pub mod stop;
mod stream;
