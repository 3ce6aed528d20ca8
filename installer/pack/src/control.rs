//! The control archive of a Debian package.

use std::borrow::Cow;
use std::fmt::Write as _;

use anyhow::Context as _;

use super::archive::{Content, Member};
use super::identity::Identity;
use super::item::Item;

const TEMPLATE: &str = include_str!("../../../packaging/deb/control");
const SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("../../../packaging/deb/postinst")),
    ("prerm", include_str!("../../../packaging/deb/prerm")),
    ("postrm", include_str!("../../../packaging/deb/postrm")),
];

/// The members of control.tar for a package that contains `items` and depends on `libraries`.
///
/// # Errors
/// Fails if the template lacks a placeholder or has an unknown one.
pub fn members(identity: &Identity, items: &[Item], libraries: &[String]) -> anyhow::Result<Vec<Member>> {
    let mut members = vec![
        directory(),
        file("control", 0o644, control(identity, items, libraries)?),
        file("md5sums", 0o644, md5sums(items)),
        file("conffiles", 0o644, conffiles(items)),
    ];
    members.extend(SCRIPTS.map(|(name, text)| file(name, 0o755, text)));
    Ok(members)
}

fn directory() -> Member {
    Member {
        path: String::new(),
        mode: 0o755,
        content: Content::Directory,
    }
}

fn file(name: &str, mode: u32, text: impl Into<Cow<'static, str>>) -> Member {
    let bytes = match text.into() {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    };
    Member {
        path: name.to_owned(),
        mode,
        content: Content::Bytes(bytes),
    }
}

fn control(identity: &Identity, items: &[Item], libraries: &[String]) -> anyhow::Result<String> {
    let libraries: String = libraries.iter().map(|library| format!(", {library}")).collect();
    let mut text = TEMPLATE.to_owned();
    for (placeholder, value) in [
        ("@VERSION@", identity.version.as_str()),
        ("@ARCH@", identity.arch.debian()),
        ("@INSTALLED_SIZE@", &installed_size(items).to_string()),
        ("@LIBRARIES@", &libraries),
    ] {
        anyhow::ensure!(text.contains(placeholder), "packaging/deb/control has no {placeholder}");
        text = text.replace(placeholder, value);
    }
    anyhow::ensure!(
        !has_placeholder(&text),
        "packaging/deb/control has an unknown placeholder"
    );
    Ok(text)
}

/// Whether the text has an upper-case word between two at signs. The maintainer's address has only one at sign.
fn has_placeholder(text: &str) -> bool {
    text.split('@')
        .skip(1)
        .any(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
}

/// The maintainer of the package as `Name <address>`, which the changelog repeats.
///
/// # Errors
/// Fails if the template has no such field.
pub fn maintainer() -> anyhow::Result<&'static str> {
    TEMPLATE
        .lines()
        .find_map(|line| line.strip_prefix("Maintainer: "))
        .context("packaging/deb/control has no Maintainer")
}

/// The installed size in KiB, as Debian Policy 5.6.20 and dpkg-gencontrol count it: the size of each file rounded up, and 1 for
/// each directory.
fn installed_size(items: &[Item]) -> u64 {
    items
        .iter()
        .map(|item| match item.content {
            Content::Directory => 1,
            _ => item.content.size().div_ceil(1024),
        })
        .sum()
}

/// The text of deb-md5sums(5). It omits configuration files, because dpkg keeps their digests itself.
fn md5sums(items: &[Item]) -> String {
    let mut text = String::new();
    for item in items.iter().filter(|item| !item.conffile) {
        if let Some(digests) = &item.digests {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}  {}", digests.md5, item.path);
        }
    }
    text
}

/// The text of deb-conffiles(5).
fn conffiles(items: &[Item]) -> String {
    items
        .iter()
        .filter(|item| item.conffile)
        .map(|item| format!("/{}\n", item.path))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::identity::Arch;
    use super::super::item::Digests;
    use super::*;

    fn items() -> Vec<Item> {
        let item = |path: &str, bytes: Option<Vec<u8>>, conffile| Item {
            path: path.to_owned(),
            mode: 0o644,
            conffile,
            digests: bytes.as_ref().map(|bytes| Digests::of_bytes(bytes)),
            content: bytes.map_or(Content::Directory, |bytes| Content::Bytes(bytes.into())),
        };
        vec![
            item("etc", None, false),
            item("etc/x.toml", Some(b"x".to_vec()), true),
            item("usr/y", Some(vec![0; 2000]), false),
        ]
    }

    fn text(members: &[Member], name: &str) -> String {
        let member = members.iter().find(|member| member.path == name).unwrap();
        match &member.content {
            Content::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn control_names_version_architecture_size_and_dependencies() {
        let identity = Identity::new("1.2.3", Arch::Arm64).unwrap();
        let members = members(&identity, &items(), &["libc6 (>= 2.34)".to_owned()]).unwrap();
        let control = text(&members, "control");
        for line in [
            "Package: links-shortener",
            "Version: 1.2.3",
            "Architecture: arm64",
            "Installed-Size: 4",
        ] {
            assert!(control.lines().any(|found| found == line), "{line}: {control}");
        }
        let depends = control.lines().find(|line| line.starts_with("Depends: ")).unwrap();
        assert!(
            depends.contains("nginx") && depends.ends_with(", libc6 (>= 2.34)"),
            "{depends}"
        );
        assert!(!has_placeholder(&control), "{control}");
        assert!(control.ends_with('\n'));
    }

    #[test]
    fn digests_cover_files_and_conffiles_name_configuration() {
        let identity = Identity::new("1.2.3", Arch::Amd64).unwrap();
        let members = members(&identity, &items(), &[]).unwrap();
        // head -c 2000 /dev/zero | md5sum
        assert_eq!(text(&members, "md5sums"), "cf40a1de3f93b4a025409b5efa5aa210  usr/y\n");
        assert_eq!(text(&members, "conffiles"), "/etc/x.toml\n");
    }

    #[test]
    fn scripts_are_executable_and_stop_at_the_first_error() {
        let identity = Identity::new("1.2.3", Arch::Amd64).unwrap();
        let members = members(&identity, &items(), &[]).unwrap();
        for (name, _) in SCRIPTS {
            let script = members.iter().find(|member| member.path == name).unwrap();
            assert_eq!(script.mode, 0o755, "{name}");
            let script = text(&members, name);
            assert!(
                script.starts_with("#!/bin/sh\n") && script.contains("\nset -e\n"),
                "{name}"
            );
        }
    }

    #[test]
    fn the_maintainer_has_a_name_and_an_address() {
        let maintainer = maintainer().unwrap();
        assert!(maintainer.contains(" <") && maintainer.ends_with('>'), "{maintainer}");
    }
}
