//! Tests that the files under packaging/observability only use metrics that the agent exposes.

use std::collections::BTreeSet;

use super::families::{ALL, Kind};
use super::scrape::LABEL;

const DASHBOARD: &str = include_str!("../../../packaging/observability/grafana-dashboard.json");
const RULES: &str = include_str!("../../../packaging/observability/links.rules.yml");

/// Every word in the text that could be the name of one of our metrics.
fn named(text: &str) -> BTreeSet<&str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| word.starts_with("links_") && *word != LABEL)
        .collect()
}

fn exposed() -> BTreeSet<String> {
    let names = ALL.iter().flat_map(|family| match family.kind {
        Kind::Summary => vec![format!("{}_sum", family.name), format!("{}_count", family.name)],
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .map(|suffix| format!("{}{suffix}", family.name))
            .into(),
        Kind::Counter | Kind::Gauge => vec![family.name.to_owned()],
    });
    names.collect()
}

#[test]
fn every_metric_in_the_dashboard_and_the_rules_is_exposed() {
    let exposed = exposed();
    for (file, text) in [("dashboard", DASHBOARD), ("rules", RULES)] {
        let named = named(text);
        assert!(named.len() > 5, "{file}: {named:?}");
        for name in named {
            assert!(exposed.contains(name), "{file}: {name} is not exposed");
        }
    }
}

/// A metric that nobody looks at is not worth exposing. The exceptions only help to explain another metric.
#[test]
fn the_dashboard_shows_every_exposed_metric() {
    let shown = named(DASHBOARD);
    let hidden = ["links_component_cpu_seconds_count", "links_otlp_ignored_points_total"];
    for name in exposed() {
        assert!(
            shown.contains(name.as_str()) || hidden.contains(&name.as_str()),
            "{name}"
        );
    }
}

#[test]
fn the_dashboard_is_valid_json_and_every_panel_has_a_query() {
    let dashboard = serde_json::from_str::<serde_json::Value>(DASHBOARD).unwrap_or_default();
    let panels = dashboard["panels"].as_array().map_or(0, Vec::len);
    assert!(panels > 10);
    let all_have_queries = dashboard["panels"].as_array().is_some_and(|panels| {
        panels.iter().all(|panel| {
            panel["targets"]
                .as_array()
                .is_some_and(|targets| !targets.is_empty() && targets.iter().all(|target| target["expr"].is_string()))
        })
    });
    assert!(all_have_queries);
}
