//! The names of variables, and texts that refer to them.

use anyhow::{Result, bail};

/// A text with `{{ name }}` placeholders.
#[derive(Debug, PartialEq)]
pub struct Template(pub(super) Vec<Part>);

#[derive(Debug, PartialEq)]
pub enum Part {
    Text(String),
    Variable(String),
}

impl Template {
    /// # Errors
    /// A `{{` is not closed.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else {
                bail!("{text:?} has a {{{{ without a matching }}}}");
            };
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Variable(name.trim().to_owned()));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The names of the variables in the template.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Variable(name) => Some(name.as_str()),
        })
    }
}

/// Checks a variable name by Spin's rule: lower-case letters, digits and single underscores between them, a letter first.
///
/// # Errors
/// The name is invalid. The error states which part of the rule it breaks.
pub fn check_name(name: &str) -> Result<()> {
    let odd = name
        .chars()
        .find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_'));
    let problem = if let Some(odd) = odd {
        format!("{odd:?} is not a lower-case letter, a digit or an underscore")
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "it must start with a letter".to_owned()
    } else if name.ends_with('_') || name.contains("__") {
        "an underscore must stand alone between other characters".to_owned()
    } else {
        return Ok(());
    };
    bail!("{name:?} is not a valid variable name: {problem}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn an_unclosed_placeholder_is_an_error() {
        assert!(Template::parse("{{ a }} {{ b").is_err());
        assert_eq!(Template::parse("{{ a }}").unwrap().names().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn names_follow_spins_rule() {
        for good in ["a", "abc", "a1b2", "a_1", "a_1_b"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "aX", "1bc", "_x", "x.y", "x_", "a__b", "x-y"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
