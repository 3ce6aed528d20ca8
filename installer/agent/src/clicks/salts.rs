//! The salts of the visitors' hashes. They are kept on the disk, so that a visitor counts once a day across restarts.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use rand::TryRng as _;
use rand::rngs::SysRng;

use links_base::files;
use links_base::layout::Layout;

/// The key of a day's visitor hash.
pub type Salt = [u8; 16];

/// A new salt.
///
/// # Errors
/// Fails if the kernel provides no random bytes.
pub fn random() -> io::Result<Salt> {
    let mut salt = Salt::default();
    SysRng.try_fill_bytes(&mut salt).map_err(io::Error::other)?;
    Ok(salt)
}

/// The salts by day. Salts that cannot be read are replaced by new ones. Then some of today's visitors count twice.
pub fn load(layout: &Layout) -> BTreeMap<u32, Salt> {
    let salts = fs::read(layout.visitor_salts()).ok();
    salts
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// Saves the salts.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn save(layout: &Layout, salts: &BTreeMap<u32, Salt>) -> anyhow::Result<()> {
    files::replace(&layout.visitor_salts(), &serde_json::to_vec(salts)?, 0o600)
}
