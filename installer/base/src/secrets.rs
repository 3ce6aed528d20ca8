//! Secrets by which the parts of links recognise each other. They are random, new at each boot, and readable only by root and
//! the group links. They are needed because every user of the machine can connect to a port on loopback.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use data_encoding::HEXLOWER;
use nix::unistd::{Gid, Group, chown};
use rand::TryRng as _;
use rand::rngs::SysRng;
use subtle::ConstantTimeEq as _;

use crate::files::make_directory;
use crate::layout::{self, Layout};
use crate::log;

/// The header that the agent sends to paths below /internal/. Without it an instance answers 404.
pub const AGENT_HEADER: &str = "links-agent-secret";
/// The header that an instance sends to the agent with its telemetry.
pub const OTLP_HEADER: &str = "links-otlp-secret";

/// The component's variable for the agent's secret. An empty one matches no request.
const AGENT_VARIABLE: &str = "agent_secret";
/// The component's variable for nginx's secret. An empty one matches no request.
const PROXY_VARIABLE: &str = "proxy_secret";

/// The template of [`Layout::proxy_secret_include`].
const PROXY_INCLUDE: &str = include_str!("../../../packaging/nginx/proxy-secret.conf");

const BYTES: usize = 32;

/// 256 random bits in lower-case hexadecimal, which needs no quoting anywhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    fn random() -> anyhow::Result<Self> {
        let mut random = [0; BYTES];
        SysRng
            .try_fill_bytes(&mut random)
            .context("Asking the kernel for randomness")?;
        Ok(Self(HEXLOWER.encode(&random)))
    }

    /// `None` unless the file holds exactly one secret and a line feed.
    fn parse(file: &[u8]) -> Option<Self> {
        let digits = file.strip_suffix(b"\n")?;
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 2 * BYTES || !digits.iter().all(is_hex) {
            return None;
        }
        Some(Self(String::from_utf8(digits.to_vec()).ok()?))
    }

    /// Reads a secret from its file.
    ///
    /// # Errors
    /// The file is missing, not readable for this user, or does not hold a secret.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let file = fs::read(path).with_context(|| format!("Reading {}", path.display()))?;
        Self::parse(&file).with_context(|| {
            format!(
                "{} does not hold a secret; `linksctl rollout` creates a new one, then `linksctl restart` makes the \
                 instances use it",
                path.display()
            )
        })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Compares in constant time.
    pub fn matches(&self, presented: &[u8]) -> bool {
        bool::from(self.0.as_bytes().ct_eq(presented))
    }

    #[cfg(any(test, feature = "testing"))]
    pub fn of_digit(digit: char) -> Self {
        Self(digit.to_string().repeat(2 * BYTES))
    }
}

/// Does not print the secret, because it would end up in a log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The files of the secrets.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
    agent: PathBuf,
    otlp: PathBuf,
    proxy: PathBuf,
    proxy_include: PathBuf,
    /// Whether the files belong to the host, where group `links` may read them.
    are_of_host: bool,
}

impl Files {
    pub fn new(layout: &Layout) -> Self {
        Self {
            directory: layout.secrets_dir(),
            agent: layout.agent_secret(),
            otlp: layout.otlp_secret(),
            proxy: layout.proxy_secret(),
            proxy_include: layout.proxy_secret_include(),
            are_of_host: layout.is_host(),
        }
    }

    /// Creates the secrets that are missing or damaged, and the nginx file that presents the proxy secret. Only the holder of
    /// the rollout lock may call this. Of two callers at once, one would replace secrets that the other's instances already
    /// use.
    ///
    /// # Errors
    /// The kernel returns no random bytes, the group links does not exist, or a file cannot be written.
    pub fn make_missing(&self) -> anyhow::Result<()> {
        let group = match self.are_of_host {
            true => Some(group()?),
            false => None,
        };
        if !self.directory.is_dir() {
            // At boot, tmpfiles.d creates this directory.
            make_directory(&self.directory, 0o750)?;
            if let Some(group) = group {
                chown(&self.directory, None, Some(group))
                    .with_context(|| format!("Giving {} its group", self.directory.display()))?;
            }
        }
        for path in [&self.agent, &self.otlp, &self.proxy] {
            if Secret::read(path).is_err() {
                let line = format!("{}\n", Secret::random()?.as_str());
                write(path, line.as_bytes(), 0o640, group)?;
            }
        }
        let include = PROXY_INCLUDE.replace("{{ secret }}", Secret::read(&self.proxy)?.as_str());
        if fs::read(&self.proxy_include).ok().as_deref() != Some(include.as_bytes()) {
            write(&self.proxy_include, include.as_bytes(), 0o600, None)?;
        }
        Ok(())
    }
}

fn group() -> anyhow::Result<Gid> {
    let group = Group::from_name(layout::USER).with_context(|| format!("Looking up the group {}", layout::USER))?;
    let group = group.with_context(|| {
        format!(
            "group {} does not exist; `systemd-sysusers links.conf` creates it",
            layout::USER
        )
    })?;
    Ok(group.gid)
}

/// Writes a file atomically: it gets its contents, group and mode before its name.
fn write(path: &Path, contents: &[u8], mode: u32, group: Option<Gid>) -> anyhow::Result<()> {
    let written = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(directory)?;
        file.write_all(contents)?;
        if let Some(group) = group {
            std::os::unix::fs::fchown(file.as_file(), None, Some(group.as_raw()))?;
        }
        // The umask was applied to the mode above.
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.persist(path)?;
        Ok(())
    };
    written().with_context(|| format!("Writing {}", path.display()))
}

/// The secrets that one instance is started with. Unreadable ones are left out, because redirects need none of them.
#[derive(Debug)]
pub struct OfInstance {
    agent: Option<Secret>,
    proxy: Option<Secret>,
    otlp: Option<Secret>,
}

impl OfInstance {
    /// Reads the secrets, and logs those that cannot be read.
    pub fn read(files: &Files) -> Self {
        let read = |path: &Path, effect: &str| match Secret::read(path) {
            Ok(secret) => Some(secret),
            Err(error) => {
                log::error!("{error:#}; until the next restart, {effect}");
                None
            }
        };
        Self {
            agent: read(&files.agent, "no clicks are counted through this instance"),
            proxy: read(&files.proxy, "this instance ignores X-Forwarded-* and X-Request-Id"),
            otlp: read(&files.otlp, "the agent ignores the metrics of this instance"),
        }
    }

    /// Names and values of the component's variables. A missing secret has an empty value, so that no other provider is asked
    /// for it.
    pub fn variables(&self) -> [(&'static str, &str); 2] {
        [(AGENT_VARIABLE, &self.agent), (PROXY_VARIABLE, &self.proxy)]
            .map(|(name, secret)| (name, secret.as_ref().map_or("", Secret::as_str)))
    }

    /// The secret to send to the agent with telemetry.
    pub fn otlp(&self) -> Option<&Secret> {
        self.otlp.as_ref()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::layout::temporary;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn contents(layout: &Layout) -> Vec<Vec<u8>> {
        [
            layout.agent_secret(),
            layout.proxy_secret(),
            layout.otlp_secret(),
            layout.proxy_secret_include(),
        ]
        .map(|path| fs::read(path).unwrap())
        .to_vec()
    }

    #[test]
    fn secrets_differ_and_are_private() {
        let (_root, layout) = temporary(&[Layout::run_dir]);
        Files::new(&layout).make_missing().unwrap();
        assert_eq!(mode(&layout.secrets_dir()), 0o750);
        let secrets = [layout.agent_secret(), layout.proxy_secret(), layout.otlp_secret()];
        for path in &secrets {
            assert_eq!(mode(path), 0o640, "{}", path.display());
        }
        assert_eq!(mode(&layout.proxy_secret_include()), 0o600);
        let [agent, proxy, otlp] = secrets.map(|path| Secret::read(&path).unwrap());
        assert!(agent != proxy && proxy != otlp && otlp != agent);
        let include = fs::read_to_string(layout.proxy_secret_include()).unwrap();
        let line = format!("\nproxy_set_header Links-Proxy-Secret \"{}\";\n", proxy.as_str());
        assert!(include.ends_with(&line), "{include}");
        assert_eq!(format!("{agent:?}"), "Secret");
        assert_eq!(fs::read_dir(layout.secrets_dir()).unwrap().count(), 4);
    }

    #[test]
    fn valid_secrets_are_kept_and_damaged_ones_are_replaced() {
        let (_root, layout) = temporary(&[Layout::run_dir]);
        Files::new(&layout).make_missing().unwrap();
        let before = contents(&layout);
        Files::new(&layout).make_missing().unwrap();
        assert_eq!(contents(&layout), before);

        let cut_off = &before[1][..40];
        fs::write(layout.proxy_secret(), cut_off).unwrap();
        Files::new(&layout).make_missing().unwrap();
        let after = contents(&layout);
        assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
        assert!(
            after[1] != before[1] && after[3] != before[3],
            "nginx presents the new one"
        );

        fs::write(layout.proxy_secret_include(), b"").unwrap();
        Files::new(&layout).make_missing().unwrap();
        assert_eq!(contents(&layout), after);
    }

    #[test]
    fn a_secret_is_64_hexadecimal_digits_and_a_line_feed() {
        let digits = "0f".repeat(BYTES);
        let secret = Secret::parse(format!("{digits}\n").as_bytes()).unwrap();
        assert!(secret.matches(digits.as_bytes()));
        for presented in ["", &digits[1..], &"0e".repeat(BYTES), &digits.to_uppercase()] {
            assert!(!secret.matches(presented.as_bytes()), "{presented}");
        }
        for wrong in [
            "",
            "\n",
            &digits,
            &format!("{digits}0\n"),
            &format!("{}\n", "0F".repeat(BYTES)),
        ] {
            assert_eq!(Secret::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_instance_starts_without_unreadable_secrets() {
        let (_root, layout) = temporary(&[Layout::run_dir]);
        let none = OfInstance::read(&Files::new(&layout));
        assert_eq!(none.variables(), [("agent_secret", ""), ("proxy_secret", "")]);
        assert_eq!(none.otlp(), None);
        Files::new(&layout).make_missing().unwrap();
        let all = OfInstance::read(&Files::new(&layout));
        let [agent, proxy] = [layout.agent_secret(), layout.proxy_secret()].map(|path| Secret::read(&path).unwrap());
        assert_eq!(
            all.variables(),
            [("agent_secret", agent.as_str()), ("proxy_secret", proxy.as_str())]
        );
        assert_eq!(all.otlp(), Some(&Secret::read(&layout.otlp_secret()).unwrap()));
    }
}
