//! Converts one TOML value to one checked value. An error names the expected and the actual type.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;
use url::Url;

use super::document::{Problem, Value, kind, nearest, quoted};
use links_base::duration;

fn expected(what: &str, value: &Value<'_>) -> Problem {
    Problem::new(format!("must be {what}, found {}", kind(value)))
}

pub fn boolean(value: &Value<'_>) -> Result<bool, Problem> {
    match value.get_ref() {
        DeValue::Boolean(boolean) => Ok(*boolean),
        _ => Err(expected("a boolean", value).help("write `true` or `false`, without quotes")),
    }
}

/// An integer within a range.
pub fn integer(range: RangeInclusive<i64>) -> impl Fn(&Value<'_>) -> Result<i64, Problem> {
    move |value| {
        let DeValue::Integer(integer) = value.get_ref() else {
            return Err(expected("an integer", value));
        };
        i64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|integer| range.contains(integer))
            .ok_or_else(|| {
                let (low, high) = (range.start(), range.end());
                Problem::new(format!("must be from {low} to {high}, found {integer}"))
            })
    }
}

/// An integer within a range of `u16`.
pub fn small(range: RangeInclusive<u16>) -> impl Fn(&Value<'_>) -> Result<u16, Problem> {
    let read = integer(i64::from(*range.start())..=i64::from(*range.end()));
    // Every integer within the range fits, so the default is never used.
    move |value| read(value).map(|integer| u16::try_from(integer).unwrap_or(u16::MAX))
}

pub fn string<'v>(value: &'v Value<'_>) -> Result<&'v str, Problem> {
    match value.get_ref() {
        DeValue::String(string) => Ok(string),
        _ => Err(expected("a string", value)),
    }
}

/// A string that is not empty.
pub fn text(value: &Value<'_>) -> Result<String, Problem> {
    match string(value)? {
        "" => Err(Problem::new("must not be empty")),
        text => Ok(text.to_owned()),
    }
}

/// An absolute path.
pub fn absolute(value: &Value<'_>) -> Result<PathBuf, Problem> {
    let path = PathBuf::from(string(value)?);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(Problem::new("must be an absolute path")),
    }
}

/// A string such as `"30s"` or `"1m30s"` within a range.
pub fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value<'_>) -> Result<Duration, Problem> {
    move |value| {
        let DeValue::String(text) = value.get_ref() else {
            return Err(expected("a duration", value).help("write a string with a unit, such as \"30s\""));
        };
        let wrong = || {
            let text = text.escape_debug();
            Problem::new(format!(
                "must be a duration such as \"30s\" or \"1m30s\", found \"{text}\""
            ))
        };
        if text.contains('M') || has_long_number(text) {
            return Err(wrong().help("write numbers of at most 12 digits, with a unit such as ms, s, m or h"));
        }
        let duration = humantime::parse_duration(text).map_err(|error| wrong().help(error.to_string()))?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        Err(Problem::new(format!(
            "must be from {} to {}, found {text}",
            duration::show(*range.start()),
            duration::show(*range.end())
        )))
    }
}

/// Whether a number in a duration has so many digits that `humantime` 2.4 could overflow, which makes it panic. It ignores blanks
/// within numbers. Its `M` are months, which nobody means who writes one.
fn has_long_number(text: &str) -> bool {
    let numbers = text.split(|c: char| !c.is_ascii_digit() && !c.is_whitespace());
    numbers
        .map(|number| number.bytes().filter(u8::is_ascii_digit).count())
        .any(|digits| digits > 12)
}

/// One of the given words.
pub fn one_of<'v>(words: &'static [&'static str]) -> impl Fn(&'v Value<'_>) -> Result<&'static str, Problem> {
    move |value| {
        let word = string(value)?;
        words.iter().find(|known| **known == word).copied().ok_or_else(|| {
            let problem = Problem::new(format!(
                "must be one of {}, found \"{}\"",
                quoted(words),
                word.escape_debug()
            ));
            match nearest(word, words) {
                Some(nearest) => problem.help(format!("did you mean `{nearest}`?")),
                None => problem,
            }
        })
    }
}

/// An array that is not empty, with each element read by `read`. The error is that of the first wrong element.
pub fn list<'v, 't: 'v, T>(
    read: impl Fn(&'v Value<'t>) -> Result<T, Problem>,
) -> impl Fn(&'v Value<'t>) -> Result<Vec<T>, Problem> {
    move |value| {
        let DeValue::Array(values) = value.get_ref() else {
            return Err(expected("an array", value));
        };
        if values.is_empty() {
            return Err(Problem::new("must not be empty"));
        }
        values
            .iter()
            .map(|element| read(element).map_err(|problem| problem.within(element.span())))
            .collect()
    }
}

/// An array, or a single element without brackets.
pub fn one_or_more<'v, 't: 'v, T>(
    read: impl Fn(&'v Value<'t>) -> Result<T, Problem>,
) -> impl Fn(&'v Value<'t>) -> Result<Vec<T>, Problem> {
    move |value| match value.get_ref() {
        DeValue::Array(_) => list(&read)(value),
        _ => read(value).map(|one| vec![one]),
    }
}

/// An absolute URL with one of the given schemes and no password. Errors do not repeat the text, which may hold a password.
pub fn url(schemes: &'static [&'static str]) -> impl Fn(&Value<'_>) -> Result<Url, Problem> {
    move |value| {
        let form = || format!("write it as {}://HOST", schemes.join("://HOST or "));
        let url =
            Url::parse(string(value)?).map_err(|error| Problem::new(format!("must be a URL: {error}")).help(form()))?;
        if !schemes.contains(&url.scheme()) {
            return Err(Problem::new(format!("cannot have the scheme `{}`", url.scheme())).help(form()));
        }
        if url.password().is_some() {
            return Err(Problem::new("must not hold a password"));
        }
        Ok(url)
    }
}

/// A URL that has only a scheme, a host and a port. Returns it in the URL standard's form of an origin.
pub fn origin(value: &Value<'_>) -> Result<String, Problem> {
    let url = url(&["https", "http"])(value)?;
    if !url.username().is_empty() {
        return Err(Problem::new("must not name a user"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(Problem::new("must end after the host and the port, without a path"));
    }
    Ok(url.origin().ascii_serialization())
}
