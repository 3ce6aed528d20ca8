//! Who may use the API.

use std::rc::Rc;

use links_platform::request::Request;
use links_web::bearer::Access;
use links_web::problem::Problem;
use links_web::settings::{Creators, Settings};

use crate::{settings, token};

/// What a client wants to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Create a link. The operator may allow this to everybody.
    Create,
    /// Read, change or remove links, and read their statistics.
    Manage,
}

/// Checks that the sender may do this, and returns the settings that the answer depends on.
///
/// # Errors
/// Fails with 401 or 503 as [`Access::check`] does, or with 500 or 503 as [`settings::current`] does.
pub async fn authenticate(request: &Request, action: Action) -> Result<Rc<Settings>, Problem> {
    let settings = settings::current().await?;
    let access = match (action, settings.creators) {
        (Action::Create, Creators::Everybody) => Access::Open,
        (Action::Create, Creators::TokenHolders) | (Action::Manage, _) => {
            token::access(settings.secrets.as_ref()).await?
        }
    };
    access.check(request.header("authorization").as_deref())?;
    Ok(settings)
}
