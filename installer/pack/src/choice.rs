//! Chooses where the runtime comes from. [`super::source`] carries out the choice.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::program::{LINKS_HOST, check_executable};

/// The runtime that the command line requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Any,
    LinksHost,
    Program(PathBuf),
}

impl Wanted {
    /// From the value of `--runtime`.
    pub fn new(runtime: Option<&Path>) -> Self {
        match runtime {
            None => Self::Any,
            Some(word) if word == Path::new(LINKS_HOST) => Self::LinksHost,
            Some(path) => Self::Program(path.to_owned()),
        }
    }
}

/// What this machine offers to choose from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// `$SPIN`.
    pub spin_variable: Option<PathBuf>,
    pub spin_on_path: Option<PathBuf>,
    /// The links-host beside the programs to pack.
    pub links_host: Option<PathBuf>,
    /// Whether the pinned release has been downloaded before.
    pub release_cached: bool,
    /// Whether downloads are forbidden.
    pub offline: bool,
}

impl HostFacts {
    /// Gathers the facts about this machine. `programs` is the directory of the programs to pack, and `is_native` whether they
    /// are of this machine's architecture, as a Spin on PATH is.
    pub fn gather(offline: bool, release_cached: bool, programs: &Path, is_native: bool) -> Self {
        let path = std::env::var_os("PATH").filter(|_| is_native);
        Self {
            spin_variable: std::env::var_os("SPIN")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from),
            spin_on_path: path.and_then(|path| on_path(&path, "spin")),
            links_host: Some(programs.join(LINKS_HOST)).filter(|path| path.is_file()),
            release_cached,
            offline,
        }
    }
}

/// The first executable file of this name on PATH, as a shell would find it.
fn on_path(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(|file| check_executable(file).is_ok())
}

/// Where the runtime comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A program on this machine. `origin` is how it was found, in words.
    Program { path: PathBuf, origin: &'static str },
    /// The pinned Spin release, or this links-host if the release cannot be downloaded.
    Release { otherwise: Option<PathBuf> },
    /// links-host, because there is no Spin.
    Fallback { path: PathBuf, why: String },
}

/// Chooses the first of `--runtime`, `$SPIN`, `spin` on PATH, the pinned release and links-host.
///
/// # Errors
/// Fails if there is none of them. The message names the next step.
pub fn choose(wanted: &Wanted, facts: &HostFacts) -> anyhow::Result<Choice> {
    const BUILD: &str = "build it (cargo build --release -p links-host)";
    match wanted {
        Wanted::Program(path) => {
            return Ok(Choice::Program {
                path: path.clone(),
                origin: "given by --runtime",
            });
        }
        Wanted::LinksHost => {
            let path = facts
                .links_host
                .clone()
                .with_context(|| format!("--runtime links-host: there is no links-host beside links-pack; {BUILD}"))?;
            return Ok(Choice::Program {
                path,
                origin: "built with links-pack, chosen by --runtime",
            });
        }
        Wanted::Any => {}
    }
    if let Some(path) = &facts.spin_variable {
        return Ok(Choice::Program {
            path: path.clone(),
            origin: "given by $SPIN",
        });
    }
    if let Some(path) = &facts.spin_on_path {
        return Ok(Choice::Program {
            path: path.clone(),
            origin: "found on PATH",
        });
    }
    if facts.release_cached || !facts.offline {
        return Ok(Choice::Release {
            otherwise: facts.links_host.clone(),
        });
    }
    let why = "--offline was given, and there is no Spin in $SPIN, on PATH or in the cache".to_owned();
    match &facts.links_host {
        Some(path) => Ok(Choice::Fallback {
            path: path.clone(),
            why,
        }),
        None => {
            anyhow::bail!(
                "no runtime to pack: {why}, and there is no links-host beside links-pack; {BUILD}, or give --runtime"
            )
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::program::tests::script;
    use super::*;

    fn all_available() -> HostFacts {
        HostFacts {
            spin_variable: Some("/env/spin".into()),
            spin_on_path: Some("/path/spin".into()),
            links_host: Some("/beside/links-host".into()),
            release_cached: false,
            offline: false,
        }
    }

    fn chosen(wanted: &Wanted, facts: &HostFacts) -> String {
        match choose(wanted, facts) {
            Ok(Choice::Program { path, .. }) => path.display().to_string(),
            Ok(Choice::Release { otherwise }) => {
                format!("release, else {}", otherwise.unwrap_or_default().display())
            }
            Ok(Choice::Fallback { path, .. }) => format!("fallback to {}", path.display()),
            Err(error) => format!("error: {error:#}"),
        }
    }

    #[test]
    fn each_source_is_used_when_those_before_it_are_missing() {
        let mut facts = all_available();
        let given = Wanted::new(Some(Path::new("./links-host")));
        assert_eq!(chosen(&given, &facts), "./links-host");
        assert_eq!(chosen(&Wanted::Any, &facts), "/env/spin");
        facts.spin_variable = None;
        assert_eq!(chosen(&Wanted::Any, &facts), "/path/spin");
        facts.spin_on_path = None;
        assert_eq!(chosen(&Wanted::Any, &facts), "release, else /beside/links-host");
        facts.offline = true;
        assert_eq!(chosen(&Wanted::Any, &facts), "fallback to /beside/links-host");
        facts.release_cached = true;
        assert_eq!(chosen(&Wanted::Any, &facts), "release, else /beside/links-host");
        facts.release_cached = false;
        facts.links_host = None;
        assert!(chosen(&Wanted::Any, &facts).starts_with("error: no runtime to pack: --offline"));
    }

    #[test]
    fn the_word_links_host_means_the_one_beside_this_program() {
        let wanted = Wanted::new(Some(Path::new("links-host")));
        assert_eq!(wanted, Wanted::LinksHost);
        assert_eq!(chosen(&wanted, &all_available()), "/beside/links-host");
        let missing = chosen(
            &wanted,
            &HostFacts {
                links_host: None,
                ..all_available()
            },
        );
        assert!(missing.contains("cargo build"), "{missing}");
    }

    #[test]
    fn path_is_searched_in_order_for_an_executable() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["a", "b", "c"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        script(&dir.path().join("a"), "spin", "", 0o644);
        let second = script(&dir.path().join("b"), "spin", "", 0o755);
        script(&dir.path().join("c"), "spin", "", 0o755);
        let path = std::env::join_paths(["a", "b", "c"].map(|sub| dir.path().join(sub))).unwrap();
        assert_eq!(on_path(&path, "spin"), Some(second));
        assert_eq!(on_path(&path, "absent"), None);
    }
}
