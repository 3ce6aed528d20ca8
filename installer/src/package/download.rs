//! The pinned Spin release: downloaded once, checked by its digest at every use, and taken up again where a
//! download broke off.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::identity::Arch;
use crate::digest;

/// Short, so that a machine without the network gets its answer soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that sends nothing for so long has stopped.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// More than any Spin release; what is larger is not one.
const MAX_SIZE: u64 = 1 << 30;

/// An archive on the network whose digest is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub version: &'static str,
    url: String,
    file_name: String,
    /// Lower-case hexadecimal.
    sha256: String,
}

impl Release {
    /// The Spin release that the components are built for and tested on. The digests are those of the files at
    /// <https://github.com/spinframework/spin/releases/tag/v4.0.2>.
    pub fn pinned(arch: Arch) -> Self {
        let (name, sha256) = match arch {
            Arch::Amd64 => (
                "spin-v4.0.2-linux-amd64.tar.gz",
                "79523cfc93424d555b3493c7ea07e0fb482e1fd9972f29a83bea0ba7d764bf00",
            ),
            Arch::Arm64 => (
                "spin-v4.0.2-linux-aarch64.tar.gz",
                "f3811212aaf4ec9c6a731c515ab5052a64be52fc2cdd1b15b42f44817a82a9dc",
            ),
        };
        Self {
            version: "4.0.2",
            url: format!("https://github.com/spinframework/spin/releases/download/v4.0.2/{name}"),
            file_name: name.to_owned(),
            sha256: sha256.to_owned(),
        }
    }

    #[cfg(test)]
    pub fn at(url: String, sha256: String) -> Self {
        Self {
            version: "4.0.2",
            url,
            file_name: "spin.tar.gz".to_owned(),
            sha256,
        }
    }

    pub fn what(&self) -> String {
        format!("the Spin {} release", self.version)
    }

    /// For the manifest.
    pub fn origin(&self) -> String {
        format!("{}, checked by SHA-256", self.what())
    }

    /// True where [`fetch`] has put a file before; its digest is not looked at.
    pub fn is_cached(&self, cache: &Path) -> bool {
        self.target(cache).is_file()
    }

    fn target(&self, cache: &Path) -> PathBuf {
        cache.join(&self.file_name)
    }

    fn matches(&self, file: &mut File) -> io::Result<Result<(), String>> {
        file.seek(SeekFrom::Start(0))?;
        let (_, found) = digest::of(file)?;
        Ok(if found == self.sha256 { Ok(()) } else { Err(found) })
    }
}

/// `${XDG_CACHE_HOME:-~/.cache}/links`.
///
/// # Errors
/// Neither XDG_CACHE_HOME nor HOME is set to an absolute path.
pub fn cache_dir() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("links"))
        .context("Finding the cache directory: neither XDG_CACHE_HOME nor HOME is an absolute path; set one")
}

/// Why there is no archive.
#[derive(Debug)]
pub enum Failure {
    /// Nothing arrived: another source may be taken.
    Unreachable(anyhow::Error),
    /// Something arrived that must not be used, or the cache cannot: a person should look.
    Refused(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Refused(error)
    }
}

/// Puts the archive into `cache`, unless it is there with the right digest, and tells its path.
///
/// # Errors
/// See [`Failure`]. What arrived before a download broke off stays in `cache` (`NAME.part`), and the next call goes
/// on from there; what has the wrong digest is deleted.
pub fn fetch(release: &Release, cache: &Path) -> Result<PathBuf, Failure> {
    let target = release.target(cache);
    if take_cached(release, &target)? {
        return Ok(target);
    }
    fs::create_dir_all(cache).with_context(|| format!("Creating {}", cache.display()))?;
    let path = cache.join(format!("{}.part", release.file_name));
    let mut part = open_part(&path)?;
    // Another process may have finished between the first look and the lock.
    if take_cached(release, &target)? {
        return Ok(target);
    }
    let opening = || format!("Reading {}", path.display());
    let length = part.metadata().with_context(opening)?.len();
    // A download that ended just before its rename is complete.
    let complete = length > 0 && release.matches(&mut part).with_context(opening)?.is_ok();
    if !complete && let Err(failure) = receive(release, &mut part, &path, length) {
        if part.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            // Nothing to go on from; where it cannot be deleted, the reason why nothing arrived is the better one.
            let _ = fs::remove_file(&path);
        }
        return Err(failure);
    }
    if let Err(found) = release.matches(&mut part).with_context(opening)? {
        fs::remove_file(&path).with_context(|| format!("Deleting {}", path.display()))?;
        return Err(Failure::Refused(anyhow::anyhow!(
            "what {} sent is not {}: its SHA-256 is {found}, and {} is expected. It was deleted; try again, or give \
             --runtime PATH",
            release.url,
            release.what(),
            release.sha256
        )));
    }
    part.sync_all().with_context(|| format!("Writing {}", path.display()))?;
    fs::rename(&path, &target).with_context(|| format!("Renaming {} to {}", path.display(), target.display()))?;
    Ok(target)
}

/// True where `target` is the archive. One with another digest is deleted.
fn take_cached(release: &Release, target: &Path) -> anyhow::Result<bool> {
    let mut file = match File::open(target) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("Opening {}", target.display())),
    };
    let matches = release
        .matches(&mut file)
        .with_context(|| format!("Reading {}", target.display()))?;
    if matches.is_err() {
        fs::remove_file(target).with_context(|| format!("Deleting the damaged {}", target.display()))?;
    }
    Ok(matches.is_ok())
}

/// Opened and locked: two downloads into one file would spoil it.
fn open_part(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("Creating {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => anyhow::bail!(
            "{} is being downloaded by another linksctl; try again when it has finished",
            path.display()
        ),
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("Locking {}", path.display())),
    }
}

/// Asks for what is missing after the first `length` bytes and appends it; starts over where the server does not
/// go on from there.
fn receive(release: &Release, part: &mut File, path: &Path, length: u64) -> Result<(), Failure> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .timeout_per_write(Some(READ_TIMEOUT))
        .http_status_as_error(false)
        .user_agent(concat!("linksctl/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let ask = |from: u64| {
        let mut request = agent.get(&release.url);
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request
            .call()
            .map_err(|error| Failure::Unreachable(anyhow::Error::new(error).context(format!("Asking {}", release.url))))
    };
    let mut from = length;
    let mut response = ask(from)?;
    if from > 0 && !continues(&response, from) {
        from = 0;
        if response.status() != 200 {
            response = ask(0)?;
        }
    }
    if response.status() != if from > 0 { 206 } else { 200 } {
        return Err(Failure::Unreachable(anyhow::anyhow!(
            "{} answers {}",
            release.url,
            response.status()
        )));
    }
    let total = response.body().content_length().map(|rest| from + rest);
    part.set_len(from)
        .and_then(|()| part.seek(SeekFrom::Start(from)))
        .with_context(|| format!("Writing {}", path.display()))?;
    let bar = progress(total, release).with_position(from);
    let mut body = response.body_mut().as_reader().take(MAX_SIZE - from.min(MAX_SIZE));
    let mut buffer = vec![0; 1 << 16];
    let mut arrived = from;
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) => return Err(broke_off(release, arrived, total, Some(error))),
        };
        part.write_all(&buffer[..read])
            .with_context(|| format!("Writing {}", path.display()))?;
        arrived += read as u64;
        bar.set_position(arrived);
    }
    bar.finish_and_clear();
    if total.is_some_and(|total| total != arrived) {
        return Err(broke_off(release, arrived, total, None));
    }
    Ok(())
}

/// RFC 9110, 15.3.7: 206 with the range that was asked for.
fn continues(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    response.status() == 206
        && response
            .headers()
            .get("content-range")
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(&format!("bytes {from}-")))
}

fn broke_off(release: &Release, arrived: u64, total: Option<u64>, cause: Option<io::Error>) -> Failure {
    let total = total.map_or_else(String::new, |total| format!(" of {total}"));
    let message = format!(
        "the download of {} broke off after {arrived}{total} bytes; pack again and it goes on from there, or give \
         --offline or --runtime PATH",
        release.what()
    );
    Failure::Refused(match cause {
        Some(cause) => anyhow::Error::new(cause).context(message),
        None => anyhow::anyhow!(message),
    })
}

/// Hidden where standard error is no terminal.
fn progress(total: Option<u64>, release: &Release) -> ProgressBar {
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_style(style());
    bar.set_message(format!("downloading Spin {}", release.version));
    bar
}

/// The look of every bar of linksctl.
pub fn style() -> ProgressStyle {
    // The template is a constant; where it were wrong, a plainer bar would be shown.
    ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Takes one top-level file out of a .tar.gz, executable.
///
/// # Errors
/// The archive is damaged or holds no such file, or `to` cannot be written.
pub fn unpack(archive: &Path, name: &str, to: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let reading = || format!("Reading {}", archive.display());
    let file = File::open(archive).with_context(reading)?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(io::BufReader::new(file)));
    for entry in tar.entries().with_context(reading)? {
        let mut entry = entry.with_context(reading)?;
        let path = entry.path().with_context(reading)?;
        if path.strip_prefix(".").unwrap_or(&path) != Path::new(name) {
            continue;
        }
        let writing = || format!("Writing {}", to.display());
        let mut out = File::create(to).with_context(writing)?;
        io::copy(&mut entry, &mut out).with_context(|| format!("Unpacking {name} from {}", archive.display()))?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).with_context(writing)?;
        return Ok(());
    }
    anyhow::bail!("{} holds no {name}", archive.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    const CONTENT: &[u8] = b"the whole archive, byte for byte";

    fn digest(mut bytes: &[u8]) -> String {
        digest::of(&mut bytes).unwrap().1
    }

    /// Answers one connection per response, in order, and gives back the `Range` of each request.
    fn serve(responses: Vec<Vec<u8>>) -> (String, JoinHandle<Vec<Option<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/spin.tar.gz", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let answer = |response: Vec<u8>| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut range = None;
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let line = line.unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: ") {
                        range = Some(value.to_owned());
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                stream.write_all(&response).unwrap();
                range
            };
            responses.into_iter().map(answer).collect()
        });
        (url, server)
    }

    /// A response that closes the connection; `length` is what it claims.
    fn response(status: &str, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
        let mut bytes =
            format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        response("200 OK", "", body.len(), body)
    }

    fn partial(from: usize) -> Vec<u8> {
        let range = format!(
            "content-range: bytes {from}-{}/{}\r\n",
            CONTENT.len() - 1,
            CONTENT.len()
        );
        response("206 Partial Content", &range, CONTENT.len() - from, &CONTENT[from..])
    }

    struct Case {
        cache: tempfile::TempDir,
        release: Release,
        server: JoinHandle<Vec<Option<String>>>,
    }

    impl Case {
        fn new(responses: Vec<Vec<u8>>) -> Self {
            let (url, server) = serve(responses);
            Self {
                cache: tempfile::tempdir().unwrap(),
                release: Release::at(url, digest(CONTENT)),
                server,
            }
        }

        fn part(&self) -> PathBuf {
            self.cache.path().join("spin.tar.gz.part")
        }

        fn fetch(&self) -> Result<PathBuf, Failure> {
            fetch(&self.release, self.cache.path())
        }

        /// The ranges that the server was asked for, in order.
        fn asked(self) -> Vec<Option<String>> {
            self.server.join().unwrap()
        }
    }

    fn refused(result: Result<PathBuf, Failure>) -> String {
        match result {
            Err(Failure::Refused(error)) => format!("{error:#}"),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn a_download_is_kept_and_not_repeated() {
        let case = Case::new(vec![ok(CONTENT)]);
        assert!(!case.release.is_cached(case.cache.path()));
        let path = case.fetch().unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENT);
        assert!(case.release.is_cached(case.cache.path()));
        // The server has answered its one request: a second one would fail.
        assert_eq!(case.fetch().unwrap(), path);
        assert!(!case.part().exists());
        assert_eq!(case.asked(), [None]);
    }

    #[test]
    fn a_broken_download_says_so_and_goes_on_where_it_stopped() {
        let broken = response("200 OK", "", CONTENT.len(), &CONTENT[..10]);
        let case = Case::new(vec![broken, partial(10)]);
        let message = refused(case.fetch());
        assert!(message.contains("after 10 of 32 bytes"), "{message}");
        assert_eq!(fs::read(case.part()).unwrap(), &CONTENT[..10]);
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert_eq!(case.asked(), [None, Some("bytes=10-".to_owned())]);
    }

    #[test]
    fn a_server_without_ranges_is_read_from_the_start() {
        let case = Case::new(vec![ok(CONTENT)]);
        fs::write(case.part(), "other, longer than the archive that is to come").unwrap();
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert_eq!(case.asked(), [Some("bytes=46-".to_owned())]);
    }

    #[test]
    fn a_range_that_the_server_refuses_or_misplaces_is_given_up() {
        for bad in [response("416 Range Not Satisfiable", "", 0, b""), partial(3)] {
            let case = Case::new(vec![bad, ok(CONTENT)]);
            fs::write(case.part(), &CONTENT[..10]).unwrap();
            assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
            assert_eq!(case.asked(), [Some("bytes=10-".to_owned()), None]);
        }
    }

    #[test]
    fn a_complete_part_needs_no_server() {
        let case = Case::new(vec![]);
        fs::write(case.part(), CONTENT).unwrap();
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert!(case.asked().is_empty());
    }

    #[test]
    fn another_digest_is_refused_and_deleted() {
        let case = Case::new(vec![ok(b"something else")]);
        let message = refused(case.fetch());
        assert!(
            message.contains(&digest(b"something else")) && message.contains(&digest(CONTENT)),
            "{message}"
        );
        assert_eq!(fs::read_dir(case.cache.path()).unwrap().count(), 0);
        case.asked();
    }

    #[test]
    fn a_cached_file_that_changed_is_downloaded_anew() {
        let case = Case::new(vec![ok(CONTENT)]);
        let target = case.cache.path().join("spin.tar.gz");
        fs::write(&target, "tampered").unwrap();
        assert_eq!(case.fetch().unwrap(), target);
        assert_eq!(fs::read(&target).unwrap(), CONTENT);
        assert_eq!(case.asked(), [None]);
    }

    #[test]
    fn a_redirect_keeps_the_range() {
        let (url, second) = serve(vec![partial(10)]);
        let redirect = response("302 Found", &format!("location: {url}\r\n"), 0, b"");
        let case = Case::new(vec![redirect]);
        fs::write(case.part(), &CONTENT[..10]).unwrap();
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert_eq!(second.join().unwrap(), [Some("bytes=10-".to_owned())]);
        case.asked();
    }

    #[test]
    fn an_error_page_is_unreachable_and_leaves_nothing_to_resume() {
        let case = Case::new(vec![response("404 Not Found", "", 5, b"sorry")]);
        assert!(matches!(case.fetch(), Err(Failure::Unreachable(_))));
        assert_eq!(fs::read_dir(case.cache.path()).unwrap().count(), 0);
        case.asked();
    }

    #[test]
    fn two_downloads_at_once_do_not_share_a_file() {
        let case = Case::new(vec![]);
        let held = open_part(&case.part()).unwrap();
        assert!(refused(case.fetch()).contains("another linksctl"));
        drop(held);
        case.asked();
    }

    #[test]
    fn the_program_is_taken_from_the_top_of_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.tar.gz");
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
            File::create(&archive).unwrap(),
            flate2::Compression::fast(),
        ));
        for (path, text) in [("README.md", "read"), ("share/spin", "not this"), ("spin", "this")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        let to = dir.path().join("out");
        unpack(&archive, "spin", &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"this");
        assert!(
            unpack(&archive, "absent", &to)
                .unwrap_err()
                .to_string()
                .contains("holds no absent")
        );
    }
}
