//! Collects the metrics for a scrape, from a few small files and from memory.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::clicks::{Durations, Progress};
use super::counters::Counters;
use super::database::Facts;
use super::exposition::Exposition;
use super::families::{
    BACKUP_DURATION, BACKUP_FAILURES, BACKUP_GOOD_TIME, BACKUP_INTERVAL, BACKUP_SIZE, BACKUP_SUCCESS, BACKUP_TIME,
    BUILD_INFO, CERTIFICATE_END, CERTIFICATE_START, CHECKPOINT_FAILURES, CLICK_BATCHES, CLICKS, DATABASE_FREE,
    DATABASE_LINKS, DATABASE_LOG, DATABASE_SIZE, DRAIN, HTTP_CACHE, HTTP_DURATION, HTTP_REQUESTS, HTTP_UPSTREAM,
    INSTANCE_INFO, INSTANCES, JOURNAL_LAG, JOURNAL_LAG_BYTES, JOURNAL_LINES, JOURNAL_MALFORMED, JOURNAL_REPLACED, Kind,
    OTLP_DROPPED, OTLP_FORWARDED, OTLP_IGNORED, OTLP_QUEUED, OTLP_RECEIVED, OTLP_REJECTED, READY, RESIDENT,
    ROLLOUT_DURATION, ROLLOUT_INFO, ROLLOUT_SUCCESS, ROLLOUT_TIME, START_TIME, STARTS, UP,
};
use super::forward;
use links_base::instance_stats::InstanceStats;
use links_base::layout::{Layout, MAX_INSTANCES};
use links_base::rotation;
use links_config::acme::Certificate;
use links_config::backup::Settings;
use links_config::files::ConfigFiles;
use links_config::links::{Tls, TlsMode};
use links_config::load::load_links;
use links_release::{Backups, Outcome, State, Store, Verdict, sqlite};

/// The label with the number of an instance. Prometheus itself sets `instance`, to the address that it scrapes.
pub const LABEL: &str = "links_instance";

/// Counts of the exports received over OTLP.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// The number of exports by instance. Index 0 is instance 1.
    pub requests: [u64; MAX_INSTANCES as usize],
    pub rejected: u64,
}

/// Adds what the files on the host say about the instances, checkpoints and rollouts.
pub fn host(page: &mut Exposition, layout: &Layout) {
    page.add(&BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let (state, store) = (State::new(layout), Store::new(layout));
    let config = load_links(&ConfigFiles::new(layout)).ok();
    let wanted = config.as_ref().map(|config| config.instances);
    if let Some(config) = &config {
        certificates(page, layout, &config.tls);
    }
    backups(page, layout, config.map(|config| config.backup).unwrap_or_default());
    page.add_known(&INSTANCES, &[], wanted.map(f64::from));
    let ready = rotation::ready_instances(&layout.ready_dir()).unwrap_or_default();
    for instance in shown(&state, wanted) {
        let number = instance.to_string();
        let labels = [(LABEL, number.as_str())];
        let runs = state.runs(instance);
        page.add(&UP, &labels, f64::from(u8::from(runs.is_some())));
        page.add(&READY, &labels, f64::from(u8::from(ready.contains(&instance))));
        let release = runs.and_then(|runs| store.open(&runs.release).ok());
        if let Some(release) = &release {
            let runtime = &release.manifest.runtime;
            let labels = [
                (LABEL, number.as_str()),
                ("release", &release.id),
                ("version", &release.manifest.version),
                ("runtime", &runtime.kind.to_string()),
                ("runtime_version", &runtime.version),
            ];
            page.add(&INSTANCE_INFO, &labels, 1.0);
        }
        let Some(stats) = InstanceStats::read(&layout.instance_metrics(instance)) else {
            continue;
        };
        page.add(&STARTS, &labels, stats.starts as f64);
        page.add(&START_TIME, &labels, stats.started);
        // The last measurement is meaningless once the runtime has stopped.
        let resident = stats.resident_bytes.filter(|_| release.is_some());
        page.add_known(&RESIDENT, &labels, resident.map(|bytes| bytes as f64));
        page.add_known(&DRAIN, &labels, stats.drain_seconds);
    }
    if let Ok(Some(report)) = sqlite::Report::read(&layout.checkpoints())
        && let Some(bytes) = report.log_bytes
    {
        page.add(&DATABASE_LOG, &[], bytes as f64);
        page.add(&CHECKPOINT_FAILURES, &[], report.failures as f64);
    }
    if let Some(outcome) = Outcome::read(&layout.last_rollout()) {
        let success = outcome.result == Verdict::Succeeded;
        page.add(&ROLLOUT_SUCCESS, &[], f64::from(u8::from(success)));
        let labels = [("release", outcome.release.as_str()), ("result", outcome.result.name())];
        page.add(&ROLLOUT_INFO, &labels, 1.0);
        page.add(&ROLLOUT_TIME, &[], outcome.ended);
        page.add_known(&ROLLOUT_DURATION, &[], outcome.seconds);
    }
}

/// Adds when the certificates of `[tls]` are valid.
fn certificates(page: &mut Exposition, layout: &Layout, tls: &Tls) {
    for name in tls.served() {
        let path = match tls.mode {
            TlsMode::Files => layout.tls_file_description(name),
            TlsMode::Acme | TlsMode::Off => layout.tls_description(name),
        };
        let described = fs::read(path).ok();
        let described = described.and_then(|text| serde_json::from_slice::<Certificate>(&text).ok());
        let labels = [("name", name.as_str())];
        page.add_known(
            &CERTIFICATE_START,
            &labels,
            described.as_ref().map(|certificate| certificate.not_before as f64),
        );
        page.add(
            &CERTIFICATE_END,
            &labels,
            described.map_or(0.0, |certificate| certificate.not_after as f64),
        );
    }
}

/// Adds what the record of the backups says about the location of links.toml. Without one, about all locations.
fn backups(page: &mut Exposition, layout: &Layout, settings: Settings) {
    page.add_known(&BACKUP_INTERVAL, &[], settings.every.map(|every| every.as_secs_f64()));
    // A record that cannot be read is as good as none: the alert is that there has been no backup for too long.
    let Ok(record) = Backups::read(&layout.backups_record()) else {
        return;
    };
    let location = settings.to.map(|location| location.to_string());
    if let Some((last, failures)) = location.as_deref().and_then(|location| record.last_at(location)) {
        page.add(&BACKUP_SUCCESS, &[], f64::from(u8::from(last.error.is_none())));
        page.add(&BACKUP_TIME, &[], last.ended as f64);
        page.add(&BACKUP_FAILURES, &[], f64::from(failures));
    }
    if let Some(latest) = record.latest_in(location.as_deref()) {
        page.add(&BACKUP_GOOD_TIME, &[], latest.begun as f64);
        page.add(&BACKUP_DURATION, &[], latest.seconds as f64);
        page.add(&BACKUP_SIZE, &[], latest.bytes as f64);
    }
}

/// The instances that links.toml asks for, and those that exist.
fn shown(state: &State, wanted: Option<u16>) -> BTreeSet<u16> {
    let existing = state.instances().unwrap_or_default();
    let mut shown: BTreeSet<_> = (1..=wanted.unwrap_or(0)).collect();
    shown.extend(existing);
    shown
}

pub fn database(page: &mut Exposition, facts: Facts) {
    for (family, value) in [
        (&DATABASE_SIZE, facts.bytes),
        (&DATABASE_FREE, facts.free_bytes),
        (&DATABASE_LINKS, facts.links),
    ] {
        page.add_known(family, &[], value.map(|value| value as f64));
    }
}

pub fn clicks(page: &mut Exposition, progress: &Progress, now: SystemTime) {
    for (by, count) in [("people", progress.clicks), ("bots", progress.bots)] {
        page.add(&CLICKS, &[("by", by)], count as f64);
    }
    page.add(&CLICK_BATCHES, &[], progress.batches as f64);
    page.add(&JOURNAL_LINES, &[], progress.lines as f64);
    page.add(&JOURNAL_MALFORMED, &[], progress.malformed as f64);
    for (how, count) in [("by_another", progress.replaced), ("emptied", progress.emptied)] {
        page.add(&JOURNAL_REPLACED, &[("how", how)], count as f64);
    }
    page.add(&JOURNAL_LAG_BYTES, &[], progress.lag_bytes as f64);
    let oldest = progress.oldest.map(|oldest| UNIX_EPOCH + Duration::from_millis(oldest));
    // The clock may have been set back; an age is never negative.
    let lag = oldest.map_or(Duration::ZERO, |oldest| now.duration_since(oldest).unwrap_or_default());
    page.add(&JOURNAL_LAG, &[], lag.as_secs_f64());
}

/// Adds what nginx's journal says about requests.
pub fn http(page: &mut Exposition, progress: &Progress) {
    let traffic = &progress.traffic;
    for ((route, status), count) in &traffic.requests {
        let labels = [("route", route.name()), ("status", &status.to_string())];
        page.add(&HTTP_REQUESTS, &labels, *count as f64);
    }
    for (family, all) in [
        (&HTTP_DURATION, &traffic.durations),
        (&HTTP_UPSTREAM, &traffic.upstream),
    ] {
        for (route, durations) in all {
            let labels = [("route", route.name())];
            page.add_histogram(
                family,
                &labels,
                Durations::up_to(durations),
                durations.sum(),
                durations.count(),
            );
        }
    }
    for (cache, count) in &traffic.cache {
        page.add(&HTTP_CACHE, &[("result", cache.name())], *count as f64);
    }
}

pub fn runtimes(page: &mut Exposition, counters: &Counters) {
    for ((_, instance, component), (family, total)) in counters.totals() {
        let number = instance.to_string();
        let labels = [(LABEL, number.as_str()), ("component", component)];
        match family.kind {
            Kind::Summary => page.add_summary(family, &labels, total.sum, total.count),
            // No metric of the runtimes is exposed as a histogram.
            Kind::Counter | Kind::Gauge | Kind::Histogram => page.add(family, &labels, total.sum),
        }
    }
    page.add(&OTLP_IGNORED, &[], counters.ignored as f64);
}

pub fn otlp(page: &mut Exposition, received: &Received, forwarded: forward::Counts) {
    for (number, count) in (1u16..).zip(received.requests) {
        if count > 0 {
            page.add(&OTLP_RECEIVED, &[(LABEL, &number.to_string())], count as f64);
        }
    }
    page.add(&OTLP_REJECTED, &[], received.rejected as f64);
    page.add(&OTLP_FORWARDED, &[], forwarded.forwarded as f64);
    for (reason, count) in [("full", forwarded.full), ("refused", forwarded.refused)] {
        page.add(&OTLP_DROPPED, &[("reason", reason)], count as f64);
    }
    page.add(&OTLP_QUEUED, &[], forwarded.queued as f64);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {

    use super::super::clicks::line;
    use super::super::counters::{Amount, Point, Temporality};
    use super::super::families::{ALL, RUNTIME};
    use super::*;
    use links_base::clock;
    use links_base::instance_stats::Recorder;
    use links_release::backups::Written;
    use links_release::testing::bundle;
    use links_release::{Store, Version};

    fn scraped(layout: &Layout) -> String {
        let mut page = Exposition::default();
        host(&mut page, layout);
        page.text()
    }

    /// A host where instance 1 serves and instance 2 should run but does not.
    fn host_at_work() -> (tempfile::TempDir, Layout, String) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().join("root"));
        for directory in [
            layout.config_dir(),
            layout.ready_dir(),
            layout.instance_run_dir(1),
            layout.state_dir(),
        ] {
            fs::create_dir_all(directory).unwrap();
        }
        let links_toml =
            "[backup]\nevery = \"24h\"\nto = \"/b\"\n[tls]\nmode = \"acme\"\nnames = [\"a.example\", \"b.example\"]\n";
        fs::write(layout.links_toml(), links_toml).unwrap();
        let description = layout.tls_description("a.example");
        fs::create_dir_all(description.parent().unwrap()).unwrap();
        let certificate = r#"{"issuer": "ca", "names": ["a.example"], "serial": "1", "sha256": "2", "self_signed": false,
            "not_before": 1000, "not_after": 9000, "must_staple": false, "ocsp": null, "directory": null, "profile": null}"#;
        fs::write(description, certificate).unwrap();
        let mut backups = Backups::default();
        backups.succeeded(Written::at("/b", "a.tar.zst", 1000), 1003);
        backups.failed("/b", 2000, 2001, "the disk is full".to_owned());
        backups.write(&layout.backups_record()).unwrap();
        let source = root.path().join("bundle");
        fs::create_dir(&source).unwrap();
        let release = Store::new(&layout).import(&bundle(&source, b"").directory).unwrap().id;
        let runs = Version {
            release: release.clone(),
            config: "c".to_owned(),
        };
        fs::write(layout.instance_runs(1), serde_json::to_vec(&runs).unwrap()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        let mut recorder = Recorder::started(layout.instance_metrics(1));
        recorder.memory(Some(4096));
        recorder.drained(Duration::from_millis(250));
        Outcome::now(Verdict::Failed, &release, Some(Duration::from_secs(3))).keep(&layout.last_rollout());
        (root, layout, release)
    }

    #[test]
    fn the_state_of_instances_is_exposed() {
        let (_root, layout, release) = host_at_work();
        let page = scraped(&layout);
        for line in [
            "links_instances_wanted 2",
            "links_instance_up{links_instance=\"1\"} 1",
            "links_instance_up{links_instance=\"2\"} 0",
            "links_instance_ready{links_instance=\"1\"} 1",
            "links_instance_ready{links_instance=\"2\"} 0",
            "links_instance_starts_total{links_instance=\"1\"} 1",
            "links_instance_resident_memory_bytes{links_instance=\"1\"} 4096",
            "links_instance_last_drain_seconds{links_instance=\"1\"} 0.25",
            "links_certificate_not_before_timestamp_seconds{name=\"a.example\"} 1000",
            "links_certificate_not_after_timestamp_seconds{name=\"a.example\"} 9000",
            "links_certificate_not_after_timestamp_seconds{name=\"b.example\"} 0",
            "links_backup_interval_seconds 86400",
            "links_backup_last_success 0",
            "links_backup_failures 1",
            "links_backup_last_success_timestamp_seconds 1000",
            "links_backup_last_success_size_bytes 1000",
            "links_rollout_last_success 0",
            "links_rollout_last_duration_seconds 3",
            &format!("links_rollout_last_info{{release=\"{release}\",result=\"failed\"}} 1"),
            &format!(
                "links_instance_info{{links_instance=\"1\",release=\"{release}\",version=\"1.2.3\",runtime=\"links-host\",runtime_version=\"1.2.3\"}} 1"
            ),
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        assert!(!page.contains("links_instance_info{links_instance=\"2\""), "{page}");

        // When the instance stops, its memory is no longer exposed, but its counters still are.
        fs::remove_dir_all(layout.instance_run_dir(1)).unwrap();
        let page = scraped(&layout);
        assert!(
            page.contains("links_instance_up{links_instance=\"1\"} 0")
                && page.contains("_starts_total{links_instance=\"1\"} 1")
        );
        assert!(!page.contains("resident_memory_bytes{"), "{page}");
    }

    #[test]
    fn an_empty_host_can_be_scraped() {
        let root = tempfile::tempdir().unwrap();
        let page = scraped(&Layout::new(root.path()));
        assert!(
            page.contains("links_build_info{version=") && !page.contains("links_instance_up{"),
            "{page}"
        );
    }

    #[test]
    fn waiting_clicks_have_an_age() {
        let progress = Progress {
            clicks: 7,
            bots: 2,
            lag_bytes: 300,
            oldest: Some(5000),
            ..Progress::default()
        };
        let at = |seconds| {
            let mut page = Exposition::default();
            clicks(&mut page, &progress, UNIX_EPOCH + Duration::from_secs(seconds));
            page.text()
        };
        let page = at(65);
        for sample in [
            "links_clicks_total{by=\"people\"} 7",
            "links_clicks_total{by=\"bots\"} 2",
            "links_journal_lag_bytes 300",
            "links_journal_lag_seconds 60",
        ] {
            assert!(page.lines().any(|line| line == sample), "{sample}: {page}");
        }
        assert!(at(1).contains("links_journal_lag_seconds 0"));
    }

    #[test]
    fn every_family_can_be_exposed() {
        let (_root, layout, _) = host_at_work();
        let checkpoints = sqlite::Report {
            log_bytes: Some(1),
            written: clock::now(),
            ..sqlite::Report::default()
        };
        fs::create_dir_all(layout.metrics_dir()).unwrap();
        fs::write(layout.checkpoints(), serde_json::to_vec(&checkpoints).unwrap()).unwrap();
        let mut page = Exposition::default();
        host(&mut page, &layout);
        let known = Some(1);
        database(
            &mut page,
            Facts {
                bytes: known,
                free_bytes: known,
                links: known,
            },
        );
        let mut counters = Counters::default();
        for family in RUNTIME {
            let point = Point {
                family,
                component: "links".to_owned(),
                attributes: String::new(),
                temporality: Temporality::Cumulative,
                start: 1,
                time: 2,
                amount: Amount { sum: 3.0, count: 4.0 },
            };
            counters.take(2, &point, 0);
        }
        runtimes(&mut page, &counters);
        let mut received = Received::default();
        received.requests[1] = 5;
        otlp(&mut page, &received, forward::Counts::default());
        let mut progress = Progress::default();
        let line = b"l1\t1700000000.000\t302\t0.004\t0.003\tMISS\tGET\t/x\t192.0.2.1\t-\t-";
        progress.traffic.take(&line::parse(line).unwrap());
        http(&mut page, &progress);
        clicks(&mut page, &progress, SystemTime::now());
        let text = page.text();
        for family in ALL {
            let sample = text.lines().any(|line| line.starts_with(family.name));
            assert!(sample, "{} is never exposed", family.name);
        }
        assert!(text.contains("links_component_cpu_seconds_count{links_instance=\"2\",component=\"links\"} 4"));
        assert!(text.contains("links_otlp_received_requests_total{links_instance=\"2\"} 5"));
        for sample in [
            "links_http_requests_total{route=\"redirect\",status=\"302\"} 1",
            "links_http_request_duration_seconds_bucket{route=\"redirect\",le=\"0.005\"} 1",
            "links_http_upstream_duration_seconds_sum{route=\"redirect\"} 0.003",
            "links_http_cache_requests_total{result=\"miss\"} 1",
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample}: {text}");
        }
    }
}
