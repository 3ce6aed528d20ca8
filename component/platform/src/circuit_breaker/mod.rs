//! Circuit breakers for services that a component can do without for a while.
//!
//! While a breaker is open, callers use what they have, and only one of them per pause tries the service again. The log has one
//! line when an outage begins and one when it ends. Instances live for a second or two, so they share what they know in the
//! key-value store "local" where that pays.

pub mod state;

#[cfg(feature = "sdk")]
mod breaker;

#[cfg(feature = "sdk")]
pub use breaker::{CircuitBreaker, Memory};
