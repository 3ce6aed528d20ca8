//! The files that both packages install, as one table with the path, mode and source of each.

use std::path::{Path, PathBuf};

use super::bundle;
use links_base::layout::{self, Layout};
use links_base::programs;

/// The program that people run.
pub const LINKSCTL: &str = "linksctl";
/// The programs that linksctl runs.
pub const HELPERS: [&str; 5] = [
    programs::ACME,
    programs::AGENT,
    programs::BACKUP,
    programs::DATABASE,
    programs::RUN,
];

/// One file of the payload. The directories follow from the paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path below `/`, without a leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    pub source: Source,
    /// Whether people edit the file. dpkg and `install` keep an existing one.
    pub conffile: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of the repository that is compiled into this program, as its path and text.
    Repository(&'static str, &'static str),
    /// A document that is generated while packing.
    Made(Document),
    /// A file on the machine that packs.
    File(PathBuf),
    /// A file in the bundle, as its path there and what it is made from, in words.
    Bundle(String, String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Repository(path, _) => f.write_str(path),
            Self::Made(document) => write!(f, "{document}, generated while packing"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Bundle(_, origin) => f.write_str(origin),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    ManPage,
    /// The man page of links.toml.
    SettingsManPage,
    /// A links.toml with every key.
    SettingsExample,
    BashCompletion,
    ZshCompletion,
    Changelog,
}

impl std::fmt::Display for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ManPage => "manual page",
            Self::SettingsManPage => "manual page of links.toml",
            Self::SettingsExample => "documented links.toml",
            Self::BashCompletion => "completions for bash",
            Self::ZshCompletion => "completions for zsh",
            Self::Changelog => "CHANGELOG.md in Debian's format",
        })
    }
}

macro_rules! repository {
    ($path:literal) => {
        Source::Repository($path, include_str!(concat!("../../../", $path)))
    };
}

/// The whole payload, sorted by path. `programs` is the directory in which the programs were built.
pub fn table(bundle: &[bundle::Planned], programs: &Path, runtime_config: &Path) -> Vec<Entry> {
    let layout = Layout::new("");
    let at = |path: PathBuf| path.to_string_lossy().into_owned();
    let file = |path: &str, mode, source| Entry {
        path: path.to_owned(),
        mode,
        source,
        conffile: false,
    };
    let conffile = |path: PathBuf, source| Entry {
        path: at(path),
        mode: 0o644,
        source,
        conffile: true,
    };
    let doc = format!("usr/share/doc/{}", layout::PACKAGE);
    let mut entries = vec![
        conffile(layout.runtime_toml(), Source::File(runtime_config.to_owned())),
        conffile(layout.needrestart(), repository!("packaging/needrestart/links.conf")),
        file("usr/bin/linksctl", 0o755, Source::File(programs.join(LINKSCTL))),
        file(
            "usr/lib/systemd/system/links.service",
            0o644,
            repository!("systemd/links.service"),
        ),
        file(
            "usr/lib/systemd/system/links@.service",
            0o644,
            repository!("systemd/links@.service"),
        ),
        file(
            "usr/lib/systemd/system/links-recover.service",
            0o644,
            repository!("systemd/links-recover.service"),
        ),
        file(
            "usr/lib/systemd/system/links-tls.service",
            0o644,
            repository!("systemd/links-tls.service"),
        ),
        file(
            "usr/lib/systemd/system/links-tls.timer",
            0o644,
            repository!("systemd/links-tls.timer"),
        ),
        file(
            "usr/lib/systemd/system/links-backup.service",
            0o644,
            repository!("systemd/links-backup.service"),
        ),
        file(
            "usr/lib/systemd/system/links-backup.timer",
            0o644,
            repository!("systemd/links-backup.timer"),
        ),
        file(
            "usr/lib/systemd/system/nginx.service.d/10-links.conf",
            0o644,
            repository!("systemd/nginx.service.d/10-links.conf"),
        ),
        file(
            &at(layout.sysusers()),
            0o644,
            repository!("packaging/sysusers.d/links.conf"),
        ),
        file(
            &at(layout.tmpfiles()),
            0o644,
            repository!("packaging/tmpfiles.d/links.conf"),
        ),
        file(
            "usr/share/man/man1/linksctl.1.gz",
            0o644,
            Source::Made(Document::ManPage),
        ),
        file(
            "usr/share/man/man5/links.toml.5.gz",
            0o644,
            Source::Made(Document::SettingsManPage),
        ),
        file(
            &format!("{doc}/examples/links.toml"),
            0o644,
            Source::Made(Document::SettingsExample),
        ),
        file(
            "usr/share/bash-completion/completions/linksctl",
            0o644,
            Source::Made(Document::BashCompletion),
        ),
        file(
            "usr/share/zsh/vendor-completions/_linksctl",
            0o644,
            Source::Made(Document::ZshCompletion),
        ),
        file(&format!("{doc}/changelog.gz"), 0o644, Source::Made(Document::Changelog)),
        file(
            &format!("{doc}/copyright"),
            0o644,
            repository!("packaging/deb/copyright"),
        ),
        file(
            &format!("{doc}/cloudflare.txt"),
            0o644,
            repository!("packaging/nginx/cloudflare.txt"),
        ),
        file(
            &format!("{doc}/grafana-dashboard.json"),
            0o644,
            repository!("packaging/observability/grafana-dashboard.json"),
        ),
        file(
            &format!("{doc}/links.rules.yml"),
            0o644,
            repository!("packaging/observability/links.rules.yml"),
        ),
        file(
            &format!("usr/share/lintian/overrides/{}", layout::PACKAGE),
            0o644,
            repository!("packaging/deb/lintian-overrides"),
        ),
    ];
    entries.extend(HELPERS.map(|name| {
        file(
            &format!("usr/lib/links/bin/{name}"),
            0o755,
            Source::File(programs.join(name)),
        )
    }));
    entries.extend(bundle.iter().map(|planned| {
        let path = at(layout.bundle().join(&planned.path));
        let mode = if planned.executable { 0o755 } else { 0o644 };
        file(
            &path,
            mode,
            Source::Bundle(planned.path.clone(), planned.origin.clone()),
        )
    }));
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    entries
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::item::Digests;
    use super::*;

    fn planned(path: &str, executable: bool) -> bundle::Planned {
        bundle::Planned {
            path: path.to_owned(),
            executable,
            origin: "somewhere".to_owned(),
        }
    }

    fn entries() -> Vec<Entry> {
        table(
            &[planned("spin.toml", false), planned("runtime/spin", true)],
            Path::new("/build"),
            Path::new("runtime.toml"),
        )
    }

    #[test]
    fn programs_are_executable_and_nothing_else_is() {
        let executable: Vec<_> = entries()
            .into_iter()
            .filter(|entry| entry.mode & 0o111 != 0)
            .map(|entry| entry.path)
            .collect();
        assert_eq!(
            executable,
            [
                "usr/bin/linksctl",
                "usr/lib/links/bin/links-acme",
                "usr/lib/links/bin/links-agent",
                "usr/lib/links/bin/links-backup",
                "usr/lib/links/bin/links-db",
                "usr/lib/links/bin/links-run",
                "usr/lib/links/bundle/runtime/spin"
            ]
        );
    }

    #[test]
    fn files_that_only_people_edit_are_conffiles_and_nothing_else_is() {
        let conffiles: Vec<_> = entries()
            .into_iter()
            .filter(|entry| entry.conffile)
            .map(|entry| entry.path)
            .collect();
        assert_eq!(
            conffiles,
            ["etc/links/runtime.toml", "etc/needrestart/conf.d/links.conf"]
        );
        assert!(
            entries()
                .iter()
                .all(|entry| entry.conffile == entry.path.starts_with("etc/"))
        );
    }

    #[test]
    fn the_table_is_sorted_and_names_each_path_once() {
        let paths: Vec<_> = entries().into_iter().map(|entry| entry.path).collect();
        assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
    }

    /// While the package's own conffile stays the same, dpkg does not ask about an edited one. links.toml was a conffile in
    /// version 0.1.0 and is not one since 0.2.0; dpkg keeps the file.
    #[test]
    fn conffiles_are_those_of_version_0_1_0() {
        let of_0_1_0 = [
            (
                "etc/links/runtime.toml",
                "57467b4f25ae698958ebd2a815ebc2f33fd52e5f1a6af38c18b0592e7b728661",
            ),
            (
                "etc/needrestart/conf.d/links.conf",
                "ed67797ec732756468bdd34a75f3d03c07be1f7d6b35058e8b1b5c5cb1ebbf30",
            ),
        ];
        let conffiles: Vec<_> = table(&[], Path::new(""), Path::new("../../runtime.toml"))
            .into_iter()
            .filter(|entry| entry.conffile)
            .map(|entry| {
                let bytes = match entry.source {
                    Source::Repository(_, text) => text.as_bytes().to_vec(),
                    Source::File(path) => std::fs::read(path).unwrap(),
                    Source::Made(_) | Source::Bundle(..) => vec![],
                };
                (entry.path, Digests::of_bytes(&bytes).sha256)
            })
            .collect();
        let conffiles: Vec<_> = conffiles
            .iter()
            .map(|(path, sha256)| (path.as_str(), sha256.as_str()))
            .collect();
        assert_eq!(conffiles, of_0_1_0);
    }

    /// tmpfiles.d, sysusers.d and the maintainer scripts repeat paths that layout.rs defines.
    #[test]
    fn packaging_files_agree_with_the_layout() {
        let tmpfiles = include_str!("../../../packaging/tmpfiles.d/links.conf");
        let layout = Layout::new("/");
        for dir in [
            layout.credentials_dir(),
            layout.links_toml_d(),
            layout.state_dir(),
            layout.data_dir(),
            layout.releases_dir(),
            layout.instances_dir(),
            layout.journal_dir(),
            layout.agent_dir(),
            layout.cache_dir(),
            layout.run_dir(),
            layout.ready_dir(),
            layout.limits_dir(),
            layout.metrics_dir(),
            layout.fallback_credentials_base(),
            layout.tls_dir(),
            layout.tls_challenges_dir(),
        ] {
            let line = format!("d {} ", dir.display());
            assert!(tmpfiles.lines().any(|found| found.starts_with(&line)), "{line}");
        }
        let journal = format!("f {} 0660 - {} -", layout.journal().display(), layout::USER);
        assert!(tmpfiles.lines().any(|line| line == journal), "{journal}");
        let keepalive = format!("f {} 0644 root root -", layout.keepalive_flag().display());
        assert!(tmpfiles.lines().any(|line| line == keepalive), "{keepalive}");
        let sysusers = include_str!("../../../packaging/sysusers.d/links.conf");
        for user in [layout::USER, layout::ACME_USER] {
            let line = format!("u {user} - ");
            assert!(sysusers.lines().any(|found| found.starts_with(&line)), "{line}");
        }
        let postrm = include_str!("../../../packaging/deb/postrm");
        for path in [
            layout.config_dir(),
            layout.state_dir(),
            layout.cache_dir(),
            layout.run_dir(),
            layout.nginx_site_available(),
            layout.nginx_site_enabled(),
            layout.service_wants_dir(),
            layout.instances_network(),
            layout.agent_network(),
            layout.backup_timer_enabled(),
        ] {
            let path = path.display().to_string();
            assert!(postrm.split_whitespace().any(|word| word == path), "{path}");
        }
        assert!(postrm.contains(&format!(".target.wants/{}\n", layout::SERVICE)));
        assert!(postrm.contains(&format!("for user in {} {};", layout::USER, layout::ACME_USER)));
        assert!(postrm.contains(&format!("--canonicalize {})", layout.links_toml().display())));
    }
}
