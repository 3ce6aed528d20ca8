//! Who may use the API.

use std::rc::Rc;

use links_platform::request::FetchedRequest;
use links_web::bearer::Access;
use links_web::problem::Problem;
use links_web::settings::{Creators, Settings};

use crate::{settings, token};

/// What a client wants to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Create a link, which the operator may have opened to everybody.
    Create,
    /// See, change or remove links, and see their statistics.
    Manage,
}

/// Lets the request through if its sender may do this, and returns the settings that the answer depends on.
///
/// # Errors
/// 401 or 503, see [`Access::check`]; 500 or 503, see [`settings::current`].
pub async fn authenticate(request: &FetchedRequest, action: Action) -> Result<Rc<Settings>, Problem> {
    let settings = settings::current().await?;
    let access = match (action, settings.creators) {
        (Action::Create, Creators::Everybody) => Access::Open,
        (Action::Create, Creators::TokenHolders) | (Action::Manage, _) => {
            token::access(settings.secrets.as_ref()).await?
        }
    };
    access.check(request.headers().get("authorization").map(|value| value.as_bytes()))?;
    Ok(settings)
}
