//! The versions of WASI that components are built for and that runtimes implement.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use memchr::memmem;
use serde::Serialize;

use links_release::manifest::RuntimeKind;

/// The supported versions of Spin, in words.
pub const SUPPORTED_SPIN: &str = "Spin 4 (4.0, 4.1 or later)";

/// A version of WASI with which components serve HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    Wasi030,
    /// The release candidate that Spin 4.0 implements. Spin 4.1 still supports it, but creates an instance for each request.
    Wasi030Rc20260315,
}

impl Interface {
    const ALL: [Self; 2] = [Self::Wasi030, Self::Wasi030Rc20260315];

    /// The version as in `wasi:http/handler@0.3.0`.
    pub fn version(self) -> &'static str {
        match self {
            Self::Wasi030 => "0.3.0",
            Self::Wasi030Rc20260315 => "0.3.0-rc-2026-03-15",
        }
    }

    /// The best interface that a runtime implements. `version` is the version that the runtime reports, such as `4.1.0-pre0`.
    ///
    /// # Errors
    /// Fails if this version of the runtime is not supported.
    pub fn of(kind: RuntimeKind, version: &str) -> anyhow::Result<Self> {
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
        let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
        match (kind, major, minor) {
            (RuntimeKind::Spin, Some(4), Some(0)) => Ok(Self::Wasi030Rc20260315),
            (RuntimeKind::Spin, Some(4), Some(_)) => Ok(Self::Wasi030),
            (RuntimeKind::Spin, ..) => anyhow::bail!(
                "it is Spin {version}, but the components need {SUPPORTED_SPIN} or links-host; give another runtime with \
                 --runtime PATH or SPIN=PATH"
            ),
            (RuntimeKind::LinksHost, Some(0), Some(1)) => Ok(Self::Wasi030Rc20260315),
            (RuntimeKind::LinksHost, ..) => Ok(Self::Wasi030),
        }
    }

    /// The build of a component for this interface. If the file is in a directory that is named after an interface, such as
    /// `wasi-0.3.0`, this is the file of the same name in the directory beside it. Any other file is the only build.
    pub fn build_of(self, component: &Path) -> PathBuf {
        let own = self.directory();
        let directories = Self::ALL.map(Self::directory);
        let parts = component.components();
        parts
            .map(|part| match part {
                Component::Normal(name) if directories.iter().any(|directory| name == directory.as_str()) => {
                    Component::Normal(own.as_ref())
                }
                other => other,
            })
            .collect()
    }

    fn directory(self) -> String {
        format!("wasi-{}", self.version())
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wasi:http {}", self.version())
    }
}

/// The versions of the interface and the SDK that a component was built with. They are read from the names in its binary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Versions {
    /// The version of `wasi:http`.
    #[serde(rename = "wasi:http", skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    #[serde(rename = "spin-sdk", skip_serializing_if = "Option::is_none")]
    pub spin_sdk: Option<String>,
}

impl Versions {
    pub fn read(wasm: &[u8]) -> Self {
        Self {
            // The name under which the core module exports the handler.
            http: between(wasm, b"wasi:http/handler@", b'#'),
            // The SDK exports a function of this name, with hyphens for dots. The 0 after the name means that it is a function.
            spin_sdk: between(wasm, b"spin-sdk-version-", 0).map(|version| version.replace('-', ".")),
        }
    }

    /// Checks that the component was built for `interface`. A component that does not name a version passes.
    ///
    /// # Errors
    /// Fails if the component was built for another interface.
    pub fn check(&self, interface: Interface) -> anyhow::Result<()> {
        let http = self.http.as_deref().unwrap_or(interface.version());
        if http == interface.version() {
            return Ok(());
        }
        Err(anyhow::anyhow!("it serves wasi:http {http}")).with_context(|| {
            format!("the runtime needs a component for {interface}; component/build.sh builds one for each runtime")
        })
    }
}

/// The first version between `start` and `end`.
fn between(wasm: &[u8], start: &[u8], end: u8) -> Option<String> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    memmem::find_iter(wasm, start).find_map(|at| {
        let rest = &wasm[at + start.len()..];
        let length = rest.iter().position(|byte| !is_part(byte))?;
        (rest[length] == end).then(|| String::from_utf8_lossy(&rest[..length]).into_owned())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn each_supported_runtime_gets_its_best_interface() {
        let of = |kind, version| Interface::of(kind, version).map_err(|error| error.to_string());
        for (version, interface) in [
            ("4.0.0", Interface::Wasi030Rc20260315),
            ("4.0.2", Interface::Wasi030Rc20260315),
            ("4.1.0-pre0", Interface::Wasi030),
            ("4.10.3", Interface::Wasi030),
        ] {
            assert_eq!(of(RuntimeKind::Spin, version), Ok(interface), "{version}");
        }
        for version in ["3.6.3", "5.0.0", "40.0.0", "4", "4.x"] {
            let error = of(RuntimeKind::Spin, version).unwrap_err();
            assert!(
                error.contains(&format!("Spin {version},")) && error.contains(SUPPORTED_SPIN),
                "{error}"
            );
        }
        assert_eq!(of(RuntimeKind::LinksHost, "0.1.0"), Ok(Interface::Wasi030Rc20260315));
        assert_eq!(
            of(RuntimeKind::LinksHost, env!("CARGO_PKG_VERSION")),
            Ok(Interface::Wasi030)
        );
    }

    #[test]
    fn builds_are_in_directories_named_after_their_interfaces() {
        let source = Path::new("../target/components/wasi-0.3.0/links.wasm");
        assert_eq!(Interface::Wasi030.build_of(source), source);
        assert_eq!(
            Interface::Wasi030Rc20260315.build_of(source),
            Path::new("../target/components/wasi-0.3.0-rc-2026-03-15/links.wasm")
        );
        let only = Path::new("/opt/wasi-0.3.0.d/app.wasm");
        assert_eq!(Interface::Wasi030Rc20260315.build_of(only), only);
    }

    #[test]
    fn versions_are_read_from_a_component() {
        let wasm =
            b"\0asm\x0d\0\x01\0wasi:http/handler@0.3.0-shim\0spin-sdk-version-7-0\0wasi:http/handler@0.3.0#handle\0";
        let versions = Versions::read(wasm);
        assert_eq!(versions.http.as_deref(), Some("0.3.0"));
        assert_eq!(versions.spin_sdk.as_deref(), Some("7.0"));
        assert!(versions.check(Interface::Wasi030).is_ok());
        let error = format!("{:#}", versions.check(Interface::Wasi030Rc20260315).unwrap_err());
        assert!(
            error.contains("needs a component for wasi:http 0.3.0-rc-2026-03-15")
                && error.contains("serves wasi:http 0.3.0"),
            "{error}"
        );
        let other = Versions::read(b"\0asm\x0d\0\x01\0wasi:http/incoming-handler@0.2.0");
        assert_eq!(serde_json::to_string(&other).unwrap(), "{}");
        assert!(other.check(Interface::Wasi030).is_ok());
    }
}
