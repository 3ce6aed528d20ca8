//! The components' HTTP as plain values: requests in, [`reply::Reply`]s out. Everything is pure and tested natively.
//!
//! [`routes`] turns a method and a path into a route of one of the components. A refusal is a [`problem::Problem`]; [`links`]
//! turns values of `links_domain` into replies. [`edge`] decides how long nginx may keep a redirect, and [`purge`] how a change
//! becomes visible there.

pub mod base_url;
pub mod bearer;
pub mod body;
pub mod cors;
pub mod edge;
pub mod json;
pub mod links;
pub mod problem;
pub mod proof;
pub mod purge;
pub mod purge_query;
pub mod queries;
pub mod reply;
pub mod request_id;
pub mod routes;
pub mod settings;
