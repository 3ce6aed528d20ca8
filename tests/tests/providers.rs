//! links-host and the component with each remote provider: a libSQL server, Redis, Vault and an OpenTelemetry collector.
//!
//! The binaries come from target/release and target/components. There is no systemd and no nginx; everything is on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use links_tests::http::Client;
use links_tests::local::{TestDir, free_port};
use links_tests::{Address, eventually, wording};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A client for a service.
fn at(address: SocketAddr) -> Client {
    Client::here(Address::Tcp(address))
}

fn libsql(address: SocketAddr, token: &str) -> String {
    format!(
        "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"http://{address}\"\ntoken = \"{token}\"\n\
         [[variables_provider]]\ntype = \"static\"\nvalues = {{ admin_token = \"4dmin\" }}\n"
    )
}

#[test]
fn two_runtimes_share_links_on_a_libsql_server() -> Result<()> {
    let dir = TestDir::new()?;
    let (_server, address) = dir.hrana(ANY, "s3cret")?;
    let one = dir.runtime(&libsql(address, "s3cret"), &[])?;
    let other = dir.runtime(&libsql(address, "s3cret"), &[])?;
    for number in 0..20 {
        let url = format!("https://example.com/{number}");
        let slug = one.slug("4dmin", &url)?;
        other.leads_to(&slug, &url)?;
        other.slug("4dmin", &format!("{url}/other"))?;
    }
    let health = one.http().get("/health")?;
    ensure!(health.status == 200, "{health}");
    one.process.terminate()?;
    other.process.terminate()?;
    let errors = dir.runtime_errors()?;
    ensure!(errors.contains(&format!("libSQL at http://{address}")), "{errors}");
    ensure!(!errors.contains("s3cret"), "{errors}");
    Ok(())
}

#[test]
fn a_libsql_server_is_used_again_after_an_outage() -> Result<()> {
    let dir = TestDir::new()?;
    let (server, address) = dir.hrana(ANY, "s3cret")?;
    let runtime = dir.runtime(&libsql(address, "s3cret"), &[])?;
    let slug = runtime.slug("4dmin", "https://example.com/")?;

    server.pause()?;
    let begin = Instant::now();
    let paused = runtime.http().get(&format!("/{slug}"))?;
    ensure!(paused.status == 503 && begin.elapsed() < SOON, "{paused}");
    server.resume()?;
    eventually("the server is used again", SOON, || {
        Ok(runtime.leads_to(&slug, "https://example.com/").ok())
    })?;

    drop(server);
    let gone = runtime.http().get(&format!("/{slug}"))?;
    ensure!(gone.status == 503 && !gone.text().contains("s3cret"), "{gone}");
    let (_server, _) = dir.hrana(address, "s3cret")?;
    eventually("the new server is used", SOON, || {
        Ok(runtime.leads_to(&slug, "https://example.com/").ok())
    })
}

#[test]
fn a_refused_token_is_reported_but_never_shown() -> Result<()> {
    let dir = TestDir::new()?;
    let (_server, address) = dir.hrana(ANY, "s3cret")?;
    let runtime = dir.runtime(&libsql(address, "wr0ng-s3cret"), &[])?;
    let answer = runtime.http().get("/abc")?;
    ensure!(answer.status == 503 && !answer.text().contains("s3cret"), "{answer}");
    eventually("the refusal is logged", SOON, || {
        Ok(dir.runtime_errors()?.contains("401").then_some(()))
    })?;
    let errors = dir.runtime_errors()?;
    ensure!(!errors.contains("s3cret"), "{errors}");

    let put = at(address).put("/test/token", "wr0ng-s3cret")?;
    ensure!(put.status == 204, "{put}");
    eventually("the token is accepted", SOON, || {
        Ok(runtime.slug("4dmin", "https://example.com/").ok().map(drop))
    })
}

#[test]
fn cached_links_redirect_while_the_database_or_redis_is_down() -> Result<()> {
    let dir = TestDir::new()?;
    let (server, database) = dir.hrana(ANY, "s3cret")?;
    let port = free_port()?;
    let redis = dir.redis(port, "r3dis-s3cret")?;
    let configuration = format!(
        "{}[[variables_provider]]\ntype = \"static\"\nvalues = {{ database_place = \"remote\", link_cache = \"on\", cache_ttl = \"1\" }}\n\
         [key_value_store.default]\ntype = \"redis\"\nurl = \"redis://:r3dis-s3cret@127.0.0.1:{port}\"\n",
        libsql(database, "s3cret")
    );
    let runtime = dir.runtime(&configuration, &[])?;
    let url = "https://example.com/";
    let slug = runtime.slug("4dmin", url)?;
    runtime.leads_to(&slug, url)?;

    server.pause()?;
    // Two seconds, so that the entry gets older than cache_ttl.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        runtime.leads_to(&slug, url)?;
    }
    server.resume()?;
    eventually("the database is used again", SOON, || {
        Ok(runtime.slug("4dmin", url).ok())
    })?;

    redis.pause()?;
    runtime.leads_to(&slug, url)?;
    let other = runtime.slug("4dmin", "https://example.com/other")?;
    redis.resume()?;
    drop(redis);
    runtime.leads_to(&slug, url)?;
    runtime.leads_to(&other, "https://example.com/other")?;

    // A new, empty Redis is filled again. That shows only while the database is paused.
    let _redis = dir.redis(port, "r3dis-s3cret")?;
    eventually("the cache serves the link", SOON, || {
        runtime.leads_to(&slug, url)?;
        server.pause()?;
        let cached = runtime.leads_to(&slug, url);
        server.resume()?;
        eventually("the database is used again", SOON, || {
            Ok(runtime.slug("4dmin", url).ok())
        })?;
        Ok(cached.ok())
    })?;
    let errors = dir.runtime_errors()?;
    ensure!(!errors.contains("s3cret"), "{errors}");
    Ok(())
}

#[test]
fn a_token_that_is_rotated_in_vault_is_picked_up() -> Result<()> {
    let dir = TestDir::new()?;
    let port = free_port()?;
    let vault = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let bao = dir.bao(port, "r00t-s3cret")?;
    let root = at(vault).header("x-vault-token", "r00t-s3cret");
    let write = |token: &str| {
        let body = json!({ "data": { "value": token } });
        root.post("/v1/secret/data/links/admin_token", body)
    };
    ensure!(write("one-s3cret")?.status == 200);
    let configuration = format!(
        "[[variables_provider]]\ntype = \"vault\"\nurl = \"http://{vault}\"\ntoken = \"r00t-s3cret\"\nmount = \"secret\"\n\
         prefix = \"links\"\n[[variables_provider]]\ntype = \"static\"\nvalues = {{ secrets_stale = \"0\" }}\n"
    );
    let runtime = dir.runtime(&configuration, &[])?;
    let slug = runtime.slug("one-s3cret", "https://example.com/")?;
    let refused = runtime.shorten("two-s3cret", "https://example.com/")?;
    ensure!(refused.status == 401, "{refused}");

    // A Wasm instance may keep the token that it has read for as long as it lives.
    let answers = |token: &str, test: fn(u16) -> bool| {
        eventually("the token is read again", SOON, || {
            let answer = runtime.shorten(token, "https://example.com/2")?;
            ensure!(!answer.text().contains("s3cret"), "{answer}");
            Ok(test(answer.status.as_u16()).then_some(()))
        })
    };
    ensure!(write("two-s3cret")?.status == 200);
    answers("two-s3cret", |status| status == 200)?;
    answers("one-s3cret", |status| status == 401)?;
    let seal = root.put("/v1/sys/seal", "")?;
    ensure!(seal.status == 204, "{seal}");
    answers("two-s3cret", |status| status >= 500)?;
    drop(bao);
    answers("two-s3cret", |status| status >= 500)?;
    // Redirects do not need Vault.
    runtime.leads_to(&slug, "https://example.com/")?;
    let errors = dir.runtime_errors()?;
    ensure!(!errors.contains("s3cret"), "{errors}");
    Ok(())
}

mod telemetry {
    use std::collections::BTreeMap;

    use anyhow::Context as _;
    use links_tests::servers::{Collected, Collector};
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::KeyValue;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    use opentelemetry_proto::tonic::metrics::v1::number_data_point;
    use opentelemetry_proto::tonic::trace::v1::Span;
    use prost::Message as _;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const UNSAMPLED: &str = "0af7651916cd43dd8448eb211c80319d";
    const FORGED: &str = "1bf7651916cd43dd8448eb211c80319e";

    fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
        let found = attributes.iter().find(|attribute| attribute.key == key)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text),
            _ => None,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The telemetry that the collector has received.
    #[derive(Default)]
    struct Received {
        spans: Vec<Span>,
        /// The number of requests by component.
        requests: BTreeMap<String, i64>,
        histograms: Vec<String>,
        lines: Vec<String>,
    }

    impl Received {
        fn take(&mut self, export: &Collected) -> Result<()> {
            match export.path.as_str() {
                "/v1/traces" | "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => self.traces(export),
                "/v1/metrics" | "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => {
                    self.metrics(export)
                }
                "/v1/logs" | "/opentelemetry.proto.collector.logs.v1.LogsService/Export" => self.logs(export),
                other => anyhow::bail!("unexpected export to {other}"),
            }
        }

        fn traces(&mut self, export: &Collected) -> Result<()> {
            for resource in ExportTraceServiceRequest::decode(&export.message[..])?.resource_spans {
                is_from_this_runtime(&resource.resource.unwrap_or_default().attributes)?;
                let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                self.spans.extend(spans);
            }
            Ok(())
        }

        fn metrics(&mut self, export: &Collected) -> Result<()> {
            for resource in ExportMetricsServiceRequest::decode(&export.message[..])?.resource_metrics {
                is_from_this_runtime(&resource.resource.unwrap_or_default().attributes)?;
                for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                    match metric.data.context("a metric without data")? {
                        Data::Sum(sum) if metric.name == "spin.request_count" => {
                            for point in sum.data_points {
                                for (key, value) in [("app_id", "links"), ("trigger_type", "http")] {
                                    ensure!(text(&point.attributes, key) == Some(value), "{point:?}");
                                }
                                let component =
                                    text(&point.attributes, "component_id").context("a point without component_id")?;
                                let Some(number_data_point::Value::AsInt(count)) = point.value else {
                                    anyhow::bail!("{point:?}")
                                };
                                self.requests.insert(component.to_owned(), count);
                            }
                        }
                        Data::Histogram(histogram) => {
                            let count: u64 = histogram.data_points.iter().map(|point| point.count).sum();
                            ensure!(count > 0, "{} is empty", metric.name);
                            self.histograms.push(metric.name);
                        }
                        other => anyhow::bail!("unexpected data of {}: {other:?}", metric.name),
                    }
                }
            }
            Ok(())
        }

        fn logs(&mut self, export: &Collected) -> Result<()> {
            for resource in ExportLogsServiceRequest::decode(&export.message[..])?.resource_logs {
                is_from_this_runtime(&resource.resource.unwrap_or_default().attributes)?;
                for record in resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                    let component = text(&record.attributes, "component_id");
                    ensure!(matches!(component, Some("redirect" | "api")), "{record:?}");
                    ensure!(text(&record.attributes, "log.iostream") == Some("stderr"), "{record:?}");
                    match record.body.and_then(|body| body.value) {
                        Some(Value::StringValue(line)) => self.lines.push(line),
                        other => anyhow::bail!("unexpected log body: {other:?}"),
                    }
                }
            }
            Ok(())
        }

        /// The span of the sampled request whose name starts with `prefix`.
        fn span(&self, prefix: &str) -> Result<&Span> {
            let mut spans = self.spans.iter().filter(|span| hex(&span.trace_id) == TRACE);
            let found = spans.find(|span| span.name.starts_with(prefix));
            found.with_context(|| format!("no span {prefix:?} in {:?}", self.spans))
        }
    }

    fn is_from_this_runtime(resource: &[KeyValue]) -> Result<()> {
        ensure!(text(resource, "service.name") == Some("links"), "{resource:?}");
        ensure!(text(resource, "service.instance.id") == Some("7"), "{resource:?}");
        Ok(())
    }

    fn everything_arrives_by(protocol: &str) -> Result<()> {
        let dir = TestDir::new()?;
        let (collector, address) = Collector::here()?;
        let endpoint = format!("http://{address}");
        let runtime = dir.runtime(
            "[[variables_provider]]\ntype = 'static'\nvalues = { admin_token = '4dmin-s3cret', link_cache = 'neither' }\n",
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=h3ader-s3cret"),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=links,service.instance.id=7"),
            ],
        )?;
        let slug = runtime.slug("4dmin-s3cret", "https://example.com/t4rget")?;
        for (trace, flags) in [(TRACE, "01"), (UNSAMPLED, "00")] {
            let parent = format!("00-{trace}-b7ad6b7169203331-{flags}");
            let nginx = runtime.http_through_socket().header("traceparent", parent);
            let answer = nginx.get(&format!("/{slug}?q=s3cret"))?;
            ensure!(answer.status == 302, "{answer}");
        }
        // Any local user can connect by TCP, so the runtime ignores the traceparent of such a request.
        let parent = format!("00-{FORGED}-b7ad6b7169203331-01");
        let stranger = runtime.http().header("traceparent", parent);
        let answer = stranger.get(&format!("/{slug}?q=s3cret"))?;
        ensure!(answer.status == 302, "{answer}");
        runtime.process.terminate()?;

        let mut received = Received::default();
        for export in collector.collected() {
            let key = export.headers.get("x-key").map(String::as_str);
            ensure!(key == Some("h3ader-s3cret"), "{:?}", export.headers);
            for secret in ["s3cret", "t4rget"] {
                let mut windows = export.message.windows(secret.len());
                let found = windows.any(|window| window == secret.as_bytes());
                ensure!(
                    !found,
                    "{secret} was exported: {}",
                    String::from_utf8_lossy(&export.message)
                );
            }
            received.take(&export)?;
        }
        let requests = [("api", 1), ("redirect", 3)].map(|(component, count)| (component.to_owned(), count));
        ensure!(received.requests == BTreeMap::from(requests), "{:?}", received.requests);
        received.histograms.sort();
        received.histograms.dedup();
        let histograms =
            ["cpu_time", "memory_used", "memory_used_on_init"].map(|name| format!("spin.component_{name}"));
        ensure!(received.histograms == histograms, "{:?}", received.histograms);

        let request = received.span("GET /...")?;
        ensure!(hex(&request.parent_span_id) == "b7ad6b7169203331", "{request:?}");
        let path = text(&request.attributes, "url.path");
        ensure!(path == Some(&format!("/{slug}")), "{request:?}");
        let execution = received.span("execute_wasm_component redirect")?;
        ensure!(execution.parent_span_id == request.span_id, "{execution:?}");
        let statement = received.span("SELECT")?;
        ensure!(statement.parent_span_id == execution.span_id, "{statement:?}");
        let warning = received
            .lines
            .iter()
            .find(|line| line.starts_with(wording::WITHOUT_CACHE));
        ensure!(warning.is_some(), "{:?}", received.lines);
        ensure!(dir.runtime_errors()?.contains(wording::WITHOUT_CACHE));
        let unsampled = received.spans.iter().find(|span| hex(&span.trace_id) == UNSAMPLED);
        ensure!(unsampled.is_none(), "{unsampled:?}");
        let forged = received.spans.iter().find(|span| hex(&span.trace_id) == FORGED);
        ensure!(forged.is_none(), "{forged:?}");
        Ok(())
    }

    #[test]
    fn traces_metrics_and_logs_arrive_by_http_when_the_runtime_ends() -> Result<()> {
        everything_arrives_by("http/protobuf")
    }

    #[test]
    fn traces_metrics_and_logs_arrive_by_grpc_when_the_runtime_ends() -> Result<()> {
        everything_arrives_by("grpc")
    }

    #[test]
    fn requests_that_share_an_instance_have_separate_traces() -> Result<()> {
        const CLIENTS: usize = 16;
        const REQUESTS: usize = 20;
        let dir = TestDir::new()?;
        let (collector, endpoint) = Collector::here()?;
        let (_server, address) = dir.hrana(ANY, "s3cret")?;
        let database = libsql(address, "s3cret").replace("values = {", "values = { database_place = \"remote\",");
        let runtime = dir.runtime(
            &database,
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{endpoint}")),
                ("OTEL_RESOURCE_ATTRIBUTES", "service.name=links,service.instance.id=7"),
            ],
        )?;
        let slug = runtime.slug("4dmin", "https://example.com/")?;
        let trace = |client: usize, request: usize| format!("{:032x}", 1 + client * REQUESTS + request);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (runtime, slug) = (&runtime, &slug);
                    scope.spawn(move || {
                        (0..REQUESTS).try_for_each(|request| {
                            let parent = format!("00-{}-b7ad6b7169203331-01", trace(client, request));
                            let nginx = runtime.http_through_socket().header("traceparent", parent);
                            let answer = nginx.get(&format!("/{slug}"))?;
                            ensure!(answer.status == 302, "{answer}");
                            Ok(())
                        })
                    })
                })
                .collect();
            clients.into_iter().try_for_each(|client| match client.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        runtime.process.terminate()?;

        let mut received = Received::default();
        for export in collector.collected() {
            received.take(&export)?;
        }
        for trace in (0..CLIENTS * REQUESTS).map(|number| trace(0, number)) {
            let of_trace: Vec<_> = received
                .spans
                .iter()
                .filter(|span| hex(&span.trace_id) == trace)
                .collect();
            let named = |name: &str| {
                of_trace
                    .iter()
                    .filter(|span| span.name.starts_with(name))
                    .collect::<Vec<_>>()
            };
            let (executions, statements) = (named("execute_wasm_component redirect"), named("SELECT"));
            let ([execution], [statement]) = (&executions[..], &statements[..]) else {
                anyhow::bail!("{of_trace:?}")
            };
            ensure!(statement.parent_span_id == execution.span_id, "{of_trace:?}");
        }
        Ok(())
    }

    /// The runtime serves requests while its exports to `endpoint` fail, logs the failure, and still ends in time.
    fn serves_without_a_collector(endpoint: &str) -> Result<()> {
        let dir = TestDir::new()?;
        let interval = ("OTEL_METRIC_EXPORT_INTERVAL", "100");
        let runtime = dir.runtime("", &[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), interval])?;
        for _ in 0..20 {
            let health = runtime.http().get("/health")?;
            ensure!(health.status == 200, "{health}");
        }
        eventually("the failed export is logged", SOON, || {
            let errors = dir.runtime_errors()?;
            let is_it = |line: &str| line.contains("telemetry") && line.contains("127.0.0.1");
            Ok(errors.lines().any(is_it).then_some(()))
        })?;
        let begin = Instant::now();
        runtime.process.terminate()?;
        ensure!(
            begin.elapsed() < Duration::from_secs(4),
            "the runtime took {:?} to end",
            begin.elapsed()
        );
        Ok(())
    }

    #[test]
    fn a_missing_collector_costs_no_request() -> Result<()> {
        serves_without_a_collector(&format!("http://127.0.0.1:{}", free_port()?))
    }

    #[test]
    fn a_hanging_collector_costs_no_request() -> Result<()> {
        let (collector, address) = Collector::here()?;
        collector.hang(true);
        serves_without_a_collector(&format!("http://{address}"))
    }
}
