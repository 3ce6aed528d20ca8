//! The variable `admin_token`: whoever has it may shorten. It is read by itself, because its provider may be another
//! machine, which every reading asks.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use links_core::access::Access;
use links_core::age::Age;
use links_core::problem::Problem;
use links_core::secret::{Bounds, Known};

use crate::outage::Service;
use crate::{clock, local, log, random, variable};

const NAME: &str = "admin_token";

/// Where its digest is kept, in the key-value store "local".
const KEY: &str = "links:secret:admin_token";

/// How long the token itself is kept where nothing is said about it. An instance lives a second longer than its last
/// request, so this is for busy ones.
const KEEP: Duration = Duration::from_secs(5);

/// How long the provider may take if nothing can be done without it, and if there is a digest to go on with.
const LIMIT: Duration = Duration::from_secs(5);
const SHORT_LIMIT: Duration = Duration::from_secs(2);

thread_local! {
    static TOKEN: RefCell<Option<(Instant, Access)>> = const { RefCell::new(None) };
    static DIGEST: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// Who may shorten, where a token is asked for.
///
/// # Errors
/// 503 if the provider does not give it, and nothing is known of it that is young enough.
pub async fn current(bounds: Option<&Bounds>) -> Result<Access, Problem> {
    match bounds {
        None => by_token().await,
        Some(bounds) => by_digest(bounds).await,
    }
}

async fn by_token() -> Result<Access, Problem> {
    let kept = TOKEN.with_borrow(|kept| kept.clone());
    if let Some((_, access)) = kept.filter(|(since, _)| since.elapsed() < KEEP) {
        return Ok(access);
    }
    let access = Access::token(&ask(LIMIT).await.map_err(|Silent| unavailable())?);
    TOKEN.set(Some((Instant::now(), access.clone())));
    Ok(access)
}

async fn by_digest(bounds: &Bounds) -> Result<Access, Problem> {
    let now = clock::now();
    let age = |known: &Known| known.age(now, bounds);
    let mut known = DIGEST.with_borrow(|kept| *kept);
    if known.is_none_or(|known| age(&known) != Age::Fresh) {
        // Another instance may have asked meanwhile.
        let shared = local::get(KEY).await;
        known = shared.as_deref().and_then(Known::decode).or(known);
    }
    let spare = match known.map(|known| (age(&known), known)) {
        Some((Age::Fresh, known)) => return Ok(keep(known)),
        Some((Age::Stale, known)) => Some(known),
        Some((Age::Gone, _)) | None => None,
    };
    if let Some(spare) = spare
        && Service::Provider.rests().await
    {
        return Ok(Access::digest(spare.digest));
    }
    match (ask(if spare.is_some() { SHORT_LIMIT } else { LIMIT }).await, spare) {
        (Ok(token), _) => {
            let salt = random::salt().map_err(|error| {
                log::line("no random numbers from the runtime", error);
                unavailable()
            })?;
            let known = Known {
                digest: Access::to_keep(&token, salt),
                asked_at: now,
            };
            local::set(KEY, &known.encode()).await;
            Ok(keep(known))
        }
        (Err(Silent), Some(spare)) => Ok(Access::digest(spare.digest)),
        (Err(Silent), None) => Err(unavailable()),
    }
}

fn keep(known: Known) -> Access {
    DIGEST.set(Some(known));
    Access::digest(known.digest)
}

/// The provider did not give the token; the operator has been told.
struct Silent;

async fn ask(limit: Duration) -> Result<String, Silent> {
    let asked = Instant::now();
    let answer = clock::within(limit, variable::get(NAME)).await;
    match answer.unwrap_or_else(|| Err(format!("{NAME}: no answer in time"))) {
        Ok(token) => {
            Service::Provider.answered(asked.elapsed()).await;
            if token.trim().is_empty() {
                log::line(
                    "nobody may shorten",
                    "no provider has a value of the variable admin_token",
                );
            }
            Ok(token)
        }
        Err(error) => {
            Service::Provider.failed(&error, asked.elapsed()).await;
            Err(Silent)
        }
    }
}

fn unavailable() -> Problem {
    Problem::unavailable("The server cannot read its configuration at the moment. Try again.")
}
