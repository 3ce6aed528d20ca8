//! The id that nginx gives a request.

/// The header with the id. nginx replaces a client's own; without nginx's proof the header is ignored.
pub const HEADER: &str = "x-request-id";
