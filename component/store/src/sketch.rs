//! Sketches of visitors as the database stores them.

use links_domain::visitors::Sketch;

/// Reads a JSON array of pairs: the number of a word, and its bits as a signed integer. Any other text gives an empty sketch.
pub fn parse(text: &str) -> Sketch {
    // From bytes, like the bodies of requests: for texts there would be a second copy of the parser.
    let words: Vec<(u8, i64)> = serde_json::from_slice(text.as_bytes()).unwrap_or_default();
    let mut sketch = Sketch::default();
    for (word, bits) in words {
        sketch.join(word, bits.cast_unsigned());
    }
    sketch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_words_with_all_their_bits() {
        let sketch = parse("[[0,1],[2,-9223372036854775808]]");
        assert!(sketch.words().eq([(0, 1), (2, 1 << 63)]));
        for text in ["", "[]", "[[0]]", "x"] {
            assert_eq!(parse(text), Sketch::default(), "{text:?}");
        }
    }
}
