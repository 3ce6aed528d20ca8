//! Gets the runtime to pack from where it was chosen to come from.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::bundle::Program;
use super::choice::Choice;
use super::download;
use super::interface::Interface;
use super::program::identify;
use super::release::{Release, unpack};
use links_base::emulator::Emulator;
use links_release::manifest::RuntimeKind;

/// The origin of a links-host that is packed for lack of a Spin.
const FALLBACK_ORIGIN: &str = "built with links-pack, because no Spin was available";

/// A runtime that is ready to be packed.
#[derive(Clone, Debug)]
pub struct Found {
    pub program: Program,
    pub executable: PathBuf,
    /// A notice for the user about the choice.
    pub notice: Option<String>,
}

/// Carries out the choice and asks the program for its version. A download is kept in `cache` and unpacked into `scratch`.
///
/// # Errors
/// Fails if the program is missing, is not executable, does not answer, or is neither a supported Spin nor a links-host. Fails
/// as well if the download was interrupted or has the wrong digest.
pub fn obtain(
    choice: &Choice,
    release: &Release,
    cache: &Path,
    scratch: &Path,
    emulator: &Emulator,
) -> anyhow::Result<Found> {
    let fallback = |path: &Path, why: &str| -> anyhow::Result<Found> {
        let program = identify(path, FALLBACK_ORIGIN, emulator)?;
        let notice = format!(
            "packing {} {} instead of Spin, because {why}. It serves the same components; to pack Spin, \
             give --runtime PATH or SPIN=PATH",
            program.kind, program.version
        );
        Ok(Found {
            program,
            executable: path.to_owned(),
            notice: Some(notice),
        })
    };
    match choice {
        Choice::Program { path, origin } => Ok(Found {
            program: identify(path, origin, emulator).with_context(|| format!("the runtime {origin}"))?,
            executable: path.clone(),
            notice: None,
        }),
        Choice::Fallback { path, why } => fallback(path, why),
        Choice::Release { otherwise } => match download::fetch(release, cache) {
            Ok(archive) => {
                let executable = scratch.join("spin");
                unpack(&archive, "spin", &executable)?;
                Ok(Found {
                    program: identify(&executable, &release.origin(), emulator)?,
                    executable,
                    notice: None,
                })
            }
            Err(download::Failure::Unreachable(error)) => match otherwise {
                Some(path) => fallback(
                    path,
                    &format!("{} cannot be reached ({error:#})", release.description()),
                ),
                None => Err(error.context(format!(
                    "{} cannot be reached, and there is no links-host beside links-pack; give --runtime PATH or \
                     SPIN=PATH, or build links-host (cargo build --release -p links-host)",
                    release.description()
                ))),
            },
            Err(download::Failure::Refused(error)) => Err(error),
        },
    }
}

/// The runtime that the choice leads to, for `--dry-run`. Nothing is downloaded.
///
/// # Errors
/// Fails like [`obtain`] for a program on this machine.
pub fn preview(choice: &Choice, release: &Release, emulator: &Emulator) -> anyhow::Result<Program> {
    let (path, origin) = match choice {
        Choice::Program { path, origin } => (path, *origin),
        Choice::Fallback { path, .. } => (path, FALLBACK_ORIGIN),
        Choice::Release { .. } => {
            return Ok(Program {
                kind: RuntimeKind::Spin,
                version: release.version.to_owned(),
                origin: release.origin(),
                interface: Interface::of(RuntimeKind::Spin, release.version)?,
                listens_on_sockets: false,
            });
        }
    };
    identify(path, origin, emulator).with_context(|| format!("the runtime {origin}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::program::tests::script;
    use super::*;

    #[test]
    fn an_unreachable_release_falls_back_with_a_notice_and_a_refused_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let host = script(dir.path(), "links-host", "echo links-host 0.1.0", 0o755);
        // Nothing listens on this port any more, so the connection is refused.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/spin.tar.gz", listener.local_addr().unwrap());
        drop(listener);
        let release = Release::at(url, "0".repeat(64));
        let choice = Choice::Release { otherwise: Some(host) };
        let found = obtain(
            &choice,
            &release,
            &dir.path().join("cache"),
            dir.path(),
            &Emulator::None,
        )
        .unwrap();
        assert_eq!(found.program.kind, RuntimeKind::LinksHost);
        let notice = found.notice.unwrap();
        assert!(
            notice.contains("links-host 0.1.0") && notice.contains("SPIN=PATH"),
            "{notice}"
        );
        let choice = Choice::Release { otherwise: None };
        let error = obtain(
            &choice,
            &release,
            &dir.path().join("cache"),
            dir.path(),
            &Emulator::None,
        )
        .unwrap_err();
        assert!(format!("{error:#}").contains("--runtime PATH"), "{error:#}");
    }
}
