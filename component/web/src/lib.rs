//! HTTP as the components speak it, as values: requests in, [`reply::Reply`]s out. Pure, so all of it is tested natively.
//!
//! [`routes`] turns a method and a path into a route of one of the components. A refusal is a [`problem::Problem`]; the
//! values of `links_domain` become replies in [`links`]. [`edge`] says for how long nginx may keep a redirect, and [`purge`]
//! how a change becomes visible there.

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
