//! Which two databases, and by which tokens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use url::Url;

use crate::cli::CopyArgs;
use crate::config::check::Loaded;
use crate::config::credentials::is_name;
use crate::config::runtime::{DEFAULT_LABEL, PREFIX, Service, file_of};
use crate::layout::Layout;

/// As a person names a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseArg {
    Sqlite(PathBuf),
    /// With https or http, and no slash at its end.
    LibSql(String),
}

impl FromStr for DatabaseArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("sqlite", "")) => Err("a path is missing after `sqlite:`".to_owned()),
            Some(("sqlite", path)) => std::path::absolute(path)
                .map(Self::Sqlite)
                .map_err(|error| error.to_string()),
            Some(("libsql", rest)) => libsql(rest).map(Self::LibSql),
            _ => Err("write sqlite:PATH or libsql:URL".to_owned()),
        }
    }
}

/// `https://HOST`, `http://HOST`, or what is left of `libsql://HOST`. The text is not repeated: it may hold a secret.
fn libsql(text: &str) -> Result<String, String> {
    let text = match text.starts_with("//") {
        true => format!("https:{text}"),
        false => text.to_owned(),
    };
    let url = Url::parse(&text).map_err(|error| format!("no URL after `libsql:`: {error}"))?;
    if !matches!(url.scheme(), "https" | "http") {
        return Err(format!(
            "a libSQL database has the scheme https or http, not {}",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("a URL is no place for a token: give it by --token credential:NAME".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

impl fmt::Display for DatabaseArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::LibSql(url) => write!(f, "libsql:{url}"),
        }
    }
}

/// The name of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenArg(String);

impl FromStr for TokenArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(PREFIX) {
            Some(name) if is_name(name) => Ok(Self(name.to_owned())),
            // Not repeated: it may be the token itself.
            _ => Err(format!(
                "write {PREFIX}NAME, with the token in {}: everybody on this host can see a command line",
                file_of("NAME")
            )),
        }
    }
}

/// A database to work with. Holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    pub place: DatabaseArg,
    pub token: String,
    /// For people.
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
    if let Some(path) = loaded.local_database(layout) {
        return Ok(Database::named(DatabaseArg::Sqlite(path), String::new()));
    }
    let wanted = format!("sqlite_database.{DEFAULT_LABEL}");
    let provider = loaded.providers().into_iter().find(|provider| provider.name == wanted);
    let Some(Service::LibSql { url, token }) = provider.map(|provider| provider.service) else {
        bail!("runtime.toml names no database of the links");
    };
    let secret = url.credential.is_some();
    let place = DatabaseArg::LibSql(url.value.trim_end_matches('/').to_owned());
    let mut database = Database::named(place, token.value);
    if secret {
        database.name = "the database of runtime.toml".to_owned();
    }
    Ok(database)
}

/// From where and to where.
///
/// # Errors
/// They are the same, or it is not clear whose the token is.
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
    if let Some(TokenArg(name)) = &args.token {
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
                bail!("--token is for a libSQL database that is given here and is not that of runtime.toml")
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
    use crate::cli::{Cli, Command, DbCommand};
    use crate::config::check::check;
    use crate::config::testing::Files;

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
        let loaded = check(&layout, &files).loaded.unwrap();
        let line = format!("linksctl db copy {args}");
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        let Command::Db(db) = cli.command else { unreachable!() };
        let DbCommand::Copy(args) = db.command;
        let (from, to) = choose(&args, &loaded, &layout).map_err(|error| error.to_string())?;
        Ok(format!("{} {:?} > {} {:?}", from.name, from.token, to.name, to.token))
    }

    #[test]
    fn the_other_one_is_that_of_runtime_toml() {
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
    fn what_makes_no_sense_is_refused_and_no_secret_repeated() {
        for (runtime, args, part) in [
            ("", "", "--from"),
            ("", "--to sqlite:/var/lib/links/data/links.db", "the same database"),
            (REMOTE, "--to libsql://x.example", "the same database"),
            ("", "--to /a.db", "sqlite:PATH or libsql:URL"),
            ("", "--to sqlite:", "a path is missing"),
            ("", "--to libsql:HUSH", "no URL"),
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
            let told = chosen(runtime, args).unwrap_err();
            assert!(told.contains(part), "{args}: {told}");
        }
        // clap repeats an argument that is refused; so it is said at once what the right form is.
        let told = chosen("", "--to libsql:https://y.example --token HUSH").unwrap_err();
        assert!(told.contains("credential:NAME"), "{told}");
    }
}
