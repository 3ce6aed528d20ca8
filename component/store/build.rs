//! Copies the SQL without its comments, which would otherwise be part of the components and of every statement that they send.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=sql");
    let target = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    for entry in fs::read_dir("sql")? {
        let entry = entry?;
        let sql = fs::read_to_string(entry.path())?;
        fs::write(Path::new(&target).join(entry.file_name()), without_comments(&sql))?;
    }
    Ok(())
}

/// Removes the lines that are comments as a whole. The files have no others.
fn without_comments(sql: &str) -> String {
    let lines = sql.lines().filter(|line| !line.trim_start().starts_with("--"));
    lines.map(|line| format!("{line}\n")).collect()
}
