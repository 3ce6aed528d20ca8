//! Compresses a backup, and encrypts it with age if it is for somebody (<https://age-encryption.org/v1>). `age -d FILE | zstd -d`
//! does the reverse.

use std::io::{self, BufRead, BufReader, Cursor, Read, Write};

use age::x25519::Recipient;
use age::{DecryptError, Decryptor, Encryptor, Identity, IdentityFile};
use anyhow::Context as _;

use links_config::backup::{self, Problem};

/// The level at which compression costs less time than reading a database from a disk.
const LEVEL: i32 = 3;
/// The size of buffers, in bytes: two chunks of age.
const BUFFER: usize = 128 * 1024;
/// The beginning of a file of age.
const AGE_MAGIC: &[u8] = b"age-encryption.org/";
/// The beginning of a frame of zstd (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The keys for which a backup is encrypted, with their checksums checked.
///
/// # Errors
/// A key is not one.
pub fn recipients(keys: &[backup::Recipient]) -> anyhow::Result<Vec<Recipient>> {
    keys.iter()
        .map(|key| {
            let parsed: Result<Recipient, &str> = key.as_str().parse();
            parsed.map_err(|why| anyhow::anyhow!("{key} is no public key of age ({why}); compare it with the original"))
        })
        .collect()
}

/// Compresses `input` into `output`, and encrypts it unless `recipients` is empty.
///
/// # Errors
/// Reading or writing fails.
pub fn seal(input: impl Read, output: impl Write, recipients: &[Recipient]) -> anyhow::Result<()> {
    if recipients.is_empty() {
        compress(input, output)?.flush()?;
        return Ok(());
    }
    let all = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let encrypted = Encryptor::with_recipients(all)?.wrap_output(output)?;
    compress(input, encrypted)?.finish()?.flush()?;
    Ok(())
}

fn compress<W: Write>(mut input: impl Read, output: W) -> io::Result<W> {
    let mut encoder = zstd::Encoder::new(output, LEVEL)?;
    encoder.include_checksum(true)?;
    io::copy(&mut input, &mut encoder)?;
    encoder.finish()
}

/// The secret keys in a file as `age-keygen` writes it.
///
/// # Errors
/// The file holds something else. The error does not repeat it.
pub fn identities(file: impl Read) -> anyhow::Result<Vec<Box<dyn Identity + Send + Sync>>> {
    let file = IdentityFile::from_buffer(BufReader::new(file))?;
    let identities = file.into_identities()?;
    if identities.is_empty() {
        return Err(Problem::WrongKey.error("it holds no key"));
    }
    Ok(identities)
}

/// Does the reverse of [`seal`].
///
/// # Errors
/// `input` is damaged or encrypted for somebody else, or writing fails.
pub fn open(
    input: impl Read,
    mut output: impl Write,
    identities: Option<&[Box<dyn Identity + Send + Sync>]>,
) -> anyhow::Result<()> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut head = vec![];
    Read::by_ref(&mut input)
        .take(AGE_MAGIC.len() as u64)
        .read_to_end(&mut head)?;
    let (is_encrypted, is_compressed) = (head == AGE_MAGIC, head.starts_with(ZSTD_MAGIC));
    let input = Cursor::new(head).chain(input);
    if is_encrypted {
        let Some(identities) = identities else {
            return Err(Problem::Locked.error("it is encrypted: --identity FILE names the file with the secret key"));
        };
        let decryptor = Decryptor::new_buffered(input).map_err(refused)?;
        let all = identities.iter().map(|identity| &**identity as &dyn Identity);
        let decrypted = decryptor.decrypt(all).map_err(refused)?;
        return decompress(BufReader::with_capacity(BUFFER, decrypted), &mut output);
    }
    if !is_compressed {
        return Err(
            Problem::Damaged.error("it is no backup of links: it begins neither as age's nor as zstd's files do")
        );
    }
    decompress(input, &mut output)
}

fn refused(error: DecryptError) -> anyhow::Error {
    match error {
        DecryptError::NoMatchingKeys => {
            Problem::WrongKey.error("it was encrypted for other keys than those in the file")
        }
        // age reports it for a file that was changed.
        other => Problem::Damaged.error(format!("it cannot be decrypted: {other}")),
    }
}

fn decompress(input: impl BufRead, output: &mut impl Write) -> anyhow::Result<()> {
    let mut decoder = zstd::Decoder::with_buffer(input)?.single_frame();
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Problem::Damaged.error(format!("it is damaged or cut off: {error}"))),
        };
        output.write_all(&buffer[..read]).context("Writing")?;
    }
    // Reading on to the end also makes age check the end of its stream.
    let mut rest = decoder.finish();
    let left = io::copy(&mut rest, &mut io::sink());
    match left {
        Ok(0) => Ok(output.flush()?),
        Ok(_) => Err(Problem::Damaged.error("something follows the backup in its file")),
        Err(error) => Err(Problem::Damaged.error(format!("it is damaged or cut off: {error}"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use age::secrecy::ExposeSecret as _;
    use age::x25519;

    use super::*;

    fn plain() -> Vec<u8> {
        (0..300_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect()
    }

    fn sealed(recipients: &[Recipient]) -> Vec<u8> {
        let mut sealed = vec![];
        seal(&plain()[..], &mut sealed, recipients).unwrap();
        sealed
    }

    fn opened(sealed: &[u8], key: Option<&x25519::Identity>) -> Result<Vec<u8>, Problem> {
        let keys = key.map(|key| {
            let file = format!("# a comment\n{}\n", key.to_string().expose_secret());
            identities(file.as_bytes()).unwrap()
        });
        let mut output = vec![];
        open(sealed, &mut output, keys.as_deref())
            .map(|()| output)
            .map_err(|error| Problem::of(&error))
    }

    #[test]
    fn what_was_sealed_is_opened() {
        let sealed = sealed(&[]);
        assert!(sealed.len() < plain().len() / 2);
        assert_eq!(opened(&sealed, None), Ok(plain()));
    }

    #[test]
    fn only_a_key_for_which_it_was_encrypted_opens_a_backup() {
        let keys = [x25519::Identity::generate(), x25519::Identity::generate()];
        let sealed = sealed(&[keys[0].to_public(), keys[1].to_public()]);
        for key in &keys {
            assert_eq!(opened(&sealed, Some(key)), Ok(plain()));
        }
        assert_eq!(
            opened(&sealed, Some(&x25519::Identity::generate())),
            Err(Problem::WrongKey)
        );
        assert_eq!(opened(&sealed, None), Err(Problem::Locked));
    }

    #[test]
    fn a_file_that_was_changed_cut_off_or_extended_is_refused() {
        let key = x25519::Identity::generate();
        for sealed in [sealed(&[]), sealed(&[key.to_public()])] {
            let open = |bytes: &[u8]| opened(bytes, Some(&key));
            for at in [0, 30, sealed.len() / 2, sealed.len() - 1] {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                // A changed key stanza is one for somebody else.
                let problem = open(&changed).unwrap_err();
                assert!(
                    matches!(problem, Problem::Damaged | Problem::WrongKey),
                    "{at}: {problem:?}"
                );
            }
            for length in [0, 3, sealed.len() / 2, sealed.len() - 1] {
                assert_eq!(open(&sealed[..length]), Err(Problem::Damaged), "{length}");
            }
            assert_eq!(open(&[&sealed[..], b"x"].concat()), Err(Problem::Damaged));
        }
    }

    #[test]
    fn a_mistyped_key_is_refused_before_anything_is_encrypted() {
        let key = x25519::Identity::generate().to_public().to_string();
        let last = if key.ends_with('q') { 'p' } else { 'q' };
        let mistyped = format!("{}{last}", &key[..key.len() - 1]);
        assert!(recipients(&[key.parse().unwrap()]).is_ok());
        assert!(recipients(&[mistyped.parse().unwrap()]).is_err());
    }

    #[test]
    fn an_error_about_the_file_of_keys_does_not_repeat_it() {
        let error = identities(&b"AGE-SECRET-KEY-1HUSH\n"[..]).err().unwrap();
        assert!(!format!("{error:#}").contains("HUSH"));
        assert_eq!(
            Problem::of(&identities(&b"# nothing\n"[..]).err().unwrap()),
            Problem::WrongKey
        );
    }
}
