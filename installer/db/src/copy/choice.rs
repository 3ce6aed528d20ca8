//! Chooses the two databases of a copy and their tokens.

use anyhow::{Context as _, bail, ensure};

use links_base::layout::Layout;
use links_config::arguments::{CopyArgs, CredentialArg, DatabaseArg};
use links_config::check::Loaded;
use links_config::files::Places;
use links_config::runtime::{DEFAULT_LABEL, Origin, Service, file_of};

/// A database to copy from or to. It holds a secret, so it must not implement `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    pub place: DatabaseArg,
    pub token: String,
    /// The name in messages, which contains no secret.
    pub name: String,
}

impl Database {
    fn named(place: DatabaseArg, token: String) -> Self {
        Self {
            name: place.to_string(),
            place,
            token,
        }
    }
}

/// The database of runtime.toml.
fn configured(loaded: &Loaded, layout: &Layout) -> anyhow::Result<Database> {
    if let Some(path) = loaded.local_database(&Places::new(layout)) {
        return Ok(Database::named(DatabaseArg::Sqlite(path), String::new()));
    }
    let wanted = format!("sqlite_database.{DEFAULT_LABEL}");
    let provider = loaded.providers().into_iter().find(|provider| provider.name == wanted);
    let Some(Service::LibSql { url, token }) = provider.map(|provider| provider.service) else {
        bail!("runtime.toml names no database for the links");
    };
    let secret = url.origin != Origin::Written;
    let place = DatabaseArg::LibSql(url.value.trim_end_matches('/').to_owned());
    let mut database = Database::named(place, token.value);
    if secret {
        database.name = "the database of runtime.toml".to_owned();
    }
    Ok(database)
}

/// Returns the source and the target.
///
/// # Errors
/// They are the same database, or it is not clear which one the token is for.
pub fn choose(args: &CopyArgs, loaded: &Loaded, layout: &Layout) -> anyhow::Result<(Database, Database)> {
    let configured = configured(loaded, layout)?;
    let given = |place: &Option<DatabaseArg>| match place {
        Some(place) if *place != configured.place => Database::named(place.clone(), String::new()),
        _ => configured.clone(),
    };
    let (mut from, mut to) = (given(&args.from), given(&args.to));
    ensure!(
        from.place != to.place,
        "from and to are the same database: {}",
        from.name
    );
    if let Some(CredentialArg { name }) = &args.token {
        let token = loaded.credentials.get(name);
        let token =
            token.with_context(|| format!("the credential `{name}` is missing: put it into {}", file_of(name)))?;
        let needs = |database: &Database| {
            database.place != configured.place && matches!(database.place, DatabaseArg::LibSql(_))
        };
        match (needs(&from), needs(&to)) {
            (true, false) => token.clone_into(&mut from.token),
            (false, true) => token.clone_into(&mut to.token),
            (true, true) => bail!("one token for two libSQL databases: put one of them into runtime.toml"),
            (false, false) => {
                bail!("--token is for a libSQL database in --from or --to that is not the one of runtime.toml")
            }
        }
    }
    Ok((from, to))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use clap::Parser as _;

    use super::*;
    use links_config::check::check;
    use links_config::files::ConfigFiles;
    use links_config::testing::Files;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: CopyArgs,
    }

    const REMOTE: &str =
        "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example/\"\ntoken = \"credential:own\"";

    fn chosen(runtime: &str, args: &str) -> Result<String, String> {
        let files = Files::default()
            .with("/etc/links/links.toml", "", 0o644)
            .with("/etc/links/runtime.toml", runtime, 0o644)
            .with("/etc/links/credentials/admin_token", "dGhpcyBpcyBhIHRva2Vu", 0o600)
            .with("/etc/links/credentials/own", "own-token", 0o600)
            .with("/etc/links/credentials/given", "given-token", 0o600);
        let layout = Layout::new("/");
        let loaded = check(&ConfigFiles::new(&layout), &files).loaded.unwrap();
        let line = format!("copy {args}");
        let Line { args } = Line::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        let (from, to) = choose(&args, &loaded, &layout).map_err(|error| error.to_string())?;
        Ok(format!("{} {:?} > {} {:?}", from.name, from.token, to.name, to.token))
    }

    #[test]
    fn a_database_that_is_not_given_is_that_of_runtime_toml() {
        for (runtime, args, expected) in [
            (
                "",
                "--to libsql://y.example --token credential:given",
                r#"sqlite:/var/lib/links/data/links.db "" > libsql:https://y.example "given-token""#,
            ),
            (
                REMOTE,
                "--from sqlite:/a.db",
                r#"sqlite:/a.db "" > libsql:https://x.example "own-token""#,
            ),
            (
                REMOTE,
                "--to libsql:https://x.example/ --from sqlite:/a.db",
                r#"sqlite:/a.db "" > libsql:https://x.example "own-token""#,
            ),
            (
                REMOTE,
                "--to libsql:http://127.0.0.1:8080 --token credential:given",
                r#"libsql:https://x.example "own-token" > libsql:http://127.0.0.1:8080 "given-token""#,
            ),
            (
                REMOTE,
                "--from sqlite:/a.db --to sqlite:/b.db",
                r#"sqlite:/a.db "" > sqlite:/b.db """#,
            ),
        ] {
            assert_eq!(chosen(runtime, args).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn bad_arguments_are_refused_and_no_secret_is_repeated() {
        for (runtime, args, part) in [
            ("", "", "--from"),
            ("", "--to sqlite:/var/lib/links/data/links.db", "the same database"),
            (REMOTE, "--to libsql://x.example", "the same database"),
            ("", "--to /a.db", "sqlite:PATH or libsql:URL"),
            ("", "--to sqlite:", "a path is missing"),
            ("", "--to libsql:HUSH", "is invalid"),
            ("", "--to libsql:ftp://HUSH.example", "https or http"),
            (
                "",
                "--to libsql:https://y.example --token credential:none",
                "`none` is missing",
            ),
            ("", "--to sqlite:/a.db --token credential:given", "--token is for"),
            (
                "",
                "--from libsql://a.example --to libsql://b.example --token credential:given",
                "one token for two",
            ),
        ] {
            let error = chosen(runtime, args).unwrap_err();
            assert!(error.contains(part), "{args}: {error}");
        }
        // clap quotes a refused argument, even a secret one, so the error names the right form at once.
        let error = chosen("", "--to libsql:https://y.example --token HUSH").unwrap_err();
        assert!(error.contains("credential:NAME"), "{error}");
    }
}
