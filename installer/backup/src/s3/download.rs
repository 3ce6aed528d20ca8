//! Downloads an object in parts, so that a connection that breaks costs one part.

use std::io::Write;

use anyhow::{Context as _, bail, ensure};

use super::server::Server;
use links_config::backup::Problem;

/// The size of a part, in bytes.
const PART: u64 = 8 << 20;

/// Writes an object to `output`.
///
/// # Errors
/// There is no such object, it changes meanwhile, the server does not answer or refuses, or `output` cannot be written.
pub fn download(server: &Server, key: &str, output: &mut impl Write) -> anyhow::Result<()> {
    let Some((bytes, tag)) = server.head(key)? else {
        return Err(Problem::Missing.error(format!("there is no {key} in the bucket {}", server.bucket.name())));
    };
    let mut position = 0;
    while position < bytes {
        let last = (position + PART).min(bytes) - 1;
        let range = format!("bytes={position}-{last}");
        let action = server.bucket.get_object(Some(&server.credentials), key);
        let response = server.demand(&action, &[("range", range.as_str())], None)?;
        if tag.is_some() && response.header("etag").map(str::to_owned) != tag {
            bail!("{key} was replaced while it was read");
        }
        let expected = last - position + 1;
        ensure!(
            response.body.len() as u64 == expected,
            "the server sends {} bytes instead of {expected}",
            response.body.len()
        );
        output.write_all(&response.body).context("Writing")?;
        position = last + 1;
    }
    Ok(output.flush()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::super::server::tests::server;
    use super::*;
    use links_base::testing::Response;

    #[test]
    fn an_object_is_read_part_by_part_and_a_part_that_fails_again() {
        let object: String = (0..2_000_000).map(|number| format!("{number:07}\n")).collect();
        let bytes = object.clone();
        let mut faults = 1;
        let (server, asked) = server(move |request| {
            let Some(range) = request.header("range") else {
                return Response::from((200, bytes.clone())).header("etag", "\"t\"");
            };
            faults -= 1;
            if faults == 0 {
                return Response::from((503, String::new()));
            }
            let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let range = first.parse::<usize>().unwrap()..=last.parse::<usize>().unwrap();
            Response::from((206, bytes[range].to_owned())).header("etag", "\"t\"")
        });
        let mut output = vec![];
        download(&server, "a", &mut output).unwrap();
        assert!(output == object.as_bytes());
        assert_eq!(asked.lock().unwrap().len(), 4);
    }

    #[test]
    fn an_object_that_is_replaced_meanwhile_is_not_mixed() {
        let (server, _) = server(|request| {
            let tag = if request.header("range").is_some() {
                "\"u\""
            } else {
                "\"t\""
            };
            Response::from((200, "abc".to_owned())).header("etag", tag)
        });
        assert!(download(&server, "a", &mut vec![]).is_err());
    }

    #[test]
    fn a_missing_object_is_named() {
        let (server, _) = server(|_| (404, String::new()));
        let error = download(&server, "a.tar.zst", &mut vec![]).unwrap_err();
        assert_eq!(Problem::of(&error), Problem::Missing);
        assert!(error.to_string().contains("a.tar.zst"));
    }
}
