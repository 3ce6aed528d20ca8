//! Decides which packages the repository will contain.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Serialize;

use crate::identity::{Arch, Identity};

/// A package, in the directory that `make deb` wrote or in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Package {
    pub path: PathBuf,
    /// The name of the file.
    pub name: String,
    #[serde(skip)]
    pub identity: Identity,
    /// The size in bytes.
    pub size: u64,
    /// The digest in lower-case hexadecimal.
    pub sha256: String,
}

/// The packages of the repository once it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The packages that the repository does not have yet.
    pub added: Vec<Package>,
    /// The packages that the repository has already, whatever their version.
    pub kept: Vec<Package>,
    pub architectures: BTreeSet<Arch>,
}

impl Plan {
    /// Adds the packages in `found` to those in `pool`.
    ///
    /// # Errors
    /// Fails if nothing is found, or if the repository has one of the packages with other contents: hosts and caches that
    /// have downloaded it would refuse the new one.
    pub fn make(found: Vec<Package>, pool: Vec<Package>) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !found.is_empty(),
            "there is no package to add; `make deb` writes one (--packages names another directory)"
        );
        let architectures = found.iter().chain(&pool).map(|package| package.identity.arch);
        let architectures = architectures.collect();
        let mut added: Vec<Package> = Vec::new();
        for package in found {
            match pool.iter().chain(&added).find(|old| old.name == package.name) {
                None => added.push(package),
                Some(old) if old.sha256 == package.sha256 => {}
                Some(old) => anyhow::bail!(
                    "{} differs from {}, which may be installed on hosts; publish it as a new version, or delete the old one \
                     if nobody has it",
                    package.path.display(),
                    old.path.display()
                ),
            }
        }
        Ok(Self {
            added,
            kept: pool,
            architectures,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn package(directory: &str, name: &str, sha256: &str) -> Package {
        Package {
            path: PathBuf::from(directory).join(name),
            name: name.to_owned(),
            identity: Identity::of_deb(name).unwrap(),
            size: 1,
            sha256: sha256.to_owned(),
        }
    }

    fn names(packages: &[Package]) -> Vec<&str> {
        packages.iter().map(|package| package.name.as_str()).collect()
    }

    #[test]
    fn old_versions_are_kept_and_new_ones_added() {
        let old = "links-shortener_0.1.0_amd64.deb";
        let new = ["links-shortener_0.2.0_amd64.deb", "links-shortener_0.2.0_arm64.deb"];
        let found = new.map(|name| package("packages", name, name)).to_vec();
        let plan = Plan::make(found, vec![package("pool", old, old)]).unwrap();
        assert_eq!(names(&plan.added), new);
        assert_eq!(names(&plan.kept), [old]);
        assert_eq!(plan.architectures, BTreeSet::from([Arch::Amd64, Arch::Arm64]));
    }

    #[test]
    fn a_package_that_is_there_already_is_not_added_again() {
        let name = "links-shortener_0.2.0_amd64.deb";
        let plan = Plan::make(vec![package("packages", name, "a")], vec![package("pool", name, "a")]).unwrap();
        assert!(plan.added.is_empty(), "{plan:?}");
        assert_eq!(names(&plan.kept), [name]);
    }

    #[test]
    fn a_published_version_never_changes_its_contents() {
        let name = "links-shortener_0.2.0_amd64.deb";
        let error = Plan::make(vec![package("packages", name, "a")], vec![package("pool", name, "b")]).unwrap_err();
        assert!(error.to_string().contains("packages/links-shortener_0.2.0"), "{error}");
    }

    #[test]
    fn a_package_in_two_directories_is_added_once_if_it_is_the_same() {
        let name = "links-shortener_0.2.0_amd64.deb";
        let found = |other| vec![package("one", name, "a"), package("two", name, other)];
        assert_eq!(Plan::make(found("a"), vec![]).unwrap().added.len(), 1);
        assert!(Plan::make(found("b"), vec![]).is_err());
    }

    #[test]
    fn a_repository_without_a_new_package_is_an_error() {
        let old = package("pool", "links-shortener_0.1.0_amd64.deb", "a");
        assert!(Plan::make(vec![], vec![old]).is_err());
    }
}
