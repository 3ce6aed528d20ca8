//! The words of log lines that have no other form: no JSON, no exit status, no priority. Tests look for them only through
//! here, so that another wording changes one line.

/// What links-recover logs when it has undone a change of the nginx site.
pub const SITE_CUT_OFF: &str = "nginx site was cut off";
/// What the component logs when no provider has an admin token.
pub const NOBODY_MAY_USE_THE_API: &str = "nobody may use the API";

/// How the component begins the line that its settings of the cache are wrong.
pub const WITHOUT_CACHE: &str = "links: redirects go without";

const DOES_NOT_ANSWER: &str = " does not answer: ";
const ANSWERS_AGAIN: &str = " answers again: ";

/// The beginning of the report that `service`, by the end of its name, does not answer. The reason follows.
pub fn outage(service: &str) -> String {
    format!("{service}{DOES_NOT_ANSWER}")
}

/// How often a journal reports an outage of `service`.
pub fn outages(journal: &str, service: &str) -> usize {
    journal.matches(&outage(service)).count()
}

/// How often a journal reports the end of an outage of `service`.
pub fn recoveries(journal: &str, service: &str) -> usize {
    journal.matches(&format!("{service}{ANSWERS_AGAIN}")).count()
}

/// The seconds that a drain took, by the log of an instance.
pub fn drained_in(journal: &str) -> Option<f64> {
    journal.split("drained in ").nth(1)?.split(' ').next()?.parse().ok()
}
