//! The telemetry of the appliance: metrics for Prometheus, and OTLP for a collector of the user.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::otlp::{Requests, components};
use links_tests::servers::rotel;
use links_tests::{Collector, Fault, Host, Tree, eventually};
use serde_json::Value;

const PROMETHEUS: &str = "
global: { scrape_interval: 1s, evaluation_interval: 1s }
rule_files: [/usr/share/doc/links-shortener/links.rules.yml]
scrape_configs:
  - job_name: links
    static_configs: [{ targets: [\"127.0.0.1:9464\"] }]
";
/// How long a metric may take. The runtimes export every 10 s, and the agent queries the database once a minute.
const DEADLINE: Duration = Duration::from_secs(90);
const SECRET: &str = "s3cret-of-the-collector";
const LINKS_TOML: &str = "/etc/links/links.toml";

#[test]
fn prometheus_gets_the_state_of_the_appliance() -> Result<()> {
    let lab = Lab::new()?;
    let page = lab.page()?;
    let checked = lab.shell("curl --silent --fail http://127.0.0.1:9464/metrics | promtool check metrics 2>&1")?;
    assert_eq!(checked.stdout, "", "promtool check metrics, on\n{page}");
    let rules = "/usr/share/doc/links-shortener/links.rules.yml";
    let checked = lab.ok(["promtool", "check", "rules", rules])?.stdout;
    ensure!(checked.contains("SUCCESS: 14 rules found"), "{checked}");

    lab.reaches("sum(links_instance_up) + sum(links_instance_ready)", 4.0)?;
    lab.reaches("links_instances_wanted", 2.0)?;
    let runtime = lab.artifacts.runtime()?;
    let info = format!(
        "count(links_instance_info{{runtime=\"{}\",runtime_version=\"{}\"}})",
        runtime.kind, runtime.version
    );
    lab.reaches(&info, 2.0)?;
    lab.satisfies("min(links_instance_resident_memory_bytes)", |bytes| {
        (5e6..1e9).contains(&bytes)
    })?;
    lab.satisfies("time() - max(links_instance_start_time_seconds)", |age| {
        (0.0..600.0).contains(&age)
    })?;
    lab.satisfies("links_database_size_bytes", |bytes| bytes >= 4096.0)?;
    lab.satisfies("links_database_filesystem_free_bytes", |bytes| bytes > 1e6)?;
    lab.shorten("https://example.com/counted")?;
    lab.reaches("links_database_links", 1.0)?;

    // A rollout restarts every instance once, after a drain.
    let starts = lab
        .value("sum(links_instance_starts_total)")?
        .context("the starts are not reported")?;
    lab.ok(["linksctl", "restart"])?;
    lab.reaches("sum(links_instance_starts_total)", starts + 2.0)?;
    lab.satisfies("max(links_instance_last_drain_seconds)", |seconds| {
        (0.2..30.0).contains(&seconds)
    })?;
    lab.reaches("links_rollout_last_success", 1.0)?;
    lab.satisfies("links_rollout_last_duration_seconds", |seconds| {
        (1.0..120.0).contains(&seconds)
    })?;
    let broken = lab.bundle("9.9.8", Some(Fault::Exits))?;
    assert_eq!(lab.run(["linksctl", "rollout", "--release", &broken])?.status, 1);
    lab.reaches("links_rollout_last_success", 0.0)?;
    lab.reaches(
        "count(links_rollout_last_info{result=\"failed\",release=~\"9.9.8-.*\"})",
        1.0,
    )?;
    lab.reaches(
        "count(ALERTS{alertname=\"LinksRolloutFailed\",alertstate=\"firing\"})",
        1.0,
    )?;

    // A stopped instance.
    lab.ok(["systemctl", "stop", "links@2"])?;
    lab.reaches("links_instance_up{links_instance=\"2\"}", 0.0)?;
    lab.reaches("links_instance_ready{links_instance=\"2\"}", 0.0)?;
    lab.reaches("count(links_instance_resident_memory_bytes)", 1.0)?;
    lab.ok(["systemctl", "start", "links@2"])?;
    lab.reaches("sum(links_instance_ready)", 2.0)
}

#[test]
fn counters_survive_restarts_of_instances_and_of_the_agent() -> Result<()> {
    let lab = Lab::new()?;
    let total = "links_requests_total{links_instance=\"1\",component=\"hand\"}";
    let first = Requests {
        value: 5,
        ..Requests::FIRST
    };
    lab.export(&first)?;
    lab.export(&Requests {
        time: 3_000,
        value: 8,
        ..first
    })?;
    lab.reaches(total, 8.0)?;
    // Another start time means another run of the runtime.
    let second = Requests {
        start: 4_000,
        time: 5_000,
        value: 3,
        ..first
    };
    lab.export(&second)?;
    lab.reaches(total, 11.0)?;
    // Another report of the old run is invalid, and is ignored.
    lab.export(&Requests {
        time: 6_000,
        value: 9,
        ..first
    })?;
    lab.ok(["systemctl", "restart", "links"])?;
    lab.until_scraped()?;
    assert_eq!(lab.value(total)?, Some(11.0));
    lab.export(&Requests {
        time: 7_000,
        value: 4,
        ..second
    })?;
    lab.reaches(total, 12.0)?;
    // The agent saves the counters within seconds. After that, a kill loses nothing.
    let kept = "/run/links/metrics/counters.json";
    eventually("the counters are saved", DEADLINE, || {
        Ok(lab.read(kept)?.contains("\"sum\":4.0").then_some(()))
    })?;
    let pid = lab.main_pid("links")?;
    lab.ok(["systemctl", "kill", "--kill-who=main", "--signal=KILL", "links"])?;
    eventually("a new agent runs", DEADLINE, || {
        let now = lab.main_pid("links")?;
        Ok((now != 0 && now != pid).then_some(()))
    })?;
    lab.until_scraped()?;
    assert_eq!(lab.value(total)?, Some(12.0));
    let delta = Requests {
        start: 7_000,
        time: 8_000,
        value: 2,
        delta: true,
        component: "other",
        ..first
    };
    for _ in 0..2 {
        lab.export(&delta)?;
    }
    lab.reaches("links_requests_total{component=\"other\"}", 2.0)?;

    if lab.artifacts.runtime()?.is_spin() {
        let total = "links_requests_total{links_instance=\"1\",component=\"redirect\"}";
        let ask = |count: u32| -> Result<()> {
            let mut connection = lab.instance(1)?.connect()?;
            (0..count).try_for_each(|_| connection.get("/nothing-here").map(drop))?;
            Ok(())
        };
        let before = lab.value(total)?.unwrap_or(0.0);
        ask(50)?;
        lab.satisfies(total, |value| value >= before + 50.0)?;
        // Spin 4.0.2 measures no CPU time of components that use WASI 0.3, so the sum stays 0.
        lab.satisfies("links_component_cpu_seconds_count{links_instance=\"1\"}", |count| {
            count > 0.0
        })?;
        lab.satisfies("links_component_memory_bytes_sum{links_instance=\"1\"}", |sum| {
            sum > 1e5
        })?;
        // A runtime that stops loses what it has not exported yet, but nothing else.
        let before = lab.value(total)?.context("the counter has disappeared")?;
        lab.restarted(|| lab.ok(["systemctl", "restart", "links@1"]))?;
        ask(30)?;
        lab.satisfies(total, |value| value >= before + 30.0)?;
        assert_eq!(lab.value(&format!("resets({total}[10m])"))?, Some(0.0));
    }
    Ok(())
}

#[test]
fn a_metrics_address_in_use_is_logged_and_stops_nothing() -> Result<()> {
    let lab = Lab::new()?;
    // Prometheus itself listens on this address.
    lab.write(LINKS_TOML, "[metrics]\nlisten = \"127.0.0.1:9090\"\n")?;
    lab.ok(["systemctl", "restart", "links"])?;
    lab.wait_for_status("2/2 instances ready")?;
    lab.links_logs("127.0.0.1:9090 is in use by another program")?;
    lab.write(LINKS_TOML, "[metrics]\nlisten = \"off\"\n")?;
    lab.ok(["systemctl", "reload", "links"])?;
    let quiet = lab.shell("tr '\\0' '\\n' </proc/$(pgrep --parent $(systemctl show -P MainPID links@1))/environ")?;
    ensure!(!quiet.stdout.contains("OTEL_"), "{quiet}");
    lab.write(LINKS_TOML, "")?;
    lab.ok(["systemctl", "reload", "links"])?;
    lab.reaches("sum(links_instance_ready)", 2.0)
}

#[test]
fn a_collector_gets_the_metrics_and_delays_nobody_when_it_hangs() -> Result<()> {
    let lab = Lab::new()?;
    let credential = "/etc/links/credentials/otlp_headers";
    lab.write(credential, format!("authorization=Bearer%20{SECRET}\n"))?;
    lab.ok(["chmod", "600", credential])?;
    let telemetry = |protocol: &str, port: u16| {
        format!(
            "[telemetry]\nendpoint = \"http://127.0.0.1:{port}\"\nprotocol = \"{protocol}\"\nheaders = \"credential:otlp_headers\"\n"
        )
    };
    let collector = Collector::start(&lab.network(), 4318)?;
    lab.write(LINKS_TOML, telemetry("http/protobuf", 4318))?;
    lab.ok(["systemctl", "reload", "links"])?;
    let mut sent = Requests::FIRST;
    lab.export(&sent)?;
    let from_hand = |collector: &Collector| {
        let hand = ("1".to_owned(), "hand".to_owned());
        let mut collected = collector.collected();
        collected.retain(|it| components(&it.message).is_ok_and(|components| components.contains(&hand)));
        collected
    };
    let arrived = eventually("the collector has it", DEADLINE, || Ok(from_hand(&collector).pop()))?;
    assert_eq!(arrived.message, sent.message());
    assert_eq!(arrived.path, "/v1/metrics");
    assert_eq!(arrived.headers["authorization"], format!("Bearer {SECRET}"));
    assert_eq!(arrived.headers["content-type"], "application/x-protobuf");
    if lab.artifacts.runtime()?.is_spin() {
        lab.instance(1)?.get("/health")?;
        let traces = eventually("traces come straight from the runtime", DEADLINE, || {
            Ok(collector.collected().into_iter().find(|it| it.path == "/v1/traces"))
        })?;
        assert_eq!(traces.headers["authorization"], format!("Bearer {SECRET}"));
    }

    // While the collector hangs, exports are answered at once. The queue fills up, and the excess is dropped and counted.
    collector.hang(true);
    let mut times = vec![];
    for number in 0..1_200 {
        sent.time += 1;
        sent.value = number;
        let begun = Instant::now();
        lab.export(&sent)?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    println!(
        "1,200 exports to an agent whose collector hangs: the slowest ten took {:.1?}",
        &times[1_190..]
    );
    // On a busy machine a few exports are slow. Waiting for the collector would make all of them slow.
    ensure!(times[1_190] < Duration::from_secs(1), "{:?}", &times[1_190..]);
    lab.satisfies("links_otlp_dropped_requests_total{reason=\"full\"}", |dropped| {
        dropped >= 150.0
    })?;
    lab.satisfies("links_otlp_queued_requests", |queued| {
        (900.0..=1000.0).contains(&queued)
    })?;
    lab.follow(&lab.shorten("https://example.com/while-it-hangs")?)?;
    lab.links_logs("does not take metrics: no answer within 10s")?;
    let before = from_hand(&collector).len();
    collector.hang(false);
    lab.reaches("links_otlp_queued_requests", 0.0)?;
    let last = from_hand(&collector);
    ensure!(
        last.len() > before + 900,
        "the collector has {} exports; it had {before} before",
        last.len()
    );
    assert_eq!(last.last().map(|it| it.message.to_vec()), Some(sent.message()));
    lab.links_logs("takes metrics again")?;

    // The collector goes away and comes back.
    drop(collector);
    sent.time += 1;
    lab.export(&sent)?;
    lab.satisfies("links_otlp_queued_requests", |queued| queued < 10.0)?;
    let collector = Collector::start(&lab.network(), 4318)?;
    eventually("the queued export arrives", DEADLINE, || {
        Ok(from_hand(&collector)
            .iter()
            .any(|it| it.message == sent.message())
            .then_some(()))
    })?;

    // The same over gRPC.
    let collector = Collector::start(&lab.network(), 4317)?;
    lab.write(LINKS_TOML, telemetry("grpc", 4317))?;
    lab.ok(["systemctl", "reload", "links"])?;
    sent.time += 1;
    lab.export(&sent)?;
    let arrived = eventually("the collector has it over gRPC", DEADLINE, || {
        Ok(from_hand(&collector).pop())
    })?;
    assert_eq!(arrived.message, sent.message());
    assert_eq!(arrived.headers["authorization"], format!("Bearer {SECRET}"));

    for (place, text) in [
        ("the process list", lab.ok(["ps", "-eo", "args"])?.stdout),
        ("the journal", lab.ok(["journalctl", "--quiet", "--output=cat"])?.stdout),
        ("the metrics", lab.page()?),
        ("check", lab.ok(["linksctl", "check"])?.stdout),
        ("status", lab.ok(["linksctl", "status"])?.stdout),
    ] {
        ensure!(!text.contains(SECRET), "the secret is in {place}:\n{text}");
    }
    let open = format!(
        "grep --recursive --files-with-matches {SECRET} /run/links /var/lib/links /etc/links | xargs stat --format '%a %n'"
    );
    let holders = lab.shell(&open)?.stdout;
    ensure!(holders.lines().count() > 2, "{holders}");
    ensure!(holders.lines().all(|holder| holder.starts_with("600 ")), "{holders}");
    Ok(())
}

#[test]
fn rotel_understands_the_exported_telemetry() -> Result<()> {
    let lab = Lab::new()?;
    rotel(&lab)?;
    let mut requests = Requests::FIRST;
    for (protocol, port, component) in [("http/protobuf", 4318, "by-http"), ("grpc", 4317, "by-grpc")] {
        let links_toml = format!("[telemetry]\nendpoint = \"http://127.0.0.1:{port}\"\nprotocol = \"{protocol}\"\n");
        lab.write(LINKS_TOML, links_toml)?;
        lab.ok(["systemctl", "reload", "links"])?;
        requests.component = component;
        requests.time += 1;
        lab.export(&requests)?;
        let metric = format!("component_id: Str({component})");
        let name = "Name: spin.request_count";
        lab.rotel_logs(&[name, &metric, "service.instance.id: Str(1)", "service.name: Str(links)"])?;
        let path = format!("/not-there-{port}");
        lab.site()?.get(&path)?;
        lab.rotel_logs(&[&format!("url.path: Str({path})")])?;
    }
    Ok(())
}

/// A host with Prometheus beside the appliance.
struct Lab(Host);

impl std::ops::Deref for Lab {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0
    }
}

impl Lab {
    fn new() -> Result<Self> {
        let tree = Tree::with_nginx_and(&["libpython3.11", "prometheus"])?;
        let lab = Self(Host::serving_on(&tree, env!("CARGO_BIN_EXE_broken-runtime"))?);
        lab.write("/etc/prometheus/prometheus.yml", PROMETHEUS)?;
        lab.ok(["systemctl", "restart", "prometheus"])?;
        lab.reaches("up{job=\"links\"}", 1.0)?;
        Ok(lab)
    }

    /// Waits until Rotel has logged all of `texts`.
    fn rotel_logs(&self, texts: &[&str]) -> Result<()> {
        eventually(&format!("Rotel logs {texts:?}"), DEADLINE, || {
            let journal = self.journal("rotel")?;
            Ok(texts.iter().all(|text| journal.contains(text)).then_some(()))
        })
    }

    /// The metrics page of the agent.
    fn page(&self) -> Result<String> {
        let answer = self.http_at(9464).get("/metrics")?;
        ensure!(answer.status == 200, "{answer}");
        Ok(answer.text())
    }

    /// Exports `requests` as a runtime does. Before that, checks that the agent refuses a client without the secret.
    fn export(&self, requests: &Requests<'_>) -> Result<()> {
        let stranger = self.http_at(9465).header("content-type", "application/x-protobuf");
        let refused = stranger.post_bytes("/v1/metrics", requests.message())?;
        ensure!(refused.status == 401, "{refused}");
        let secret = self.read("/run/links/secrets/otlp")?;
        let client = self.http_at(9465).header("links-otlp-secret", secret.trim());
        let client = client.header("content-type", "application/x-protobuf");
        let packed = requests.time % 2 == 1;
        let answer = match packed {
            true => client
                .header("content-encoding", "gzip")
                .post_bytes("/v1/metrics", requests.gzip()?)?,
            false => client.post_bytes("/v1/metrics", requests.message())?,
        };
        ensure!(answer.status == 200, "{answer}");
        Ok(())
    }

    /// The value of `query` in Prometheus; `None` if there is no value, or if Prometheus is not up yet.
    fn value(&self, query: &str) -> Result<Option<f64>> {
        let escaped: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect();
        let Ok(answer) = self.http_at(9090).get(&format!("/api/v1/query?query={escaped}")) else {
            return Ok(None);
        };
        if answer.status == 503 {
            return Ok(None);
        }
        let found: Value = answer.json()?;
        ensure!(found["status"] == "success", "{query}: {found}");
        let value = found["data"]["result"][0]["value"][1].as_str();
        Ok(value.map(str::parse).transpose()?)
    }

    fn satisfies(&self, query: &str, is_right: impl Fn(f64) -> bool) -> Result<()> {
        let mut last = None;
        eventually(query, DEADLINE, || {
            last = self.value(query)?;
            Ok(last.is_some_and(&is_right).then_some(()))
        })
        .with_context(|| {
            format!(
                "the last value was {last:?}; the page of the agent is\n{}",
                self.page().unwrap_or_default()
            )
        })
    }

    fn reaches(&self, query: &str, expected: f64) -> Result<()> {
        self.satisfies(query, |value| value == expected)
    }

    fn links_logs(&self, text: &str) -> Result<()> {
        eventually(&format!("the journal of links has: {text}"), DEADLINE, || {
            Ok(self.journal("links")?.contains(text).then_some(()))
        })
    }

    /// Waits until Prometheus has scraped the agent that runs now.
    fn until_scraped(&self) -> Result<()> {
        let now = self.shell("date +%s.%N")?.stdout;
        let query = format!("timestamp(links_build_info) > {}", now.trim());
        self.satisfies(&query, |_| true)
    }
}
