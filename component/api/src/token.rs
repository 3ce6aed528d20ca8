//! The variable `admin_token`. It is read apart from the others, because every read may be a request to another machine.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use links_domain::age::Age;
use links_domain::secret::{Lifetime, Snapshot};
use links_platform::circuit_breaker::{CircuitBreaker, Memory};
use links_platform::{clock, local_store, log, random, variables};
use links_web::bearer::Access;
use links_web::problem::Problem;
use links_web::settings::unreadable;

const NAME: &str = "admin_token";

/// The key of the token's digest in the key-value store "local".
const KEY: &str = "links:secret:admin_token";

/// How long the token itself is cached if digests are not. An instance lives only a second longer than its last request, so
/// this matters only to busy instances.
const KEEP: Duration = Duration::from_secs(5);

/// How long the provider may take if there is no digest to fall back on.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long the provider may take if there is a digest to fall back on.
const SHORT_TIMEOUT: Duration = Duration::from_secs(2);

thread_local! {
    static TOKEN: RefCell<Option<(Instant, Access)>> = const { RefCell::new(None) };
    static SNAPSHOT: RefCell<Option<Snapshot>> = const { RefCell::new(None) };
    static OUTAGE: Memory = const { Memory::new(false) };
}

/// The circuit breaker of the provider. Instances share its state if digests are kept ([`crate::settings`]).
pub const BREAKER: CircuitBreaker = CircuitBreaker {
    name: "the provider of the variable admin_token",
    outage_key: "links:outage:admin_token",
    end_key: "links:outage-end:admin_token",
    pause: Duration::from_secs(3),
    peek_interval: Duration::ZERO,
    memory: &OUTAGE,
};

/// Access for those who have the token. `lifetime` is how long a digest of the token is used. With `None` no digest is kept,
/// and an instance asks the provider again after `KEEP`.
///
/// # Errors
/// Fails with 503 if the provider does not supply the token and there is no recent digest.
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
    let token = read(TIMEOUT).await.ok_or_else(unreadable)?;
    let access = Access::token(&token);
    TOKEN.set(Some((Instant::now(), access.clone())));
    Ok(access)
}

async fn by_digest(lifetime: &Lifetime) -> Result<Access, Problem> {
    let now = clock::now();
    let age = |snapshot: &Snapshot| snapshot.age(now, lifetime);
    let mut snapshot = SNAPSHOT.with_borrow(|kept| *kept);
    if snapshot.is_none_or(|snapshot| age(&snapshot) != Age::Fresh) {
        // Another instance may have asked the provider meanwhile.
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
    match (read(if stale.is_some() { SHORT_TIMEOUT } else { TIMEOUT }).await, stale) {
        (Some(token), _) => {
            let salt = random::bytes().ok_or_else(unreadable)?;
            let snapshot = Snapshot {
                digest: Access::digest_of(&token, salt),
                asked_at: now,
            };
            local_store::set(KEY, &snapshot.encode()).await;
            Ok(keep(snapshot))
        }
        (None, Some(stale)) => Ok(Access::digest(stale.digest)),
        (None, None) => Err(unreadable()),
    }
}

fn keep(snapshot: Snapshot) -> Access {
    SNAPSHOT.set(Some(snapshot));
    Access::digest(snapshot.digest)
}

/// Reads the token from the provider. A failure is logged.
async fn read(timeout: Duration) -> Option<String> {
    let asked = Instant::now();
    let answer = clock::within(timeout, variables::get(NAME)).await;
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
