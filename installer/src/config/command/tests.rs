#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use super::{FINE, WRONG, run};
use crate::config::testing::Files;
use crate::layout::Layout;

fn host(links: &str) -> Files {
    Files::default()
        .with("/r/etc/links/links.toml", links, 0o644)
        .with("/r/etc/links/runtime.toml", "", 0o644)
        .with("/r/etc/links/credentials/admin_token", "dGhpcyBpcyBhIHRva2Vu", 0o600)
}

fn output(links: &str, json: bool) -> (u8, String) {
    let mut out = Vec::new();
    let status = run(&Layout::new("/r"), &host(links), json, &mut out).unwrap();
    (status, String::from_utf8(out).unwrap())
}

#[test]
fn says_that_all_is_fine_and_names_the_files() {
    assert_eq!(
        output("", false),
        (
            FINE,
            "the configuration is fine: /r/etc/links/links.toml, /r/etc/links/runtime.toml\n".to_owned()
        )
    );
    let (status, text) = output("shorten.access = \"open\"", false);
    assert_eq!(status, FINE);
    assert!(
        text.contains("warning: ") && text.contains("fine, but see above"),
        "{text}"
    );
}

#[test]
fn errors_give_the_exit_status_of_a_wrong_configuration() {
    let (status, text) = output("instnaces = 3\ninstances = 0", false);
    assert_eq!(status, WRONG);
    assert_eq!(
        text,
        "/r/etc/links/links.toml:1:1: unknown key `instnaces`; did you mean `instances`?\n\
         /r/etc/links/links.toml:2:13: `instances` must be from 1 to 16, found 0\n"
    );
}

#[test]
fn json_has_the_same() {
    let (status, text) = output("instnaces = 3", true);
    assert_eq!(status, WRONG);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "ok": false,
        "errors": 1,
        "warnings": 0,
        "findings": [{
            "severity": "error",
            "file": "/r/etc/links/links.toml",
            "line": 1,
            "column": 1,
            "message": "unknown key `instnaces`",
            "help": "did you mean `instances`?",
        }],
    });
    assert_eq!(report, expected);
    assert!(output("", true).1.contains("\"ok\": true"));
}
