#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use super::{Source, check, load};
use crate::files::ConfigFiles;
use crate::finding::Finding;
use crate::testing::Files;
use links_base::layout::Layout;

const TOKEN: &str = "dGhpcyBpcyBhIHRva2Vu";
const LIBSQL: &str =
    "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"credential:turso\"";

/// A host with an empty configuration and an admin token.
fn host() -> Files {
    Files::default()
        .with("/etc/links/links.toml", "", 0o644)
        .with("/etc/links/runtime.toml", "", 0o644)
        .with("/etc/links/credentials/admin_token", &format!("{TOKEN}\n"), 0o600)
}

fn found(files: &Files) -> Vec<String> {
    check(&ConfigFiles::new(&Layout::new("/")), files)
        .findings
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_fresh_host_is_fine() {
    assert_eq!(found(&host()), [""; 0]);
    let config = ConfigFiles::new(&Layout::new("/"));
    let loaded = load(&config, &Source::of_host(&config), &host()).unwrap();
    assert_eq!(loaded.credentials.get("admin_token"), Some(TOKEN));
    assert_eq!(format!("{:?}", loaded.credentials), "{\"admin_token\": [secret]}");
}

#[test]
fn each_problem_has_its_message() {
    let token = "/etc/links/credentials/admin_token";
    let turso = "/etc/links/credentials/turso";
    let runtime = "/etc/links/runtime.toml";
    let open = "shorten.access = \"open\"";
    let vault = "[[variables_provider]]\ntype = \"vault\"\nurl = \"https://v.example\"\ntoken = \"credential:turso\"\nmount = \"m\"";
    for (files, messages) in [
        (
            host().without("/etc/links/links.toml"),
            vec!["/etc/links/links.toml: cannot be read: entity not found"],
        ),
        (
            host().without(runtime),
            vec!["/etc/links/runtime.toml: cannot be read: entity not found"],
        ),
        (
            host().with_bytes("/etc/links/links.toml", b"\xff", 0o644),
            vec!["/etc/links/links.toml: is not UTF-8 text"],
        ),
        (
            host().without(token),
            vec![
                "/etc/links/credentials/admin_token: is missing, so nobody can create links; run `linksctl token --rotate` to create one",
            ],
        ),
        (
            host().with(token, "\n", 0o600),
            vec!["/etc/links/credentials/admin_token: is empty"],
        ),
        (
            host().with(token, "one\ntwo\n", 0o600),
            vec!["/etc/links/credentials/admin_token: has more than one line"],
        ),
        (
            host().with_bytes(token, b"\xfe\xff", 0o600),
            vec!["/etc/links/credentials/admin_token: is not UTF-8 text"],
        ),
        (
            host().with(token, "0123456789abcdef!", 0o600),
            vec![
                "/etc/links/credentials/admin_token: holds a character that no bearer token may have; use letters, digits and -._~+/=",
            ],
        ),
        (
            host().with(token, "short", 0o600),
            vec![
                "/etc/links/credentials/admin_token: warning: is short: fewer than 16 characters can be guessed; run `linksctl token --rotate` to create a better one",
            ],
        ),
        (
            host().with(token, TOKEN, 0o640),
            vec![
                "/etc/links/credentials/admin_token: is accessible to users other than root: its mode is 0640; run `chmod 600 /etc/links/credentials/admin_token`",
            ],
        ),
        (
            host().with(token, TOKEN, 0o604),
            vec![
                "/etc/links/credentials/admin_token: is accessible to users other than root: its mode is 0604; run `chmod 600 /etc/links/credentials/admin_token`",
            ],
        ),
        (
            host().with(runtime, LIBSQL, 0o644),
            vec![
                "/etc/links/runtime.toml:4:9: the credential `turso` is missing; put it into /etc/links/credentials/turso, mode 0600",
            ],
        ),
        (
            host().with(runtime, LIBSQL, 0o644).with(turso, "", 0o600),
            vec!["/etc/links/credentials/turso: is empty"],
        ),
        (host().with(runtime, LIBSQL, 0o644).with(turso, "t", 0o600), vec![]),
        (
            host().with(
                "/etc/links/links.toml",
                "telemetry.headers = \"credential:turso\"",
                0o644,
            ),
            vec![
                "/etc/links/links.toml:1:21: the credential `turso` is missing; put it into /etc/links/credentials/turso, mode 0600",
            ],
        ),
        (
            host()
                .with(
                    "/etc/links/links.toml",
                    "telemetry.headers = \"credential:turso\"",
                    0o644,
                )
                .with(turso, "s3cret", 0o600),
            vec![
                "/etc/links/credentials/turso: does not hold headers for `telemetry.headers`; write NAME=VALUE, separated by commas, with special characters percent-encoded: %2C for a comma",
            ],
        ),
        // The runtime would print the text that is not a URL.
        (
            host()
                .with(runtime, &LIBSQL.replace("https://x.example", "credential:turso"), 0o644)
                .with(turso, "a-token", 0o600),
            vec![
                "/etc/links/credentials/turso: does not hold a URL for `sqlite_database.default`; write the whole URL, starting with https: or http:",
            ],
        ),
        (
            host().with("/etc/links/credentials/notes", "a\nb\n", 0o600),
            vec!["/etc/links/credentials/notes: warning: has more than one line, but nothing uses it"],
        ),
        (
            host().with("/etc/links/credentials/.admin_token.swp", "a\nb\n", 0o600),
            vec![],
        ),
        (
            host().with(
                "/etc/links/links.toml.d/a.toml",
                "[telemetry]\nheaders = \"credential:turso\"",
                0o644,
            ),
            vec![
                "/etc/links/links.toml.d/a.toml:2:11: the credential `turso` is missing; put it into /etc/links/credentials/turso, mode 0600",
            ],
        ),
        (
            host()
                .with("/etc/links/links.toml", "instances = 99\nbase_port = 8000", 0o644)
                .with("/etc/links/links.toml.d/a.toml", "instances = 3", 0o644)
                .with("/etc/links/links.toml.d/b.toml", "nginx.listen = 8003", 0o644),
            vec![
                "/etc/links/links.toml.d/b.toml:1:16: `nginx.listen` 8003 takes 127.0.0.1:8003 from instance 3; change `base_port` or the nginx port",
            ],
        ),
        (
            host()
                .with("/etc/links/links.toml.d/.a.toml", "wrong", 0o644)
                .with("/etc/links/links.toml.d/a.toml~", "wrong", 0o644)
                .with("/etc/links/links.toml.d/a.toml.dpkg-old", "wrong", 0o644)
                .with("/etc/links/links.toml.d/README", "wrong", 0o644),
            vec![],
        ),
        (
            host()
                .with("/etc/links/links.toml", "", 0o600)
                .with("/etc/links/links.toml.d/a.toml", "", 0o640)
                .with("/etc/links/links.toml.d/b.toml", "", 0o600),
            vec![
                "/etc/links/links.toml: warning: cannot be read by user links: its mode is 0600; run `chmod a+r /etc/links/links.toml`",
                "/etc/links/links.toml.d/b.toml: warning: cannot be read by user links: its mode is 0600; run `chmod a+r /etc/links/links.toml.d/b.toml`",
            ],
        ),
        // Without the file, Vault may supply the admin token, or links.toml does not ask for one.
        (
            host()
                .without(token)
                .with(runtime, vault, 0o644)
                .with(turso, "t", 0o600),
            vec![],
        ),
        (
            host().without(token).with("/etc/links/links.toml", open, 0o644),
            vec![
                "/etc/links/links.toml:1:18: warning: `shorten.access` is \"open\": anyone who can reach nginx can create links; write \"token\" to ask for the admin token",
            ],
        ),
    ] {
        assert_eq!(found(&files), messages);
    }
}

#[test]
fn all_files_are_checked_at_once() {
    let files = host()
        .with("/etc/links/links.toml", "instances = 0\nports = 1", 0o644)
        .with("/etc/links/links.toml.d/a.toml", "instances = -1", 0o644)
        .with("/etc/links/links.toml.d/b.toml", "\nsnorten = 1", 0o644)
        .with("/etc/links/runtime.toml", "[sqlite]", 0o644)
        .with("/etc/links/credentials/admin_token", "", 0o666);
    let found = found(&files);
    let expected = [
        "/etc/links/links.toml:2:1: ",
        "/etc/links/links.toml.d/a.toml:1:13: ",
        "/etc/links/links.toml.d/b.toml:2:1: ",
        "/etc/links/runtime.toml:1:2: ",
        "/etc/links/credentials/admin_token: is empty",
        "/etc/links/credentials/admin_token: is accessible",
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (message, expected) in found.iter().zip(expected) {
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn a_value_that_replaces_another_is_known_with_both_positions() {
    let files = host()
        .with(
            "/etc/links/links.toml",
            "instances = 3\n[drain]\ntimeout = \"1s\"",
            0o644,
        )
        .with("/etc/links/links.toml.d/10.toml", "instances = 4", 0o644)
        .with("/etc/links/links.toml.d/9.toml", "[drain]\n", 0o644);
    let loaded = check(&ConfigFiles::new(&Layout::new("/")), &files).loaded.unwrap();
    assert_eq!((loaded.config.instances, loaded.config.drain.timeout.as_secs()), (4, 1));
    let overrides: Vec<_> = loaded.overrides.iter().map(ToString::to_string).collect();
    assert_eq!(
        overrides,
        ["/etc/links/links.toml.d/10.toml:1:13: `instances` replaces the value in /etc/links/links.toml:1:13"]
    );
    let names: Vec<_> = loaded.inputs.iter().map(|input| input.file.as_str()).collect();
    assert_eq!(
        names,
        [
            "/etc/links/links.toml",
            "/etc/links/links.toml.d/10.toml",
            "/etc/links/links.toml.d/9.toml"
        ]
    );
}

#[test]
fn unreadable_credentials_are_a_warning() {
    let files = host()
        .with("/etc/links/runtime.toml", LIBSQL, 0o644)
        .locked("/etc/links/credentials");
    assert_eq!(
        found(&files),
        ["/etc/links/credentials: warning: not checked: only root may read it; run this as root to check it too"]
    );
    let config = ConfigFiles::new(&Layout::new("/"));
    let findings = load(&config, &Source::of_host(&config), &files).unwrap_err();
    assert!(findings.iter().any(Finding::is_error));
}

#[test]
fn a_service_reads_the_credentials_from_systemd() {
    let files = host()
        .without("/etc/links/credentials/admin_token")
        .with("/run/credentials/links@1.service/links_admin_token", TOKEN, 0o440)
        .with("/run/credentials/links@1.service/other", "x", 0o440);
    let config = ConfigFiles::new(&Layout::new("/"));
    let source = Source::new(&config, Some("/run/credentials/links@1.service".into()));
    let loaded = load(&config, &source, &files).unwrap();
    assert_eq!(loaded.credentials.get("admin_token"), Some(TOKEN));
    assert_eq!(loaded.credentials.names().collect::<Vec<_>>(), ["admin_token"]);
    assert_eq!(Source::new(&config, None), Source::of_host(&config));
    assert_eq!(Source::new(&config, Some("".into())), Source::of_host(&config));
}

#[test]
fn backups_in_s3_need_credentials() {
    let host = host().with("/etc/links/links.toml", "[backup]\nto = \"s3://backups/links\"", 0o644);
    let key = "/etc/links/credentials/s3_access_key_id";
    let secret = "/etc/links/credentials/s3_secret_access_key";
    let missing = format!("{secret}: is missing, so no backup reaches S3; put the key into {secret}, mode 0600");
    let empty = host.clone().with(key, "\n", 0o600);
    assert_eq!(found(&empty), [format!("{key}: is empty"), missing]);
    let complete = host.with(key, "AKIA\n", 0o600).with(secret, "s3cret\n", 0o600);
    assert_eq!(found(&complete), [""; 0]);
}
