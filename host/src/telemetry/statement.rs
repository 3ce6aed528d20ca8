//! Redacts SQL for traces: removes the values.

/// The maximum length of the text, in characters.
const MAX_CHARS: usize = 500;

/// The statement on one line, with `?` in place of every literal, and without comments.
pub fn without_values(sql: &str) -> String {
    let mut shown = String::with_capacity(sql.len().min(MAX_CHARS));
    let mut rest = sql.trim();
    while let Some(first) = rest.chars().next() {
        let (length, text) = token(rest, first);
        match text {
            Text::Verbatim => shown.push_str(&rest[..length]),
            Text::Value => shown.push('?'),
            Text::Space => {
                if !shown.ends_with(' ') && !shown.is_empty() {
                    shown.push(' ');
                }
            }
        }
        rest = &rest[length..];
        if shown.chars().count() >= MAX_CHARS {
            return shown.chars().take(MAX_CHARS).chain(['…']).collect();
        }
    }
    shown.truncate(shown.trim_end().len());
    shown
}

enum Text {
    Verbatim,
    Value,
    Space,
}

/// The length in bytes of the next token, and how to show it.
fn token(rest: &str, first: char) -> (usize, Text) {
    let until = |found: Option<usize>, end: usize| found.map_or(rest.len(), |at| at + end);
    let while_true = |test: fn(char) -> bool| rest.find(|c| !test(c)).unwrap_or(rest.len());
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    match first {
        _ if rest.starts_with("--") => (until(rest.find('\n'), 1), Text::Space),
        _ if rest.starts_with("/*") => (until(rest.find("*/"), 2), Text::Space),
        '\'' => (quoted(rest, '\''), Text::Value),
        '"' | '`' => (quoted(rest, first), Text::Verbatim),
        '[' => (until(rest.find(']'), 1), Text::Verbatim),
        'x' | 'X' if rest[1..].starts_with('\'') => (1 + quoted(&rest[1..], '\''), Text::Value),
        // Includes 0x1f, 1e9 and 1.5. A sign is kept.
        '0'..='9' => (while_true(|c| c.is_alphanumeric() || c == '.' || c == '_'), Text::Value),
        '?' | ':' | '@' | '$' | '#' => (
            first.len_utf8()
                + rest[first.len_utf8()..]
                    .find(|c| !is_word(c))
                    .unwrap_or(rest.len() - first.len_utf8()),
            Text::Verbatim,
        ),
        _ if is_word(first) => (
            while_true(|c| c.is_alphanumeric() || c == '_' || c == '$'),
            Text::Verbatim,
        ),
        _ if first.is_whitespace() => (while_true(char::is_whitespace), Text::Space),
        _ => (first.len_utf8(), Text::Verbatim),
    }
}

/// The length in bytes of a quoted text. A doubled quote stands for the quote itself.
fn quoted(text: &str, quote: char) -> usize {
    let mut end = quote.len_utf8();
    while let Some(found) = text[end..].find(quote) {
        end += found + quote.len_utf8();
        if !text[end..].starts_with(quote) {
            return end;
        }
        end += quote.len_utf8();
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_removed_and_names_are_kept() {
        for (sql, shown) in [
            (
                "SELECT target FROM links WHERE slug = ?1",
                "SELECT target FROM links WHERE slug = ?1",
            ),
            (
                "SELECT 'it''s s3cret', x'00ff', 12, -1.5e3, 0x1F",
                "SELECT ?, ?, ?, -?, ?",
            ),
            (
                "INSERT INTO t2(a1) VALUES(:name,@b,$c)",
                "INSERT INTO t2(a1) VALUES(:name,@b,$c)",
            ),
            ("  SELECT\n  1 -- s3cret\n , /* s3cret */ 2  ", "SELECT ? , ?"),
            (
                "SELECT \"a\"\"'b'\", [c'd], `e` FROM t",
                "SELECT \"a\"\"'b'\", [c'd], `e` FROM t",
            ),
            ("SELECT 'open s3cret", "SELECT ?"),
            ("SELECT \"open", "SELECT \"open"),
            ("SELECT 'ä' || ä", "SELECT ? || ä"),
            ("", ""),
        ] {
            assert_eq!(without_values(sql), shown);
        }
    }

    #[test]
    fn a_long_statement_is_truncated() {
        let shown = without_values(&"ä, ".repeat(1000));
        assert_eq!(shown.chars().count(), MAX_CHARS + 1);
    }
}
