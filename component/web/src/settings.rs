//! The variables of the API, parsed.

use links_domain::origin::Origin;
use links_domain::secret;
use links_domain::variable::Invalid;

use crate::cors::Cors;
use crate::problem::Problem;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub creators: Creators,
    /// The origin that short URLs begin with; `None` for that of the request.
    pub public: Option<Origin>,
    pub cors: Cors,
    /// How long secrets are kept; `None` if they are not kept.
    pub secrets: Option<secret::Lifetime>,
}

/// Who may create links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creators {
    Everybody,
    /// Whoever has the token in the variable `admin_token`. It is read separately, because its provider may be another machine.
    TokenHolders,
}

/// The values as the runtime provides them. An empty value is unset. None of them is a secret.
#[derive(Clone, Default)]
pub struct Variables {
    pub public_url: String,
    pub shorten_access: String,
    pub allowed_origin: String,
    pub secrets_ttl: String,
    pub secrets_stale: String,
}

impl Variables {
    /// Parses `allowed_origin`, separately so that a page can read an error about another variable.
    ///
    /// # Errors
    /// `allowed_origin` is not an origin.
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

impl Settings {
    /// Parses all variables. A typing error must not open anything, or send people elsewhere.
    ///
    /// # Errors
    /// The first variable whose value is invalid.
    pub fn parse(variables: &Variables) -> Result<Settings, Invalid> {
        let creators = match variables.shorten_access.trim() {
            "" | "token" => Creators::TokenHolders,
            "open" => Creators::Everybody,
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
                wanted: "http:// or https:// with a host, an optional port, and nothing after it",
            })?),
        };
        Ok(Settings {
            creators,
            public,
            cors: variables.cors()?,
            secrets: secret::Lifetime::parse(&variables.secrets_ttl, &variables.secrets_stale)?,
        })
    }
}

/// The answer while a provider of variables does not respond.
pub fn unreadable() -> Problem {
    Problem::unavailable("The server cannot read its configuration at the moment. Try again.")
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
                creators: Creators::TokenHolders,
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
        assert_eq!(settings.creators, Creators::TokenHolders);
        assert_eq!(settings.public, Origin::parse("https://sho.rt"));
        assert_eq!(settings.cors, Cors::Only(Origin::parse("https://app.example").unwrap()));
        assert_eq!(settings.secrets, Some(secret::Lifetime { ttl: 30, stale: 60 }));

        let open = Variables {
            shorten_access: "open".into(),
            allowed_origin: "*".into(),
            ..Variables::default()
        };
        let settings = Settings::parse(&open).unwrap();
        assert_eq!((settings.creators, settings.cors), (Creators::Everybody, Cors::Anybody));
    }

    #[test]
    fn cors_is_known_while_other_variables_are_wrong() {
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
