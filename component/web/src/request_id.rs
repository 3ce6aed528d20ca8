//! The name that nginx gives to a request.

/// Carries it. nginx replaces a client's own; without nginx's proof it does not count.
pub const HEADER: &str = "x-request-id";
