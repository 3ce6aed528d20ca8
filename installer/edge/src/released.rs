//! Recognises the sites of version 0.1.0, which kept no record of what it wrote.

use serde::Serialize;

use crate::nginx;
use links_base::layout;

/// packaging/nginx/site.conf of version 0.1.0.
const SITE: &str = include_str!("released-0.1.0.conf");

#[derive(Serialize)]
struct Site<'a> {
    instances: Vec<Instance<'a>>,
    listen: Vec<&'a str>,
    default_server: bool,
    server_name: Vec<&'a str>,
    ready_dir: std::path::PathBuf,
    keepalive_flag: &'static str,
    journal: std::path::PathBuf,
    edge: Option<Edge<'a>>,
}

#[derive(Serialize)]
struct Instance<'a> {
    number: usize,
    address: &'a str,
}

#[derive(Serialize)]
struct Edge<'a> {
    listen: &'a str,
    directory: std::path::PathBuf,
    seconds: u64,
    cache_size: nginx::CacheSize,
}

/// Whether 0.1.0 wrote exactly this text, whatever its links.toml was. This takes the values from the text and checks that
/// rendering them gives the same text again.
pub fn is_unedited(text: &str, paths: &nginx::Paths) -> bool {
    values(text, paths).is_some_and(|site| nginx::render(SITE, &site).is_ok_and(|rendered| rendered == text))
}

fn values<'a>(text: &'a str, paths: &nginx::Paths) -> Option<Site<'a>> {
    let lines_after = |opening: &'static str| {
        let lines = text.lines().skip_while(move |line| !line.starts_with(opening)).skip(1);
        lines.map(str::trim)
    };
    let instances: Vec<_> = lines_after("upstream links_all {")
        .map_while(|line| line.strip_prefix("server ")?.strip_suffix(" max_fails=0;"))
        .enumerate()
        .map(|(index, address)| Instance {
            number: index + 1,
            address,
        })
        .collect();
    let server = || lines_after("server {");
    let mut default_server = false;
    let listen: Vec<_> = server()
        .map_while(|line| line.strip_prefix("listen ")?.strip_suffix(';'))
        .map(|address| match address.strip_suffix(" default_server") {
            Some(address) => {
                default_server = true;
                address
            }
            None => address,
        })
        .collect();
    let names = server().find_map(|line| line.strip_prefix("server_name ")?.strip_suffix(';'))?;
    let number = |before: &str, after: char| -> Option<u64> {
        let (_, rest) = text.split_once(before)?;
        rest.split(after).next()?.parse().ok()
    };
    let edge = match text.contains("\nproxy_cache_path ") {
        false => None,
        true => Some(Edge {
            listen: text.rsplit_once("\n    listen ")?.1.split_once(';')?.0,
            directory: paths.cache_dir.clone(),
            seconds: number("inactive=", 's')?,
            cache_size: nginx::CacheSize {
                mebibytes: number("max_size=", 'm')?,
                open_files: number("open_file_cache max=", ' ').unwrap_or(0),
            },
        }),
    };
    Some(Site {
        instances,
        listen,
        default_server,
        server_name: names.split(' ').collect(),
        ready_dir: paths.ready_dir.clone(),
        keepalive_flag: layout::KEEPALIVE_FLAG,
        journal: paths.journal.clone(),
        edge,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_base::layout::Layout;

    fn rendered(instances: &[&str], default_server: bool, edge: bool, open_files: u64) -> String {
        let paths = nginx::Paths::new(&Layout::new("/"));
        let site = Site {
            instances: (1..)
                .zip(instances)
                .map(|(number, address)| Instance { number, address })
                .collect(),
            listen: vec!["80", "[::]:80"],
            default_server,
            server_name: vec!["s.example.org", "t.example.org"],
            ready_dir: paths.ready_dir,
            keepalive_flag: layout::KEEPALIVE_FLAG,
            journal: paths.journal,
            edge: edge.then_some(Edge {
                listen: "127.0.0.1:7000",
                directory: paths.cache_dir,
                seconds: 900,
                cache_size: nginx::CacheSize {
                    mebibytes: 97,
                    open_files,
                },
            }),
        };
        nginx::render(SITE, &site).unwrap()
    }

    #[test]
    fn every_unedited_site_is_recognised() {
        let paths = nginx::Paths::new(&Layout::new("/"));
        for instances in [
            &["127.0.0.1:7001"][..],
            &["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"],
        ] {
            for (default_server, edge, open_files) in [(true, true, 100), (false, true, 0), (true, false, 0)] {
                let text = rendered(instances, default_server, edge, open_files);
                assert!(is_unedited(&text, &paths), "{text}");
            }
        }
    }

    #[test]
    fn an_edit_is_noticed() {
        let paths = nginx::Paths::new(&Layout::new("/"));
        let text = rendered(&["127.0.0.1:7001", "127.0.0.1:7002"], true, true, 100);
        let edits = [
            // As `certbot --nginx --redirect` leaves it.
            text.replacen(
                "    server_tokens off;\n",
                "    server_tokens off;\n\n    listen 443 ssl; # managed by Certbot\n    \
                 ssl_certificate /etc/letsencrypt/live/s.example.org/fullchain.pem; # managed by Certbot\n",
                1,
            ),
            text.replacen("    listen 80 default_server;\n", "", 1)
                + "server {\n    if ($host = s.example.org) { return 301 https://$host$request_uri; }\n    listen 80;\n}\n",
            text.replace("client_max_body_size 1m;", "client_max_body_size 2m;"),
            text.replace("    listen 80 default_server;", "    listen 80 default_server http2;"),
            text.replace("127.0.0.1:7002 max_fails=0;", "127.0.0.1:7002 max_fails=1;"),
            text.clone() + "# a remark\n",
            text[..text.len() / 2].to_owned(),
            "server { listen 80; }\n".to_owned(),
            String::new(),
        ];
        for edited in edits {
            assert!(edited != text && !is_unedited(&edited, &paths), "{edited}");
        }
    }
}
