//! Keeps links-acme from changing certificates while a backup reads them or a restore replaces them.

use std::time::Duration;

use anyhow::Context as _;

use links_base::files;
use links_base::layout::Layout;
use links_rollout::held_by;

/// Takes the lock of links-acme, and waits up to `timeout` for it. `None` if there is no directory with certificates.
///
/// # Errors
/// links-acme still holds it, or it cannot be created.
pub fn lock(layout: &Layout, timeout: Duration) -> anyhow::Result<Option<files::Lock>> {
    if !layout.tls_dir().exists() {
        return Ok(None);
    }
    let path = layout.tls_lock();
    let lock = files::lock_within(&path, 0o600, &std::process::id().to_string(), timeout)?;
    lock.map(Some).with_context(|| {
        format!(
            "process {} is getting certificates at the moment: try again when it has ended",
            held_by(&path).unwrap_or_default()
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::temporary;

    #[test]
    fn certificates_are_not_read_while_links_acme_writes_them() {
        let (_root, layout) = temporary(&[Layout::state_dir]);
        assert!(lock(&layout, Duration::ZERO).unwrap().is_none());
        files::make_directory(&layout.tls_dir(), 0o755).unwrap();
        let acme = lock(&layout, Duration::ZERO).unwrap();
        assert!(acme.is_some());
        assert!(lock(&layout, Duration::ZERO).is_err());
        drop(acme);
        assert!(lock(&layout, Duration::ZERO).unwrap().is_some());
    }
}
