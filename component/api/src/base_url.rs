//! The URL under which clients reach the appliance.

use links_domain::origin::Origin;
use links_platform::request::Request;
use links_web::base_url;
use links_web::problem::Problem;
use links_web::settings::Settings;

use crate::proof;

/// The origin that the operator has configured, or else the origin that the client used.
///
/// # Errors
/// Fails with 400 if the host is invalid, or with 503 if the request claims to come through nginx and that cannot be checked.
pub async fn of(request: &Request, settings: &Settings) -> Result<Origin, Problem> {
    if let Some(public) = &settings.public {
        return Ok(public.clone());
    }
    let [scheme, host] = match proof::is_through_nginx(request).await? {
        true => ["x-forwarded-proto", "x-forwarded-host"].map(|name| request.text_header(name)),
        false => [None, None],
    };
    let host = host.or_else(|| request.text_header("host"));
    let host = host.or_else(|| request.authority());
    base_url::of_request(scheme.as_deref(), host.as_deref())
}
