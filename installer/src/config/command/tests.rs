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
    let status = run(&Layout::new("/r"), &host(links), json, false, &mut out).unwrap();
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

#[test]
fn online_asks_the_servers_and_tells_of_each() {
    let layout = Layout::new("/r");
    let ask = |files: &Files, json| {
        let mut out = Vec::new();
        let status = run(&layout, files, json, true, &mut out).unwrap();
        (status, String::from_utf8(out).unwrap())
    };
    // Nobody listens on port 1.
    let redis = "\n[key_value_store.default]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:1\"";
    let files = host("").with("/r/etc/links/runtime.toml", redis, 0o644);
    let (status, text) = ask(&files, false);
    assert_eq!(status, WRONG);
    assert!(
        text.starts_with("/r/etc/links/runtime.toml:2:1: `key_value_store.default` does not answer: "),
        "{text}"
    );
    let report: serde_json::Value = serde_json::from_str(&ask(&files, true).1).unwrap();
    assert_eq!(report["tried"][0]["outcome"], "fails");
    assert_eq!(report["tried"][0]["provider"], "key_value_store.default");
    assert_eq!(report["findings"][0]["line"], 2);

    let (status, text) = ask(&host(""), true);
    assert_eq!(status, FINE);
    assert!(text.contains("\"tried\": []"), "{text}");
    let (status, text) = ask(&host("instnaces = 3"), false);
    assert_eq!(status, WRONG);
    assert!(text.contains("no server was asked"), "{text}");
}
