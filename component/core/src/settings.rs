//! The component's variables, parsed.

use std::fmt;

use crate::access::Access;
use crate::cors::Cors;
use crate::origin::Origin;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub access: Access,
    /// What short URLs begin with; `None`: as the request came.
    pub public: Option<Origin>,
    pub cors: Cors,
}

/// The values as the runtime gives them; empty means unset.
#[derive(Clone, Default)]
pub struct Variables {
    pub admin_token: String,
    pub public_url: String,
    pub shorten_access: String,
    pub allowed_origin: String,
}

/// A variable with a value that means nothing. Never about the token, so it may be shown.
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
        let access = match variables.shorten_access.trim() {
            "" | "token" => Access::token(&variables.admin_token),
            "open" => Access::Open,
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
        let cors = match variables.allowed_origin.trim() {
            "" => Cors::Nobody,
            "*" => Cors::Anybody,
            text => Cors::Only(Origin::parse(text).ok_or(Invalid {
                variable: "allowed_origin",
                wanted: "one origin like https://app.example, or *",
            })?),
        };
        Ok(Settings { access, public, cors })
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
                access: Access::Closed,
                public: None,
                cors: Cors::Nobody
            }
        );
    }

    #[test]
    fn reads_every_variable() {
        let settings = Settings::parse(&Variables {
            admin_token: "s3cret".into(),
            public_url: "https://sho.rt/\n".into(),
            shorten_access: "token".into(),
            allowed_origin: "https://app.example".into(),
        })
        .unwrap();
        assert_eq!(settings.access, Access::token("s3cret"));
        assert_eq!(settings.public, Origin::parse("https://sho.rt"));
        assert_eq!(settings.cors, Cors::Only(Origin::parse("https://app.example").unwrap()));

        let open = Variables {
            shorten_access: "open".into(),
            allowed_origin: "*".into(),
            ..Variables::default()
        };
        let settings = Settings::parse(&open).unwrap();
        assert_eq!((settings.access, settings.cors), (Access::Open, Cors::Anybody));
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
