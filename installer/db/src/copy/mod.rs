//! `linksctl db copy`: copies the links from one database to another. Each is an SQLite file or a libSQL server.

pub mod choice;
mod comparison;
mod endpoint;
mod link;
mod links;

use std::io::{self, Write as _};

use anyhow::{Context as _, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use choice::Database;
use comparison::Different;
use link::counted;
use links::{Copied, Mode, Occupied, Phase};
use links_base::layout::Layout;
use links_base::privileges::{self, require_root};
use links_config::arguments::CopyArgs;
use links_config::files::ConfigFiles;
use links_config::load::load_as_kept;

#[derive(Serialize)]
struct Report<'a> {
    from: &'a str,
    to: &'a str,
    #[serde(flatten)]
    copied: &'a Copied,
}

/// Copies the links as `args` says, and prints the result.
///
/// # Errors
/// The configuration is wrong, a database does not answer, the target must not be written to, or links differ.
pub fn run(layout: &Layout, args: &CopyArgs) -> anyhow::Result<()> {
    if layout.is_host() {
        require_root()?;
    }
    let loaded = load_as_kept(&ConfigFiles::new(layout))?;
    let (from, to) = choice::choose(args, &loaded, layout)?;
    // The databases belong to user links, who could replace a file that root is about to open.
    if privileges::are_roots(layout) {
        privileges::give_up()?;
    }
    let copied = copy(args, &from, &to).map_err(|error| {
        // A server's message may quote the token that it was sent.
        anyhow!(loaded.credentials.redact(&format!("{error:#}")))
    })?;
    print(args, &from, &to, &copied)?;
    Ok(())
}

fn copy(args: &CopyArgs, from: &Database, to: &Database) -> anyhow::Result<Copied> {
    let mode = match args.resume {
        true => Mode::Resume,
        false => Mode::Refuse,
    };
    let mut source = endpoint::open(from)?;
    let mut target = endpoint::open_or_make(to)?;
    // indicatif draws nothing unless standard error is a terminal.
    let progress = ProgressBar::new(0).with_style(style());
    let mut begun = false;
    let copied = links::copy(&mut *source, &mut *target, mode, &mut |phase, done, total| {
        begun = true;
        progress.set_message(match phase {
            Phase::Copying => "copying",
            Phase::Comparing => "comparing",
        });
        progress.set_length(total);
        progress.set_position(done);
    });
    progress.finish_and_clear();
    copied.map_err(|error| {
        let cause = error.root_cause();
        let broke_off = begun && !cause.is::<Occupied>() && !cause.is::<Different>();
        let error = error.context(format!("Copying {} to {}", from.name, to.name));
        match broke_off {
            true => anyhow!("{error:#}\nWhat was copied stays; the same command with --resume copies the rest"),
            false => error,
        }
    })
}

fn style() -> ProgressStyle {
    // The template is a constant. If it were wrong, the default bar would do.
    ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn print(args: &CopyArgs, from: &Database, to: &Database, copied: &Copied) -> anyhow::Result<()> {
    let (from, to) = (&*from.name, &*to.name);
    let text = match args.json {
        true => serde_json::to_string_pretty(&Report { from, to, copied })?,
        false => text(from, to, copied),
    };
    writeln!(io::stdout(), "{text}").context("Writing to standard output")
}

fn text(from: &str, to: &str, copied: &Copied) -> String {
    let there = copied.links - copied.added.min(copied.links);
    let mut text = format!("copied {} from {from} to {to}", counted(copied.added));
    if there > 0 {
        text.push_str(&format!("; {there} were already there"));
    }
    text.push_str(&format!(
        "\ncompared: {}, the same on both sides, checksum {}",
        counted(copied.links),
        copied.checksum
    ));
    if copied.target_links > copied.links {
        text.push_str(&format!("\n{to} holds {} in all", counted(copied.target_links)));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use rusqlite::Connection;

    use super::*;
    use links_base::testing::Server;
    use links_config::arguments::DatabaseArg;

    fn args(resume: bool) -> CopyArgs {
        CopyArgs {
            from: None,
            to: None,
            token: None,
            resume,
            json: false,
        }
    }

    fn file(path: &std::path::Path) -> Database {
        Database {
            place: DatabaseArg::Sqlite(path.to_owned()),
            token: String::new(),
            name: path.display().to_string(),
        }
    }

    #[test]
    fn a_copy_reports_its_result_and_after_a_failure_how_to_continue() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b, c) = (
            directory.path().join("a.db"),
            directory.path().join("b.db"),
            directory.path().join("c.db"),
        );
        // The source does not exist yet.
        let error = copy(&args(false), &file(&a), &file(&b)).unwrap_err();
        assert!(format!("{error:#}").contains("a.db"), "{error:#}");
        let source = Connection::open(&a).unwrap();
        for statement in links_store::schema::SCHEMA.concat() {
            source.execute(statement, []).unwrap();
        }
        source
            .execute(
                "INSERT INTO links (slug, url, created_at) VALUES ('x', 'https://example.com/', 1)",
                [],
            )
            .unwrap();
        let copied = copy(&args(false), &file(&a), &file(&c)).unwrap();
        assert_eq!((copied.links, copied.added), (1, 1));
        let made = fs::metadata(&c).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o600);
        assert_eq!(made.uid(), fs::metadata(directory.path()).unwrap().uid());
        assert!(!directory.path().join("c.db-wal").exists());
        let mode: String = Connection::open(&c)
            .unwrap()
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .unwrap();
        assert_eq!(mode, "wal");

        let error = format!("{:#}", copy(&args(false), &file(&a), &file(&c)).unwrap_err());
        assert!(
            error.contains("already holds 1 link") && !error.contains("What was copied"),
            "{error}"
        );
        let again = copy(&args(true), &file(&a), &file(&c)).unwrap();
        assert_eq!((again.links, again.added), (1, 0));

        source
            .execute("UPDATE links SET url = 'https://example.org/'", [])
            .unwrap();
        let error = format!("{:#}", copy(&args(true), &file(&a), &file(&c)).unwrap_err());
        assert!(
            error.contains("1 of 1 link differ") && !error.contains("What was copied"),
            "{error}"
        );

        // A server that fails after the first part.
        let rows = |rows: &str| {
            let body = format!("{{\"results\":[{{\"response\":{{\"result\":{{\"rows\":{rows}}}}}}}]}}");
            (200, body)
        };
        let version = format!(
            r#"[[{{"type":"integer","value":"{}"}}]]"#,
            links_store::schema::SCHEMA.len()
        );
        let server = Server::start(move |request| match &request.body {
            body if body.contains("max(version)") => rows(&version),
            body if body.contains("max(id)") => rows(r#"[[{"type":"integer","value":"0"},{"type":"null"}]]"#),
            body if body.contains("INSERT") => rows(r#"[[{"type":"integer","value":"1"}]]"#),
            _ => (500, String::new()),
        });
        let remote = Database {
            place: DatabaseArg::LibSql(server.url("")),
            ..file(&c)
        };
        let error = format!("{:#}", copy(&args(false), &file(&a), &remote).unwrap_err());
        assert!(error.contains("status 500"), "{error}");
        assert!(error.ends_with("with --resume copies the rest"), "{error}");
    }

    #[test]
    fn the_result_counts_what_was_copied_and_what_was_there() {
        let copied = Copied {
            links: 12,
            added: 2,
            target_links: 13,
            checksum: "00ff".to_owned(),
        };
        assert_eq!(
            text("sqlite:/a.db", "libsql:https://x.example", &copied),
            "copied 2 links from sqlite:/a.db to libsql:https://x.example; 10 were already there\n\
             compared: 12 links, the same on both sides, checksum 00ff\n\
             libsql:https://x.example holds 13 links in all"
        );
    }
}
