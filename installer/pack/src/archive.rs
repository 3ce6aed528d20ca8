//! Writers of archives: tar, and the ar format of a .deb. They use no path and no time except what the caller passes in, so
//! equal input gives equal bytes.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// The maximum length of a name in bytes. Longer names need extensions of the format that not every reader knows.
const MAX_NAME: usize = 100;
/// The number of uncompressed bytes that each thread of the compressor takes at a time. It is fixed because the output depends
/// on it. The output does not depend on the number of threads.
const XZ_BLOCK: u64 = 24 << 20;
/// The default preset of xz. Its dictionary of 8 MiB lets dpkg unpack on a small machine.
const XZ_PRESET: u32 = 6;

/// One member of a tar archive. Owner and group are always root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The relative path, without a trailing slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Directory,
    Bytes(Cow<'static, [u8]>),
    /// A file that is read while the archive is written. It must still have this size in bytes then.
    File {
        path: PathBuf,
        size: u64,
    },
}

impl Content {
    /// The size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Directory => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }
}

/// Writes a tar archive of the members, in the order of their paths. `prefix` is `.` or the directory to put them in, and
/// `time` is in seconds since 1970.
///
/// # Errors
/// Fails if writing fails, if a file cannot be read or has changed its size, or if a name is longer than 100 bytes.
pub fn write_tar<W: Write>(out: W, prefix: &str, members: &[Member], time: u64) -> io::Result<W> {
    let mut sorted: Vec<&Member> = members.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut tar = tar::Builder::new(out);
    for member in sorted {
        let header = header(prefix, member, time)?;
        match &member.content {
            Content::Directory => tar.append(&header, io::empty())?,
            Content::Bytes(bytes) => tar.append(&header, &bytes[..])?,
            Content::File { path, size } => {
                let mut file = File::open(path)?.take(*size);
                tar.append(&header, &mut file)?;
                if file.limit() != 0 || file.into_inner().read(&mut [0])? != 0 {
                    return Err(io::Error::other(format!(
                        "{} changed while it was packed; pack again",
                        path.display()
                    )));
                }
            }
        }
    }
    tar.into_inner()
}

fn header(prefix: &str, member: &Member, time: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    let mut name = format!("{prefix}/{}", member.path);
    if member.content == Content::Directory {
        header.set_entry_type(tar::EntryType::Directory);
        if !name.ends_with('/') {
            name.push('/');
        }
    } else {
        header.set_entry_type(tar::EntryType::Regular);
    }
    // Written directly, because the tar crate drops the leading `./` that dpkg's tools write and expect.
    let field = &mut header.as_old_mut().name;
    if name.len() > MAX_NAME {
        return Err(io::Error::other(format!(
            "{name} is longer than {MAX_NAME} bytes; shorten it"
        )));
    }
    field[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(member.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root")?;
    header.set_groupname("root")?;
    header.set_mtime(time);
    header.set_size(member.content.size());
    header.set_cksum();
    Ok(header)
}

/// An xz compressor whose output depends only on its input, not on `threads`.
///
/// # Errors
/// Fails if there is not enough memory for the threads, which take about 100 MiB each.
pub fn xz<W: Write>(out: W, threads: u32) -> io::Result<liblzma::write::XzEncoder<W>> {
    xz_by_block(out, threads, XZ_BLOCK)
}

fn xz_by_block<W: Write>(out: W, threads: u32, block: u64) -> io::Result<liblzma::write::XzEncoder<W>> {
    let stream = liblzma::stream::MtStreamBuilder::new()
        .threads(threads.max(1))
        .block_size(block)
        .preset(XZ_PRESET)
        .check(liblzma::stream::Check::Crc64)
        .encoder()?;
    Ok(liblzma::write::XzEncoder::new_stream(out, stream))
}

/// A gzip compressor like `gzip -9n`, which stores neither a name nor a time.
pub fn gzip<W: Write>(out: W) -> flate2::write::GzEncoder<W> {
    flate2::GzBuilder::new()
        .mtime(0)
        .write(out, flate2::Compression::best())
}

/// Writes the three members of a Debian package, deb(5). Both archives must be compressed with xz already.
///
/// # Errors
/// Fails if writing fails.
pub fn write_deb<W: Write>(out: W, control_tar_xz: &[u8], data_tar_xz: &[u8], time: u64) -> io::Result<W> {
    let mut deb = ar::Builder::new(out);
    for (name, bytes) in [
        ("debian-binary", &b"2.0\n"[..]),
        ("control.tar.xz", control_tar_xz),
        ("data.tar.xz", data_tar_xz),
    ] {
        let mut header = ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64);
        header.set_mode(0o100_644);
        header.set_mtime(time);
        deb.append(&header, bytes)?;
    }
    deb.into_inner()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use std::io::Read;

    const TIME: u64 = 1_700_000_000;

    fn member(path: &str, mode: u32, content: Content) -> Member {
        Member {
            path: path.to_owned(),
            mode,
            content,
        }
    }

    fn bytes(text: &'static str) -> Content {
        Content::Bytes(Cow::Borrowed(text.as_bytes()))
    }

    fn members() -> Vec<Member> {
        vec![
            member("usr/bin/b", 0o755, bytes("bee")),
            member("", 0o755, Content::Directory),
            member("usr", 0o755, Content::Directory),
            member("usr/bin", 0o755, Content::Directory),
            member("etc", 0o755, Content::Directory),
            member("etc/a", 0o644, bytes("ay\n")),
        ]
    }

    #[test]
    fn a_tar_has_sorted_members_owned_by_root_with_fixed_time_and_modes() {
        let tar = write_tar(Vec::new(), ".", &members(), TIME).unwrap();
        let mut found = Vec::new();
        for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.username().unwrap(), Some("root"));
            assert_eq!(header.groupname().unwrap(), Some("root"));
            assert_eq!(header.mtime().unwrap(), TIME);
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((name, header.mode().unwrap(), text));
        }
        let expected = [
            ("./", 0o755, ""),
            ("./etc/", 0o755, ""),
            ("./etc/a", 0o644, "ay\n"),
            ("./usr/", 0o755, ""),
            ("./usr/bin/", 0o755, ""),
            ("./usr/bin/b", 0o755, "bee"),
        ]
        .map(|(name, mode, text)| (name.to_owned(), mode, text.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn the_order_of_the_caller_does_not_matter() {
        let mut reversed = members();
        reversed.reverse();
        assert_eq!(
            write_tar(Vec::new(), ".", &members(), TIME).unwrap(),
            write_tar(Vec::new(), ".", &reversed, TIME).unwrap()
        );
    }

    #[test]
    fn a_file_that_changes_its_size_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        let with_size = |size| {
            let content = Content::File {
                path: file.path().to_owned(),
                size,
            };
            write_tar(Vec::new(), ".", &[member("f", 0o644, content)], TIME)
        };
        assert!(with_size(5).is_ok());
        for wrong in [4, 6] {
            assert!(with_size(wrong).unwrap_err().to_string().contains("changed"), "{wrong}");
        }
    }

    #[test]
    fn a_name_too_long_for_the_header_is_an_error() {
        let long = "x".repeat(99);
        let error = write_tar(Vec::new(), ".", &[member(&long, 0o644, bytes(""))], TIME).unwrap_err();
        assert!(error.to_string().contains(&long), "{error}");
        assert!(write_tar(Vec::new(), ".", &[member(&long[1..], 0o644, bytes(""))], TIME).is_ok());
    }

    #[test]
    fn xz_gives_the_same_bytes_on_any_number_of_threads() {
        const BLOCK: u64 = 64 << 10;
        let mut state = 1_u32;
        let input: Vec<u8> = (0..4 * BLOCK + 1000)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if i % 64 == 0 { (state >> 24) as u8 } else { 7 }
            })
            .collect();
        let compress = |threads, block| {
            let mut encoder = xz_by_block(Vec::new(), threads, block).unwrap();
            encoder.write_all(&input).unwrap();
            encoder.finish().unwrap()
        };
        let one = compress(1, BLOCK);
        assert!(one == compress(3, BLOCK), "one thread and three differ");
        // Another block size gives other bytes, so the input does span several blocks.
        assert!(one != compress(1, 2 * BLOCK));
        let mut back = Vec::new();
        liblzma::read::XzDecoder::new_multi_decoder(&one[..])
            .read_to_end(&mut back)
            .unwrap();
        assert!(back == input, "the input does not survive the round trip");
    }

    #[test]
    fn gzip_stores_no_name_and_no_time() {
        let mut encoder = gzip(Vec::new());
        encoder.write_all(b"text").unwrap();
        let bytes = encoder.finish().unwrap();
        // RFC 1952: magic, deflate, no flags, no time, "maximum compression".
        assert_eq!(bytes[..9], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2]);
        let mut text = String::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "text");
    }

    #[test]
    fn a_deb_has_its_three_members_in_order() {
        let deb = write_deb(Vec::new(), b"control", b"data!", TIME).unwrap();
        assert!(
            deb.starts_with(b"!<arch>\ndebian-binary "),
            "{:?}",
            String::from_utf8_lossy(&deb)
        );
        let mut archive = ar::Archive::new(&deb[..]);
        let mut found = Vec::new();
        while let Some(entry) = archive.next_entry() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            assert_eq!(
                (header.mtime(), header.uid(), header.gid(), header.mode()),
                (TIME, 0, 0, 0o100_644)
            );
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((String::from_utf8(header.identifier().to_vec()).unwrap(), text));
        }
        let expected = [
            ("debian-binary", "2.0\n"),
            ("control.tar.xz", "control"),
            ("data.tar.xz", "data!"),
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(found, expected);
        assert_eq!(deb, write_deb(Vec::new(), b"control", b"data!", TIME).unwrap());
    }
}
