//! The component's variables, parsed.

use std::fmt;

use crate::cors::Cors;
use crate::origin::Origin;
use crate::secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub shorteners: Shorteners,
    /// What short URLs begin with; `None`: as the request came.
    pub public: Option<Origin>,
    pub cors: Cors,
    /// How long secrets are kept; `None`: not at all.
    pub secrets: Option<secret::Bounds>,
}

/// Who may shorten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shorteners {
    Everybody,
    /// Who has the token `admin_token`, a variable that is read by itself: its provider may be another machine.
    TokenHolders,
}

/// The values as the runtime gives them; empty means unset. None of them is a secret.
#[derive(Clone, Default)]
pub struct Variables {
    pub public_url: String,
    pub shorten_access: String,
    pub allowed_origin: String,
    pub secrets_ttl: String,
    pub secrets_stale: String,
}

impl Variables {
    /// By itself, so that a page can read what is wrong with the other variables.
    ///
    /// # Errors
    /// What is no origin.
    pub fn cors(&self) -> Result<Cors, Invalid> {
        Ok(match self.allowed_origin.trim() {
            "" => Cors::Nobody,
            "*" => Cors::Anybody,
            text => Cors::Only(Origin::parse(text).ok_or(Invalid {
                variable: "allowed_origin",
                wanted: "one origin like https://app.example, or *",
            })?),
        })
    }
}

/// A variable with a value that means nothing. Never about a secret, so it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub variable: &'static str,
    pub wanted: &'static str,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the variable {} must be {}", self.variable, self.wanted)
    }
}

impl Settings {
    /// # Errors
    /// The first variable whose value is not understood: a typing error must not open anything or send people
    /// elsewhere.
    pub fn parse(variables: &Variables) -> Result<Settings, Invalid> {
        let shorteners = match variables.shorten_access.trim() {
            "" | "token" => Shorteners::TokenHolders,
            "open" => Shorteners::Everybody,
            _ => {
                return Err(Invalid {
                    variable: "shorten_access",
                    wanted: "\"token\" or \"open\"",
                });
            }
        };
        let public = match variables.public_url.trim() {
            "" => None,
            text => Some(Origin::parse(text).ok_or(Invalid {
                variable: "public_url",
                wanted: "http:// or https:// with a host, a port if need be, and nothing after it",
            })?),
        };
        Ok(Settings {
            shorteners,
            public,
            cors: variables.cors()?,
            secrets: secret::Bounds::parse(&variables.secrets_ttl, &variables.secrets_stale)?,
        })
    }
}

/// A time in a variable, in seconds.
pub(crate) fn seconds(variable: &'static str, text: &str, unset: i64) -> Result<i64, Invalid> {
    match text.trim() {
        "" => Ok(unset),
        text => text.parse::<u32>().map(i64::from).map_err(|_| Invalid {
            variable,
            wanted: "a whole number of seconds",
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn unset_is_closed_and_private() {
        let settings = Settings::parse(&Variables::default()).unwrap();
        assert_eq!(
            settings,
            Settings {
                shorteners: Shorteners::TokenHolders,
                public: None,
                cors: Cors::Nobody,
                secrets: None,
            }
        );
    }

    #[test]
    fn reads_every_variable() {
        let settings = Settings::parse(&Variables {
            public_url: "https://sho.rt/\n".into(),
            shorten_access: "token".into(),
            allowed_origin: "https://app.example".into(),
            secrets_ttl: "30".into(),
            secrets_stale: "60".into(),
        })
        .unwrap();
        assert_eq!(settings.shorteners, Shorteners::TokenHolders);
        assert_eq!(settings.public, Origin::parse("https://sho.rt"));
        assert_eq!(settings.cors, Cors::Only(Origin::parse("https://app.example").unwrap()));
        assert_eq!(settings.secrets, Some(secret::Bounds { ttl: 30, stale: 60 }));

        let open = Variables {
            shorten_access: "open".into(),
            allowed_origin: "*".into(),
            ..Variables::default()
        };
        let settings = Settings::parse(&open).unwrap();
        assert_eq!(
            (settings.shorteners, settings.cors),
            (Shorteners::Everybody, Cors::Anybody)
        );
    }

    #[test]
    fn who_may_read_an_answer_is_known_while_other_variables_are_wrong() {
        let variables = Variables {
            shorten_access: "Open!".into(),
            allowed_origin: "https://app.example".into(),
            ..Variables::default()
        };
        assert!(Settings::parse(&variables).is_err());
        let app = Cors::Only(Origin::parse("https://app.example").unwrap());
        assert_eq!(variables.cors(), Ok(app));
    }

    #[test]
    fn names_the_variable_that_is_wrong() {
        let unset = Variables::default;
        for (variables, name) in [
            (
                Variables {
                    shorten_access: "Open!".into(),
                    ..unset()
                },
                "shorten_access",
            ),
            (
                Variables {
                    public_url: "sho.rt".into(),
                    ..unset()
                },
                "public_url",
            ),
            (
                Variables {
                    public_url: "https://sho.rt/path".into(),
                    ..unset()
                },
                "public_url",
            ),
            (
                Variables {
                    allowed_origin: "https://a.example https://b.example".into(),
                    ..unset()
                },
                "allowed_origin",
            ),
            (
                Variables {
                    secrets_ttl: "30s".into(),
                    ..unset()
                },
                "secrets_ttl",
            ),
        ] {
            let invalid = Settings::parse(&variables).unwrap_err();
            assert_eq!(invalid.variable, name);
            assert!(
                invalid
                    .to_string()
                    .starts_with(&format!("the variable {name} must be "))
            );
        }
    }
}
