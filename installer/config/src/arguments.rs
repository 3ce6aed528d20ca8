//! Command-line arguments that more than one program accepts: names of databases and credentials.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use url::Url;

use super::credentials::is_name;
use super::runtime::{PREFIX, file_of};

/// A database, written as `sqlite:PATH` or `libsql:URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseArg {
    Sqlite(PathBuf),
    /// An https or http URL without a slash at its end.
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

/// The URL from `https://HOST`, `http://HOST` or `//HOST`, the rest of `libsql://HOST`. Errors do not repeat the text, which
/// may hold a secret.
fn libsql(text: &str) -> Result<String, String> {
    let text = match text.starts_with("//") {
        true => format!("https:{text}"),
        false => text.to_owned(),
    };
    let url = Url::parse(&text).map_err(|error| format!("the URL after `libsql:` is invalid: {error}"))?;
    if !matches!(url.scheme(), "https" | "http") {
        return Err(format!(
            "the URL of a libSQL database must have the scheme https or http, not {}",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("the URL must not hold a token; pass it with --token credential:NAME".to_owned());
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

/// A credential, written as `credential:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialArg {
    pub name: String,
}

impl FromStr for CredentialArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(PREFIX) {
            Some(name) if is_name(name) => Ok(Self { name: name.to_owned() }),
            // The error does not repeat the text, which may be the token itself.
            _ => Err(format!(
                "write {PREFIX}NAME, and put the token into {}: everybody on this host can see the command line",
                file_of("NAME")
            )),
        }
    }
}

#[derive(Args, Debug)]
pub struct CopyArgs {
    /// The database to copy from, by default the one in runtime.toml
    #[arg(long, value_name = "DATABASE", required_unless_present = "to")]
    pub from: Option<DatabaseArg>,

    /// The database to copy to, by default the one in runtime.toml
    #[arg(long, value_name = "DATABASE")]
    pub to: Option<DatabaseArg>,

    /// The token of the libSQL database in --from or --to; runtime.toml names the token of its own database
    #[arg(long, value_name = "credential:NAME")]
    pub token: Option<CredentialArg>,

    /// Accept a database that already holds links, and add the missing ones
    #[arg(long)]
    pub resume: bool,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

impl CopyArgs {
    /// The same arguments in the form of a command line.
    pub fn to_arguments(&self) -> Vec<String> {
        let databases = [("--from", &self.from), ("--to", &self.to)];
        let mut arguments: Vec<_> = databases
            .into_iter()
            .filter_map(|(name, database)| Some([name.to_owned(), database.as_ref()?.to_string()]))
            .flatten()
            .collect();
        if let Some(token) = &self.token {
            arguments.extend(["--token".to_owned(), format!("{PREFIX}{}", token.name)]);
        }
        let flags = [("--resume", self.resume), ("--json", self.json)];
        arguments.extend(
            flags
                .into_iter()
                .filter(|(_, set)| *set)
                .map(|(name, _)| name.to_owned()),
        );
        arguments
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CopyArgs,
    }

    #[test]
    fn arguments_are_passed_on_unchanged() {
        for line in [
            "--to libsql:https://x.example --token credential:own --json",
            "--from sqlite:/a.db --to sqlite:/b.db --resume",
        ] {
            let parsed = Line::try_parse_from(["copy"].into_iter().chain(line.split(' '))).unwrap();
            assert_eq!(parsed.args.to_arguments().join(" "), line);
        }
    }
}
