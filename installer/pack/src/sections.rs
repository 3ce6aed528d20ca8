//! The sections of a WebAssembly component.

use anyhow::Context as _;

/// The length of the magic number, the version and the layer.
const HEADER: usize = 8;
const CUSTOM: u8 = 0;

/// The component without its own custom sections: the names of its types and functions, and of the tools that built it. No runtime
/// reads them. Core modules within the component keep theirs.
///
/// A section is its id, the size of its contents as LEB128, and the contents
/// (<https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md>).
///
/// # Errors
/// Fails if a section is longer than the rest of the component.
pub fn without_custom(component: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (header, mut rest) = component.split_at_checked(HEADER).context("it has no header")?;
    let mut kept = header.to_vec();
    while let [id, after_id @ ..] = rest {
        let (size, contents) = read_size(after_id).context("a section has no size")?;
        let length = rest.len() - contents.len() + size;
        let (section, others) = rest.split_at_checked(length).context("a section is cut short")?;
        if *id != CUSTOM {
            kept.extend_from_slice(section);
        }
        rest = others;
    }
    Ok(kept)
}

/// Reads an unsigned number of at most 32 bits in LEB128, and returns what follows it.
fn read_size(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let length = bytes.iter().take(5).position(|byte| byte & 0x80 == 0)? + 1;
    let (number, rest) = bytes.split_at(length);
    let size = number
        .iter()
        .rev()
        .fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f));
    Some((size, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn only_custom_sections_are_left_out() {
        let header = b"\0asm\x0d\0\x01\0".as_slice();
        let long = [&[7, 0x80, 0x01][..], &[1; 128]].concat();
        let custom = [&[0, 0x81, 0x01][..], &[2; 129]].concat();
        let component = [header, &custom, &long, &[1, 0], &custom].concat();
        assert_eq!(without_custom(&component).unwrap(), [header, &long, &[1, 0]].concat());
        assert_eq!(without_custom(header).unwrap(), header);
    }

    #[test]
    fn a_component_that_is_cut_short_is_refused() {
        let header = b"\0asm\x0d\0\x01\0".as_slice();
        for rest in [&[1][..], &[1, 0x80], &[1, 2, 0], &[1, 0x80, 0x80, 0x80, 0x80, 0x80, 0]] {
            assert!(without_custom(&[header, rest].concat()).is_err(), "{rest:?}");
        }
        assert!(without_custom(&header[..7]).is_err());
    }
}
