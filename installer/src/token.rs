//! The admin token: made once, kept where only root can read it, printed only when asked for.

use std::fs;

use anyhow::{Context as _, ensure};
use data_encoding::HEXLOWER;
use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::config::check::Loaded;
use crate::config::load::load_as_kept;
use crate::config::runtime::{Origin, Service};
use crate::files::{self, make_directory};
use crate::layout::{ADMIN_TOKEN, Layout};
use crate::privileges::require_root;

/// 256 bits; as hexadecimal it needs no quoting anywhere.
const BYTES: usize = 32;

/// Whether a person or a program has put something there: also a symbolic link to a file that is missing just now, as
/// Vault Agent's is while it does not run.
pub fn exists(layout: &Layout) -> bool {
    fs::symlink_metadata(layout.credential(ADMIN_TOKEN)).is_ok()
}

/// Makes a new token, in the place of an old one.
///
/// # Errors
/// The kernel gives no randomness, or the file cannot be written; an old token is then as it was.
pub fn make(layout: &Layout) -> anyhow::Result<()> {
    let mut random = [0; BYTES];
    SysRng
        .try_fill_bytes(&mut random)
        .context("Asking the kernel for randomness")?;
    make_directory(&layout.credentials_dir(), 0o700)?;
    files::replace(
        &layout.credential(ADMIN_TOKEN),
        format!("{}\n", HEXLOWER.encode(&random)).as_bytes(),
        0o600,
    )
}

/// # Errors
/// There is none, or it is not for this user to read.
pub fn read(layout: &Layout) -> anyhow::Result<String> {
    let path = layout.credential(ADMIN_TOKEN);
    let text = fs::read_to_string(&path).with_context(|| format!("Reading the admin token from {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// `linksctl token`: to standard output, the token alone.
///
/// # Errors
/// As [`make`] and [`read`].
pub fn show(layout: &Layout, rotate: bool) -> anyhow::Result<()> {
    if layout.is_host() {
        require_root()?;
    }
    if rotate {
        let path = layout.credential(ADMIN_TOKEN);
        ensure!(
            !path.is_symlink(),
            "{} is a symbolic link: whoever keeps the file behind it has to change the token",
            path.display()
        );
        make(layout)?;
    }
    println!("{}", read(layout)?);
    if rotate && layout.is_host() {
        eprintln!(
            "linksctl: the instances take the new token from the next `linksctl rollout` on; until then the old one counts"
        );
    }
    // Whatever is wrong with the configuration, the token is what was asked for.
    if let Ok(loaded) = load_as_kept(layout)
        && let Some(url) = vault(&loaded)
    {
        eprintln!("linksctl: the Vault at {url} is asked first: where it has an {ADMIN_TOKEN}, that one counts");
    }
    Ok(())
}

/// Where the runtime asks for variables before it looks at the credentials.
fn vault(loaded: &Loaded) -> Option<String> {
    loaded
        .providers()
        .into_iter()
        .find_map(|provider| match provider.service {
            Service::Vault { url, .. } if url.origin == Origin::Written => Some(url.value),
            Service::Vault { .. } => Some("runtime.toml's URL".to_owned()),
            _ => None,
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_long_private_and_new_each_time() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        assert!(!exists(&layout));
        make(&layout).unwrap();
        let first = read(&layout).unwrap();
        assert!(
            first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{first}"
        );
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(layout.credential(ADMIN_TOKEN)), 0o600);
        assert_eq!(mode(layout.credentials_dir()), 0o700);
        make(&layout).unwrap();
        assert_ne!(read(&layout).unwrap(), first);
    }

    #[test]
    fn a_link_to_a_file_that_is_missing_just_now_is_no_reason_to_make_another_token() {
        let (_root, layout) = crate::layout::temporary(&[Layout::credentials_dir]);
        let path = layout.credential(ADMIN_TOKEN);
        std::os::unix::fs::symlink("/run/vault-agent/admin_token", &path).unwrap();
        assert!(exists(&layout));
        let error = show(&layout, true).unwrap_err().to_string();
        assert!(error.contains("is a symbolic link"), "{error}");
        assert!(path.is_symlink());
    }

    #[test]
    fn a_vault_that_is_asked_first_is_named() {
        let (_root, layout) = crate::layout::temporary(&[Layout::credentials_dir]);
        fs::write(layout.links_toml(), "").unwrap();
        make(&layout).unwrap();
        fs::write(layout.credential("vault_token"), "hvs.token\n").unwrap();
        let vault_of = |runtime: &str| {
            fs::write(layout.runtime_toml(), runtime).unwrap();
            vault(&load_as_kept(&layout).unwrap())
        };
        assert_eq!(vault_of(include_str!("../../runtime.toml")), None);
        let runtime = "[[variables_provider]]\ntype = \"vault\"\nurl = \"http://127.0.0.1:8200\"\ntoken = \"credential:vault_token\"\nmount = \"m\"\n";
        assert_eq!(vault_of(runtime).as_deref(), Some("http://127.0.0.1:8200"));
    }
}
