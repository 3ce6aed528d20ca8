//! `linksctl backup list`: the backups in a location, and what this host knows about them.

use std::collections::BTreeMap;

use anyhow::anyhow;
use serde::Serialize;

use crate::location::Store;
use crate::names;
use crate::report::{Reporter, Style, count, size};
use links_base::layout::Layout;
use links_config::backup::Location;
use links_config::files::ConfigFiles;
use links_config::load::load_links;
use links_release::Backups;
use links_release::backups::Written;

/// A backup in a location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Listed {
    name: String,
    /// When it was begun, in seconds since 1970.
    begun: u64,
    bytes: u64,
    encrypted: bool,
    /// What this host has recorded, if it wrote the file and the size is still the same.
    recorded: Option<Written>,
}

/// The backups among these files, the oldest first: those with the name of one, and those that were recorded.
fn listed(files: BTreeMap<String, u64>, record: &Backups, location: &str) -> Vec<Listed> {
    let recorded = |name: &str, bytes| {
        let mut written = record.written.iter();
        written.find(|written| written.location == location && written.name == name && written.bytes == bytes)
    };
    let mut listed: Vec<_> = files
        .into_iter()
        .filter_map(|(name, bytes)| {
            let recorded = recorded(&name, bytes).cloned();
            let begun = recorded.as_ref().map(|written| written.begun);
            Some(Listed {
                begun: begun.or_else(|| names::time_of(&name))?,
                encrypted: recorded
                    .as_ref()
                    .map_or_else(|| names::is_encrypted(&name), |written| written.encrypted),
                name,
                bytes,
                recorded,
            })
        })
        .collect();
    listed.sort_by(|a, b| (a.begun, &a.name).cmp(&(b.begun, &b.name)));
    listed
}

fn line(listed: &Listed) -> String {
    let encrypted = if listed.encrypted { ", encrypted" } else { "" };
    let known = match &listed.recorded {
        Some(written) => match written.clicks {
            Some(clicks) => format!("{} and {}", count(written.links, "link"), count(clicks, "click")),
            None => count(written.links, "link"),
        },
        None => "not recorded by this host".to_owned(),
    };
    format!("{}  {}{encrypted}  {known}", listed.name, size(listed.bytes))
}

/// Lists the backups in `at`, by default in the location of links.toml.
///
/// # Errors
/// The configuration is wrong, there is no location, or it cannot be reached.
pub fn run(layout: &Layout, at: Option<&Location>, style: Style) -> anyhow::Result<()> {
    let reporter = Reporter::new(style);
    let settings = load_links(&ConfigFiles::new(layout))?.backup;
    let location = at.or(settings.to.as_ref()).ok_or_else(|| {
        anyhow!("there is no destination for the backups: give --to, or set `to` in [backup] of links.toml")
    })?;
    let list = || -> anyhow::Result<Vec<Listed>> {
        let record = Backups::read(&layout.backups_record())?;
        let files = Store::open(layout, location)?.files()?;
        Ok(listed(files, &record, &location.to_string()))
    };
    let listed = list().inspect_err(|error| reporter.failure(error))?;
    let lines: Vec<_> = listed.iter().map(line).collect();
    let text = match lines.is_empty() {
        true => format!("there are no backups in {location}"),
        false => lines.join("\n"),
    };
    reporter.result(&text, &listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_are_found_by_their_names_or_by_the_record() {
        let mut record = Backups::default();
        let (first, second) = (names::backup(1_900_000_000, true), names::backup(1_900_000_100, false));
        record.succeeded(Written::at("/b", "mine", 1_900_000_200), 1_900_000_201);
        record.succeeded(Written::at("/b", &second, 1_900_000_100), 1_900_000_103);
        let files = [
            (first.clone(), 5),
            // Somebody has changed it.
            (second.clone(), 999),
            ("mine".to_owned(), 1000),
            ("other".to_owned(), 1),
        ];
        let found = listed(files.into(), &record, "/b");
        let known: Vec<_> = found
            .iter()
            .map(|listed| (listed.name.as_str(), listed.encrypted, listed.recorded.is_some()))
            .collect();
        assert_eq!(
            known,
            [
                (first.as_str(), true, false),
                (&second, false, false),
                ("mine", false, true)
            ]
        );
        assert!(
            line(&found[2]).ends_with("10 links and 20 clicks"),
            "{}",
            line(&found[2])
        );
    }
}
