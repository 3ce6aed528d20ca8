//! The version and architecture of the packages, and the file names that follow from them.

use links_base::layout;

/// The architectures that both Debian and the Spin releases support.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// Converts Rust's name of an architecture, as in [`std::env::consts::ARCH`].
    ///
    /// # Errors
    /// Fails for an architecture without packages.
    pub fn from_rust(name: &str) -> anyhow::Result<Self> {
        match name {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => anyhow::bail!("packing on {other} is not supported; pack on an x86_64 or aarch64 machine"),
        }
    }

    /// The value of `e_machine` in a program of this architecture (elf(5)).
    pub fn elf_machine(self) -> u16 {
        match self {
            Self::Amd64 => elf::abi::EM_X86_64,
            Self::Arm64 => elf::abi::EM_AARCH64,
        }
    }

    /// Debian's name of the architecture.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub version: String,
    pub arch: Arch,
}

impl Identity {
    /// Checks the version.
    ///
    /// # Errors
    /// Fails for a version that Debian would refuse (deb-version(7)) or that cannot be part of a file name. A hyphen is refused
    /// as well: it would start a Debian revision, and `1.0.0-rc1` would sort after `1.0.0`.
    pub fn new(version: &str, arch: Arch) -> anyhow::Result<Self> {
        anyhow::ensure!(
            version.starts_with(|c: char| c.is_ascii_digit())
                && version
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '~')),
            "{version:?} is not a valid package version: a version starts with a digit and consists of letters, digits, \
             `.`, `+` and `~` (a pre-release is written 1.0.0~rc1, which sorts before 1.0.0)"
        );
        Ok(Self {
            version: version.to_owned(),
            arch,
        })
    }

    /// The identity of the package in a file with this name, if the name is one of [`Identity::deb_name`].
    pub fn of_deb(name: &str) -> Option<Self> {
        let (package, rest) = name.strip_suffix(".deb")?.split_once('_')?;
        let (version, arch) = rest.rsplit_once('_')?;
        let arch = [Arch::Amd64, Arch::Arm64]
            .into_iter()
            .find(|known| known.debian() == arch)?;
        let identity = Self::new(version, arch).ok()?;
        (package == layout::PACKAGE).then_some(identity)
    }

    pub fn deb_name(&self) -> String {
        format!("{}_{}_{}.deb", layout::PACKAGE, self.version, self.arch.debian())
    }

    pub fn tarball_name(&self) -> String {
        format!("{}.tar.gz", self.top_directory())
    }

    /// The only top-level directory in the tarball.
    pub fn top_directory(&self) -> String {
        format!("links-{}-{}", self.version, self.arch.debian())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_version_and_architecture() {
        let identity = Identity::new("0.1.0", Arch::from_rust("x86_64").unwrap()).unwrap();
        assert_eq!(identity.deb_name(), "links-shortener_0.1.0_amd64.deb");
        assert_eq!(identity.tarball_name(), "links-0.1.0-amd64.tar.gz");
        assert_eq!(identity.top_directory(), "links-0.1.0-amd64");
        let arm = Identity::new("1.0.0~rc1", Arch::from_rust("aarch64").unwrap()).unwrap();
        assert_eq!(arm.deb_name(), "links-shortener_1.0.0~rc1_arm64.deb");
        for identity in [identity, arm] {
            assert_eq!(Identity::of_deb(&identity.deb_name()), Some(identity));
        }
    }

    #[test]
    fn other_files_are_not_packages() {
        for name in [
            "links-shortener_0.1.0_amd64.deb.new",
            "links-shortener_0.1.0_riscv64.deb",
            "links-shortener_1:0.1.0_amd64.deb",
            "links-shortener-dbg_0.1.0_amd64.deb",
            "links-0.1.0-amd64.tar.gz",
        ] {
            assert_eq!(Identity::of_deb(name), None, "{name}");
        }
    }

    #[test]
    fn an_invalid_package_version_is_refused() {
        for version in ["", "v1.0", "1.0-rc1", "1/0", "1 0", "1:1.0", "../1", "1.0\n", "é"] {
            assert!(Identity::new(version, Arch::Amd64).is_err(), "{version:?}");
        }
        assert!(Arch::from_rust("riscv64").is_err());
    }
}
