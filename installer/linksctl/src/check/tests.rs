#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use super::{Asks, EX_CONFIG, FINE, report};
use links_base::layout::Layout;
use links_config::connectivity::{Connectivity, Outcome, Tried};
use links_config::finding::Finding;
use links_config::links::Config;
use links_config::testing::Files;

fn host(links: &str) -> Files {
    Files::default()
        .with("/r/etc/links/links.toml", links, 0o644)
        .with("/r/etc/links/runtime.toml", "", 0o644)
        .with("/r/etc/links/credentials/admin_token", "dGhpcyBpcyBhIHRva2Vu", 0o600)
}

fn output(links: &str, json: bool) -> (u8, String) {
    let mut out = Vec::new();
    let status = report(&Layout::new("/r"), &host(links), json, Asks::default(), &mut out).unwrap();
    (status, String::from_utf8(out).unwrap())
}

#[test]
fn a_valid_configuration_is_fine_and_its_files_are_named() {
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
fn errors_set_the_exit_status_of_a_wrong_configuration() {
    let (status, text) = output("instnaces = 3\ninstances = 0", false);
    assert_eq!(status, EX_CONFIG);
    assert_eq!(
        text,
        "/r/etc/links/links.toml:1:1: unknown key `instnaces`; did you mean `instances`?\n\
         /r/etc/links/links.toml:2:13: `instances` must be from 1 to 16, found 0\n"
    );
}

#[test]
fn json_contains_the_same_findings() {
    let (status, text) = output("instnaces = 3", true);
    assert_eq!(status, EX_CONFIG);
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
        "overrides": [],
    });
    assert_eq!(report, expected);
    assert!(output("", true).1.contains("\"ok\": true"));
}

#[test]
fn a_value_that_replaces_another_is_reported_with_both_files() {
    let report = |json| {
        let host = host("instances = 3").with("/r/etc/links/links.toml.d/instances.toml", "\ninstances = 4", 0o644);
        let mut out = Vec::new();
        let status = report(&Layout::new("/r"), &host, json, Asks::default(), &mut out).unwrap();
        assert_eq!(status, FINE);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        report(false),
        "/r/etc/links/links.toml.d/instances.toml:2:13: `instances` replaces the value in /r/etc/links/links.toml:1:13\n\
         the configuration is fine: /r/etc/links/links.toml, /r/etc/links/links.toml.d/instances.toml, \
         /r/etc/links/runtime.toml\n"
    );
    let json: serde_json::Value = serde_json::from_str(&report(true)).unwrap();
    let expected = serde_json::json!([{
        "key": "instances",
        "position": { "file": "/r/etc/links/links.toml.d/instances.toml", "line": 2, "column": 13 },
        "replaced": { "file": "/r/etc/links/links.toml", "line": 1, "column": 13 },
    }]);
    assert_eq!(json["overrides"], expected);
}

#[test]
fn nginx_is_checked_only_with_a_valid_configuration() {
    let nginx = |links: &str| {
        let mut out = Vec::new();
        let ask = |config: &Config| {
            Ok(vec![Finding::error(
                "own.conf",
                format!("base_port {}", config.base_port),
            )])
        };
        let asks = Asks {
            nginx: Some(&ask),
            ..Asks::default()
        };
        let status = report(&Layout::new("/r"), &host(links), false, asks, &mut out).unwrap();
        (status, String::from_utf8(out).unwrap())
    };
    assert_eq!(
        nginx("base_port = 9000"),
        (EX_CONFIG, "own.conf: base_port 9000\n".to_owned())
    );
    assert!(!nginx("instnaces = 3").1.contains("own.conf"));
}

#[test]
fn results_of_online_checks_are_reported_with_the_rest() {
    let layout = Layout::new("/r");
    let provider = "key_value_store.default";
    let connectivity = |outcome, findings| Connectivity {
        tried: vec![Tried {
            provider: provider.to_owned(),
            file: "runtime.toml".to_owned(),
            line: 2,
            column: 1,
            outcome,
            milliseconds: 3,
        }],
        findings,
    };
    let ask = |connectivity: Connectivity, links: &str, json| {
        let mut out = Vec::new();
        let ask = || Ok(connectivity.clone());
        let asks = Asks {
            servers: Some(&ask),
            ..Asks::default()
        };
        let status = report(&layout, &host(links), json, asks, &mut out).unwrap();
        (status, String::from_utf8(out).unwrap())
    };
    let silent = Finding::error("runtime.toml", "does not answer").at((2, 1));
    let failed = connectivity(Outcome::Fails, vec![silent]);
    let (status, text) = ask(failed.clone(), "", false);
    assert_eq!(status, EX_CONFIG);
    assert!(text.starts_with("runtime.toml:2:1: does not answer"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&ask(failed, "", true).1).unwrap();
    assert_eq!(report["tried"][0]["outcome"], "fails");
    assert_eq!(report["tried"][0]["provider"], provider);
    assert_eq!(report["findings"][0]["line"], 2);

    let (status, text) = ask(connectivity(Outcome::Answers, vec![]), "", false);
    assert_eq!(status, FINE);
    assert!(text.contains("`key_value_store.default` answers, after 3 ms"), "{text}");
    let (status, text) = ask(connectivity(Outcome::Answers, vec![]), "instnaces = 3", false);
    assert_eq!(status, EX_CONFIG);
    assert!(text.contains("no server was asked"), "{text}");
}
