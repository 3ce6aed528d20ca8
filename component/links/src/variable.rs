//! Reading the component's variables.

use spin_sdk::variables::{self, Error};

/// The value of one. A provider's message may name its address, but not a value.
pub async fn get(name: &str) -> Result<String, String> {
    variables::get(name).await.map_err(|error| match error {
        Error::InvalidName(message) | Error::Undefined(message) | Error::Provider(message) | Error::Other(message) => {
            format!("{name}: {message}")
        }
    })
}
