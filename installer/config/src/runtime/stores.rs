//! `[sqlite_database.LABEL]` and `[key_value_store.LABEL]`.

use super::file::LOCAL_STORE;
use super::providers::{REDIS, WEB};
use super::reference::{location, path, plain, secret};
use crate::document::{Problem, Value};
use crate::section::Section;
use crate::value::{boolean, one_of, string};
use links_base::layout::Layout;

/// `[sqlite_database.LABEL]`, see Spin's crates/sqlite/src/lib.rs.
pub fn sqlite_database(_label: &str, section: &mut Section<'_, '_>) {
    match section.required("type", one_of(&["spin", "libsql"])) {
        Some("spin") => {
            data_file(section);
            section.optional("allow_attach_file", boolean);
        }
        Some(_) => {
            section.required("url", libsql_url);
            section.required("token", secret);
        }
        None => section.accept_unknown(),
    }
}

/// `[key_value_store.LABEL]`, see Spin's crates/key-value-{spin,redis,azure,aws}/src/lib.rs.
pub fn key_value_store(label: &str, section: &mut Section<'_, '_>) {
    if label == LOCAL_STORE {
        section.accept_unknown();
        return section.document().error(
            section.span(),
            format!("`key_value_store.{LOCAL_STORE}` is reserved for links, which keeps it in a file on this machine"),
            Some("remove it, or give the store another name".to_owned()),
        );
    }
    match section.required("type", one_of(&["spin", "redis", "azure_cosmos", "aws_dynamo"])) {
        Some("spin") => data_file(section),
        Some("redis") => {
            section.required("url", location(REDIS));
        }
        Some("azure_cosmos") => {
            section.optional("key", secret);
            for key in ["account", "database", "container"] {
                section.required(key, plain);
            }
        }
        Some(_) => {
            section.required("region", plain);
            section.required("table", plain);
            section.optional("consistent_read", boolean);
            section.optional("access_key", plain);
            section.optional("secret_key", secret);
            section.optional("token", secret);
            // If one is absent, Spin silently takes both from the environment.
            section.together(&["access_key", "secret_key"]);
        }
        None => section.accept_unknown(),
    }
}

fn libsql_url(value: &Value<'_>) -> Result<(), Problem> {
    if string(value)?.starts_with("libsql:") {
        return Err(Problem::new("must be an https or http URL").help("write https:// in place of libsql://"));
    }
    match location(WEB)(value)? {
        Some(url) if url.query().is_some() => {
            Err(Problem::new("must not have a query").help("give the token as `token`"))
        }
        _ => Ok(()),
    }
}

/// The `path` of a file that the runtime writes. Its unit allows writing only below the data directory.
fn data_file(section: &mut Section<'_, '_>) {
    let data = Layout::new("/").data_dir();
    match section.optional("path", path) {
        Some(path) if path.is_absolute() && !path.starts_with(&data) => section.document().warning(
            section.place_of(&["path"]),
            format!(
                "`{}` is outside {}, the only directory that the instances may write to",
                section.path("path"),
                data.display()
            ),
            Some("move it there, or add ReadWritePaths= to links@.service".to_owned()),
        ),
        _ => {}
    }
}
