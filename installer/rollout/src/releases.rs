//! The command `linksctl releases`.

use serde::Serialize;

use crate::appliance::Appliance;
use links_release::Release;

#[derive(Serialize)]
struct Listed {
    release: String,
    runtime: String,
    /// The instances that run this release, from their next start on at the latest.
    instances: Vec<u16>,
    /// Whether the last successful rollout was to this release.
    current: bool,
    /// Whether `linksctl rollback` goes to this release.
    previous: bool,
    /// Whether the installed package contains this release.
    installed: bool,
}

/// Prints the releases in the store.
///
/// # Errors
/// The store cannot be read.
pub fn list(appliance: &Appliance, json: bool) -> anyhow::Result<()> {
    let listed = collect(appliance)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&listed)?);
    } else {
        print!("{}", text(&listed));
    }
    Ok(())
}

fn collect(appliance: &Appliance) -> anyhow::Result<Vec<Listed>> {
    let Appliance { state, store, .. } = appliance;
    let (current, previous) = (state.current(), state.previous());
    let installed = Release::open(&appliance.bundle).ok().map(|release| release.id);
    let mut points = vec![];
    for instance in state.instances()? {
        points.push((instance, state.points(instance)));
    }
    let mut listed = vec![];
    for name in store.names()? {
        // Skip what is not a release, such as an interrupted import.
        let Ok(release) = store.open(&name) else {
            continue;
        };
        let is = |other: &Option<String>| other.as_ref() == Some(&release.id);
        listed.push(Listed {
            runtime: release.runtime_name(),
            instances: points
                .iter()
                .filter(|(_, points)| points.as_ref().is_some_and(|points| points.release == release.id))
                .map(|(instance, _)| *instance)
                .collect(),
            current: is(&current),
            previous: is(&previous),
            installed: is(&installed),
            release: release.id,
        });
    }
    listed.sort_by_cached_key(|listed| (by_number(&listed.release), listed.release.clone()));
    Ok(listed)
}

/// A sort key that puts 0.10.0 after 0.9.0: the parts of the name, with numbers as numbers.
fn by_number(name: &str) -> Vec<Result<u64, String>> {
    let parts = name.split(|c: char| !c.is_ascii_alphanumeric());
    parts.map(|part| part.parse().map_err(|_| part.to_owned())).collect()
}

fn text(listed: &[Listed]) -> String {
    let line = |release: &Listed| {
        let mut words = vec![];
        if !release.instances.is_empty() {
            let list: Vec<_> = release.instances.iter().map(u16::to_string).collect();
            words.push(format!("instance {}", list.join(", ")));
        }
        let marks = [
            (release.current, "current"),
            (release.previous, "previous"),
            (release.installed, "installed"),
        ];
        words.extend(marks.into_iter().filter(|(is, _)| *is).map(|(_, word)| word.to_owned()));
        format!("{}  {}  {}", release.release, release.runtime, words.join(", "))
            .trim_end()
            .to_owned()
            + "\n"
    };
    listed.iter().map(line).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;

    use super::*;
    use links_base::layout::Layout;
    use links_base::services::Services;
    use links_release::Store;
    use links_release::Version;
    use links_release::testing::bundle;

    #[test]
    fn version_0_10_comes_after_0_2() {
        let mut names = ["0.10.0-ab", "0.2.0-cd", "0.10.0-12", "0.1.0-ff", "1.0.0-00"];
        names.sort_by_key(|name| by_number(name));
        assert_eq!(names, ["0.1.0-ff", "0.2.0-cd", "0.10.0-12", "0.10.0-ab", "1.0.0-00"]);
    }

    #[test]
    fn the_list_shows_who_runs_what_and_where_rollback_goes() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().join("root"));
        let appliance = Appliance::new(&layout, Services::nowhere());
        let state = &appliance.state;
        let import = |name: &str, runtime: &[u8]| {
            let source = root.path().join(name);
            fs::create_dir(&source).unwrap();
            let release = bundle(&source, runtime);
            Store::new(&layout).import(&release.directory).unwrap().id
        };
        let (old, new) = (import("old", b"1"), import("new", b"2"));
        for release in [&old, &new] {
            state.set_current(release).unwrap();
        }
        for instance in [1, 2] {
            let release = new.clone();
            let config = "c".to_owned();
            fs::create_dir_all(layout.instances_dir()).unwrap();
            state.point(instance, &Version { release, config }).unwrap();
        }
        let mut lines = [
            format!("{old}  links-host 1.2.3  previous\n"),
            format!("{new}  links-host 1.2.3  instance 1, 2, current\n"),
        ];
        lines.sort();
        assert_eq!(text(&collect(&appliance).unwrap()), lines.concat());
    }
}
