//! `[tls]` in `links.toml.d/tls.toml`, the file that `linksctl tls` writes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::appliance::Appliance;
use crate::choice;
use crate::endpoints::Stage;
use crate::executor::install_site;
use crate::lock::LockWait;
use crate::report::Style;
use crate::session::Session;
use crate::settings_file::SettingsFile;
use links_config::files::ConfigFiles;
use links_config::links::{Config, Input, Tls, TlsMode, read_all};
use links_config::load::Invalid;
use links_edge::{Mode, Notices};

/// How long to wait for a rollout that is under way: longer than one takes in the worst case.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// The file before the first change.
const NEW: &str = include_str!("../../../packaging/links.toml.d/tls.toml");

/// A change of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsChange {
    pub file: SettingsFile,
    /// All settings after the change.
    pub config: Config,
}

impl TlsChange {
    /// Plans to put these settings into effect. `inputs` are the files with the settings, in the order in which they are read.
    ///
    /// # Errors
    /// A file that is read later sets one of these keys to something else, or the settings are invalid.
    pub fn plan(edited: &ConfigFiles, inputs: &[Input], tls: &Tls) -> anyhow::Result<Self> {
        let changed = SettingsFile::plan(edited.tls_toml(), inputs, NEW, |text| with_tls(text, tls))?;
        let file = changed.name();
        let reading = read_all(&changed.among(inputs));
        let config = reading.config.ok_or(Invalid(reading.findings))?;
        if in_use(&config.tls) != in_use(tls) {
            let by_others = reading
                .overrides
                .iter()
                .filter(|replacing| replacing.replaced.file == file);
            let places: Vec<_> = by_others
                .map(|replacing| format!("{} sets `{}`", replacing.position, replacing.key))
                .collect();
            bail!(
                "{file} would have no effect, because later files replace its settings: {}. Remove them there",
                places.join(", ")
            );
        }
        Ok(Self { file: changed, config })
    }
}

/// Writes the settings, and rolls them out. If that fails, the file and nginx's site are as before.
///
/// # Errors
/// nginx's configuration is broken, or the file cannot be written. For others see [`Session::bring_about`].
pub fn apply_tls(appliance: &Appliance, change: &TlsChange, style: Style) -> anyhow::Result<()> {
    let mut session = Session::begin(appliance, LockWait::Until(LOCK_TIMEOUT), style)?;
    // A rollout would only report it, and keep the site as it is.
    appliance.edge.check_nginx(&change.config)?;
    let release = choice::in_force(appliance)?;
    change.file.roll_out(&mut session, &release)
}

/// Writes the nginx site for `config` without changing what the instances run.
///
/// # Errors
/// The same as for [`links_edge::Edge::install`].
pub fn write_site(appliance: &Appliance, config: &Config, style: Style) -> anyhow::Result<Notices> {
    let _session = Session::begin(appliance, LockWait::Until(LOCK_TIMEOUT), style)?;
    install_site(appliance, config, Stage::Final, Mode::default())
}

/// The settings without those that have no effect: an earlier file may name certificates that are not used any more.
fn in_use(tls: &Tls) -> Tls {
    let mut tls = tls.clone();
    if tls.mode != TlsMode::Files {
        tls.certificate.clear();
        tls.key.clear();
    }
    tls
}

/// The text with these settings in `[tls]`, and everything else as it was.
///
/// # Errors
/// `text` is not TOML, or a path is not UTF-8.
fn with_tls(text: &str, tls: &Tls) -> anyhow::Result<String> {
    let mut document: DocumentMut = text.parse()?;
    let entry = document.entry("tls").or_insert(Item::Table(Table::new()));
    let table = entry.as_table_like_mut().context("`tls` is not a table")?;
    let mut set = |key: &str, new: Option<Item>| match (table.get_mut(key), new) {
        // Only the value: inserting the key again would lose the comment above it.
        (Some(Item::Value(before)), Some(Item::Value(mut new))) => {
            *new.decor_mut() = before.decor().clone();
            *before = new;
        }
        (_, Some(new)) => drop(table.insert(key, new)),
        (_, None) => drop(table.remove(key)),
    };
    set("mode", Some(value(tls.mode.word())));
    set("names", several(&tls.names));
    set("http", Some(value(tls.http.word())));
    set("hsts", Some(value(tls.hsts)));
    for (key, text) in [
        ("email", &tls.email),
        ("directory", &tls.directory),
        ("profile", &tls.profile),
        ("eab_kid", &tls.eab_kid),
    ] {
        set(key, text.as_ref().map(value));
    }
    for (key, path) in [("ca_file", &tls.ca_file), ("eab_key_file", &tls.eab_key_file)] {
        set(key, path.as_deref().map(utf8).transpose()?.map(value));
    }
    for (key, paths) in [("certificate", &tls.certificate), ("key", &tls.key)] {
        let paths: Vec<_> = paths.iter().map(|path| utf8(path)).collect::<anyhow::Result<_>>()?;
        set(key, several(&paths));
    }
    Ok(document.to_string())
}

/// An array. `None` if it would be empty, which no key allows.
fn several<S: AsRef<str>>(texts: &[S]) -> Option<Item> {
    let array: Array = texts.iter().map(AsRef::as_ref).collect();
    (!array.is_empty()).then(|| value(array))
}

fn utf8(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;

    use super::*;
    use links_base::layout::{Layout, temporary};
    use links_config::links::{PlainHttp, inputs};
    use links_config::load::load_links;
    use links_config::reader::Disk;

    fn acme(names: &[&str]) -> Tls {
        Tls {
            mode: TlsMode::Acme,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Tls::default()
        }
    }

    /// A host with these files in links.toml.d, and this links.toml.
    fn host(links_toml: &str, others: &[(&str, &str)]) -> (tempfile::TempDir, ConfigFiles) {
        let (root, layout) = temporary(&[Layout::config_dir]);
        let edited = ConfigFiles::new(&layout);
        fs::write(edited.links_toml(), links_toml).unwrap();
        for (name, text) in others {
            fs::create_dir_all(edited.links_toml_d()).unwrap();
            fs::write(edited.links_toml_d().join(name), text).unwrap();
        }
        (root, edited)
    }

    fn plan(edited: &ConfigFiles, tls: &Tls) -> anyhow::Result<TlsChange> {
        TlsChange::plan(edited, &inputs(edited, &Disk).unwrap(), tls)
    }

    #[test]
    fn every_setting_is_written_and_read_again() {
        let tls = Tls {
            http: PlainHttp::Serve,
            hsts: true,
            email: Some("me@example.org".into()),
            directory: Some("https://ca.example/dir".into()),
            profile: Some("shortlived".into()),
            ca_file: Some("/ca.pem".into()),
            eab_kid: Some("kid".into()),
            eab_key_file: Some("/eab".into()),
            certificate: vec!["/c1".into(), "/c2".into()],
            key: vec!["/k1".into(), "/k2".into()],
            ..acme(&["a.example", "b.example"])
        };
        let (_root, edited) = host("instances = 3\n", &[]);
        let change = plan(&edited, &tls).unwrap();
        change.file.apply().unwrap();
        let config = load_links(&edited).unwrap();
        assert_eq!((&config.tls, config.instances), (&tls, 3));
        assert_eq!(config, change.config);
        assert_eq!(plan(&edited, &tls).unwrap().file.text(), change.file.text());

        // What is not set any more is removed.
        plan(&edited, &acme(&["a.example"])).unwrap().file.apply().unwrap();
        assert_eq!(load_links(&edited).unwrap().tls, acme(&["a.example"]));
    }

    #[test]
    fn comments_and_the_settings_of_others_stay() {
        let text = "# mine\n[tls]\n# for all\nnames = [\"a.example\"] # ours\n# a note\n";
        let after = with_tls(text, &acme(&["b.example"])).unwrap();
        for kept in ["# mine\n", "# for all\nnames = [\"b.example\"] # ours\n", "# a note\n"] {
            assert!(after.contains(kept), "{after}");
        }
        assert!(
            with_tls(NEW, &acme(&["a.example"]))
                .unwrap()
                .starts_with(NEW.lines().next().unwrap())
        );
        assert!(with_tls("tls = 1\n", &acme(&[])).is_err());
    }

    #[test]
    fn a_change_replaces_earlier_files_and_is_refused_beside_later_ones() {
        let of_links_toml = "[tls]\nmode = \"acme\"\nnames = \"x.example\"\nhsts = true\n";
        let (_root, edited) = host(of_links_toml, &[("a.toml", "tls.http = \"serve\"\n")]);
        let change = plan(&edited, &acme(&["a.example"])).unwrap();
        change.file.apply().unwrap();
        assert_eq!(load_links(&edited).unwrap().tls, acme(&["a.example"]));
        change.file.undo().unwrap();
        assert!(!edited.tls_toml().exists());

        let of_links_toml = "[tls]\nmode = \"files\"\nnames = \"a.example\"\ncertificate = \"/c\"\nkey = \"/k\"\n";
        let (_root, edited) = host(of_links_toml, &[]);
        plan(&edited, &acme(&["a.example"])).unwrap().file.apply().unwrap();
        assert_eq!(load_links(&edited).unwrap().tls.mode, TlsMode::Acme);

        let (_root, edited) = host("", &[("z.toml", "[tls]\nmode = \"off\"\n")]);
        let error = plan(&edited, &acme(&["a.example"])).unwrap_err().to_string();
        assert!(error.contains("z.toml:2:8 sets `tls.mode`"), "{error}");
    }
}
