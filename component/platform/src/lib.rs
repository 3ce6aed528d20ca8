//! The runtime as the components use it. This is the only crate that names the Spin SDK.
//!
//! What needs the SDK is compiled for Wasm alone. The rest is pure and tested natively: the state of a
//! [`circuit_breaker`], and what the messages and time limits of a [`database`] mean.
//!
//! An instance serves several requests at once and a trap would end them all. So nothing here panics, and no borrow of
//! shared state lives across an `await`.

pub mod circuit_breaker;
pub mod database;

#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod clock;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod kv;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod local_store;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod log;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod outbound;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod random;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod request;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod response;
#[cfg(any(target_family = "wasm", feature = "lint"))]
pub mod variables;

/// For [`serve!`].
#[cfg(any(target_family = "wasm", feature = "lint"))]
#[doc(hidden)]
pub use spin_sdk as sdk;

/// Exports a component that answers every request by `async fn answer(Request, &Method) -> Response`, with the types of
/// [`request`] and [`response`].
#[cfg(any(target_family = "wasm", feature = "lint"))]
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
                let method = request.method()?;
                let response = $answer(request, &method).await;
                response.send(method == $crate::request::Method::HEAD)
            }
        }
    };
}
