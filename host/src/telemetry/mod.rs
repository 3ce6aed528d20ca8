//! Traces, metrics and logs by OTLP, named as in Spin 4. Unless environment variables enable them, there is no exporter, and
//! requests cause no extra work.

mod collector;
mod logs;
mod metrics;
mod settings;
mod statement;
mod traces;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use opentelemetry::KeyValue;
use opentelemetry::logs::LoggerProvider as _;
use opentelemetry::metrics::{Meter, MeterProvider as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{
    LogExporter, MetricExporter, Protocol as OtlpProtocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;

use self::collector::Collector;
pub use self::logs::{Logs, Stream, output};
pub use self::metrics::{Instances, Requests};
use self::settings::{Protocol, Settings, Signal};
pub use self::statement::without_values;
pub use self::traces::{Span, Tracer, within};

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
        Some(Requests::new(&self.meter()?, application, component))
    }

    /// The metrics of a component's instances.
    pub fn instances(&self, component: &str) -> Option<Arc<Instances>> {
        Some(Arc::new(Instances::new(&self.meter()?, component)))
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
