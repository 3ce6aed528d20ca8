//! Writes the files of `sql/` as Rust, without their comments and indentation: a constant for each statement (`src/sql.rs`), the
//! statements of the migration scripts and the columns of a link (`src/schema.rs`). They would be part of the components and of
//! every statement that these send.
//!
//! A statement may name all columns of a link at once, in the order in which the scripts add them. `id` is not among them,
//! because it belongs to one database.
//!
//! | in a file | in the statement |
//! | --- | --- |
//! | `{{columns}}` | `slug, url, ...` |
//! | `{{parameters}}` | `?1, ?2, ...`, the same number |
//! | `{{columns, blobs as hex}}` | the same columns, blobs in hexadecimal as in JSON: no statement returns a blob |
//! | `{{columns of value, blobs from hex}}` | the columns from the JSON object `value` |

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=sql");
    let target = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    let is_script = |(name, _): &(String, String)| name.starts_with(|first: char| first.is_ascii_digit());
    let (scripts, statements): (Vec<_>, Vec<_>) = read()?.into_iter().partition(is_script);

    for ((name, _), number) in scripts.iter().zip(1..) {
        if !name.starts_with(&format!("{number:04}_")) {
            return Err(io::Error::other(format!("{name}.sql is not script {number}")));
        }
    }
    let scripts: Vec<_> = scripts.into_iter().map(|(_, script)| script).collect();
    let lists: String = scripts
        .iter()
        .map(|script| format!("&{:?}, ", statements_of(script)))
        .collect();
    fs::write(target.join("schema.rs"), format!("[{lists}]"))?;

    let columns = columns(&scripts)?;
    let names: Vec<_> = columns.iter().map(|column| &column.name).collect();
    fs::write(target.join("link_columns.rs"), format!("{names:?}"))?;

    let mut constants = String::new();
    for (name, statement) in statements {
        let statement = with_columns(&name, &statement, &columns)?;
        constants += &format!(
            "/// `sql/{name}.sql`\npub const {}: &str = {statement:?};\n",
            name.to_ascii_uppercase()
        );
    }
    fs::write(target.join("sql.rs"), constants)
}

/// The names of the files without `.sql`, in order, and the compact SQL.
fn read() -> io::Result<Vec<(String, String)>> {
    let mut files = vec![];
    for entry in fs::read_dir("sql")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = name
            .strip_suffix(".sql")
            .ok_or_else(|| io::Error::other(format!("sql/{name} is not SQL")))?;
        files.push((name.to_owned(), compact(&fs::read_to_string(entry.path())?)));
    }
    files.sort();
    Ok(files)
}

/// Removes indentation and the lines that are comments as a whole. The files have no other comments.
fn compact(sql: &str) -> String {
    let lines = sql.lines().map(str::trim_start).filter(|line| !line.starts_with("--"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The statements of a script. A statement ends at a `;` followed by an empty line or the end of the script. The body of a
/// trigger has no empty line, so it stays in one piece.
fn statements_of(script: &str) -> Vec<&str> {
    let statements = script
        .split(";\n\n")
        .map(|statement| statement.trim().trim_end_matches(';'));
    statements.filter(|statement| !statement.is_empty()).collect()
}

/// A column of the table of links.
struct Column {
    name: String,
    is_blob: bool,
}

impl Column {
    /// Reads a definition such as `slug TEXT NOT NULL UNIQUE`.
    fn of(definition: &str) -> io::Result<Self> {
        let mut words = definition.split([' ', ',', ';']);
        let name = words.next().unwrap_or_default().to_owned();
        match words.next() {
            Some("TEXT" | "INTEGER") => Ok(Self { name, is_blob: false }),
            Some("BLOB") => Ok(Self { name, is_blob: true }),
            // A number of type REAL would not be the same after it was copied as JSON.
            _ => Err(io::Error::other(format!("a link cannot have the column {definition}"))),
        }
    }
}

/// The columns that the scripts create and add, without `id`.
fn columns(scripts: &[String]) -> io::Result<Vec<Column>> {
    let mut columns = vec![];
    for statement in scripts.iter().flat_map(|script| script.split("\n\n")) {
        let mut lines = statement.trim().lines();
        let first = lines.next().unwrap_or_default();
        if first == "CREATE TABLE IF NOT EXISTS links (" {
            let definitions = lines.take_while(|line| !line.starts_with(')'));
            for definition in definitions.filter(|definition| !definition.starts_with("id ")) {
                columns.push(Column::of(definition)?);
            }
        } else if let Some(definition) = first.strip_prefix("ALTER TABLE links ADD COLUMN ") {
            columns.push(Column::of(definition)?);
        }
    }
    Ok(columns)
}

/// Replaces the texts in double braces.
fn with_columns(name: &str, statement: &str, columns: &[Column]) -> io::Result<String> {
    let list = |item: &dyn Fn(&Column) -> String| columns.iter().map(item).collect::<Vec<_>>().join(", ");
    let parameters: Vec<_> = (1..=columns.len()).map(|number| format!("?{number}")).collect();
    let as_hex = |Column { name, is_blob }: &Column| match is_blob {
        // hex(NULL) is an empty text.
        true => format!("CASE WHEN {name} IS NOT NULL THEN hex({name}) END"),
        false => name.clone(),
    };
    let from_hex = |Column { name, is_blob }: &Column| match is_blob {
        true => format!("unhex(json_extract(value, '$.{name}'))"),
        false => format!("json_extract(value, '$.{name}')"),
    };
    let statement = statement
        .replace("{{columns}}", &list(&|column| column.name.clone()))
        .replace("{{parameters}}", &parameters.join(", "))
        .replace("{{columns, blobs as hex}}", &list(&as_hex))
        .replace("{{columns of value, blobs from hex}}", &list(&from_hex));
    match statement.contains("{{") {
        true => Err(io::Error::other(format!(
            "{name}.sql has an unknown text in double braces"
        ))),
        false => Ok(statement),
    }
}
