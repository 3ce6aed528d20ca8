//! The nginx site as text, from packaging/nginx/.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;

use crate::config::links::{Config, Listen};
use crate::layout::{self, Layout};

const SITE: &str = include_str!("../../packaging/nginx/site.conf");
const UP: &str = include_str!("../../packaging/nginx/up.conf");

#[derive(Serialize)]
struct Instance {
    number: u16,
    address: SocketAddr,
}

/// What the host decides about the site.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// Whether the kernel has IPv6: a lone port is then listened on there too.
    pub ipv6: bool,
    /// Whether the site answers for names that no other site has; only one site per address may.
    pub default_server: bool,
}

/// The site's file.
///
/// # Errors
/// None unless the template is broken, which the tests would have said.
pub fn site(config: &Config, layout: &Layout, surroundings: Surroundings) -> anyhow::Result<String> {
    let instances: Vec<_> = (1..=config.instances)
        .map(|number| Instance { number, address: layout::instance_address(config.base_port, number) })
        .collect();
    let listen: Vec<_> = config.nginx.listen.iter().flat_map(|listen| listens(*listen, surroundings.ipv6)).collect();
    render(
        SITE,
        context! {
            instances,
            listen,
            default_server => surroundings.default_server,
            server_name => config.nginx.server_name,
            ready_dir => layout.ready_dir(),
        },
    )
    .context("Rendering the nginx site")
}

/// The main file of an nginx that runs the site alone, with its files in `directory`. `user` is for one that root starts.
///
/// # Errors
/// As [`site`].
pub fn standalone(directory: &Path, site: &Path, user: Option<&str>) -> anyhow::Result<String> {
    render(UP, context! { directory, site, user }).context("Rendering the configuration of nginx")
}

/// nginx reads a lone port as IPv4 only.
fn listens(listen: Listen, ipv6: bool) -> Vec<String> {
    let mut listens = vec![listen.to_string()];
    if let Listen::Port(port) = listen
        && ipv6
    {
        listens.push(format!("[::]:{port}"));
    }
    listens
}

fn render(template: &str, values: minijinja::Value) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_keep_trailing_newline(true);
    environment.render_str(template, values)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn site_of(instances: u16, surroundings: Surroundings) -> String {
        let config = Config { instances, ..Config::default() };
        site(&config, &Layout::new("/"), surroundings).unwrap()
    }

    const PLAIN: Surroundings = Surroundings { ipv6: false, default_server: false };

    /// The lines between the one that starts with `opening` and the next `}`.
    fn block<'a>(site: &'a str, opening: &str) -> Vec<&'a str> {
        let lines = site.lines().skip_while(|line| !line.starts_with(opening));
        lines.skip(1).take_while(|line| *line != "}").map(str::trim).collect()
    }

    #[test]
    fn one_pool_per_missing_flag_with_the_missing_one_as_backup() {
        let site = site_of(2, PLAIN);
        assert_eq!(
            block(&site, "upstream links_all"),
            ["server 127.0.0.1:7001 max_fails=0;", "server 127.0.0.1:7002 max_fails=0;", "keepalive 64;", "keepalive_timeout 1s;"]
        );
        assert_eq!(
            block(&site, "upstream links_without_1")[..2],
            ["server 127.0.0.1:7002 max_fails=0;", "server 127.0.0.1:7001 backup;"]
        );
        assert_eq!(
            block(&site, "map"),
            ["default links_all;", "\"/1\" links_without_1;", "\"/2\" links_without_2;"]
        );
        assert!(site.contains(r#"if (!-f /run/links/ready/2) { set $links_missing "${links_missing}/2"; }"#));
    }

    #[test]
    fn one_instance_has_one_pool() {
        let site = site_of(1, PLAIN);
        assert_eq!(site.matches("upstream ").count(), 1);
        assert_eq!(block(&site, "map"), ["default links_all;"]);
    }

    #[test]
    fn sixteen_instances_have_seventeen_pools() {
        let site = site_of(16, PLAIN);
        assert_eq!(site.matches("upstream ").count(), 17);
        // "/1/6" is two missing flags, "/16" is one: they must not be mistaken for each other.
        assert!(site.contains("\"/16\" links_without_16;") && !site.contains("\"16\""));
    }

    #[test]
    fn a_lone_port_is_on_ipv6_where_there_is_ipv6() {
        let with = Surroundings { ipv6: true, default_server: true };
        let site = site_of(2, with);
        assert!(site.contains("    listen 80 default_server;\n    listen [::]:80 default_server;\n"), "{site}");
        assert!(site_of(2, PLAIN).contains("    listen 80;\n    server_name _;\n"));
    }

    #[test]
    fn standalone_names_its_user_only_for_root() {
        let text = standalone(Path::new("/d"), Path::new("/d/site"), None).unwrap();
        assert!(!text.contains("user ") && text.contains("include /d/site;"), "{text}");
        assert!(standalone(Path::new("/d"), Path::new("/d/site"), Some("root")).unwrap().contains("\nuser root;\n"));
    }
}
