//! The Debian packages that hold the shared libraries of a program, read from the program itself.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use elf::ElfBytes;
use elf::endian::AnyEndian;

use crate::identity::Arch;

/// Checks that a program is for this architecture. A script is for every one.
///
/// # Errors
/// Fails if it is for another one, or if the file is a damaged ELF file.
pub fn check_architecture(file: &[u8], arch: Arch) -> anyhow::Result<()> {
    if file.starts_with(b"\x7fELF") {
        let machine = ElfBytes::<AnyEndian>::minimal_parse(file)?.ehdr.e_machine;
        anyhow::ensure!(
            machine == arch.elf_machine(),
            "it is a program for {}, not for {}; build it again, or choose another --programs or --arch",
            elf::to_str::e_machine_to_human_str(machine).unwrap_or("another architecture"),
            arch.debian()
        );
    }
    Ok(())
}

/// The shared libraries that one or more programs need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The names in DT_NEEDED, for example `libc.so.6`.
    pub libraries: BTreeSet<String>,
    /// The newest `GLIBC_x.y` that a symbol requires.
    pub glibc: Option<(u32, u32)>,
}

impl Needs {
    /// Reads the needs of a program. A script or a statically linked program needs nothing.
    ///
    /// # Errors
    /// Fails if the file is a damaged ELF file.
    pub fn of(file: &[u8]) -> anyhow::Result<Self> {
        let mut needs = Self::default();
        if !file.starts_with(b"\x7fELF") {
            return Ok(needs);
        }
        let elf = ElfBytes::<AnyEndian>::minimal_parse(file)?;
        let common = elf.find_common_data()?;
        if let (Some(dynamic), Some(names)) = (common.dynamic, common.dynsyms_strs) {
            for entry in dynamic.iter().filter(|entry| entry.d_tag == elf::abi::DT_NEEDED) {
                let name = names.get(usize::try_from(entry.d_val())?)?;
                needs.libraries.insert(name.to_owned());
            }
        }
        if let (Some(symbols), Some(versions)) = (common.dynsyms, elf.symbol_version_table()?) {
            for index in 0..symbols.len() {
                let needed = versions.get_requirement(index)?.and_then(|needed| glibc(needed.name));
                needs.glibc = needs.glibc.max(needed);
            }
        }
        Ok(needs)
    }

    pub fn and(mut self, other: Self) -> Self {
        self.libraries.extend(other.libraries);
        self.glibc = self.glibc.max(other.glibc);
        self
    }

    /// The entries for `Depends:`.
    ///
    /// # Errors
    /// Fails if the package of a library is unknown: without the dependency the program would not start.
    pub fn packages(&self) -> anyhow::Result<Vec<String>> {
        let mut packages = BTreeMap::new();
        for library in &self.libraries {
            let (package, relation) = self.package(library).with_context(|| {
                format!("no Debian package is known for {library}; use a runtime that does not need this library")
            })?;
            packages.insert(package, relation);
        }
        Ok(packages
            .into_iter()
            .map(|(package, relation)| format!("{package}{relation}"))
            .collect())
    }

    fn package(&self, library: &str) -> Option<(&'static str, String)> {
        let plain = |package| Some((package, String::new()));
        match library {
            "libc.so.6"
            | "libm.so.6"
            | "libdl.so.2"
            | "libpthread.so.0"
            | "librt.so.1"
            | "libresolv.so.2"
            | "libutil.so.1"
            | "ld-linux-x86-64.so.2"
            | "ld-linux-aarch64.so.1" => {
                let relation = self
                    .glibc
                    .map_or_else(String::new, |(major, minor)| format!(" (>= {major}.{minor})"));
                Some(("libc6", relation))
            }
            "libgcc_s.so.1" => plain("libgcc-s1"),
            "libstdc++.so.6" => plain("libstdc++6"),
            "libz.so.1" => plain("zlib1g"),
            // Debian 13 renamed the package for the 64-bit time_t.
            "libssl.so.3" | "libcrypto.so.3" => plain("libssl3 | libssl3t64"),
            _ => None,
        }
    }
}

/// Reads `GLIBC_2.34` as (2, 34). `GLIBC_PRIVATE` and `GLIBC_ABI_...` are not versions.
fn glibc(name: &str) -> Option<(u32, u32)> {
    let (major, minor) = name.strip_prefix("GLIBC_")?.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn this_program_needs_the_libc_version_that_its_symbols_name() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = Needs::of(&file).unwrap();
        assert!(needs.libraries.contains("libc.so.6"), "{needs:?}");
        assert!(needs.glibc >= Some((2, 17)), "{needs:?}");
        let (major, minor) = needs.glibc.unwrap();
        let packages = needs.packages().unwrap();
        assert!(
            packages.contains(&format!("libc6 (>= {major}.{minor})")),
            "{packages:?}"
        );
    }

    #[test]
    fn a_program_of_another_architecture_is_refused() {
        let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let own = Arch::from_rust(std::env::consts::ARCH).unwrap();
        let other = if own == Arch::Amd64 { Arch::Arm64 } else { Arch::Amd64 };
        check_architecture(&file, own).unwrap();
        let error = check_architecture(&file, other).unwrap_err().to_string();
        assert!(error.contains(other.debian()), "{error}");
        check_architecture(b"#!/bin/sh\n", other).unwrap();
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(glibc("GLIBC_2.9"), Some((2, 9)));
        assert_eq!(glibc("GLIBC_2.2.5"), Some((2, 2)));
        assert!(glibc("GLIBC_2.34") > glibc("GLIBC_2.9"));
        assert_eq!(glibc("GLIBC_PRIVATE"), None);
        assert_eq!(glibc("GCC_3.0"), None);
    }

    #[test]
    fn merged_needs_name_each_package_once() {
        let needs = |libraries: &[&str], glibc| Needs {
            libraries: libraries.iter().map(|&l| l.to_owned()).collect(),
            glibc,
        };
        let both = needs(&["libc.so.6", "libm.so.6"], Some((2, 34)))
            .and(needs(&["libgcc_s.so.1", "libssl.so.3", "libcrypto.so.3"], Some((2, 9))));
        assert_eq!(
            both.packages().unwrap(),
            ["libc6 (>= 2.34)", "libgcc-s1", "libssl3 | libssl3t64"]
        );
        let unknown = needs(&["libodd.so.1"], None);
        assert!(unknown.packages().unwrap_err().to_string().contains("libodd.so.1"));
    }

    #[test]
    fn a_script_needs_nothing_and_a_damaged_program_is_an_error() {
        assert_eq!(Needs::of(b"#!/bin/sh\n").unwrap(), Needs::default());
        assert!(Needs::of(b"\x7fELF\x02\x01").is_err());
    }
}
