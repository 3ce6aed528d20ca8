//! The number of instances in `links.toml.d/instances.toml`, the file that `linksctl scale` writes.

use anyhow::bail;
use toml_edit::{DocumentMut, Item, Value, value};

use crate::settings_file::SettingsFile;
use links_config::files::ConfigFiles;
use links_config::finding::Override;
use links_config::links::{Input, keys, read_all};

/// The file before the first `scale`.
const NEW: &str = include_str!("../../../packaging/links.toml.d/instances.toml");

/// A change of the number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub file: SettingsFile,
    /// A value in an earlier file that the new number replaces.
    pub replaces: Option<Override>,
}

impl Change {
    /// Plans to set the number of instances to `count`. `inputs` are the files with the settings, in the order in which they are
    /// read.
    ///
    /// # Errors
    /// A later file sets the number, so the change would have no effect. Or the file is not TOML.
    pub fn plan(edited: &ConfigFiles, inputs: &[Input], count: u16) -> anyhow::Result<Self> {
        let changed = SettingsFile::plan(edited.instances_toml(), inputs, NEW, |text| with_instances(text, count))?;
        let file = changed.name();
        let of_instances = read_all(&changed.among(inputs))
            .overrides
            .into_iter()
            .filter(|replacing| replacing.key == keys::INSTANCES.path());
        let mut replaces = None;
        for replacing in of_instances {
            if replacing.replaced.file == file {
                bail!(
                    "{} sets `{}` too, and is read after {file}: change the number there, or remove it",
                    replacing.position,
                    replacing.key
                );
            }
            if replacing.position.file == file {
                replaces = Some(replacing);
            }
        }
        Ok(Self {
            file: changed,
            replaces,
        })
    }
}

/// The text with `count` instances, and everything else as it was.
///
/// # Errors
/// `text` is not TOML.
fn with_instances(text: &str, count: u16) -> anyhow::Result<String> {
    let mut document: DocumentMut = text.parse()?;
    // Only the value: inserting the key again would lose the comment above it.
    if let Some(Item::Value(before)) = document.get_mut(keys::INSTANCES.name) {
        let decor = before.decor().clone();
        *before = Value::from(i64::from(count));
        *before.decor_mut() = decor;
    } else {
        document.insert(keys::INSTANCES.name, value(i64::from(count)));
    }
    Ok(document.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;

    use super::*;
    use links_base::layout::{Layout, temporary};
    use links_config::links::inputs;
    use links_config::load::load_links;
    use links_config::reader::Disk;

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

    fn plan(edited: &ConfigFiles, count: u16) -> anyhow::Result<Change> {
        Change::plan(edited, &inputs(edited, &Disk).unwrap(), count)
    }

    #[test]
    fn only_the_number_changes() {
        for (text, expected) in [
            (
                "# mine\ninstances  =  3 # three\n\n[drain]\ntimeout = \"5s\"\n",
                "# mine\ninstances  =  5 # three\n\n[drain]\ntimeout = \"5s\"\n",
            ),
            (
                "[drain]\ntimeout = \"5s\"\n",
                "instances = 5\n[drain]\ntimeout = \"5s\"\n",
            ),
            ("", "instances = 5\n"),
        ] {
            assert_eq!(with_instances(text, 5).unwrap(), expected);
        }
        assert!(with_instances("instances = = 3\n", 5).is_err());
        assert_eq!(with_instances(NEW, 2).unwrap(), NEW);
    }

    #[test]
    fn the_number_is_in_a_file_of_its_own_and_replaces_that_of_links_toml() {
        let (_root, edited) = host("instances = 3 # of version 0.1.0\n", &[("a.toml", "[cache]\n")]);
        let change = plan(&edited, 5).unwrap();
        assert_eq!(change.replaces.as_ref().unwrap().replaced.line, 1);
        change.file.apply().unwrap();
        assert_eq!(load_links(&edited).unwrap().instances, 5);
        assert_eq!(
            fs::read_to_string(edited.links_toml()).unwrap(),
            "instances = 3 # of version 0.1.0\n"
        );
        let again = plan(&edited, 4).unwrap();
        again.file.apply().unwrap();
        assert_eq!(load_links(&edited).unwrap().instances, 4);
        again.file.undo().unwrap();
        assert_eq!(load_links(&edited).unwrap().instances, 5);
        change.file.undo().unwrap();
        assert!(!edited.instances_toml().exists());
    }

    #[test]
    fn a_number_in_a_later_file_is_an_error_that_names_it() {
        for (name, is_later) in [("z.toml", true), ("instances.toml.toml", true), ("a.toml", false)] {
            let (_root, edited) = host("", &[(name, "\ninstances = 7\n")]);
            let change = plan(&edited, 5);
            if is_later {
                let place = format!("{}:2:13", edited.links_toml_d().join(name).display());
                assert!(change.unwrap_err().to_string().starts_with(&place), "{name}");
            } else {
                change.unwrap().file.apply().unwrap();
                assert_eq!(load_links(&edited).unwrap().instances, 5);
            }
        }
    }
}
