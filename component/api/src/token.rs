//! The variable `admin_token`. It is read by itself, because its provider may be another machine, which every reading asks.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use links_domain::age::Age;
use links_domain::secret::{Lifetime, Snapshot};
use links_platform::circuit_breaker::{CircuitBreaker, Memory};
use links_platform::{clock, local_store, log, random, variables};
use links_web::bearer::Access;
use links_web::problem::Problem;

use crate::settings;

const NAME: &str = "admin_token";

/// Its digest, in the key-value store "local".
const KEY: &str = "links:secret:admin_token";

/// How long the token itself is kept where no lifetime is set. An instance lives a second longer than its last request, so
/// this only matters to busy ones.
const KEEP: Duration = Duration::from_secs(5);

/// How long the provider may take without a digest to go on with, and with one.
const LIMIT: Duration = Duration::from_secs(5);
const SHORT_LIMIT: Duration = Duration::from_secs(2);

thread_local! {
    static TOKEN: RefCell<Option<(Instant, Access)>> = const { RefCell::new(None) };
    static SNAPSHOT: RefCell<Option<Snapshot>> = const { RefCell::new(None) };
    static OUTAGE: Memory = const { Memory::new(false) };
}

/// Whether the provider answers. Shared where digests are kept ([`settings`]).
pub const BREAKER: CircuitBreaker = CircuitBreaker {
    name: "the provider of the variable admin_token",
    outage_key: "links:outage:admin_token",
    end_key: "links:outage-end:admin_token",
    pause: Duration::from_secs(3),
    peek_interval: Duration::ZERO,
    memory: &OUTAGE,
};

/// Access by the token. `lifetime`: how long its digest is used; `None`: the provider is asked again each time.
///
/// # Errors
/// 503 if the provider does not give the token and there is no digest that is recent enough.
pub async fn access(lifetime: Option<&Lifetime>) -> Result<Access, Problem> {
    match lifetime {
        None => by_token().await,
        Some(lifetime) => by_digest(lifetime).await,
    }
}

async fn by_token() -> Result<Access, Problem> {
    let kept = TOKEN.with_borrow(|kept| kept.clone());
    if let Some((_, access)) = kept.filter(|(since, _)| since.elapsed() < KEEP) {
        return Ok(access);
    }
    let token = read(LIMIT).await.ok_or_else(settings::unreadable)?;
    let access = Access::token(&token);
    TOKEN.set(Some((Instant::now(), access.clone())));
    Ok(access)
}

async fn by_digest(lifetime: &Lifetime) -> Result<Access, Problem> {
    let now = clock::now();
    let age = |snapshot: &Snapshot| snapshot.age(now, lifetime);
    let mut snapshot = SNAPSHOT.with_borrow(|kept| *kept);
    if snapshot.is_none_or(|snapshot| age(&snapshot) != Age::Fresh) {
        // Another instance may have asked meanwhile.
        let shared = local_store::get(KEY).await;
        snapshot = shared.as_deref().and_then(Snapshot::decode).or(snapshot);
    }
    let stale = match snapshot.map(|snapshot| (age(&snapshot), snapshot)) {
        Some((Age::Fresh, snapshot)) => return Ok(keep(snapshot)),
        Some((Age::Stale, snapshot)) => Some(snapshot),
        Some((Age::Gone, _)) | None => None,
    };
    if let Some(stale) = stale
        && BREAKER.is_open().await
    {
        return Ok(Access::digest(stale.digest));
    }
    match (read(if stale.is_some() { SHORT_LIMIT } else { LIMIT }).await, stale) {
        (Some(token), _) => {
            let salt = random::bytes().ok_or_else(settings::unreadable)?;
            let snapshot = Snapshot {
                digest: Access::digest_of(&token, salt),
                asked_at: now,
            };
            local_store::set(KEY, &snapshot.encode()).await;
            Ok(keep(snapshot))
        }
        (None, Some(stale)) => Ok(Access::digest(stale.digest)),
        (None, None) => Err(settings::unreadable()),
    }
}

fn keep(snapshot: Snapshot) -> Access {
    SNAPSHOT.set(Some(snapshot));
    Access::digest(snapshot.digest)
}

/// `None`: the provider did not give the token, which is logged.
async fn read(limit: Duration) -> Option<String> {
    let asked = Instant::now();
    let answer = clock::within(limit, variables::get(NAME)).await;
    match answer.unwrap_or_else(|| Err(format!("{NAME}: no answer in time"))) {
        Ok(token) => {
            BREAKER.record_success(asked.elapsed()).await;
            if token.trim().is_empty() {
                log::line(
                    "nobody may use the API",
                    "no provider has a value of the variable admin_token",
                );
            }
            Some(token)
        }
        Err(error) => {
            BREAKER.record_failure(&error, asked.elapsed()).await;
            None
        }
    }
}
