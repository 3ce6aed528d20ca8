//! The page that Prometheus scrapes (Prometheus documentation, "Exposition formats", text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::families::{ALL, Family};

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The samples of one scrape.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<&'static str, String>,
}

impl Exposition {
    pub fn add(&mut self, family: &'static Family, labels: &[(&str, &str)], value: f64) {
        self.sample(family, "", labels, value);
    }

    /// Adds a sample if the value is known.
    pub fn add_known(&mut self, family: &'static Family, labels: &[(&str, &str)], value: Option<f64>) {
        if let Some(value) = value {
            self.add(family, labels, value);
        }
    }

    pub fn add_summary(&mut self, family: &'static Family, labels: &[(&str, &str)], sum: f64, count: f64) {
        self.sample(family, "_sum", labels, sum);
        self.sample(family, "_count", labels, count);
    }

    /// Adds a histogram. `up_to` yields each bound and the number of values that do not exceed it, in ascending order.
    pub fn add_histogram(
        &mut self,
        family: &'static Family,
        labels: &[(&str, &str)],
        up_to: impl Iterator<Item = (f64, u64)>,
        sum: f64,
        count: u64,
    ) {
        for (bound, count) in up_to.chain([(f64::INFINITY, count)]) {
            let bound = number(bound);
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(family, "_bucket", &labels, count as f64);
        }
        self.add_summary(family, labels, sum, count as f64);
    }

    fn sample(&mut self, family: &'static Family, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let text = self.samples.entry(family.name).or_default();
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}{suffix}{labels} {}", family.name, number(value));
    }

    pub fn text(&self) -> String {
        let mut page = String::new();
        for family in ALL {
            let Some(samples) = self.samples.get(family.name) else {
                continue;
            };
            let (name, kind) = (family.name, family.kind.name());
            // Writing to a string cannot fail.
            let _ = write!(page, "# HELP {name} {}\n# TYPE {name} {kind}\n{samples}", family.help);
        }
        page
    }
}

/// A number in the syntax of Go's `ParseFloat`, which Prometheus uses.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::families::{BUILD_INFO, CPU, HTTP_DURATION, INSTANCES, REQUESTS};
    use super::*;

    #[test]
    fn samples_are_grouped_by_family_with_help_and_type() {
        let mut page = Exposition::default();
        page.add_summary(&CPU, &[("instance", "1")], 0.25, 3.0);
        page.add(&REQUESTS, &[("instance", "1"), ("component", "a\"b\\c\nd")], 1e15);
        page.add(&BUILD_INFO, &[], 1.0);
        page.add(&REQUESTS, &[("instance", "2")], f64::INFINITY);
        page.add_known(&INSTANCES, &[], None);
        assert_eq!(
            page.text(),
            "# HELP links_build_info The version of links-agent that serves this page; always 1.\n\
             # TYPE links_build_info gauge\n\
             links_build_info 1\n\
             # HELP links_requests_total Requests that reached a component, as reported by the runtimes.\n\
             # TYPE links_requests_total counter\n\
             links_requests_total{instance=\"1\",component=\"a\\\"b\\\\c\\nd\"} 1000000000000000\n\
             links_requests_total{instance=\"2\"} +Inf\n\
             # HELP links_component_cpu_seconds Processor time of each Wasm instance of a component, measured when it ends.\n\
             # TYPE links_component_cpu_seconds summary\n\
             links_component_cpu_seconds_sum{instance=\"1\"} 0.25\n\
             links_component_cpu_seconds_count{instance=\"1\"} 3\n"
        );
    }

    #[test]
    fn a_histogram_ends_with_the_infinite_bucket_and_the_totals() {
        let mut page = Exposition::default();
        page.add_histogram(
            &HTTP_DURATION,
            &[("route", "api")],
            [(0.5, 1), (1.0, 3)].into_iter(),
            6.5,
            4,
        );
        let text = page.text();
        let samples: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(
            samples,
            [
                "# TYPE links_http_request_duration_seconds histogram",
                "links_http_request_duration_seconds_bucket{route=\"api\",le=\"0.5\"} 1",
                "links_http_request_duration_seconds_bucket{route=\"api\",le=\"1\"} 3",
                "links_http_request_duration_seconds_bucket{route=\"api\",le=\"+Inf\"} 4",
                "links_http_request_duration_seconds_sum{route=\"api\"} 6.5",
                "links_http_request_duration_seconds_count{route=\"api\"} 4",
            ]
        );
    }

    #[test]
    fn help_needs_no_escaping_and_names_are_valid() {
        for family in ALL {
            assert!(
                !family.help.contains(['\\', '\n']) && family.help.ends_with('.'),
                "{family:?}"
            );
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(
                family.name.starts_with("links_") && family.name.bytes().all(plain),
                "{family:?}"
            );
        }
    }
}
