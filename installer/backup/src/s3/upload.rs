//! Uploads an object: a small one in one request, a larger one in parts (S3 User Guide, "Uploading and copying objects using
//! multipart upload"). The object exists only once it is complete.

use std::io::{Read, Write};

use anyhow::{Context as _, bail, ensure};
use data_encoding::BASE64;
use md5::{Digest as _, Md5};
use rusty_s3::actions::{CompleteMultipartUpload, CompleteMultipartUploadResponse, CreateMultipartUpload};

use super::server::Server;
use links_config::backup::{Problem, Uploading};

/// The size of a part, in bytes, and of the largest object that is uploaded in one request. S3 asks for 5 MiB at least.
const PART: u64 = 16 << 20;
/// S3 accepts 10,000 parts.
const PARTS: u64 = 9_000;
/// The granularity of larger parts.
const STEP: u64 = 1 << 20;

/// The size of the parts for an object of this size.
fn part_size(bytes: u64) -> u64 {
    bytes.div_ceil(PARTS).next_multiple_of(STEP).max(PART)
}

/// Uploads `bytes` bytes of `input`. `events` gets a line for each event.
///
/// # Errors
/// The object exists already, the server does not answer or refuses, or `input` ends too early. Nothing is left on the server
/// then, unless it does not answer.
pub fn upload(
    server: &Server,
    key: &str,
    bytes: u64,
    input: &mut impl Read,
    events: &mut impl Write,
) -> anyhow::Result<()> {
    if server.head(key)?.is_some() {
        bail!("{key} exists already in the bucket {}", server.bucket.name());
    }
    if bytes <= PART {
        put(server, key, &read(input, bytes)?)?;
    } else {
        in_parts(server, key, bytes, input, events)?;
    }
    let found = server.head(key)?.map(|(length, _)| length);
    ensure!(
        found == Some(bytes),
        Problem::Damaged.error(format!("the server has {} of {bytes} bytes", found.unwrap_or(0)))
    );
    report(events, &Uploading::Done)
}

fn report(events: &mut impl Write, event: &Uploading) -> anyhow::Result<()> {
    writeln!(events, "{}", serde_json::to_string(event)?)?;
    Ok(events.flush()?)
}

fn read(input: &mut impl Read, bytes: u64) -> anyhow::Result<Vec<u8>> {
    let mut part = vec![];
    input.take(bytes).read_to_end(&mut part).context("Reading the backup")?;
    ensure!(part.len() as u64 == bytes, "the backup ended too early");
    Ok(part)
}

/// The digest by which the server notices that a body was changed on the way (RFC 1864).
fn digest(part: &[u8]) -> String {
    BASE64.encode(&Md5::digest(part))
}

fn put(server: &Server, key: &str, body: &[u8]) -> anyhow::Result<()> {
    let action = server.bucket.put_object(Some(&server.credentials), key);
    server.demand(&action, &[("content-md5", digest(body).as_str())], Some(body))?;
    Ok(())
}

fn in_parts(
    server: &Server,
    key: &str,
    bytes: u64,
    input: &mut impl Read,
    events: &mut impl Write,
) -> anyhow::Result<()> {
    let action = server.bucket.create_multipart_upload(Some(&server.credentials), key);
    let response = server.demand(&action, &[], Some(b""))?;
    let begun = CreateMultipartUpload::parse_response(&response.text())
        .map_err(|error| anyhow::anyhow!("the server's answer to the upload cannot be parsed: {error}"))?;
    let id = begun.upload_id();
    // Whoever reads this can end the upload if this process cannot.
    report(events, &Uploading::Begun { id: id.to_owned() })?;
    let uploaded = parts(server, key, bytes, input, id).and_then(|tags| complete(server, key, bytes, id, &tags));
    uploaded.inspect_err(|_| {
        // The first error is the one to report.
        let _ = server.abort(key, id);
    })
}

/// Uploads the parts and returns their tags.
fn parts(server: &Server, key: &str, bytes: u64, input: &mut impl Read, id: &str) -> anyhow::Result<Vec<String>> {
    let size = part_size(bytes);
    let mut tags = vec![];
    let mut left = bytes;
    for number in 1..=u16::MAX {
        let part = read(input, left.min(size))?;
        let action = server.bucket.upload_part(Some(&server.credentials), key, number, id);
        let response = server.demand(&action, &[("content-md5", digest(&part).as_str())], Some(&part))?;
        let tag = response.header("etag").context("the server gives a part no tag")?;
        tags.push(tag.to_owned());
        left -= part.len() as u64;
        if left == 0 {
            break;
        }
    }
    Ok(tags)
}

fn complete(server: &Server, key: &str, bytes: u64, id: &str, tags: &[String]) -> anyhow::Result<()> {
    let action = || -> CompleteMultipartUpload<'_, _> {
        let tags = tags.iter().map(String::as_str);
        server
            .bucket
            .complete_multipart_upload(Some(&server.credentials), key, id, tags)
    };
    let body = action().body();
    let completed = server
        .demand(&action(), &[], Some(body.as_bytes()))
        .and_then(|response| {
            // The status is sent before the server knows whether it succeeds.
            CompleteMultipartUploadResponse::parse(&response.text())
                .map(drop)
                .map_err(|_| Problem::Refused.error("the server could not put the parts together"))
        });
    match completed {
        // The answer to an earlier attempt may have been lost: the upload is gone then, and the object is there.
        Err(error) => match server.head(key) {
            Ok(Some((length, _))) if length == bytes => Ok(()),
            _ => Err(error),
        },
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use super::super::server::tests::{Asked, server};
    use super::*;
    use links_base::testing::{Request, Response};

    const NS: &str = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";

    /// A server that refuses the part with this number, and has an object of this size after all parts.
    fn with_parts(refused: Option<u16>, bytes: u64) -> (Server, Asked, Arc<Mutex<u64>>) {
        let (complete, taken) = (AtomicBool::new(false), Arc::new(Mutex::new(0)));
        let sum = Arc::clone(&taken);
        let (server, asked) = server(move |request: &Request| {
            let has = |part: &str| request.path.contains(part);
            match request.method.as_str() {
                // The client takes the length from the head, and leaves the body unread.
                "HEAD" if complete.load(Ordering::Relaxed) => {
                    Response::from((200, "x".repeat(usize::try_from(bytes).unwrap())))
                }
                "HEAD" => Response::from((404, String::new())),
                "POST" if has("uploads=1") => Response::from((
                    200,
                    format!(
                        "<InitiateMultipartUploadResult {NS}><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
                    ),
                )),
                "PUT" if refused.is_some_and(|number| has(&format!("partNumber={number}&"))) => {
                    Response::from((403, String::new()))
                }
                "PUT" => {
                    *sum.lock().unwrap() += request.body.len() as u64;
                    Response::from((200, String::new())).header("etag", "\"t\"")
                }
                "POST" => {
                    complete.store(true, Ordering::Relaxed);
                    let body =
                        format!("<CompleteMultipartUploadResult {NS}><ETag>t</ETag></CompleteMultipartUploadResult>");
                    Response::from((200, body))
                }
                _ => Response::from((204, String::new())),
            }
        });
        (server, asked, taken)
    }

    #[test]
    fn the_parts_are_few_enough_and_large_enough() {
        assert_eq!(part_size(1), PART);
        assert_eq!(part_size(PART * PARTS), PART);
        for bytes in [PART * PARTS + 1, 1 << 40, 5 << 40] {
            let size = part_size(bytes);
            assert!(
                bytes.div_ceil(size) <= PARTS && size > PART && size.is_multiple_of(STEP),
                "{bytes}"
            );
        }
    }

    #[test]
    fn a_part_that_fails_ends_the_upload_and_leaves_nothing() {
        let bytes = 2 * PART + 10;
        let (server, asked, _) = with_parts(Some(2), bytes);
        let input = vec![b'x'; usize::try_from(bytes).unwrap()];
        let mut events = vec![];
        let error = upload(&server, "a", bytes, &mut &input[..], &mut events).unwrap_err();
        assert_eq!(Problem::of(&error), Problem::Refused);
        assert_eq!(events, b"{\"event\":\"begun\",\"id\":\"u1\"}\n");
        let asked = asked.lock().unwrap();
        assert_eq!(asked.last().map(String::as_str), Some("DELETE /backups/a"), "{asked:?}");
    }

    #[test]
    fn a_backup_that_ends_too_early_is_not_completed() {
        let bytes = 2 * PART + 10;
        let (server, asked, _) = with_parts(None, bytes);
        let input = vec![b'x'; usize::try_from(PART + 10).unwrap()];
        assert!(upload(&server, "a", bytes, &mut &input[..], &mut vec![]).is_err());
        let asked = asked.lock().unwrap();
        let posts = asked.iter().filter(|asked| asked.starts_with("POST")).count();
        assert_eq!(
            (posts, asked.last().map(String::as_str)),
            (1, Some("DELETE /backups/a"))
        );
    }

    #[test]
    fn all_bytes_are_in_the_parts() {
        let bytes = 2 * PART + 10;
        let (server, asked, taken) = with_parts(None, bytes);
        let input = vec![b'x'; usize::try_from(bytes).unwrap()];
        let mut events = vec![];
        upload(&server, "a", bytes, &mut &input[..], &mut events).unwrap();
        assert!(events.ends_with(b"{\"event\":\"done\"}\n"));
        assert_eq!(*taken.lock().unwrap(), bytes);
        let asked = asked.lock().unwrap();
        assert!(asked.iter().all(|asked| !asked.starts_with("DELETE")), "{asked:?}");
    }

    #[test]
    fn an_object_that_exists_is_not_replaced() {
        let (server, asked) = server(|_| (200, "0123456789".to_owned()));
        assert!(upload(&server, "a", 3, &mut &b"abc"[..], &mut vec![]).is_err());
        assert_eq!(*asked.lock().unwrap(), ["HEAD /backups/a"]);
    }
}
