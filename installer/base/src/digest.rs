//! Size and SHA-256 of a stream of bytes.

use std::io::{self, Read, Write};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// A writer that passes everything on to `out`, and counts and hashes it.
pub struct Counting<W> {
    out: W,
    size: u64,
    digest: Sha256,
}

impl<W: Write> Counting<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            size: 0,
            digest: Sha256::new(),
        }
    }

    /// The number of bytes written, and their SHA-256 in lower-case hexadecimal.
    pub fn sum(self) -> (u64, String) {
        (self.size, HEXLOWER.encode(&self.digest.finalize()))
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.digest.update(&buffer[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Size and SHA-256, as in [`Counting::sum`], of everything that `reader` returns.
///
/// # Errors
/// Reading fails.
pub fn of(reader: &mut impl Read) -> io::Result<(u64, String)> {
    let mut counting = Counting::new(io::sink());
    io::copy(reader, &mut counting)?;
    Ok(counting.sum())
}
