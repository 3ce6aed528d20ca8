//! The settings in the form of version 0.1.0, which reads only `links.toml`, and refuses keys and durations that it does not know.
//!
//! The configuration that an instance runs with is kept in this form, because a linksctl 0.1.0 that was just unpacked may have to
//! start the instance again. A downgrade brings `links.toml` itself into this form.

use std::fmt;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::input::Input;
use super::keys::{self, Kind, Since};
use crate::document::Document;
use crate::value;
use links_base::duration;

/// The settings of all files, divided by whether version 0.1.0 knows them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Earlier {
    pub known: Vec<Setting>,
    pub newer: Vec<Setting>,
}

/// A key and its value. Displayed as a line of TOML.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The names of the tables and the key. All of them are bare keys of TOML.
    pub path: Vec<String>,
    /// The value as version 0.1.0 reads it.
    pub value: toml::Value,
    /// The file that the value is from.
    pub file: String,
    /// Whether `value` is written in another way than in the file.
    pub is_rewritten: bool,
}

impl Setting {
    /// The key with its tables, such as `health.timeout`.
    pub fn key(&self) -> String {
        self.path.join(".")
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} = {}", self.key(), self.value)
    }
}

/// The settings in the form of version 0.1.0. The files have to be free of errors; a text that is not TOML has no settings.
pub fn for_0_1_0(inputs: &[Input]) -> Earlier {
    let files = inputs.iter().map(|input| (input.text.as_str(), input.file.as_str()));
    let document = Document::of_files(files);
    let Some(table) = document.parse() else {
        return Earlier::default();
    };
    let mut settings = vec![];
    collect(&document, table.get_ref(), &[], &mut settings);
    let is_known = |setting: &Setting| keys::find(&setting.key()).is_some_and(|key| key.since == Since::V0_1_0);
    let (known, newer) = settings.into_iter().partition(is_known);
    Earlier { known, newer }
}

fn collect(document: &Document<'_>, table: &DeTable<'_>, path: &[String], settings: &mut Vec<Setting>) {
    for (key, value) in table {
        let path = [path, &[key.get_ref().to_string()]].concat();
        if let DeValue::Table(table) = value.get_ref() {
            collect(document, table, &path, settings);
            continue;
        }
        // This cannot fail, because the value was parsed from TOML.
        let Ok(as_value) = toml::Value::deserialize(ValueDeserializer::from(value.clone())) else {
            continue;
        };
        let rewritten = plain_duration(&path, value);
        settings.push(Setting {
            is_rewritten: rewritten.is_some(),
            value: rewritten.map_or(as_value, toml::Value::String),
            file: document.position(value.span().start).file,
            path,
        });
    }
}

/// The duration with one unit, if the file combines several: version 0.1.0 knows only a whole number with `ms`, `s`, `m` or `h`.
fn plain_duration(path: &[String], value: &Spanned<DeValue<'_>>) -> Option<String> {
    let key = keys::find(&path.join("."))?;
    let (Kind::Duration { .. }, DeValue::String(text)) = (&key.kind, value.get_ref()) else {
        return None;
    };
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    if unit.len() < text.len() && matches!(unit, "ms" | "s" | "m" | "h") {
        return None;
    }
    let read = value::duration(key.durations())(value).ok()?;
    Some(duration::show(read))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::super::{Config, read_all};
    use super::*;

    fn input(file: &str, text: &str) -> Input {
        Input {
            file: file.to_owned(),
            text: text.to_owned(),
        }
    }

    fn lines(settings: &[Setting]) -> Vec<String> {
        settings
            .iter()
            .map(|setting| setting.to_string().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn settings_of_all_files_become_lines_for_one() {
        let inputs = [
            input(
                "links.toml",
                "instances = 3\nshorten = { access = 'open' }\n[nginx]\nlisten = [0x50, \"[::]:80\"]\n",
            ),
            input(
                "links.toml.d/a.toml",
                "instances = 4\ntelemetry.sampling = 1.0\n[health]\nstart_timeout = \"1m 30s\"\ninterval = \"500ms\"\n",
            ),
        ];
        let earlier = for_0_1_0(&inputs);
        assert_eq!(
            lines(&earlier.known),
            [
                "health.interval = \"500ms\"",
                "health.start_timeout = \"90s\"",
                "instances = 4",
                "nginx.listen = [80, \"[::]:80\"]",
                "shorten.access = \"open\"",
                "telemetry.sampling = 1.0",
            ]
        );
        assert!(earlier.newer.is_empty());
        let of = |key: &str| earlier.known.iter().find(|setting| setting.key() == key).unwrap();
        assert_eq!(of("instances").file, "links.toml.d/a.toml");
        assert!(of("health.start_timeout").is_rewritten && !of("health.interval").is_rewritten);

        let text: String = earlier.known.iter().map(ToString::to_string).collect();
        assert_eq!(
            Config::parse(&text, "links.toml").unwrap(),
            read_all(&inputs).config.unwrap()
        );
    }

    #[test]
    fn keys_that_version_0_1_0_does_not_know_are_separate() {
        let inputs = [input(
            "links.toml",
            "instances = 3\n[future]\nkey.inner = [{ a = 1 }]\n",
        )];
        let earlier = for_0_1_0(&inputs);
        assert_eq!(lines(&earlier.known), ["instances = 3"]);
        assert_eq!(lines(&earlier.newer), ["future.key.inner = [{ a = 1 }]"]);
    }
}
