//! Log texts that tests match because no JSON, exit status or priority carries the information.

/// What a failed or interrupted rollout reports if everything was undone without an error.
pub const UNDONE: &str = "every instance is back";
/// What links-recover logs when it has undone a change of the nginx site.
pub const SITE_CUT_OFF: &str = "nginx site was cut off";
/// What links-host logs when its address space allows fewer instances of components than usual.
pub const FEWER_INSTANCES: &str = "instances of components exist at once instead of";
/// What the component logs when no provider has an admin token.
pub const NOBODY_MAY_USE_THE_API: &str = "nobody may use the API";

/// How the component begins the line that its settings of the cache are wrong.
pub const WITHOUT_CACHE: &str = "links: redirects go without";

/// The report that the contents of `file`, by the end of its path, are not those that the manifest of the release describes.
pub fn damaged(file: &str) -> String {
    format!("{file} differs from the manifest")
}

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
