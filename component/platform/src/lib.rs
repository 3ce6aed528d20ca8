//! The components' interface to the runtime. This is the only crate that names the Spin SDK.
//!
//! Modules that need the SDK have the feature `sdk`. The rest is pure and tested natively: the state of a [`circuit_breaker`],
//! the times of a request ([`stopwatch`]), and the meaning of the messages and time limits of a [`database`].
//!
//! An instance serves several requests at once, and a trap would end them all. So nothing here panics, and no borrow of shared
//! state lives across an `await`.

pub mod circuit_breaker;
pub mod database;
pub mod stopwatch;
pub mod time;

#[cfg(feature = "sdk")]
pub mod clock;
#[cfg(feature = "sdk")]
#[doc(hidden)]
pub mod idle_task;
#[cfg(feature = "sdk")]
pub mod kv;
#[cfg(feature = "sdk")]
pub mod local_store;
#[cfg(feature = "sdk")]
pub mod log;
#[cfg(feature = "sdk")]
pub mod outbound;
#[cfg(feature = "sdk")]
pub mod random;
#[cfg(feature = "sdk")]
pub mod request;
#[cfg(feature = "sdk")]
pub mod response;
#[cfg(feature = "sdk")]
pub mod variables;

// The two generations of the SDK have the same names for everything that is used here.
#[cfg(feature = "wasi-0-3-0-rc-2026-03-15")]
#[doc(hidden)]
pub use spin_sdk_6 as sdk;
#[cfg(all(feature = "wasi-0-3-0", not(feature = "wasi-0-3-0-rc-2026-03-15")))]
#[doc(hidden)]
pub use spin_sdk_7 as sdk;

/// Exports a component that answers every request with `async fn answer(Request, &Method) -> Response`, with the types of
/// [`request`] and [`response`].
#[cfg(feature = "sdk")]
#[macro_export]
macro_rules! serve {
    ($answer:path) => {
        struct Component;

        $crate::sdk::wasip3::http::service::export!(Component);

        impl $crate::sdk::wasip3::exports::http::handler::Guest for Component {
            async fn handle(
                request: $crate::sdk::wasip3::http::types::Request,
            ) -> Result<$crate::sdk::wasip3::http::types::Response, $crate::sdk::wasip3::http::types::ErrorCode> {
                let request = $crate::request::Request::new(request);
                let method = request.method();
                let (response, idle_task) = $crate::idle_task::IdleTask::beside($answer(request, &method)).await;
                response.send(method == $crate::request::Method::HEAD, idle_task)
            }
        }
    };
}
