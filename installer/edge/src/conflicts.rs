//! Explains where nginx's configuration gets in the way of links, with files and lines, for `linksctl check`. It does no I/O.

use crate::conf::{Conf, Listen, Place};
use crate::neighbours::{NAMES_BUCKET, NamesBucket, Neighbours, OBSTACLE_HELP, SameName, obstacle};
use crate::nginx;
use crate::plan::{self, Files, Found};
use links_config::finding::Finding;
use links_config::links::Config;

/// Everything in a configuration that nginx accepts that concerns the site of links. An error means that a rollout fails.
pub fn find(found: &Found, conf: &Conf, files: &Files, config: &Config) -> Vec<Finding> {
    let place = match plan::place(found, conf, files) {
        Ok(place) => place,
        Err(error) => return vec![Finding::error(conf.main().display().to_string(), error.to_string())],
    };
    let mut findings = vec![];
    if found.has_sites && place == plan::Place::ConfD {
        findings.push(unread(conf, files));
    }
    if let Some(site) = plan::in_force(found, files).filter(|site| site.edited) {
        findings.push(
            Finding::warning(
                site.path.display().to_string(),
                "somebody else has edited the site of links, so changes of links.toml do not reach it",
            )
            .help(format!(
                "run `linksctl rollout --force` to replace it and keep a copy, and put your own directives into {}/*.conf",
                files.named.include_dir.display()
            )),
        );
    }
    findings.extend(of_neighbours(
        &plan::neighbours(place, found, conf, files, config),
        config,
    ));
    findings
}

fn of_neighbours(neighbours: &Neighbours, config: &Config) -> Vec<Finding> {
    let names = nginx::server_names(config);
    let shown = names.join(", ");
    let default_server = neighbours.default_server().map(|other| default_server(other, &names));
    let same_names = neighbours.same_names();
    let same_names = same_names.iter().map(same_name);
    let unreachable = neighbours.unreachable().into_iter().map(|listen| {
        let (place, address) = (&listen.place, listen.address);
        match names == ["_"] {
            true => warning(
                place,
                format!("{address} is an address of this site, so requests to it do not reach links"),
            )
            .help("set public_url, or server_name in [nginx], in links.toml, so that nginx can tell them apart"),
            false => warning(
                place,
                format!("{address} is an address of this site, so requests for {shown} to it do not reach links"),
            )
            .help(format!(
                "add `default_server` here and run `linksctl rollout`; links then answers for its names on {address} too"
            )),
        }
    });
    let other_protocols = neighbours.other_protocols().into_iter();
    let other_protocols = other_protocols.map(|listen| other_protocol(listen, config.nginx.proxy_protocol));
    let bucket = match neighbours.names_bucket() {
        NamesBucket::TooSmall { set, needed } => Some(
            error(
                &set.place,
                format!("{NAMES_BUCKET} is too small for the host names of links ({shown})"),
            )
            .help(format!("write {needed}")),
        ),
        NamesBucket::Sufficient | NamesBucket::Unset(_) => None,
    };
    let obstacles = neighbours.obstacles().into_iter();
    let obstacles = obstacles.map(|listen| error(&listen.place, obstacle(listen)).help(OBSTACLE_HELP));
    default_server
        .into_iter()
        .chain(same_names)
        .chain(unreachable)
        .chain(other_protocols)
        .chain(obstacles)
        .chain(bucket)
        .collect()
}

fn default_server(other: &Listen, names: &[String]) -> Finding {
    let claim = format!(
        "`default_server` takes all requests to {} for host names that no site has",
        other.address
    );
    match names == ["_"] {
        true => error(&other.place, format!("{claim}, so links gets none"))
            .help("set public_url, or server_name in [nginx], in links.toml"),
        false => warning(
            &other.place,
            format!("{claim}; links answers only for {}", names.join(", ")),
        ),
    }
}

fn same_name(same: &SameName) -> Finding {
    let place = &same.name.place;
    let both = format!("this site has the host name {} on {} too", same.name.name, same.address);
    let finding = match same.hides_us {
        true => error(
            place,
            format!("{both}, and nginx reads it first, so links gets no request"),
        ),
        false => warning(
            place,
            format!("{both}, but gets no request for it, because nginx reads links first"),
        ),
    };
    finding.help("remove the name here, or set server_name in [nginx] of links.toml")
}

fn other_protocol(listen: &Listen, is_expected: bool) -> Finding {
    let address = listen.address;
    match is_expected {
        true => warning(
            &listen.place,
            format!(
                "links expects the PROXY protocol on {address}, so nginx expects it from the clients of this site too"
            ),
        )
        .help("give this site or links another address"),
        false => error(
            &listen.place,
            format!(
                "`proxy_protocol` makes nginx expect the PROXY protocol from the clients of links on {address} too"
            ),
        )
        .help("set proxy_protocol and trusted_proxies in [nginx] of links.toml, or give this site another address"),
    }
}

/// The directories for sites exist, but nginx would not read a site of links there.
fn unread(conf: &Conf, files: &Files) -> Finding {
    let place = conf.http().unwrap_or_else(|| Place {
        file: conf.main().to_owned(),
        line: 1,
    });
    warning(
        &place,
        format!(
            "nginx does not read {}, so the site of links is {}",
            files.enabled.display(),
            files.conf_d.display()
        ),
    )
}

fn error(place: &Place, message: impl Into<String>) -> Finding {
    at(place, Finding::error("", message))
}

fn warning(place: &Place, message: impl Into<String>) -> Finding {
    at(place, Finding::warning("", message))
}

fn at(place: &Place, finding: Finding) -> Finding {
    Finding {
        file: place.file.display().to_string(),
        line: Some(place.line),
        ..finding
    }
}

/// The finding for a configuration that nginx refuses. nginx's message names the place: `... in FILE:LINE`.
pub fn refused(message: &str) -> Finding {
    let place = message.lines().find_map(|line| {
        let (file, number) = line.rsplit_once(" in ")?.1.rsplit_once(':')?;
        let number = number.trim().parse().ok()?;
        file.starts_with('/').then(|| Place {
            file: file.into(),
            line: number,
        })
    });
    let text = format!(
        "nginx refuses its configuration: {}",
        message.trim().replace('\n', "; ")
    );
    let finding = Finding::error("nginx.conf", text).help("correct it; `nginx -t` tests it");
    match place {
        Some(place) => at(&place, finding),
        None => finding,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use crate::record::State;
    use links_base::layout::Layout;

    /// Debian's nginx with links, whose site is `ours`, and other sites.
    fn findings(includes: &str, sites: &[(&str, &str)], ours: &str, links: &str) -> Vec<String> {
        let files = Files::new(&Layout::new("/"));
        let found = Found {
            has_sites: true,
            available: State::File(ours.to_owned()),
            enabled: State::Link(files.available.clone()),
            conf_d: State::Absent,
            default: State::Absent,
            default_is_pristine: false,
            default_is_available: false,
            parked: State::Absent,
            replaced: State::Absent,
            written: Some(crate::record::digest("ours")),
        };
        let dump: String = sites
            .iter()
            .map(|(path, text)| format!("# configuration file {path}:\n{text}\n"))
            .collect();
        let main = format!("# configuration file /etc/nginx/nginx.conf:\nevents {{}}\nhttp {{\n{includes}\n}}\n");
        let conf = Conf::read(&(main + &dump)).unwrap();
        let config = Config::parse(links, "links.toml").unwrap();
        find(&found, &conf, &files, &config)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    const DEBIAN: &str = "include /etc/nginx/conf.d/*.conf; include /etc/nginx/sites-enabled/*;";
    const NAMED: &str = "public_url = \"https://s.example.org\"";

    fn with_site(site: &str, links: &str) -> Vec<String> {
        findings(DEBIAN, &[("/etc/nginx/sites-enabled/blog", site)], "ours", links)
    }

    #[test]
    fn a_host_without_conflicts_has_no_findings() {
        assert_eq!(
            with_site("server { listen 80; server_name blog.example; }", ""),
            [""; 0]
        );
        assert_eq!(with_site("server { listen 8080 default_server; }", NAMED), [""; 0]);
    }

    #[test]
    fn each_conflict_is_explained_with_its_place() {
        for (site, links, expected) in [
            (
                "server {\n  listen 80 default_server;\n}",
                "",
                "blog:2: `default_server` takes all requests to 0.0.0.0:80 for host names that no site has, so links gets none; set public_url, or server_name in [nginx], in links.toml",
            ),
            (
                "server {\n  listen 80 default_server;\n}",
                NAMED,
                "blog:2: warning: `default_server` takes all requests to 0.0.0.0:80 for host names that no site has; links answers only for s.example.org",
            ),
            (
                "server {\n  listen 80;\n  server_name s.example.org;\n}",
                NAMED,
                "blog:3: this site has the host name s.example.org on 0.0.0.0:80 too, and nginx reads it first, so links gets no request; remove the name here, or set server_name in [nginx] of links.toml",
            ),
            (
                "server {\n  listen 192.0.2.1:80;\n}",
                "",
                "blog:2: warning: 192.0.2.1:80 is an address of this site, so requests to it do not reach links; set public_url, or server_name in [nginx], in links.toml, so that nginx can tell them apart",
            ),
            (
                "server {\n  listen [::]:80 ipv6only=off;\n}",
                NAMED,
                "blog:2: the socket of this server on [::]:80 is for IPv4 too, so nginx cannot open one for links on port 80; give this server another address, or links by listen in [nginx] of links.toml",
            ),
            (
                "server {\n  listen 80 proxy_protocol;\n}",
                NAMED,
                "blog:2: `proxy_protocol` makes nginx expect the PROXY protocol from the clients of links on 0.0.0.0:80 too; set proxy_protocol and trusted_proxies in [nginx] of links.toml, or give this site another address",
            ),
        ] {
            assert_eq!(
                with_site(site, links),
                [format!("/etc/nginx/sites-enabled/{expected}")],
                "{site}"
            );
        }
    }

    #[test]
    fn an_address_that_links_can_share_is_no_conflict() {
        // nginx reads "blog" before "links", so it stays the default there.
        assert_eq!(with_site("server { listen 192.0.2.1:80; }", NAMED), [""; 0]);
        let after = ("/etc/nginx/sites-enabled/own", "server {\nlisten 192.0.2.1:80; }");
        assert_eq!(
            findings(DEBIAN, &[after], "ours", NAMED),
            [
                "/etc/nginx/sites-enabled/own:2: warning: 192.0.2.1:80 is an address of this site, so requests for s.example.org to it do not reach links; add `default_server` here and run `linksctl rollout`; links then answers for its names on 192.0.2.1:80 too"
            ]
        );
    }

    #[test]
    fn a_directory_that_nginx_does_not_read_is_named() {
        assert_eq!(
            findings("include /etc/nginx/conf.d/*.conf;", &[], "ours", ""),
            [
                "/etc/nginx/nginx.conf:2: warning: nginx does not read /etc/nginx/sites-enabled/links, so the site of links is /etc/nginx/conf.d/links.conf"
            ]
        );
        let nowhere = findings("include /srv/*.conf;", &[], "ours", "");
        assert!(
            nowhere.len() == 1 && nowhere[0].contains("nginx.conf: nginx would not read the links site"),
            "{nowhere:?}"
        );
    }

    #[test]
    fn an_edited_site_and_a_small_bucket_are_named() {
        let edited = findings(DEBIAN, &[], "edited", "");
        assert!(
            edited.len() == 1
                && edited[0].starts_with("/etc/nginx/sites-enabled/links: warning: somebody else has edited"),
            "{edited:?}"
        );
        let long = format!("nginx.server_name = \"{}\"", "x".repeat(50));
        let small = findings(&format!("{NAMES_BUCKET} 64;\n{DEBIAN}"), &[], "ours", &long);
        assert!(
            small.len() == 1
                && small[0].starts_with("/etc/nginx/nginx.conf:3: server_names_hash_bucket_size is too small")
                && small[0].ends_with("write 128"),
            "{small:?}"
        );
    }

    #[test]
    fn nginx_s_message_names_the_place() {
        let message = "nginx: [emerg] unknown directive \"x\" in /etc/nginx/conf.d/broken.conf:7\n\
                       nginx: configuration file /etc/nginx/nginx.conf test failed\n";
        let finding = refused(message);
        assert_eq!(
            (finding.file.as_str(), finding.line),
            ("/etc/nginx/conf.d/broken.conf", Some(7))
        );
        let other = refused("nginx: [emerg] bind() to 0.0.0.0:80 failed");
        assert_eq!((other.file.as_str(), other.line), ("nginx.conf", None));
    }
}
