//! Downloads of a Spin release. It is downloaded once, and its digest is checked at every use. An interrupted download is
//! resumed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::release::Release;

/// How long connecting may take. This is short so that a machine without network fails soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of an archive in bytes. No Spin release is as large.
const MAX_SIZE: u64 = 1 << 30;

/// The cache directory, `${XDG_CACHE_HOME:-~/.cache}/links`.
///
/// # Errors
/// Fails if neither XDG_CACHE_HOME nor HOME is an absolute path.
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
    /// Nothing arrived, so another source may be used instead.
    Unreachable(anyhow::Error),
    /// The download or the cache cannot be used, and the user has to act.
    Refused(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Refused(error)
    }
}

/// Downloads the archive into `cache`, unless it is already there with the right digest. Returns its path.
///
/// # Errors
/// Fails with a [`Failure`]. The part that arrived before an interruption stays in `cache` as `NAME.part`, and the next call
/// resumes from there. A file with the wrong digest is deleted.
pub fn fetch(release: &Release, cache: &Path) -> Result<PathBuf, Failure> {
    let target = release.target(cache);
    if take_cached(release, &target)? {
        return Ok(target);
    }
    fs::create_dir_all(cache).with_context(|| format!("Creating {}", cache.display()))?;
    let path = cache.join(format!("{}.part", release.file_name));
    let mut part = open_part(&path)?;
    // Another process may have finished the download between the first check and the lock.
    if take_cached(release, &target)? {
        return Ok(target);
    }
    let opening = || format!("Reading {}", path.display());
    let length = part.metadata().with_context(opening)?.len();
    // The part is complete if an earlier run was stopped just before the rename.
    let complete = length > 0 && release.matches(&mut part).with_context(opening)?.is_ok();
    if !complete && let Err(failure) = receive(release, &mut part, &path, length) {
        if part.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            // An empty part cannot be resumed. If deleting it fails, the error of the download is still the one to report.
            let _ = fs::remove_file(&path);
        }
        return Err(failure);
    }
    if let Err(found) = release.matches(&mut part).with_context(opening)? {
        fs::remove_file(&path).with_context(|| format!("Deleting {}", path.display()))?;
        return Err(Failure::Refused(anyhow::anyhow!(
            "the file from {} is not {}: its SHA-256 is {found}, but {} is expected. The file was deleted; try again, or \
             give --runtime PATH",
            release.url,
            release.description(),
            release.sha256
        )));
    }
    part.sync_all().with_context(|| format!("Writing {}", path.display()))?;
    fs::rename(&path, &target).with_context(|| format!("Renaming {} to {}", path.display(), target.display()))?;
    Ok(target)
}

/// Whether `target` is the archive. A file with another digest is deleted.
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

/// Opens and locks the partial download, because two downloads would spoil it.
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
            "another links-pack is downloading {}; try again when it has finished",
            path.display()
        ),
        Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("Locking {}", path.display())),
    }
}

/// Requests what is missing after the first `length` bytes and appends it. Starts over if the server cannot resume there.
fn receive(release: &Release, part: &mut File, path: &Path, length: u64) -> Result<(), Failure> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .timeout_per_write(Some(READ_TIMEOUT))
        .http_status_as_error(false)
        .user_agent(concat!("links-pack/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let ask = |from: u64| {
        let mut request = agent.get(&release.url);
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|error| {
            Failure::Unreachable(anyhow::Error::new(error).context(format!("Requesting {}", release.url)))
        })
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
            "{} answered {}",
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
            Err(error) => return Err(interrupted(release, arrived, total, Some(error))),
        };
        part.write_all(&buffer[..read])
            .with_context(|| format!("Writing {}", path.display()))?;
        arrived += read as u64;
        bar.set_position(arrived);
    }
    bar.finish_and_clear();
    if total.is_some_and(|total| total != arrived) {
        return Err(interrupted(release, arrived, total, None));
    }
    Ok(())
}

/// Whether the response is a 206 that starts at `from` (RFC 9110, section 15.3.7).
fn continues(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    response.status() == 206
        && response
            .headers()
            .get("content-range")
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(&format!("bytes {from}-")))
}

fn interrupted(release: &Release, arrived: u64, total: Option<u64>, cause: Option<io::Error>) -> Failure {
    let total = total.map_or_else(String::new, |total| format!(" of {total}"));
    let message = format!(
        "the download of {} was interrupted after {arrived}{total} bytes; pack again to resume it, or give --offline or \
         --runtime PATH",
        release.description()
    );
    Failure::Refused(match cause {
        Some(cause) => anyhow::Error::new(cause).context(message),
        None => anyhow::anyhow!(message),
    })
}

/// A progress bar, which is hidden if standard error is not a terminal.
fn progress(total: Option<u64>, release: &Release) -> ProgressBar {
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_style(style());
    bar.set_message(format!("downloading Spin {}", release.version));
    bar
}

/// The style of every progress bar.
pub fn style() -> ProgressStyle {
    // The template is a constant, so the fallback is never used.
    ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::digest;
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    const CONTENT: &[u8] = b"the whole archive, byte for byte";

    fn digest(mut bytes: &[u8]) -> String {
        digest::of(&mut bytes).unwrap().1
    }

    /// Sends each response on a connection of its own, in order, and returns the `Range` of each request.
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

    /// A response that closes the connection. `length` is its content-length.
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

        /// The ranges that were requested from the server, in order.
        fn requested_ranges(self) -> Vec<Option<String>> {
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
        // The server has answered its only request, so a second one would fail.
        assert_eq!(case.fetch().unwrap(), path);
        assert!(!case.part().exists());
        assert_eq!(case.requested_ranges(), [None]);
    }

    #[test]
    fn an_interrupted_download_is_reported_and_resumed() {
        let broken = response("200 OK", "", CONTENT.len(), &CONTENT[..10]);
        let case = Case::new(vec![broken, partial(10)]);
        let message = refused(case.fetch());
        assert!(message.contains("after 10 of 32 bytes"), "{message}");
        assert_eq!(fs::read(case.part()).unwrap(), &CONTENT[..10]);
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert_eq!(case.requested_ranges(), [None, Some("bytes=10-".to_owned())]);
    }

    #[test]
    fn a_server_without_ranges_is_read_from_the_start() {
        let case = Case::new(vec![ok(CONTENT)]);
        fs::write(case.part(), "other, longer than the archive that is to come").unwrap();
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert_eq!(case.requested_ranges(), [Some("bytes=46-".to_owned())]);
    }

    #[test]
    fn a_refused_or_wrong_range_restarts_the_download() {
        for bad in [response("416 Range Not Satisfiable", "", 0, b""), partial(3)] {
            let case = Case::new(vec![bad, ok(CONTENT)]);
            fs::write(case.part(), &CONTENT[..10]).unwrap();
            assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
            assert_eq!(case.requested_ranges(), [Some("bytes=10-".to_owned()), None]);
        }
    }

    #[test]
    fn a_complete_part_needs_no_server() {
        let case = Case::new(vec![]);
        fs::write(case.part(), CONTENT).unwrap();
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert!(case.requested_ranges().is_empty());
    }

    #[test]
    fn a_file_with_another_digest_is_refused_and_deleted() {
        let case = Case::new(vec![ok(b"something else")]);
        let message = refused(case.fetch());
        assert!(
            message.contains(&digest(b"something else")) && message.contains(&digest(CONTENT)),
            "{message}"
        );
        assert_eq!(fs::read_dir(case.cache.path()).unwrap().count(), 0);
        case.requested_ranges();
    }

    #[test]
    fn a_cached_file_that_changed_is_downloaded_anew() {
        let case = Case::new(vec![ok(CONTENT)]);
        let target = case.cache.path().join("spin.tar.gz");
        fs::write(&target, "tampered").unwrap();
        assert_eq!(case.fetch().unwrap(), target);
        assert_eq!(fs::read(&target).unwrap(), CONTENT);
        assert_eq!(case.requested_ranges(), [None]);
    }

    #[test]
    fn a_redirect_keeps_the_range() {
        let (url, second) = serve(vec![partial(10)]);
        let redirect = response("302 Found", &format!("location: {url}\r\n"), 0, b"");
        let case = Case::new(vec![redirect]);
        fs::write(case.part(), &CONTENT[..10]).unwrap();
        assert_eq!(fs::read(case.fetch().unwrap()).unwrap(), CONTENT);
        assert_eq!(second.join().unwrap(), [Some("bytes=10-".to_owned())]);
        case.requested_ranges();
    }

    #[test]
    fn an_error_page_is_unreachable_and_leaves_nothing_to_resume() {
        let case = Case::new(vec![response("404 Not Found", "", 5, b"sorry")]);
        assert!(matches!(case.fetch(), Err(Failure::Unreachable(_))));
        assert_eq!(fs::read_dir(case.cache.path()).unwrap().count(), 0);
        case.requested_ranges();
    }

    #[test]
    fn two_downloads_at_once_do_not_share_a_file() {
        let case = Case::new(vec![]);
        let held = open_part(&case.part()).unwrap();
        assert!(refused(case.fetch()).contains("another links-pack"));
        drop(held);
        case.requested_ranges();
    }
}
