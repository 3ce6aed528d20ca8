//! Clients of links on a host, and the links that they create and follow.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::Host;
use crate::http::Client;
use crate::load::Link;
use crate::stream::Address;

impl Host {
    /// The admin token.
    ///
    /// # Errors
    /// Fails if `linksctl token` fails.
    pub fn token(&self) -> Result<String> {
        Ok(self.ok(["linksctl", "token"])?.stdout.trim().to_owned())
    }

    /// A client for nginx's port 80 that may shorten.
    ///
    /// # Errors
    /// Fails as [`Self::token`] does.
    pub fn site(&self) -> Result<Client> {
        Ok(self.http().bearer(&self.token()?))
    }

    /// A client for one instance, past nginx, that may shorten.
    ///
    /// # Errors
    /// Fails as [`Self::token`] does.
    pub fn instance(&self, number: u16) -> Result<Client> {
        Ok(self.instance_without_token(number).bearer(&self.token()?))
    }

    /// A client for one instance, past nginx, without a token. It uses the instance's Unix socket, or the TCP port on which
    /// version 0.1.0 and Spin listen.
    pub fn instance_without_token(&self, number: u16) -> Client {
        let socket = self.path_outside(&format!("/run/links/sockets/{number}.sock"));
        let tcp = (Ipv4Addr::LOCALHOST, 7000 + number).into();
        self.http_through(Address::Either(socket, tcp))
    }

    /// Shortens a URL through nginx.
    ///
    /// # Errors
    /// Fails unless the answer is the documented one.
    pub fn shorten(&self, url: &str) -> Result<Link> {
        #[derive(Deserialize)]
        struct Shortened {
            slug: String,
            short_url: String,
        }
        let answer = self.site()?.post("/shorten", serde_json::json!({ "url": url }))?;
        ensure!(answer.status == 200, "POST /shorten: {answer}");
        let Shortened { slug, short_url } = answer.json()?;
        ensure!(
            short_url == format!("http://links.example/{slug}"),
            "short_url is {short_url}"
        );
        Ok(Link {
            slug,
            url: url.to_owned(),
        })
    }

    /// Checks through nginx that the link redirects to its URL.
    ///
    /// # Errors
    /// Fails if it does not.
    pub fn follow(&self, link: &Link) -> Result<()> {
        let answer = self.http().get(&format!("/{}", link.slug))?;
        ensure!(
            answer.status == 302 && answer.header("location") == link.url,
            "/{} should lead to {}: {answer}",
            link.slug,
            link.url
        );
        Ok(())
    }
}
