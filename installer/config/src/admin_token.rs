//! The admin token. It is created once, in a file that only root can read.

use std::fs;

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use rand::TryRng as _;
use rand::rngs::SysRng;

use super::files::ConfigFiles;
use links_base::files::{self, make_directory};
use links_base::layout::ADMIN_TOKEN;

/// Size of the token: 256 bits, written in hexadecimal, which needs no quoting anywhere.
const BYTES: usize = 32;

/// Whether there is a file or a symbolic link for the token. The link may dangle, as one to Vault Agent's file does while Vault
/// Agent is not running.
pub fn exists(config: &ConfigFiles) -> bool {
    fs::symlink_metadata(config.credential(ADMIN_TOKEN)).is_ok()
}

/// Creates a new token, which replaces an old one.
///
/// # Errors
/// The kernel returns no random bytes, or the file cannot be written. An old token is then unchanged.
pub fn make(config: &ConfigFiles) -> anyhow::Result<()> {
    let mut random = [0; BYTES];
    SysRng
        .try_fill_bytes(&mut random)
        .context("Asking the kernel for randomness")?;
    make_directory(&config.credentials_dir(), 0o700)?;
    files::replace(
        &config.credential(ADMIN_TOKEN),
        format!("{}\n", HEXLOWER.encode(&random)).as_bytes(),
        0o600,
    )
}

/// Reads the token.
///
/// # Errors
/// There is no token, or this user may not read it.
pub fn read(config: &ConfigFiles) -> anyhow::Result<String> {
    let path = config.credential(ADMIN_TOKEN);
    let text = fs::read_to_string(&path).with_context(|| format!("Reading the admin token from {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use links_base::layout::Layout;

    #[test]
    fn a_token_is_long_private_and_different_each_time() {
        let root = tempfile::tempdir().unwrap();
        let layout = ConfigFiles::new(&Layout::new(root.path()));
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
}
