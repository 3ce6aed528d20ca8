//! The admin token: made once, kept where only root can read it, printed only when asked for.

use std::fs;

use anyhow::Context as _;
use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::files;
use crate::install::make_directory;
use crate::layout::{ADMIN_TOKEN, Layout};
use crate::package::manifest::hex;

/// 256 bits; as hexadecimal it needs no quoting anywhere.
const BYTES: usize = 32;

pub fn exists(layout: &Layout) -> bool {
    layout.credential(ADMIN_TOKEN).exists()
}

/// Makes a new token, in the place of an old one.
///
/// # Errors
/// The kernel gives no randomness, or the file cannot be written; an old token is then as it was.
pub fn make(layout: &Layout) -> anyhow::Result<()> {
    let mut random = [0; BYTES];
    SysRng.try_fill_bytes(&mut random).context("Asking the kernel for randomness")?;
    make_directory(&layout.credentials_dir(), 0o700)?;
    files::replace(&layout.credential(ADMIN_TOKEN), format!("{}\n", hex(&random)).as_bytes(), 0o600)
}

/// # Errors
/// There is none, or it is not for this user to read.
pub fn read(layout: &Layout) -> anyhow::Result<String> {
    let path = layout.credential(ADMIN_TOKEN);
    let text = fs::read_to_string(&path).with_context(|| format!("Reading the admin token from {}", path.display()))?;
    Ok(text.trim_end().to_owned())
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
        assert!(first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit()), "{first}");
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(layout.credential(ADMIN_TOKEN)), 0o600);
        assert_eq!(mode(layout.credentials_dir()), 0o700);
        make(&layout).unwrap();
        assert_ne!(read(&layout).unwrap(), first);
    }
}
