//! `linksctl token`: prints the admin token, or replaces it.

use anyhow::ensure;

use links_base::layout::{ADMIN_TOKEN, Layout};
use links_base::privileges::require_root;
use links_config::admin_token::{make, read};
use links_config::check::Loaded;
use links_config::files::ConfigFiles;
use links_config::load::load_as_kept;
use links_config::runtime::{Origin, Service};

/// Prints the token alone to standard output, and notices to standard error. With `rotate` it makes a new token first.
///
/// # Errors
/// The same as for [`make`] and [`read`], or the token to rotate is a symbolic link.
pub fn show(layout: &Layout, rotate: bool) -> anyhow::Result<()> {
    if layout.is_host() {
        require_root()?;
    }
    let config = ConfigFiles::new(layout);
    if rotate {
        let path = layout.credential(ADMIN_TOKEN);
        ensure!(
            !path.is_symlink(),
            "{} is a symbolic link: change the token in the file that it points to",
            path.display()
        );
        make(&config)?;
    }
    println!("{}", read(&config)?);
    if rotate && layout.is_host() {
        eprintln!(
            "linksctl: the old token stays valid until the next `linksctl rollout`, which makes the instances use the new one"
        );
    }
    // An invalid configuration is no reason to fail: the token is printed already.
    if let Ok(loaded) = load_as_kept(&config)
        && let Some(url) = vault(&loaded)
    {
        eprintln!(
            "linksctl: the instances ask the Vault at {url} first; if it has an {ADMIN_TOKEN}, they use that one"
        );
    }
    Ok(())
}

/// The URL of the Vault that the runtime asks for variables before it uses the credentials, if there is one.
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
    use std::fs;

    use super::*;
    use links_config::admin_token::exists;

    #[test]
    fn a_dangling_symbolic_link_is_not_replaced_by_a_new_token() {
        let (_root, layout) = links_base::layout::temporary(&[Layout::credentials_dir]);
        let path = layout.credential(ADMIN_TOKEN);
        std::os::unix::fs::symlink("/run/vault-agent/admin_token", &path).unwrap();
        assert!(exists(&ConfigFiles::new(&layout)));
        let error = show(&layout, true).unwrap_err().to_string();
        assert!(error.contains("is a symbolic link"), "{error}");
        assert!(path.is_symlink());
    }

    #[test]
    fn the_vault_that_the_runtime_asks_first_is_found() {
        let (_root, layout) = links_base::layout::temporary(&[Layout::credentials_dir]);
        fs::write(layout.links_toml(), "").unwrap();
        make(&ConfigFiles::new(&layout)).unwrap();
        fs::write(layout.credential("vault_token"), "hvs.token\n").unwrap();
        let vault_of = |runtime: &str| {
            fs::write(layout.runtime_toml(), runtime).unwrap();
            vault(&load_as_kept(&ConfigFiles::new(&layout)).unwrap())
        };
        assert_eq!(vault_of(include_str!("../../../runtime.toml")), None);
        let runtime = "[[variables_provider]]\ntype = \"vault\"\nurl = \"http://127.0.0.1:8200\"\ntoken = \"credential:vault_token\"\nmount = \"m\"\n";
        assert_eq!(vault_of(runtime).as_deref(), Some("http://127.0.0.1:8200"));
    }
}
