//! What belongs to a backup besides the database: the administrator's files, and what root keeps for them.

use std::path::{Component, Path, PathBuf};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Public,
    /// Only root. It is in a backup that is encrypted, or if `--plain-secrets` says so.
    Secret,
}

/// A file or directory, below the root directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    pub path: PathBuf,
    pub is_secret: bool,
}

/// The administrator's directory.
pub const CONFIG: &str = "etc/links";
/// The certificates and the accounts at certificate authorities. It contains symbolic links.
pub const TLS: &str = "var/lib/links/tls";
/// The directories whose entries are replaced by a restore.
pub const BASES: [&str; 2] = [CONFIG, TLS];

/// The items that every version knows. A restore replaces the public ones even if the backup does not have them.
const KNOWN: [(&str, Class); 11] = [
    ("etc/links/links.toml", Class::Public),
    ("etc/links/links.toml.d", Class::Public),
    ("etc/links/runtime.toml", Class::Public),
    ("etc/links/nginx.d", Class::Public),
    ("etc/links/cloudflare.txt", Class::Public),
    ("etc/links/credentials", Class::Secret),
    ("var/lib/links/tls/accounts", Class::Secret),
    ("var/lib/links/tls/certificates", Class::Secret),
    ("var/lib/links/tls/files", Class::Secret),
    ("var/lib/links/tls/names", Class::Secret),
    ("var/lib/links/tls/live", Class::Secret),
];

/// The beginning of the names of directories with what a restore has replaced.
pub const REPLACED: &str = "replaced-";

/// The items of a host. `others` are the names of what else the administrator keeps in /etc/links, which may hold a secret.
pub fn items<'n>(others: impl IntoIterator<Item = &'n str>) -> Vec<Item> {
    let known = KNOWN.iter().map(|(path, class)| Item {
        path: PathBuf::from(path),
        is_secret: *class == Class::Secret,
    });
    let mut items: Vec<_> = known.collect();
    for name in others {
        let path = Path::new(CONFIG).join(name);
        // Hidden files are temporary ones of editors and of links.
        if !name.starts_with('.') && !name.starts_with(REPLACED) && items.iter().all(|item| item.path != path) {
            items.push(Item { path, is_secret: true });
        }
    }
    items
}

/// The item to which a path in a backup belongs. `None` if no backup may contain it.
pub fn item_of(path: &Path) -> Option<Item> {
    if !path
        .components()
        .all(|component| matches!(component, Component::Normal(_)))
    {
        return None;
    }
    let base = BASES.iter().find(|base| path.starts_with(base))?;
    let name = path.strip_prefix(base).ok()?.components().next()?;
    let item = Path::new(base).join(name);
    let name = name.as_os_str().to_str()?;
    let known = KNOWN.iter().find(|(known, _)| Path::new(known) == item);
    match known {
        Some((_, class)) => Some(Item {
            path: item,
            is_secret: *class == Class::Secret,
        }),
        None if *base == CONFIG => items([name]).into_iter().find(|found| found.path == item),
        None => None,
    }
}

/// Whether a symbolic link at `path` with this target stays within the directory of the certificates, whatever other links like
/// it are there. None of them may be above `path`.
pub fn is_inner_link(path: &Path, target: &Path) -> bool {
    let mut depth = match path.strip_prefix(TLS) {
        Ok(below) => below.components().count().saturating_sub(1),
        Err(_) => return false,
    };
    let mut has_name = false;
    for component in target.components() {
        match component {
            Component::Normal(_) => has_name = true,
            // Behind a name, which may be that of a link, `..` could lead anywhere.
            Component::ParentDir if depth > 0 && !has_name => depth -= 1,
            Component::CurDir => {}
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use links_base::layout::Layout;
    use links_config::files::ConfigFiles;

    use super::*;

    #[test]
    fn the_known_items_are_where_links_keeps_them() {
        let layout = Layout::new("/");
        let kept = [
            layout.links_toml(),
            layout.links_toml_d(),
            layout.runtime_toml(),
            layout.nginx_include_dir(),
            ConfigFiles::new(&layout).cloudflare(),
            layout.credentials_dir(),
            layout.tls_accounts_dir(),
            layout.tls_certificates_dir(),
            layout.tls_files_dir(),
            layout.tls_names_dir(),
            layout.tls_live_dir(),
        ];
        let known = KNOWN.iter().map(|(path, _)| Path::new("/").join(path));
        assert_eq!(known.collect::<BTreeSet<_>>(), BTreeSet::from(kept));
    }

    #[test]
    fn unknown_files_of_the_administrator_are_secret_and_copies_are_left_out() {
        let items = items([
            "links.toml",
            "variables.env",
            ".links.toml.swp",
            "replaced-20300317T174640Z",
        ]);
        let others: Vec<_> = items.iter().skip(KNOWN.len()).collect();
        assert_eq!(others.len(), 1);
        assert!(others[0].is_secret && others[0].path == Path::new("etc/links/variables.env"));
    }

    #[test]
    fn a_path_belongs_to_an_item_or_may_not_be_in_a_backup() {
        for (path, item, is_secret) in [
            ("etc/links/links.toml", "etc/links/links.toml", false),
            ("etc/links/nginx.d/a.conf", "etc/links/nginx.d", false),
            ("etc/links/credentials/admin_token", "etc/links/credentials", true),
            ("etc/links/other/deep/file", "etc/links/other", true),
            ("var/lib/links/tls/live/s.example", "var/lib/links/tls/live", true),
        ] {
            let found = item_of(Path::new(path));
            let expected = Item {
                path: item.into(),
                is_secret,
            };
            assert_eq!(found, Some(expected), "{path}");
        }
        for path in [
            "etc/links",
            "etc/passwd",
            "/etc/links/links.toml",
            "etc/links/../passwd",
            "etc/links/.hidden",
            "etc/links/replaced-1/links.toml",
            "etc/linksx/links.toml",
            "var/lib/links/tls/lock",
            "var/lib/links/data/links.db",
            "",
        ] {
            assert_eq!(item_of(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn a_link_stays_within_the_certificates() {
        let is_inner = |path: &str, target: &str| is_inner_link(Path::new(path), Path::new(target));
        assert!(is_inner("var/lib/links/tls/live/a", "../certificates/a/1"));
        assert!(is_inner("var/lib/links/tls/live/a", "b"));
        assert!(!is_inner("var/lib/links/tls/live/a", "../../data/links.db"));
        assert!(!is_inner("var/lib/links/tls/live/a", "/etc/passwd"));
        // If b leads to a directory that is less deep, b/../.. is outside.
        assert!(!is_inner("var/lib/links/tls/live/a", "b/.."));
        assert!(!is_inner("var/lib/links/tls/live/a", "../live/b/../../.."));
        assert!(!is_inner("etc/links/nginx.d/a", "b"));
    }
}
