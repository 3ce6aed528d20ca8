//! OTLP messages: metrics as a runtime sends them, and the contents of received metrics and traces.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// A data point of `spin.request_count` for one component.
#[derive(Clone, Debug)]
pub struct Requests<'a> {
    pub instance: u16,
    pub component: &'a str,
    /// When counting began, in nanoseconds since 1970.
    pub start: u64,
    /// When `value` was read, in nanoseconds since 1970.
    pub time: u64,
    pub value: i64,
    /// Whether the temporality is delta. Otherwise it is cumulative.
    pub delta: bool,
}

impl Requests<'_> {
    /// The first request that instance 1 reports.
    pub const FIRST: Requests<'static> = Requests {
        instance: 1,
        component: "hand",
        start: 1_000,
        time: 2_000,
        value: 1,
        delta: false,
    };

    /// The point as an encoded `ExportMetricsServiceRequest`.
    pub fn message(&self) -> Vec<u8> {
        let temporality = match self.delta {
            true => AggregationTemporality::Delta,
            false => AggregationTemporality::Cumulative,
        };
        let point = NumberDataPoint {
            attributes: vec![attribute("component_id", self.component)],
            start_time_unix_nano: self.start,
            time_unix_nano: self.time,
            value: Some(number_data_point::Value::AsInt(self.value)),
            ..NumberDataPoint::default()
        };
        let metric = Metric {
            name: "spin.request_count".to_owned(),
            data: Some(Data::Sum(Sum {
                data_points: vec![point],
                aggregation_temporality: temporality as i32,
                is_monotonic: true,
            })),
            ..Metric::default()
        };
        let instance = self.instance.to_string();
        let resource = Resource {
            attributes: vec![
                attribute("service.name", "links"),
                attribute("service.instance.id", &instance),
            ],
            ..Resource::default()
        };
        let scope = ScopeMetrics {
            metrics: vec![metric],
            ..ScopeMetrics::default()
        };
        let resource = ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![scope],
            ..ResourceMetrics::default()
        };
        ExportMetricsServiceRequest {
            resource_metrics: vec![resource],
        }
        .encode_to_vec()
    }

    /// The message, compressed with gzip.
    ///
    /// # Errors
    /// Never fails in practice, because it writes to memory.
    pub fn gzip(&self) -> std::io::Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(vec![], Compression::fast());
        encoder.write_all(&self.message())?;
        encoder.finish()
    }
}

/// The components in a metrics message, each after its instance.
///
/// # Errors
/// Fails if the message cannot be decoded.
pub fn components(message: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = vec![];
    for resource in ExportMetricsServiceRequest::decode(message)?.resource_metrics {
        let instance = text_of(&resource.resource.unwrap_or_default().attributes, "service.instance.id");
        for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            let Some(Data::Sum(sum)) = metric.data else { continue };
            let components = sum
                .data_points
                .iter()
                .map(|point| text_of(&point.attributes, "component_id"));
            found.extend(components.map(|component| (instance.clone(), component)));
        }
    }
    Ok(found)
}

/// A span of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The `service.name`, `service.instance.id` and `service.version` of the sender.
    pub service: [String; 3],
    pub name: String,
    /// The trace ID in hexadecimal, as in `traceparent`.
    pub trace: String,
    pub id: String,
    pub parent: String,
    /// The attributes. Values that are not strings are empty.
    pub attributes: Vec<(String, String)>,
}

/// The spans in a message to /v1/traces.
///
/// # Errors
/// Fails if the message cannot be decoded.
pub fn spans(message: &[u8]) -> anyhow::Result<Vec<Span>> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut found = vec![];
    for resource in ExportTraceServiceRequest::decode(message)?.resource_spans {
        let about = resource.resource.unwrap_or_default().attributes;
        let service = ["service.name", "service.instance.id", "service.version"].map(|key| text_of(&about, key));
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let attributes = span.attributes.iter().map(|attribute| {
                let key = attribute.key.clone();
                (key, text_of(&span.attributes, &attribute.key))
            });
            found.push(Span {
                service: service.clone(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: attributes.collect(),
                name: span.name,
            });
        }
    }
    Ok(found)
}

fn text_of(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}
