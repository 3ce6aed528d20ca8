//! What nginx really serves, found out by sending requests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow};

use crate::certificates::Certificate;
use crate::found::{conf, find};
use crate::plan::{self, Site};
use crate::record::Record;
use crate::site::{Edge, SERVE_TIMEOUT};
use crate::verify::{self, Expected};
use links_config::links::Config;

/// What nginx really serves.
#[derive(Debug)]
pub struct Status {
    /// Every address of the site with what is wrong there.
    pub addresses: Vec<(SocketAddr, Result<(), String>)>,
    pub site: Option<PathBuf>,
    /// Whether somebody else has edited the site.
    pub edited: bool,
    /// When nginx took its current configuration.
    pub since: Option<SystemTime>,
}

/// A name with HTTPS.
#[derive(Debug)]
pub struct TlsName {
    pub certificate: Certificate,
    /// Why nginx does not serve the certificate. `None` if it does.
    pub trouble: Option<String>,
}

impl Edge {
    /// The site that nginx would read at its next start.
    fn site_in_force(&self) -> anyhow::Result<Option<Site>> {
        let found = find(&self.files, &Record::read(&self.record)?)?;
        Ok(plan::in_force(&found, &self.files))
    }

    /// Requires that links answers through nginx on every address, with whatever site is in force. If links does not manage the
    /// site, this checks nothing.
    ///
    /// # Errors
    /// An address does not answer as expected. The error says which and why.
    pub fn require_serving(&self, config: &Config) -> anyhow::Result<()> {
        if !config.nginx.manage {
            return Ok(());
        }
        let site = self
            .site_in_force()?
            .context("links has no nginx site: run `linksctl rollout`")?;
        let found = self.certificates.find(&config.tls)?;
        let expected = Expected {
            site: Some(&site),
            health: true,
            certificates: &found.certificates,
        };
        verify::wait(config, conf().as_ref(), expected, SERVE_TIMEOUT)
            .map_err(|wrong| anyhow!("links is not reached through nginx: {wrong}"))
    }

    /// Finds out which certificates there are, and whether nginx serves them. This needs no root privileges. Without `[nginx]
    /// manage`, nobody knows what nginx has to serve.
    ///
    /// # Errors
    /// The site or a certificate cannot be read.
    pub fn tls_names(&self, config: &Config) -> anyhow::Result<Vec<TlsName>> {
        let certificates = self.certificates.find(&config.tls)?.certificates;
        let site = match config.nginx.manage {
            true => self.site_in_force()?,
            false => None,
        };
        let expected = Expected {
            site: site.as_ref(),
            health: true,
            certificates: &certificates,
        };
        let answers = verify::ask_for_certificates(config, conf().as_ref(), expected);
        let trouble = |name: &str| {
            let mut of_name = answers.iter().filter(|(_, of, _)| *of == name).peekable();
            if config.nginx.manage && of_name.peek().is_none() {
                return Some("nginx does not use the certificate: `linksctl tls renew` makes it".to_owned());
            }
            of_name.find_map(|(listen, _, answer)| Some(format!("on {listen} {}", answer.as_ref().err()?)))
        };
        let troubles: Vec<_> = certificates
            .iter()
            .map(|certificate| trouble(&certificate.name))
            .collect();
        let names = certificates.iter().cloned().zip(troubles);
        Ok(names
            .map(|(certificate, trouble)| TlsName { certificate, trouble })
            .collect())
    }

    /// An address of this host on which nginx answers for links without TLS. `None` if no address is known that only the
    /// site listens on.
    pub fn plain_address(&self, config: &Config) -> Option<SocketAddr> {
        verify::plain_address(config, conf().as_ref(), self.site_in_force().ok()?.as_ref())
    }

    /// Finds out what nginx really serves. This needs no root privileges.
    ///
    /// # Errors
    /// The site or its record cannot be read.
    pub fn status(&self, config: &Config) -> anyhow::Result<Status> {
        let site = match config.nginx.manage {
            true => self.site_in_force()?,
            false => None,
        };
        let found = self.certificates.find(&config.tls)?;
        let expected = Expected {
            site: site.as_ref(),
            health: true,
            certificates: &found.certificates,
        };
        Ok(Status {
            addresses: verify::ask(config, conf().as_ref(), expected),
            edited: site.as_ref().is_some_and(|site| site.edited),
            site: site.map(|site| site.path),
            since: self.nginx.running_since(),
        })
    }
}
