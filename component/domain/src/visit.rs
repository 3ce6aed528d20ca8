//! The client that followed a link, as it is counted: three letters, for device, browser and system.

/// What the `user-agent` of a person's browser says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Visit {
    pub device: Device,
    pub browser: Browser,
    pub system: System,
}

macro_rules! coded {
    ($(#[$about:meta])* $kind:ident { $($variant:ident = $code:literal, $name:literal;)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $kind {
            $($variant,)*
        }

        impl $kind {
            pub const ALL: &[$kind] = &[$($kind::$variant),*];

            /// The code in the database. Its meaning never changes.
            pub fn code(self) -> char {
                match self {
                    $($kind::$variant => $code,)*
                }
            }

            /// The name that people see.
            pub fn name(self) -> &'static str {
                match self {
                    $($kind::$variant => $name,)*
                }
            }

            fn from_code(code: char) -> Option<$kind> {
                match code {
                    $($code => Some($kind::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

coded! {
    /// The class of a device.
    Device {
        Desktop = 'd', "desktop";
        Phone = 'p', "phone";
        Tablet = 't', "tablet";
        Television = 'v', "tv";
        Other = 'o', "other";
    }
}

coded! {
    /// The family of a browser. A page that is shown inside an app counts as [`Browser::App`], whatever its engine.
    Browser {
        Chrome = 'c', "Chrome";
        Safari = 's', "Safari";
        Firefox = 'f', "Firefox";
        Edge = 'e', "Edge";
        Opera = 'a', "Opera";
        Samsung = 'm', "Samsung Internet";
        InternetExplorer = 'i', "Internet Explorer";
        App = 'p', "in an app";
        Other = 'o', "other";
    }
}

coded! {
    /// The operating system.
    System {
        Windows = 'w', "Windows";
        MacOs = 'm', "macOS";
        Linux = 'l', "Linux";
        Android = 'a', "Android";
        Ios = 'i', "iOS";
        ChromeOs = 'c', "ChromeOS";
        Other = 'o', "other";
    }
}

impl Visit {
    pub fn code(self) -> String {
        [self.device.code(), self.browser.code(), self.system.code()]
            .iter()
            .collect()
    }

    pub fn from_code(code: &str) -> Option<Visit> {
        let mut letters = code.chars();
        let visit = Visit {
            device: Device::from_code(letters.next()?)?,
            browser: Browser::from_code(letters.next()?)?,
            system: System::from_code(letters.next()?)?,
        };
        letters.next().is_none().then_some(visit)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_survives_a_round_trip() {
        let mut codes = HashSet::new();
        for device in Device::ALL {
            for browser in Browser::ALL {
                for system in System::ALL {
                    let visit = Visit {
                        device: *device,
                        browser: *browser,
                        system: *system,
                    };
                    assert_eq!(Visit::from_code(&visit.code()), Some(visit));
                    codes.insert(visit.code());
                }
            }
        }
        assert_eq!(codes.len(), 5 * 9 * 7);
    }

    #[test]
    fn other_texts_are_not_codes() {
        for code in ["", "d", "dc", "dcww", "dcx", "DCW", "düw"] {
            assert_eq!(Visit::from_code(code), None, "{code}");
        }
    }
}
