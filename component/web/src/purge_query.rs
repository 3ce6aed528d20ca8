//! The query by which an instance makes nginx forget a slug (see [`crate::purge::Remedy::Forget`]). It requests the slug from
//! nginx with this query. nginx passes the request to an instance, which answers that there is no such link.

use links_domain::slug::Slug;

use crate::proof::Proof;

/// How long a query is valid, in seconds.
const VALID: u64 = 10;

const PARAMETER: &str = "links-forget=";

/// The query for a slug, signed with nginx's secret, which only nginx and the instances have. `None` if there is no secret.
/// `now` is in Unix seconds.
pub fn sign(proof: &Proof, slug: &Slug, now: i64) -> Option<String> {
    let signature = proof.sign(&format!("{slug} {now}"))?;
    Some(format!("{PARAMETER}{now}.{signature}"))
}

/// Whether a query claims to be one of these, so that it has to be checked by [`is_valid`].
pub fn is_claimed(query: &str) -> bool {
    query.starts_with(PARAMETER)
}

pub fn is_valid(proof: &Proof, slug: &Slug, query: &str, now: i64) -> bool {
    let claim = query.strip_prefix(PARAMETER).and_then(|claim| claim.split_once('.'));
    claim.is_some_and(|(signed_at, signature)| {
        let age = signed_at.parse().map(|signed_at: i64| now.abs_diff(signed_at));
        age.is_ok_and(|age| age <= VALID) && proof.has_signed(&format!("{slug} {signed_at}"), signature)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const NOW: i64 = 1_767_225_600;

    #[test]
    fn only_an_instance_can_make_nginx_forget_a_slug() {
        let proof = Proof::of("s3cret");
        let [abc, other] = ["abc", "abd"].map(|slug| Slug::in_path(slug).unwrap());
        let query = sign(&proof, &abc, NOW).unwrap();
        assert!(is_claimed(&query) && is_valid(&proof, &abc, &query, NOW));
        assert!(is_valid(&proof, &abc, &query, NOW + 10) && is_valid(&proof, &abc, &query, NOW - 1));
        for (proof, slug, query, now) in [
            (proof, &other, query.as_str(), NOW),
            (proof, &abc, query.as_str(), NOW + 11),
            (Proof::of("s3cret2"), &abc, query.as_str(), NOW),
            (Proof::of(""), &abc, query.as_str(), NOW),
            (proof, &abc, "links-forget=", NOW),
            (proof, &abc, "links-forget=1767225600.", NOW),
            (proof, &abc, "links-forget=x.y", NOW),
            (proof, &abc, "", NOW),
        ] {
            assert!(!is_valid(&proof, slug, query, now), "{query} for {slug} at {now}");
        }
        assert_eq!(sign(&Proof::of(""), &abc, NOW), None);
        assert!(!is_claimed("a=b") && !is_claimed(""));
    }
}
