//! Writes the files of `sql/` as Rust, without their comments: a constant for each statement (`src/sql.rs`), the list of the
//! migration scripts and the columns of a link (`src/schema.rs`). Comments would be part of the components and of every
//! statement that they send.

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
    fs::write(target.join("schema.rs"), format!("{scripts:?}"))?;

    let mut constants = String::new();
    for (name, statement) in statements {
        constants += &format!(
            "/// `sql/{name}.sql`\npub const {}: &str = {statement:?};\n",
            name.to_ascii_uppercase()
        );
    }
    fs::write(target.join("sql.rs"), constants)
}

/// The names of the files without `.sql`, in order, and the SQL without comments.
fn read() -> io::Result<Vec<(String, String)>> {
    let mut files = vec![];
    for entry in fs::read_dir("sql")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = name
            .strip_suffix(".sql")
            .ok_or_else(|| io::Error::other(format!("sql/{name} is not SQL")))?;
        files.push((name.to_owned(), without_comments(&fs::read_to_string(entry.path())?)));
    }
    files.sort();
    Ok(files)
}

/// Removes the lines that are comments as a whole. The files have no others.
fn without_comments(sql: &str) -> String {
    let lines = sql.lines().filter(|line| !line.trim_start().starts_with("--"));
    lines.map(|line| format!("{line}\n")).collect()
}
