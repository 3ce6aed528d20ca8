//! Traces, metrics and logs by OTLP, named as in Spin 4. Unless environment variables enable them, there is no exporter, and
//! requests cause no extra work.

mod collector;
mod logs;
mod settings;
mod statement;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Method, Request};
use opentelemetry::logs::LoggerProvider as _;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider as _};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context as Trace, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{
    LogExporter, MetricExporter, Protocol as OtlpProtocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;

use self::collector::Collector;
pub use self::logs::{Logs, Stream, output};
use self::settings::{Protocol, Settings, Signal};
pub use self::statement::without_values;
use crate::serve::listen::Peer;

/// How long the last export may take at shutdown.
const FLUSH: Duration = Duration::from_secs(1);

/// The providers of the exported signals.
#[derive(Debug, Default)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

impl Telemetry {
    /// Prepares the exports that the environment variables enable.
    ///
    /// # Errors
    /// A variable has an unsupported value.
    pub fn from_environment() -> Result<Self> {
        Self::new(&Settings::read(|name| std::env::var(name).ok())?)
    }

    fn new(settings: &Settings) -> Result<Self> {
        let mut telemetry = Self::default();
        if let Some(protocol) = settings.traces {
            let exporter = with_collector(SpanExporter::builder().with_http(), Signal::Traces, protocol).build();
            let exporter = exporter.context("Preparing the export of traces")?;
            let provider = SdkTracerProvider::builder()
                .with_resource(resource())
                .with_batch_exporter(exporter);
            telemetry.traces = Some(provider.build());
        }
        if let Some(protocol) = settings.metrics {
            let exporter = with_collector(MetricExporter::builder().with_http(), Signal::Metrics, protocol).build();
            let exporter = exporter.context("Preparing the export of metrics")?;
            let provider = SdkMeterProvider::builder()
                .with_resource(resource())
                .with_periodic_exporter(exporter);
            telemetry.metrics = Some(provider.build());
        }
        if let Some(protocol) = settings.logs {
            let exporter = with_collector(LogExporter::builder().with_http(), Signal::Logs, protocol).build();
            let exporter = exporter.context("Preparing the export of logs")?;
            let provider = SdkLoggerProvider::builder()
                .with_resource(resource())
                .with_batch_exporter(exporter);
            telemetry.logs = Some(provider.build());
        }
        Ok(telemetry)
    }

    pub fn tracer(&self) -> Option<Tracer> {
        self.traces.as_ref().map(|provider| Tracer(provider.tracer("spin")))
    }

    /// The request counter of a component.
    pub fn requests(&self, application: &str, component: &str) -> Option<Requests> {
        let attributes = [
            KeyValue::new("trigger_type", "http"),
            KeyValue::new("app_id", application.to_owned()),
            KeyValue::new("component_id", component.to_owned()),
        ];
        let count = self.meter()?.u64_counter("spin.request_count").build();
        Some(Requests { count, attributes })
    }

    /// The metrics of a component's instances.
    pub fn instances(&self, component: &str) -> Option<Arc<Instances>> {
        let meter = self.meter()?;
        // As in Spin, the unit is an attribute.
        let attributes = |unit: &'static str| {
            [
                KeyValue::new("component_id", component.to_owned()),
                KeyValue::new("unit", unit),
            ]
        };
        Some(Arc::new(Instances {
            cpu_time: meter.f64_histogram("spin.component_cpu_time").build(),
            memory_used: meter.u64_histogram("spin.component_memory_used").build(),
            memory_used_on_init: meter.u64_histogram("spin.component_memory_used_on_init").build(),
            seconds: attributes("s"),
            bytes: attributes("By"),
        }))
    }

    /// The log exporter of a component's output.
    pub fn logs(&self, component: &str) -> Option<Logs> {
        let logger = self.logs.as_ref()?.logger("spin");
        let component = component.to_owned();
        Some(Logs { logger, component })
    }

    fn meter(&self) -> Option<Meter> {
        self.metrics.as_ref().map(|provider| provider.meter("spin"))
    }

    /// Exports what is left, within a second. Must not be called on a thread of the async runtime, which does the sending.
    pub fn flush(self) {
        let (done, is_done) = mpsc::channel();
        let mut jobs: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        if let Some(traces) = self.traces {
            jobs.push(Box::new(move || drop(traces.shutdown_with_timeout(FLUSH))));
        }
        if let Some(metrics) = self.metrics {
            jobs.push(Box::new(move || drop(metrics.shutdown_with_timeout(FLUSH))));
        }
        if let Some(logs) = self.logs {
            jobs.push(Box::new(move || drop(logs.shutdown_with_timeout(FLUSH))));
        }
        let count = jobs.len();
        for job in jobs {
            let done = done.clone();
            std::thread::spawn(move || {
                job();
                // The receiver is gone after the time limit.
                let _ = done.send(());
            });
        }
        let end = std::time::Instant::now() + FLUSH;
        for _ in 0..count {
            if is_done
                .recv_timeout(end.saturating_duration_since(std::time::Instant::now()))
                .is_err()
            {
                tracing::warn!("the last telemetry could not be exported within {FLUSH:?}");
                return;
            }
        }
    }
}

/// Configures an exporter to send through [`Collector`].
fn with_collector<B: WithExportConfig + WithHttpConfig>(builder: B, signal: Signal, protocol: Protocol) -> B {
    builder
        .with_protocol(OtlpProtocol::HttpBinary)
        .with_http_client(Collector::new(Handle::current(), signal, protocol))
}

/// The identity of this process. Environment variables may override it.
fn resource() -> Resource {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "links-host"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name),
        _ => resource,
    }
    .build()
}

/// Counts the requests of a component.
#[derive(Debug)]
pub struct Requests {
    count: Counter<u64>,
    attributes: [KeyValue; 3],
}

impl Requests {
    pub fn count(&self) {
        self.count.add(1, &self.attributes);
    }
}

/// The resource usage of a component's instances, recorded when each instance ends.
#[derive(Debug)]
pub struct Instances {
    cpu_time: Histogram<f64>,
    memory_used: Histogram<u64>,
    memory_used_on_init: Histogram<u64>,
    seconds: [KeyValue; 2],
    bytes: [KeyValue; 2],
}

impl Instances {
    /// Records the usage of an instance. Memory is in bytes.
    pub fn record(&self, cpu_time: Duration, memory_used: u64, memory_used_on_init: u64) {
        self.cpu_time.record(cpu_time.as_secs_f64(), &self.seconds);
        self.memory_used_on_init.record(memory_used_on_init, &self.bytes);
        self.memory_used.record(memory_used, &self.bytes);
    }
}

/// Starts spans.
#[derive(Clone, Debug)]
pub struct Tracer(SdkTracer);

impl Tracer {
    /// Starts the span of a request. If the peer is trusted, the span joins the trace that `traceparent` names.
    pub fn request<B>(&self, request: &Request<B>, peer: &Peer) -> Span {
        let mut parent = Trace::new();
        if peer.is_trusted {
            let headers = HeaderExtractor(request.headers());
            parent = TraceContextPropagator::new().extract_with_context(&parent, &headers);
        }
        let mut attributes = vec![
            KeyValue::new("http.request.method", request.method().to_string()),
            KeyValue::new("url.scheme", "http"),
            // Without the query, which may contain anything.
            KeyValue::new("url.path", request.uri().path().to_owned()),
            KeyValue::new("network.protocol.name", "http"),
        ];
        if let Some((address, port)) = peer.address.to_str().ok().and_then(|peer| peer.rsplit_once(':')) {
            attributes.push(KeyValue::new(
                "network.peer.address",
                address.trim_matches(['[', ']']).to_owned(),
            ));
            if let Ok(port) = port.parse::<i64>() {
                attributes.push(KeyValue::new("network.peer.port", port));
            }
        }
        if let Some(client) = request
            .headers()
            .get("x-forwarded-for")
            .and_then(|value| value.to_str().ok())
        {
            attributes.push(KeyValue::new("client.address", client.to_owned()));
        }
        self.span(&parent, request.method().to_string(), SpanKind::Server, attributes)
    }

    fn span(&self, parent: &Trace, name: String, kind: SpanKind, attributes: Vec<KeyValue>) -> Span {
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
        let span = self.0.build_with_context(builder, parent);
        Span {
            trace: parent.with_span(span),
            tracer: self.clone(),
        }
    }
}

/// A span of a trace. Dropping its last clone ends it.
#[derive(Clone, Debug)]
pub struct Span {
    trace: Trace,
    tracer: Tracer,
}

impl Span {
    /// Whether the span was sampled.
    pub fn is_recording(&self) -> bool {
        self.trace.span().is_recording()
    }

    /// Starts the span of the component's work on a request.
    pub fn execution(&self, component: &str) -> Self {
        let name = format!("execute_wasm_component {component}");
        self.tracer.span(&self.trace, name, SpanKind::Internal, Vec::new())
    }

    /// Starts the span of a host call.
    pub fn call(&self, name: String, attributes: Vec<KeyValue>) -> Self {
        self.tracer.span(&self.trace, name, SpanKind::Client, attributes)
    }

    /// Records the route of a request.
    pub fn matched(&self, method: &Method, route: &str) {
        let span = self.trace.span();
        span.set_attribute(KeyValue::new("http.route", route.to_owned()));
        span.update_name(format!("{method} {route}"));
    }

    /// Records the status of the response.
    pub fn answered(&self, status: u16) {
        let span = self.trace.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            span.set_attribute(KeyValue::new("error.type", status.to_string()));
            span.set_status(Status::error(""));
        }
    }

    pub fn failed(&self, problem: impl std::fmt::Display) {
        self.trace.span().set_status(Status::error(problem.to_string()));
    }

    pub fn end(&self) {
        self.trace.span().end();
    }
}

/// Runs `work`, and ends `span` with its result.
///
/// # Errors
/// `work` fails.
pub async fn within<T, E: std::fmt::Display>(
    span: Option<Span>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let result = work.await;
    if let Some(span) = span {
        if let Err(error) = &result {
            span.failed(error);
        }
        span.end();
    }
    result
}
