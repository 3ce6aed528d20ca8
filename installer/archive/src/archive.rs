//! The tar archive of a backup: the manifest, then every entry that it lists, in its order.

use std::io::{self, Read, Seek as _, Write};
use std::path::Path;

use anyhow::{bail, ensure};
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Builder, EntryType, Header};

use crate::collect::{Collected, Contents};
use crate::manifest::{self, Content, Entry, Manifest};
use links_config::backup::Problem;

/// Writes the archive.
///
/// # Errors
/// Writing fails, or a file has changed since its digest was computed.
pub fn write(manifest: &Manifest, collected: &mut [Collected], output: impl Write) -> anyhow::Result<()> {
    let mut builder = Builder::new(output);
    let bytes = serde_json::to_vec_pretty(manifest)?;
    ensure!(
        bytes.len() as u64 <= manifest::LIMIT,
        "there are too many files for a backup"
    );
    let mut header = header(manifest, EntryType::Regular, 0o644, bytes.len() as u64);
    builder.append_data(&mut header, manifest::NAME, &bytes[..])?;
    for Collected { entry, contents } in collected {
        match &entry.content {
            Content::Directory => {
                let mut header = self::header(manifest, EntryType::Directory, entry.mode, 0);
                builder.append_data(&mut header, &entry.path, io::empty())?;
            }
            Content::Link { target } => {
                let mut header = self::header(manifest, EntryType::Symlink, entry.mode, 0);
                builder.append_link(&mut header, &entry.path, target)?;
            }
            Content::File { bytes, sha256 } => {
                let mut header = self::header(manifest, EntryType::Regular, entry.mode, *bytes);
                let source: &mut dyn Read = match contents {
                    Contents::Bytes(bytes) => &mut &bytes[..],
                    Contents::File(file) => {
                        file.rewind()?;
                        file
                    }
                    Contents::None => bail!("{} has no contents", entry.path.display()),
                };
                let mut hashing = Hashing::new(source.take(*bytes));
                builder.append_data(&mut header, &entry.path, &mut hashing)?;
                ensure!(
                    hashing.matches(*bytes, sha256),
                    "{} has changed while it was read",
                    entry.path.display()
                );
            }
        }
    }
    builder.into_inner()?.flush()?;
    Ok(())
}

fn header(manifest: &Manifest, kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(manifest.begun);
    // All of it is root's, except the database, which gets its owner when it is restored.
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Receives the entries of an archive. They are verified only once [`read`] has succeeded.
pub trait Sink {
    /// # Errors
    /// The backup cannot be used here.
    fn begin(&mut self, manifest: &Manifest) -> anyhow::Result<()>;

    /// # Errors
    /// The entry cannot be used.
    fn take(&mut self, entry: &Entry, contents: &mut dyn Read) -> anyhow::Result<()>;
}

/// Reads an archive to its end, and checks that it is what its manifest says.
///
/// # Errors
/// The archive is damaged or of a later version, or the sink fails.
pub fn read(mut input: impl Read, sink: &mut dyn Sink) -> anyhow::Result<Manifest> {
    let mut archive = Archive::new(&mut input);
    let mut entries = archive.entries()?;
    let mut first = next(&mut entries)?.ok_or_else(|| Problem::Damaged.error("it is empty"))?;
    ensure!(
        is_named(&first, Path::new(manifest::NAME)) && first.size() <= manifest::LIMIT,
        Problem::Damaged.error("it is no backup of links: it does not begin with a manifest")
    );
    let mut bytes = vec![];
    first.read_to_end(&mut bytes).map_err(cut_off)?;
    let manifest = Manifest::parse(&bytes)?;
    sink.begin(&manifest)?;
    for expected in &manifest.entries {
        let path = expected.path.display();
        let mut found = next(&mut entries)?.ok_or_else(|| Problem::Damaged.error(format!("{path} is missing")))?;
        ensure!(
            is_named(&found, &expected.path) && is_of_kind(&found, &expected.content),
            Problem::Damaged.error(format!("{path} is not where its manifest says"))
        );
        let mut hashing = Hashing::new(&mut found);
        let taken = sink.take(expected, &mut hashing);
        let Content::File { bytes, sha256 } = &expected.content else {
            taken?;
            continue;
        };
        // Damage may be the reason why the sink could not use the entry.
        hashing.finish().map_err(cut_off)?;
        ensure!(
            hashing.matches(*bytes, sha256),
            Problem::Damaged.error(format!("{path} is not what its manifest says"))
        );
        taken?;
    }
    ensure!(
        next(&mut entries)?.is_none(),
        Problem::Damaged.error("it has more entries than its manifest says")
    );
    // What follows the end of an archive is padding, but the program that decompresses has to get rid of it.
    io::copy(&mut input, &mut io::sink())?;
    Ok(manifest)
}

type Found<'a, R> = tar::Entry<'a, R>;

fn next<'a, R: Read>(entries: &mut tar::Entries<'a, R>) -> anyhow::Result<Option<Found<'a, R>>> {
    entries.next().transpose().map_err(cut_off)
}

fn cut_off(error: io::Error) -> anyhow::Error {
    Problem::Damaged.error(format!("it is damaged or cut off: {error}"))
}

fn is_named<R: Read>(found: &Found<'_, R>, path: &Path) -> bool {
    found.path().is_ok_and(|found| found == path)
}

fn is_of_kind<R: Read>(found: &Found<'_, R>, content: &Content) -> bool {
    let kind = found.header().entry_type();
    match content {
        Content::File { bytes, .. } => kind == EntryType::Regular && found.size() == *bytes,
        Content::Directory => kind == EntryType::Directory,
        Content::Link { target } => {
            kind == EntryType::Symlink
                && found
                    .link_name()
                    .is_ok_and(|name| name.as_deref() == Some(target.as_path()))
        }
    }
}

/// A reader that counts and hashes what passes.
struct Hashing<R> {
    inner: R,
    bytes: u64,
    digest: Sha256,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            bytes: 0,
            digest: Sha256::new(),
        }
    }

    /// Reads what is left.
    fn finish(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink()).map(drop)
    }

    fn matches(&self, bytes: u64, sha256: &str) -> bool {
        self.bytes == bytes && HEXLOWER.encode(&self.digest.clone().finalize()) == sha256
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// The contents of an entry, which must not be longer than this.
///
/// # Errors
/// It is longer, or reading fails.
pub fn contents(entry: &Entry, contents: &mut dyn Read, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![];
    contents.take(limit + 1).read_to_end(&mut bytes).map_err(cut_off)?;
    ensure!(bytes.len() as u64 <= limit, "{} is too long", entry.path.display());
    Ok(bytes)
}

/// Writes everything that is left of an entry. The error keeps its kind: a broken pipe means that its reader has a reason.
///
/// # Errors
/// Reading or writing fails.
pub fn copy(contents: &mut dyn Read, output: &mut dyn Write) -> io::Result<()> {
    io::copy(contents, output).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use links_base::digest;

    use super::*;
    use crate::manifest::{DATABASE, tests::database};

    fn collected(path: &str, text: &str) -> Collected {
        let (bytes, sha256) = digest::of(&mut text.as_bytes()).unwrap();
        Collected {
            entry: Entry {
                path: path.into(),
                mode: 0o640,
                content: Content::File { bytes, sha256 },
            },
            contents: Contents::Bytes(text.as_bytes().to_vec()),
        }
    }

    fn long() -> String {
        // Longer than a name in a header, and a database of several blocks.
        format!("etc/links/nginx.d/{}.conf", "a".repeat(150))
    }

    /// An archive with a directory, a few files and a database.
    pub fn archive() -> Vec<u8> {
        let mut all = vec![
            collected("etc/links/links.toml", "instances = 3\n"),
            collected("etc/links/runtime.toml", ""),
            Collected {
                entry: Entry {
                    path: "etc/links/nginx.d".into(),
                    mode: 0o755,
                    content: Content::Directory,
                },
                contents: Contents::None,
            },
            collected(&long(), "# a\n"),
            collected(DATABASE, &"page".repeat(3000)),
        ];
        let entries = all.iter().map(|found| found.entry.clone()).collect();
        let manifest = Manifest::new(1000, 5, Some(database(3)), false, entries);
        let mut archive = vec![];
        write(&manifest, &mut all, &mut archive).unwrap();
        archive
    }

    #[derive(Default)]
    struct Kept(BTreeMap<PathBuf, Vec<u8>>);

    impl Sink for Kept {
        fn begin(&mut self, _: &Manifest) -> anyhow::Result<()> {
            Ok(())
        }

        fn take(&mut self, entry: &Entry, contents: &mut dyn Read) -> anyhow::Result<()> {
            let mut bytes = vec![];
            // A sink need not read everything.
            if entry.path != Path::new("etc/links/links.toml") {
                contents.read_to_end(&mut bytes)?;
            }
            self.0.insert(entry.path.clone(), bytes);
            Ok(())
        }
    }

    fn problem(archive: &[u8]) -> Option<Problem> {
        read(archive, &mut Kept::default())
            .err()
            .map(|error| Problem::of(&error))
    }

    #[test]
    fn an_archive_is_read_back() {
        let mut kept = Kept::default();
        let manifest = read(&archive()[..], &mut kept).unwrap();
        assert_eq!(manifest.entries.len(), 5);
        assert_eq!(kept.0.len(), 5);
        assert_eq!(kept.0[Path::new(&long())], b"# a\n");
        assert_eq!(kept.0[Path::new(DATABASE)].len(), 12_000);
    }

    #[test]
    fn an_archive_is_an_ordinary_tar_file() {
        let archive = archive();
        let mut archive = Archive::new(&archive[..]);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names[..2], ["manifest.json", "etc/links/links.toml"]);
    }

    #[test]
    fn an_archive_that_was_changed_is_refused() {
        let archive = archive();
        let at = |part: &[u8]| archive.windows(part.len()).position(|window| window == part).unwrap();
        for (part, replacement) in [
            (&b"instances = 3"[..], &b"instances = 4"[..]),
            (b"pagepage", b"pagePage"),
            (b"etc/links/runtime.toml\0", b"etc/links/runtime.tomm\0"),
        ] {
            let mut changed = archive.clone();
            let at = at(part);
            changed[at..at + part.len()].copy_from_slice(replacement);
            assert_eq!(
                problem(&changed),
                Some(Problem::Damaged),
                "{}",
                String::from_utf8_lossy(part)
            );
        }
    }

    #[test]
    fn an_archive_that_was_cut_off_or_extended_is_refused() {
        let archive = archive();
        for length in [0, 100, 1024, archive.len() / 2, archive.len() - 2 * 1024] {
            assert_eq!(problem(&archive[..length]), Some(Problem::Damaged), "{length}");
        }
        let end = archive.len() - 1024;
        let mut more = Builder::new(archive[..end].to_vec());
        let mut header = Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        more.append_data(&mut header, "etc/links/variables.env", &b"x"[..])
            .unwrap();
        assert_eq!(problem(&more.into_inner().unwrap()), Some(Problem::Damaged));
    }

    #[test]
    fn another_archive_is_no_backup() {
        let mut other = Builder::new(vec![]);
        let mut header = Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        other.append_data(&mut header, "a", &b"x"[..]).unwrap();
        assert_eq!(problem(&other.into_inner().unwrap()), Some(Problem::Damaged));
        assert_eq!(problem(b"not even an archive"), Some(Problem::Damaged));
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_ends_the_backup() {
        let mut found = collected("etc/links/links.toml", "instances = 3\n");
        found.contents = Contents::Bytes(b"instances = 4\n".to_vec());
        let manifest = Manifest::new(1000, 5, None, false, vec![found.entry.clone()]);
        assert!(write(&manifest, &mut [found], &mut vec![]).is_err());
    }
}
