//! The variables of the API except the secrets, cached for a moment.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::try_join5;
use links_platform::{clock, log, variables};
use links_web::cors::Cors;
use links_web::problem::Problem;
use links_web::settings::{Settings, Variables, unreadable};

use crate::token;

/// How long values are cached. An instance lives only a second longer than its last request, so this matters only to busy
/// instances.
const KEEP: Duration = Duration::from_secs(5);

/// How long reading the variables may take. A provider may have to ask another machine.
const TIMEOUT: Duration = Duration::from_secs(5);

thread_local! {
    static KEPT: RefCell<Option<(Instant, Rc<Settings>)>> = const { RefCell::new(None) };
    /// The last value that was read, for the answers that report unreadable settings.
    static CORS: RefCell<Cors> = const { RefCell::new(Cors::Nobody) };
}

/// The settings, cached or read anew.
///
/// # Errors
/// Fails with 503 if the variables cannot be read, or with 500 if one of them has an invalid value.
pub async fn current() -> Result<Rc<Settings>, Problem> {
    let kept = KEPT.with_borrow(|kept| kept.clone());
    if let Some((_, settings)) = kept.filter(|(since, _)| since.elapsed() < KEEP) {
        return Ok(settings);
    }
    let variables = clock::within(TIMEOUT, read())
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
        log::line("invalid configuration", &invalid);
        Problem::new(
            500,
            format!("The server's configuration is invalid: {invalid}. Only its operator can fix that."),
        )
    })?;
    // Sharing pays only with digests: without them there is no fallback while the provider does not answer.
    token::BREAKER.share(settings.secrets.is_some());
    KEPT.set(Some((Instant::now(), settings.clone())));
    Ok(settings)
}

/// Which pages may read an answer. This works even for an answer that reports unreadable or invalid settings.
pub async fn cors() -> Cors {
    match current().await {
        Ok(settings) => settings.cors.clone(),
        Err(_) => CORS.with_borrow(Cors::clone),
    }
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
