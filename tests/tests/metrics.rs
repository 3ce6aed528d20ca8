//! The telemetry of the appliance: metrics for Prometheus, and OTLP for a collector of the user.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use links_tests::otlp::{Requests, components};
use links_tests::servers::{Collector, Prometheus, rotel};
use links_tests::{Fault, Host, LINKS_TOML, Suite, eventually};

/// How long a metric may take. The runtimes export every 10 s, and the agent queries the database once a minute.
const DEADLINE: Duration = Duration::from_secs(90);
const SECRET: &str = "s3cret-of-the-collector";

#[test]
fn prometheus_gets_the_state_of_the_appliance() -> Result<()> {
    let host = monitored()?;
    let prometheus = Prometheus::start_in(&host)?;
    let page = host.metrics()?.text();
    let checked = host.shell("curl --silent --fail http://127.0.0.1:9464/metrics | promtool check metrics 2>&1")?;
    assert_eq!(checked.stdout, "", "promtool check metrics, on\n{page}");
    let rules = "/usr/share/doc/links-shortener/links.rules.yml";
    let checked = host.ok(["promtool", "check", "rules", rules])?.stdout;
    ensure!(checked.contains("SUCCESS: 17 rules found"), "{checked}");

    prometheus.reaches("sum(links_instance_up) + sum(links_instance_ready)", 4.0)?;
    prometheus.reaches("links_instances_wanted", 2.0)?;
    let runtime = host.runtime()?;
    let info = format!(
        "count(links_instance_info{{runtime=\"{}\",runtime_version=\"{}\"}})",
        runtime.kind, runtime.version
    );
    prometheus.reaches(&info, 2.0)?;
    prometheus.satisfies("min(links_instance_resident_memory_bytes)", |bytes| {
        (5e6..1e9).contains(&bytes)
    })?;
    prometheus.satisfies("time() - max(links_instance_start_time_seconds)", |age| {
        (0.0..600.0).contains(&age)
    })?;
    prometheus.satisfies("links_database_size_bytes", |bytes| bytes >= 4096.0)?;
    prometheus.satisfies("links_database_filesystem_free_bytes", |bytes| bytes > 1e6)?;
    host.shorten("https://example.com/counted")?;
    prometheus.reaches("links_database_links", 1.0)?;

    // A rollout restarts every instance once, after a drain.
    let starts = prometheus
        .value("sum(links_instance_starts_total)")?
        .context("the starts are not reported")?;
    host.ok(["linksctl", "restart"])?;
    prometheus.reaches("sum(links_instance_starts_total)", starts + 2.0)?;
    prometheus.satisfies("max(links_instance_last_drain_seconds)", |seconds| {
        (0.2..30.0).contains(&seconds)
    })?;
    prometheus.reaches("links_rollout_last_success", 1.0)?;
    prometheus.satisfies("links_rollout_last_duration_seconds", |seconds| {
        (1.0..120.0).contains(&seconds)
    })?;
    let broken = host.bundle("9.9.8", Some(Fault::Exits))?;
    assert_eq!(host.run(["linksctl", "rollout", "--release", &broken])?.status, 1);
    prometheus.reaches("links_rollout_last_success", 0.0)?;
    prometheus.reaches(
        "count(links_rollout_last_info{result=\"failed\",release=~\"9.9.8-.*\"})",
        1.0,
    )?;
    prometheus.reaches(
        "count(ALERTS{alertname=\"LinksRolloutFailed\",alertstate=\"firing\"})",
        1.0,
    )?;

    // A stopped instance.
    host.ok(["systemctl", "stop", "links@2"])?;
    prometheus.reaches("links_instance_up{links_instance=\"2\"}", 0.0)?;
    prometheus.reaches("links_instance_ready{links_instance=\"2\"}", 0.0)?;
    prometheus.reaches("count(links_instance_resident_memory_bytes)", 1.0)?;
    host.ok(["systemctl", "start", "links@2"])?;
    prometheus.reaches("sum(links_instance_ready)", 2.0)
}

/// These share one host.
#[test]
fn counters_survive_restarts_and_an_address_in_use_stops_nothing() -> Result<()> {
    let host = monitored()?;
    let prometheus = Prometheus::start_in(&host)?;
    counters_survive_restarts_of_instances_and_of_the_agent(&host, &prometheus).context("counters")?;
    a_metrics_address_in_use_is_logged_and_stops_nothing(&host, &prometheus).context("an address in use")
}

fn counters_survive_restarts_of_instances_and_of_the_agent(host: &Host, prometheus: &Prometheus<'_>) -> Result<()> {
    let total = "links_requests_total{links_instance=\"1\",component=\"hand\"}";
    let first = Requests {
        value: 5,
        ..Requests::FIRST
    };
    host.export(&first)?;
    host.export(&Requests {
        time: 3_000,
        value: 8,
        ..first
    })?;
    prometheus.reaches(total, 8.0)?;
    // Another start time means another run of the runtime.
    let second = Requests {
        start: 4_000,
        time: 5_000,
        value: 3,
        ..first
    };
    host.export(&second)?;
    prometheus.reaches(total, 11.0)?;
    // Another report of the old run is invalid, and is ignored.
    host.export(&Requests {
        time: 6_000,
        value: 9,
        ..first
    })?;
    host.ok(["systemctl", "restart", "links"])?;
    prometheus.wait_for_scrape()?;
    assert_eq!(prometheus.value(total)?, Some(11.0));
    host.export(&Requests {
        time: 7_000,
        value: 4,
        ..second
    })?;
    prometheus.reaches(total, 12.0)?;
    // The agent saves the counters within seconds. After that, a kill loses nothing.
    let kept = "/run/links/metrics/counters.json";
    eventually("the counters are saved", DEADLINE, || {
        Ok(host.read(kept)?.contains("\"sum\":4.0").then_some(()))
    })?;
    let pid = host.main_pid("links")?;
    host.ok(["systemctl", "kill", "--kill-who=main", "--signal=KILL", "links"])?;
    eventually("a new agent runs", DEADLINE, || {
        let now = host.main_pid("links")?;
        Ok((now != 0 && now != pid).then_some(()))
    })?;
    prometheus.wait_for_scrape()?;
    assert_eq!(prometheus.value(total)?, Some(12.0));
    let delta = Requests {
        start: 7_000,
        time: 8_000,
        value: 2,
        delta: true,
        component: "other",
        ..first
    };
    for _ in 0..2 {
        host.export(&delta)?;
    }
    prometheus.reaches("links_requests_total{component=\"other\"}", 2.0)?;

    if host.runtime()?.is_spin() {
        let total = "links_requests_total{links_instance=\"1\",component=\"redirect\"}";
        let ask = |count: u32| -> Result<()> {
            let mut connection = host.instance(1)?.connect()?;
            (0..count).try_for_each(|_| connection.get("/nothing-here").map(drop))?;
            Ok(())
        };
        let before = prometheus.value(total)?.unwrap_or(0.0);
        ask(50)?;
        prometheus.satisfies(total, |value| value >= before + 50.0)?;
        // Spin 4.0.2 measures no CPU time of components that use WASI 0.3, so the sum stays 0.
        prometheus.satisfies("links_component_cpu_seconds_count{links_instance=\"1\"}", |count| {
            count > 0.0
        })?;
        prometheus.satisfies("links_component_memory_bytes_sum{links_instance=\"1\"}", |sum| {
            sum > 1e5
        })?;
        // A runtime that stops loses what it has not exported yet, but nothing else.
        let before = prometheus.value(total)?.context("the counter has disappeared")?;
        host.restarted(|| host.ok(["systemctl", "restart", "links@1"]))?;
        ask(30)?;
        prometheus.satisfies(total, |value| value >= before + 30.0)?;
        assert_eq!(prometheus.value(&format!("resets({total}[10m])"))?, Some(0.0));
    }
    Ok(())
}

fn a_metrics_address_in_use_is_logged_and_stops_nothing(host: &Host, prometheus: &Prometheus<'_>) -> Result<()> {
    // Prometheus itself listens on this address.
    host.write(LINKS_TOML, "[metrics]\nlisten = \"127.0.0.1:9090\"\n")?;
    host.ok(["systemctl", "restart", "links"])?;
    host.wait_for_status("2/2")?;
    error_is_logged(host, &["127.0.0.1:9090"])?;
    host.write(LINKS_TOML, "[metrics]\nlisten = \"off\"\n")?;
    host.ok(["systemctl", "reload", "links"])?;
    let quiet = host.shell("tr '\\0' '\\n' </proc/$(pgrep --parent $(systemctl show -P MainPID links@1))/environ")?;
    ensure!(!quiet.stdout.contains("OTEL_"), "{quiet}");
    host.write(LINKS_TOML, "")?;
    host.ok(["systemctl", "reload", "links"])?;
    prometheus.reaches("sum(links_instance_ready)", 2.0)
}

#[test]
fn a_collector_gets_the_metrics_and_delays_nobody_when_it_hangs() -> Result<()> {
    let host = monitored()?;
    let prometheus = Prometheus::start_in(&host)?;
    let credential = "/etc/links/credentials/otlp_headers";
    host.write(credential, format!("authorization=Bearer%20{SECRET}\n"))?;
    host.ok(["chmod", "600", credential])?;
    let telemetry = |protocol: &str, port: u16| {
        format!(
            "[telemetry]\nendpoint = \"http://127.0.0.1:{port}\"\nprotocol = \"{protocol}\"\nheaders = \"credential:otlp_headers\"\n"
        )
    };
    let collector = Collector::start(&host.network(), 4318)?;
    host.write(LINKS_TOML, telemetry("http/protobuf", 4318))?;
    host.ok(["systemctl", "reload", "links"])?;
    let mut sent = Requests::FIRST;
    host.export(&sent)?;
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
    if host.runtime()?.is_spin() {
        host.instance(1)?.get("/health")?;
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
        host.export(&sent)?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    println!(
        "1,200 exports to an agent whose collector hangs: the slowest ten took {:.1?}",
        &times[1_190..]
    );
    // On a busy machine a few exports are slow. Waiting for the collector would make all of them slow.
    ensure!(times[1_190] < Duration::from_secs(1), "{:?}", &times[1_190..]);
    prometheus.satisfies("links_otlp_dropped_requests_total{reason=\"full\"}", |dropped| {
        dropped >= 150.0
    })?;
    prometheus.satisfies("links_otlp_queued_requests", |queued| {
        (900.0..=1000.0).contains(&queued)
    })?;
    host.follow(&host.shorten("https://example.com/while-it-hangs")?)?;
    // The agent gives the collector ten seconds.
    let url = "http://127.0.0.1:4318";
    error_is_logged(&host, &[url, "10s"])?;
    let [_, noticed] = logged(&host, &[url])?;
    let before = from_hand(&collector).len();
    collector.hang(false);
    prometheus.reaches("links_otlp_queued_requests", 0.0)?;
    let last = from_hand(&collector);
    ensure!(
        last.len() > before + 900,
        "the collector has {} exports; it had {before} before",
        last.len()
    );
    assert_eq!(last.last().map(|it| it.message.to_vec()), Some(sent.message()));
    eventually("the agent logs that the collector is back", DEADLINE, || {
        Ok((logged(&host, &[url])?[1] > noticed).then_some(()))
    })?;

    // The collector goes away and comes back.
    drop(collector);
    sent.time += 1;
    host.export(&sent)?;
    prometheus.satisfies("links_otlp_queued_requests", |queued| queued < 10.0)?;
    let collector = Collector::start(&host.network(), 4318)?;
    eventually("the queued export arrives", DEADLINE, || {
        Ok(from_hand(&collector)
            .iter()
            .any(|it| it.message == sent.message())
            .then_some(()))
    })?;

    // The same over gRPC.
    let collector = Collector::start(&host.network(), 4317)?;
    host.write(LINKS_TOML, telemetry("grpc", 4317))?;
    host.ok(["systemctl", "reload", "links"])?;
    sent.time += 1;
    host.export(&sent)?;
    let arrived = eventually("the collector has it over gRPC", DEADLINE, || {
        Ok(from_hand(&collector).pop())
    })?;
    assert_eq!(arrived.message, sent.message());
    assert_eq!(arrived.headers["authorization"], format!("Bearer {SECRET}"));

    for (place, text) in [
        ("the process list", host.ok(["ps", "-eo", "args"])?.stdout),
        (
            "the journal",
            host.ok(["journalctl", "--quiet", "--output=cat"])?.stdout,
        ),
        ("the metrics", host.metrics()?.text()),
        ("check", host.ok(["linksctl", "check"])?.stdout),
        ("status", host.ok(["linksctl", "status"])?.stdout),
    ] {
        ensure!(!text.contains(SECRET), "the secret is in {place}:\n{text}");
    }
    let open = format!(
        "grep --recursive --files-with-matches {SECRET} /run/links /var/lib/links /etc/links | xargs stat --format '%a %n'"
    );
    let holders = host.shell(&open)?.stdout;
    ensure!(holders.lines().count() > 2, "{holders}");
    ensure!(holders.lines().all(|holder| holder.starts_with("600 ")), "{holders}");
    Ok(())
}

#[test]
fn rotel_understands_the_exported_telemetry() -> Result<()> {
    let host = monitored()?;
    rotel(&host)?;
    let mut requests = Requests::FIRST;
    for (protocol, port, component) in [("http/protobuf", 4318, "by-http"), ("grpc", 4317, "by-grpc")] {
        let links_toml = format!("[telemetry]\nendpoint = \"http://127.0.0.1:{port}\"\nprotocol = \"{protocol}\"\n");
        host.write(LINKS_TOML, links_toml)?;
        host.ok(["systemctl", "reload", "links"])?;
        requests.component = component;
        requests.time += 1;
        host.export(&requests)?;
        let metric = format!("component_id: Str({component})");
        let name = "Name: spin.request_count";
        rotel_logs(
            &host,
            &[name, &metric, "service.instance.id: Str(1)", "service.name: Str(links)"],
        )?;
        let path = format!("/not-there-{port}");
        host.site()?.get(&path)?;
        rotel_logs(&host, &[&format!("url.path: Str({path})")])?;
    }
    Ok(())
}

/// A host with Prometheus and all that Rotel needs, if a test starts it.
fn monitored() -> Result<Host> {
    let python = format!("libpython{}", Suite::of_environment()?.python());
    Host::builder().packages(&[&python, "prometheus"]).serving()
}

/// Waits until Rotel has logged all of `texts`.
fn rotel_logs(host: &Host, texts: &[&str]) -> Result<()> {
    eventually(&format!("Rotel logs {texts:?}"), DEADLINE, || {
        let journal = host.journal("rotel")?;
        Ok(texts.iter().all(|text| journal.contains(text)).then_some(()))
    })
}

/// The lines of the agent's log that contain all of `parts`: first the errors, then the notices.
fn logged(host: &Host, parts: &[&str]) -> Result<[usize; 2]> {
    let count = |priority: &str| -> Result<usize> {
        let journal = host.journal_at(priority, "links")?;
        let lines = journal.lines();
        Ok(lines
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .count())
    };
    Ok([count("err")?, count("notice..notice")?])
}

/// Waits until the agent has logged an error with all of `parts`.
fn error_is_logged(host: &Host, parts: &[&str]) -> Result<()> {
    eventually(&format!("links logs an error with {parts:?}"), DEADLINE, || {
        Ok((logged(host, parts)?[0] > 0).then_some(()))
    })
    .with_context(|| host.journal("links").unwrap_or_default())
}
