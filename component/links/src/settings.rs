//! The component's variables but for the secret one, read and kept for a moment.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::try_join5;
use links_core::cors::Cors;
use links_core::problem::Problem;
use links_core::settings::{Settings, Variables};

use crate::{clock, log, variable};

/// How long values are kept. An instance lives a second longer than its last request, so this is for busy ones.
const KEEP: Duration = Duration::from_secs(5);

/// How long the runtime may take to give them: a provider may have to ask another machine.
const LIMIT: Duration = Duration::from_secs(5);

thread_local! {
    static KEPT: RefCell<Option<(Instant, Rc<Settings>)>> = const { RefCell::new(None) };
    /// Who may read answers, as far as this instance knows.
    static CORS: RefCell<Cors> = const { RefCell::new(Cors::Nobody) };
}

/// # Errors
/// 503 if the runtime does not give the variables, 500 if one has a value that means nothing.
pub async fn current() -> Result<Rc<Settings>, Problem> {
    let kept = KEPT.with_borrow(|kept| kept.clone());
    if let Some((_, settings)) = kept.filter(|(since, _)| since.elapsed() < KEEP) {
        return Ok(settings);
    }
    let variables = clock::within(LIMIT, read())
        .await
        .unwrap_or_else(|| Err("no answer in time".to_owned()));
    let variables = variables.map_err(|error| {
        log::line("cannot read the variables", error);
        Problem::unavailable("The server cannot read its configuration at the moment. Try again.")
    })?;
    if let Ok(cors) = variables.cors() {
        CORS.set(cors);
    }
    let settings = Settings::parse(&variables).map(Rc::new).map_err(|invalid| {
        log::line("wrong configuration", &invalid);
        Problem::new(
            500,
            format!("The server's configuration is wrong: {invalid}. Only its operator can change that."),
        )
    })?;
    KEPT.set(Some((Instant::now(), settings.clone())));
    Ok(settings)
}

/// Which pages may read an answer, also the one that the settings cannot be read, or that another one of them is wrong.
pub async fn cors() -> Cors {
    match current().await {
        Ok(settings) => settings.cors.clone(),
        Err(_) => CORS.with_borrow(Cors::clone),
    }
}

/// Whether the variables were read and say that secrets are kept.
pub fn are_known_to_keep_secrets() -> bool {
    KEPT.with_borrow(|kept| kept.as_ref().is_some_and(|(_, settings)| settings.secrets.is_some()))
}

async fn read() -> Result<Variables, String> {
    let (public_url, shorten_access, allowed_origin, secrets_ttl, secrets_stale) = try_join5(
        variable::get("public_url"),
        variable::get("shorten_access"),
        variable::get("allowed_origin"),
        variable::get("secrets_ttl"),
        variable::get("secrets_stale"),
    )
    .await?;
    Ok(Variables {
        public_url,
        shorten_access,
        allowed_origin,
        secrets_ttl,
        secrets_stale,
    })
}
