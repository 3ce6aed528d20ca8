//! `linksctl backup verify`: reads a whole backup and checks everything in it, without changing anything.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use crate::archive::{Sink, copy};
use crate::location;
use crate::manifest::{self, Entry, Manifest};
use crate::names;
use crate::report::{Reporter, Style, count, size};
use crate::source::{self, Source};
use crate::space::require_space;
use links_base::layout::Layout;
use links_base::privileges::are_roots;
use links_config::backup::{DatabaseFacts, Location, Problem};
use links_release::Backups;
use links_rollout::DatabaseWork;

/// What a backup holds, for a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// The version of links that made it.
    pub links_version: String,
    /// When it was begun, in RFC 3339's basic format.
    pub begun: String,
    pub secrets: bool,
    /// The size of all files in it.
    pub bytes: u64,
    pub database: Option<manifest::Database>,
}

impl Contents {
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            links_version: manifest::shown(&manifest.links),
            begun: names::stamp(manifest.begun),
            secrets: manifest.secrets,
            bytes: manifest.bytes(),
            database: manifest.database.clone(),
        }
    }

    /// A sentence for a person.
    pub fn text(&self) -> String {
        let database = match &self.database {
            None => "no database".to_owned(),
            Some(database) => match database.clicks {
                Some(clicks) => format!("{} with {}", count(database.links, "link"), count(clicks, "click")),
                None => format!("{} without clicks", count(database.links, "link")),
            },
        };
        format!(
            "made at {} by links {}: {database}, the configuration{}; {}",
            self.begun,
            self.links_version,
            if self.secrets { " and the secrets" } else { "" },
            size(self.bytes)
        )
    }
}

#[derive(Serialize)]
struct Report<'a> {
    event: &'static str,
    location: &'a Location,
    /// Whether the contents were read. Otherwise only the digest of the file is as it was recorded.
    opened: bool,
    contents: Option<Contents>,
}

/// Checks a backup.
///
/// # Errors
/// The backup cannot be reached, opened or believed.
pub fn run(layout: &Layout, at: &Location, identity: Option<&Path>, style: Style) -> anyhow::Result<()> {
    let reporter = Reporter::new(style);
    let identity = identity.map(source::identity).transpose()?;
    let checked = check(layout, at, identity, &reporter);
    checked.inspect_err(|error| reporter.failure(error))
}

fn check(layout: &Layout, at: &Location, identity: Option<PathBuf>, reporter: &Reporter) -> anyhow::Result<()> {
    reporter.doing("reading the backup");
    let source = Source::new(layout, at.clone(), identity);
    let work = DatabaseWork::new(layout);
    let mut sink = Inspection {
        work: &work,
        found: None,
    };
    let read = source.read(&mut sink);
    match read {
        Ok(manifest) => {
            agrees(&manifest, sink.found.as_ref())?;
            let contents = Contents::of(&manifest);
            let text = format!("{at} is intact: {}", contents.text());
            let report = Report {
                event: "done",
                location: at,
                opened: true,
                contents: Some(contents),
            };
            reporter.result(&text, &report)
        }
        // This host may have recorded what it wrote.
        Err(error) if Problem::of(&error) == Problem::Locked && is_as_recorded(layout, &source)? => {
            let text = format!(
                "{at} is as this host has written it; --identity FILE checks what it contains, too (the file has the secret key)"
            );
            let report = Report {
                event: "done",
                location: at,
                opened: false,
                contents: None,
            };
            reporter.result(&text, &report)
        }
        Err(error) => Err(error),
    }
}

/// Fails unless the database holds what the manifest says.
///
/// # Errors
/// It holds something else.
pub fn agrees(manifest: &Manifest, found: Option<&DatabaseFacts>) -> anyhow::Result<()> {
    let (Some(said), Some(found)) = (&manifest.database, found) else {
        return Ok(());
    };
    let is_as_said = found.links == said.links && said.clicks.is_none_or(|clicks| clicks == found.clicks);
    if is_as_said {
        return Ok(());
    }
    Err(Problem::Damaged.error(format!(
        "the database holds {} and {}, which is not what the manifest says",
        count(found.links, "link"),
        count(found.clicks, "click")
    )))
}

/// Whether the file is recorded, and has the recorded digest.
fn is_as_recorded(layout: &Layout, source: &Source) -> anyhow::Result<bool> {
    let (location, name) = location::of_backup(&source.location)?;
    let record = Backups::read(&layout.backups_record())?;
    let location = location.to_string();
    let mut written = record.written.iter();
    let Some(written) = written.find(|written| written.location == location && written.name == name) else {
        return Ok(false);
    };
    match source.sha256()? == written.sha256 {
        true => Ok(true),
        false => Err(Problem::Damaged.error(format!("{} is not as this host has written it", source.location))),
    }
}

/// A sink that inspects the database and leaves everything else to the digests.
struct Inspection<'a> {
    work: &'a DatabaseWork,
    found: Option<DatabaseFacts>,
}

impl Sink for Inspection<'_> {
    fn begin(&mut self, _: &Manifest) -> anyhow::Result<()> {
        Ok(())
    }

    fn take(&mut self, entry: &Entry, contents: &mut dyn Read) -> anyhow::Result<()> {
        if entry.path == Path::new(manifest::DATABASE) {
            self.found = Some(inspect(self.work, entry, contents)?);
        }
        Ok(())
    }
}

/// What the database in a backup holds.
///
/// # Errors
/// It is not a sound database, or there is no room to inspect it.
pub fn inspect(work: &DatabaseWork, entry: &Entry, contents: &mut dyn Read) -> anyhow::Result<DatabaseFacts> {
    require_space(&work.inspected_in(), entry.bytes(), "the check")?;
    work.inspect(|input| copy(contents, input))
        .context("Checking the database of the backup")
}

/// Whether this process may read the location as it is, or needs root for that.
pub fn needs_root(layout: &Layout, at: &Location) -> bool {
    // Only root may read the credentials for S3.
    matches!(at, Location::S3(_)) && layout.is_host() && !are_roots(layout)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::manifest::tests::database;

    #[test]
    fn a_database_with_other_contents_than_the_manifest_says_is_damaged() {
        let manifest = Manifest::new(0, 5, Some(database(3)), false, vec![]);
        let facts = |links, clicks| DatabaseFacts {
            links,
            clicks,
            ..DatabaseFacts::default()
        };
        agrees(&manifest, Some(&facts(3, 7))).unwrap();
        agrees(&manifest, None).unwrap();
        for (links, clicks) in [(2, 7), (3, 6)] {
            let error = agrees(&manifest, Some(&facts(links, clicks))).unwrap_err();
            assert_eq!(Problem::of(&error), Problem::Damaged);
        }
    }

    #[test]
    fn a_version_that_somebody_made_up_does_nothing_to_the_terminal() {
        let mut manifest = Manifest::new(1_900_000_000, 5, None, false, vec![]);
        manifest.links = format!("0.1\u{1b}[2J{}", "9".repeat(100));
        let text = Contents::of(&manifest).text();
        assert!(!text.contains('\u{1b}') && text.len() < 150, "{text}");
    }

    #[test]
    fn the_contents_are_described_in_a_sentence() {
        let manifest = Manifest::new(1_900_000_000, 5, Some(database(1)), true, vec![]);
        let text = Contents::of(&manifest).text();
        assert!(text.starts_with("made at 20300317T174640Z by links "), "{text}");
        assert!(
            text.ends_with(": 1 link with 7 clicks, the configuration and the secrets; 0 bytes"),
            "{text}"
        );
    }
}
