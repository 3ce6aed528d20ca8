//! The release that a command means.

use std::path::Path;

use anyhow::{Context as _, ensure};

use crate::appliance::Appliance;
use links_release::Release;

/// The release with that name or at that path, which is then in the store. Without a name, the current release.
///
/// # Errors
/// There is no such release, or it is damaged.
pub fn choose(appliance: &Appliance, name: Option<&str>) -> anyhow::Result<Release> {
    let Some(name) = name else {
        return in_force(appliance);
    };
    if let Some(release) = in_store(appliance, name) {
        release.verify()?;
        return Ok(release);
    }
    let path = Path::new(name);
    ensure!(
        path.exists(),
        "{name} is neither a release in the store (`linksctl releases` lists them) nor a bundle, an unpacked tarball, \
         or a tarball"
    );
    appliance.store.remove_leftovers()?;
    appliance.store.import_from(path)
}

/// The release of the last successful rollout. Before the first rollout, the installed one.
///
/// # Errors
/// The release is damaged, or none is installed.
pub fn in_force(appliance: &Appliance) -> anyhow::Result<Release> {
    match appliance.state.current() {
        Some(current) => {
            let release = appliance.store.open(&current)?;
            appliance.store.compile(&release);
            Ok(release)
        }
        None => appliance.store.import(&appliance.bundle),
    }
}

/// The same release as [`choose`], for a dry run: nothing is imported or compiled.
///
/// # Errors
/// There is no such release.
pub fn preview(appliance: &Appliance, name: Option<&str>) -> anyhow::Result<Release> {
    match name {
        Some(name) => match in_store(appliance, name) {
            Some(release) => Ok(release),
            None => Release::open(Path::new(name)),
        },
        None => match appliance.state.current() {
            Some(current) => appliance.store.open(&current),
            None => Release::open(&appliance.bundle),
        },
    }
}

/// The release that ran before the current one.
///
/// # Errors
/// There is none, or it is damaged.
pub fn previous(appliance: &Appliance) -> anyhow::Result<Release> {
    let previous = appliance.state.previous();
    let previous = previous.context("there is no release to go back to: no other release has run here")?;
    choose(appliance, Some(&previous))
}

fn in_store(appliance: &Appliance, name: &str) -> Option<Release> {
    let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    is_name.then(|| appliance.store.open(name).ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::{Layout, temporary};
    use links_base::services::Services;
    use links_release::testing::bundle;

    #[test]
    fn a_dry_run_before_the_first_rollout_imports_nothing() {
        let (_root, layout) = temporary(&[Layout::bundle]);
        let installed = bundle(&layout.bundle(), b"").id;
        let appliance = Appliance::new(&layout, Services::nowhere());
        assert_eq!(preview(&appliance, None).unwrap().id, installed);
        assert_eq!(appliance.store.names().unwrap(), Vec::<String>::new());
        assert_eq!(choose(&appliance, None).unwrap().id, installed);
        assert_eq!(
            appliance.store.names().unwrap().as_slice(),
            std::slice::from_ref(&installed)
        );
        assert_eq!(preview(&appliance, Some(&installed)).unwrap().id, installed);
    }
}
