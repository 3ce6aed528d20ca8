//! Brings the settings into the form of version 0.1.0, before a package of that version is installed: it reads only links.toml, and
//! refuses keys that it does not know. This version reads the same settings before, after and at each step in between.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use links_base::files::{self, make_directory};
use links_config::files::ConfigFiles;
use links_config::links::keys::{self, Since};
use links_config::links::{Earlier, Input, Setting, for_0_1_0};

/// The file in links.toml.d with the keys that version 0.1.0 does not know.
const NEWER: &str = "not-in-0.1.0.toml";
const NEWER_HEADER: &str = "# Written by linksctl before a downgrade: version 0.1.0 does not know these keys.\n";
/// Appended to the names of the files as they were before.
const BEFORE: &str = ".before-downgrade";

/// A change of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// links.toml.
    before: Input,
    after: Input,
    /// The file with the keys that version 0.1.0 does not know, and their names.
    newer: Option<(Input, Vec<String>)>,
    /// The files whose settings are now in one of the others, in the order in which they are read.
    folded: Vec<PathBuf>,
}

impl Change {
    /// Plans the change. `inputs` are the files with the settings, in the order in which they are read. `None` if version 0.1.0
    /// reads the same settings already.
    ///
    /// # Errors
    /// links.toml cannot be edited.
    pub fn plan(edited: &ConfigFiles, inputs: &[Input]) -> anyhow::Result<Option<Self>> {
        let Some((links_toml, others)) = inputs.split_first() else {
            bail!("{} is missing", edited.links_toml().display());
        };
        let concerns_0_1_0 = |input: &&Input| !for_0_1_0(&[(*input).clone()]).known.is_empty();
        let of_0_1_0: Vec<_> = others.iter().filter(concerns_0_1_0).collect();
        let is_rewritten = for_0_1_0(&inputs[..1]).known.iter().any(|setting| setting.is_rewritten);
        let has_newer = keep_known(parse(links_toml)?.as_table_mut(), &mut vec![]);
        if of_0_1_0.is_empty() && !is_rewritten && !has_newer {
            return Ok(None);
        }
        let settings = for_0_1_0(inputs);
        // A file that concerns only later versions stays, unless that would change which value of a key counts.
        for folded in [of_0_1_0, others.iter().collect()] {
            let change = Self::folding(edited, links_toml, &settings, &folded)?;
            if is_same(&settings, &for_0_1_0(&change.result(others))) {
                return Ok(Some(change));
            }
        }
        bail!("the settings cannot be brought into the form of version 0.1.0");
    }

    fn folding(edited: &ConfigFiles, before: &Input, all: &Earlier, folded: &[&Input]) -> anyhow::Result<Self> {
        let mut document = parse(before)?;
        for setting in &all.known {
            if setting.file != before.file || setting.is_rewritten {
                set(document.as_table_mut(), setting).with_context(|| format!("Editing {}", before.file))?;
            }
        }
        keep_known(document.as_table_mut(), &mut vec![]);
        let path = edited.links_toml_d().join(NEWER);
        let file = path.display().to_string();
        let is_moved = |setting: &&Setting| {
            let from = &setting.file;
            *from == before.file || *from == file || folded.iter().any(|input| input.file == *from)
        };
        let moved: Vec<_> = all.newer.iter().filter(is_moved).collect();
        let lines = moved.iter().map(ToString::to_string);
        let text = NEWER_HEADER.to_owned() + &lines.collect::<String>();
        Ok(Self {
            after: Input {
                file: before.file.clone(),
                text: document.to_string(),
            },
            before: before.clone(),
            newer: (!moved.is_empty()).then(|| {
                let names = moved.iter().map(|setting| setting.key()).collect();
                (Input { file, text }, names)
            }),
            folded: folded
                .iter()
                .map(|input| PathBuf::from(&input.file))
                .filter(|folded| *folded != path)
                .collect(),
        })
    }

    /// The files with the settings after the change, in the order in which they are read. `others` are those in links.toml.d
    /// before.
    fn result(&self, others: &[Input]) -> Vec<Input> {
        let is_folded = |input: &Input| self.folded.iter().any(|path| path.as_os_str() == input.file.as_str());
        let newer = self.newer.as_ref().map(|(input, _)| input);
        let is_replaced = |input: &Input| newer.is_some_and(|newer| newer.file == input.file);
        let mut rest: Vec<_> = others
            .iter()
            .filter(|input| !is_folded(input) && !is_replaced(input))
            .chain(newer)
            .cloned()
            .collect();
        rest.sort_by(|a, b| a.file.cmp(&b.file));
        [vec![self.after.clone()], rest].concat()
    }

    /// Changes the files. The order is such that an interruption changes no setting: first the values are in both places, and the
    /// files that are read first go first.
    ///
    /// # Errors
    /// Somebody else has edited links.toml meanwhile, or the disk is full.
    pub fn apply(&self, edited: &ConfigFiles) -> anyhow::Result<()> {
        let links_toml = edited.links_toml();
        files::replace(&kept_at(&links_toml), self.before.text.as_bytes(), 0o644)?;
        if let Some((newer, _)) = &self.newer {
            make_directory(&edited.links_toml_d(), 0o755)?;
            files::replace(Path::new(&newer.file), newer.text.as_bytes(), 0o644)?;
        }
        if self.before != self.after {
            files::edit(&links_toml, self.before.text.as_bytes(), self.after.text.as_bytes())?;
        }
        for path in &self.folded {
            let to = kept_at(path);
            fs::rename(path, &to).with_context(|| format!("Renaming {} to {}", path.display(), to.display()))?;
            files::sync_directory(&edited.links_toml_d())?;
        }
        Ok(())
    }

    /// What the administrator has to know.
    pub fn notices(&self) -> Vec<String> {
        let file = &self.before.file;
        let mut notices = vec![];
        if !self.folded.is_empty() {
            let folded: Vec<_> = self.folded.iter().map(|path| path.display().to_string()).collect();
            notices.push(format!(
                "version 0.1.0 reads only {file}, which now contains the settings of {}; the former files are kept with the \
                 suffix {BEFORE}",
                folded.join(", ")
            ));
        }
        if let Some((newer, keys)) = &self.newer {
            notices.push(format!(
                "version 0.1.0 does not know {}: these settings are kept in {} for the next upgrade",
                keys.join(", "),
                newer.file
            ));
        }
        notices
    }
}

fn parse(input: &Input) -> anyhow::Result<DocumentMut> {
    input.text.parse().with_context(|| format!("Reading {}", input.file))
}

/// Whether both have the same keys with the same values.
fn is_same(a: &Earlier, b: &Earlier) -> bool {
    let same = |a: &[Setting], b: &[Setting]| {
        let values = |settings: &[Setting]| -> Vec<_> {
            let each = settings
                .iter()
                .map(|setting| (setting.path.clone(), setting.value.clone()));
            each.collect()
        };
        values(a) == values(b)
    };
    same(&a.known, &b.known) && same(&a.newer, &b.newer)
}

/// The name of a file as it was before.
fn kept_at(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BEFORE);
    name.into()
}

/// Sets a value, and keeps the comments above and beside it.
fn set(top: &mut Table, setting: &Setting) -> anyhow::Result<()> {
    let mut value: Value = setting.value.to_string().parse()?;
    let Some((name, tables)) = setting.path.split_last() else {
        return Ok(());
    };
    let mut table: &mut dyn TableLike = top;
    for inner in tables {
        let item = table.entry(inner).or_insert_with(|| Item::Table(Table::new()));
        table = item
            .as_table_like_mut()
            .with_context(|| format!("`{inner}` is no table"))?;
    }
    // Only the value: inserting the key again would lose the comment above it.
    match table.get_mut(name) {
        Some(Item::Value(before)) => {
            *value.decor_mut() = before.decor().clone();
            *before = value;
        }
        _ => drop(table.insert(name, Item::Value(value))),
    }
    Ok(())
}

/// Removes the keys and tables that version 0.1.0 does not know. `path` is the name of the table. Returns whether there were any.
fn keep_known(table: &mut dyn TableLike, path: &mut Vec<String>) -> bool {
    let names: Vec<_> = table.iter().map(|(name, _)| name.to_owned()).collect();
    let mut has_removed = false;
    for name in names {
        path.push(name.clone());
        let dotted = path.join(".");
        let of_0_1_0 = || keys::all().filter(|key| key.since == Since::V0_1_0);
        has_removed |= match table.get_mut(&name).and_then(Item::as_table_like_mut) {
            Some(inner) if of_0_1_0().any(|key| key.table == dotted) => keep_known(inner, path),
            None if of_0_1_0().any(|key| key.path() == dotted) => false,
            _ => table.remove(&name).is_some(),
        };
        path.pop();
    }
    has_removed
}

/// Brings the settings into the form of version 0.1.0, and returns messages for the administrator.
///
/// # Errors
/// The files cannot be changed.
pub fn prepare(edited: &ConfigFiles, inputs: &[Input]) -> anyhow::Result<Vec<String>> {
    ensure!(!inputs.is_empty(), "{} is missing", edited.links_toml().display());
    let mut notices = vec![];
    if let Some(change) = Change::plan(edited, inputs)? {
        change.apply(edited)?;
        notices = change.notices();
    }
    notices.extend(end_of_https(inputs));
    Ok(notices)
}

/// What the administrator has to know if HTTPS is on.
fn end_of_https(inputs: &[Input]) -> Option<String> {
    let settings = for_0_1_0(inputs).newer;
    let mode = settings.iter().find(|setting| setting.key() == keys::TLS_MODE.path())?;
    (mode.value.as_str() != Some("off"))
        .then(|| "version 0.1.0 has no HTTPS: port 443 is closed until the next upgrade".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::{Layout, temporary};
    use links_config::links::inputs;
    use links_config::reader::Disk;

    /// A host with this links.toml, and these files in links.toml.d.
    fn host(links_toml: &str, others: &[(&str, &str)]) -> (tempfile::TempDir, ConfigFiles) {
        let (root, layout) = temporary(&[Layout::config_dir, Layout::links_toml_d]);
        let edited = ConfigFiles::new(&layout);
        fs::write(edited.links_toml(), links_toml).unwrap();
        for (name, text) in others {
            fs::write(edited.links_toml_d().join(name), text).unwrap();
        }
        (root, edited)
    }

    fn read(edited: &ConfigFiles) -> Vec<Input> {
        inputs(edited, &Disk).unwrap()
    }

    fn prepared(edited: &ConfigFiles) -> Vec<String> {
        let before = for_0_1_0(&read(edited));
        let notices = prepare(edited, &read(edited)).unwrap();
        assert!(is_same(&before, &for_0_1_0(&read(edited))), "a setting has changed");
        let again = prepare(edited, &read(edited)).unwrap();
        assert_eq!(again, [""; 0], "the result is not in the form of version 0.1.0");
        notices
    }

    #[test]
    fn settings_that_version_0_1_0_reads_stay_byte_for_byte() {
        for text in ["# mine\ninstances=3\r\n[drain]\ntimeout = '5s' # short\n", ""] {
            let (_root, edited) = host(text, &[]);
            assert_eq!(prepared(&edited), [""; 0]);
            assert_eq!(fs::read_to_string(edited.links_toml()).unwrap(), text);
            assert_eq!(files::list(edited.directory()).unwrap(), ["links.toml", "links.toml.d"]);
        }
    }

    #[test]
    fn other_files_are_folded_into_links_toml_which_keeps_its_comments() {
        let (_root, edited) = host(
            "# mine\ninstances = 3 # of version 0.1.0\n\n[health] # checks\ninterval = \"5s\"\n",
            &[
                ("instances.toml", "instances = 4\n"),
                (
                    "mine.toml",
                    "instances = 5\nhealth.timeout = \"1s 500ms\"\n[nginx]\nlisten = [80, 8080]\n",
                ),
            ],
        );
        let notices = prepared(&edited);
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert_eq!(
            fs::read_to_string(edited.links_toml()).unwrap(),
            "# mine\ninstances = 5 # of version 0.1.0\n\n[health] # checks\ninterval = \"5s\"\ntimeout = \"1500ms\"\n\n\
             [nginx]\nlisten = [80, 8080]\n"
        );
        assert_eq!(
            files::list(&edited.links_toml_d()).unwrap(),
            ["instances.toml.before-downgrade", "mine.toml.before-downgrade"]
        );
    }

    #[test]
    fn keys_that_version_0_1_0_does_not_know_are_set_aside() {
        let (_root, edited) = host(
            "instances = 3\n[future]\nkey = 1 # soon\n[empty]\n[nginx]\nlisten = 80\nnew = [1]\n[nginx.inner]\n",
            &[("z.toml", "[future]\nother = true\n")],
        );
        let notices = prepared(&edited);
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(notices[0].contains("future.key, nginx.new"), "{notices:?}");
        assert_eq!(
            fs::read_to_string(edited.links_toml()).unwrap(),
            "instances = 3\n[nginx]\nlisten = 80\n"
        );
        let newer = fs::read_to_string(edited.links_toml_d().join(NEWER)).unwrap();
        assert_eq!(newer, format!("{NEWER_HEADER}future.key = 1\nnginx.new = [1]\n"));
        // This one never concerned version 0.1.0.
        assert!(edited.links_toml_d().join("z.toml").exists());
    }

    /// This file stays as it is, because it concerns only later versions.
    #[test]
    fn the_end_of_https_is_announced() {
        for (mode, announced) in [("acme", 1), ("files", 1), ("off", 0)] {
            let (_root, edited) = host("", &[("tls.toml", &format!("[tls]\nmode = \"{mode}\"\n"))]);
            let notices = prepare(&edited, &read(&edited)).unwrap();
            let about_https = notices.iter().filter(|notice| notice.contains("443"));
            assert_eq!(about_https.count(), announced, "{mode}: {notices:?}");
        }
    }

    #[test]
    fn an_empty_table_that_version_0_1_0_does_not_know_is_removed() {
        let (_root, edited) = host("instances = 3\n\n[future]\n", &[]);
        assert_eq!(prepared(&edited), [""; 0]);
        assert_eq!(fs::read_to_string(edited.links_toml()).unwrap(), "instances = 3\n");
    }

    #[test]
    fn the_value_that_counts_stays_the_same() {
        let (_root, edited) = host(
            "future = 1\n",
            &[("p.toml", "future = 2\n"), ("q.toml", "future = 3\ninstances = 4\n")],
        );
        prepared(&edited);
        let newer = fs::read_to_string(edited.links_toml_d().join(NEWER)).unwrap();
        assert_eq!(newer, format!("{NEWER_HEADER}future = 3\n"));
        assert_eq!(fs::read_to_string(edited.links_toml()).unwrap(), "instances = 4\n");
    }

    /// The files are changed one after the other. If the last changes do not happen, the settings are the same.
    #[test]
    fn an_interruption_changes_no_setting() {
        let (_root, edited) = host(
            "instances = 3\nfuture = 1\n",
            &[
                ("a.toml", "instances = 4\n[cache]\nttl = \"1m\"\n"),
                ("b.toml", "instances = 5\nfuture = 2\n"),
            ],
        );
        let before = read(&edited);
        let change = Change::plan(&edited, &before).unwrap().unwrap();
        let others = &before[1..];
        let newer = &change.newer.as_ref().unwrap().0;
        for folded in 0..=others.len() {
            let mut rest = others[folded..].to_vec();
            rest.push(newer.clone());
            rest.sort_by(|a, b| a.file.cmp(&b.file));
            for links_toml in [&change.before, &change.after] {
                if folded > 0 && links_toml == &change.before {
                    continue;
                }
                let state = [vec![links_toml.clone()], rest.clone()].concat();
                assert!(is_same(&for_0_1_0(&before), &for_0_1_0(&state)), "{folded}");
            }
        }
    }
}
