//! The variables of the API except the secret ones, read and kept for a moment.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::try_join5;
use links_platform::{clock, log, variables};
use links_web::cors::Cors;
use links_web::problem::Problem;
use links_web::settings::{Settings, Variables};

use crate::token;

/// How long values are kept. An instance lives a second longer than its last request, so this only matters to busy ones.
const KEEP: Duration = Duration::from_secs(5);

/// How long reading them may take: a provider may have to ask another machine.
const LIMIT: Duration = Duration::from_secs(5);

thread_local! {
    static KEPT: RefCell<Option<(Instant, Rc<Settings>)>> = const { RefCell::new(None) };
    /// The last value that was read, for answers that say why the settings cannot be read.
    static CORS: RefCell<Cors> = const { RefCell::new(Cors::Nobody) };
}

/// # Errors
/// 503 if the variables cannot be read, 500 if one has a value that is not understood.
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
        unreadable()
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
    // With a digest there is something to go on with while the provider does not answer.
    token::BREAKER.share(settings.secrets.is_some());
    KEPT.set(Some((Instant::now(), settings.clone())));
    Ok(settings)
}

/// Which pages may read an answer, also one that says that the settings cannot be read or that another one of them is wrong.
pub async fn cors() -> Cors {
    match current().await {
        Ok(settings) => settings.cors.clone(),
        Err(_) => CORS.with_borrow(Cors::clone),
    }
}

pub fn unreadable() -> Problem {
    Problem::unavailable("The server cannot read its configuration at the moment. Try again.")
}

async fn read() -> Result<Variables, String> {
    let (public_url, shorten_access, allowed_origin, secrets_ttl, secrets_stale) = try_join5(
        variables::get("public_url"),
        variables::get("shorten_access"),
        variables::get("allowed_origin"),
        variables::get("secrets_ttl"),
        variables::get("secrets_stale"),
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
