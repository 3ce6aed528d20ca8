//! Decodes what instances send: OTLP metrics over HTTP, in protobuf (OTLP specification, "OTLP/HTTP Request").

use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, Metric, NumberDataPoint, number_data_point};
use prost::Message as _;

use super::counters::{Amount, Point, Temporality};
use super::families::{self, Family, Kind};
use links_base::layout::MAX_INSTANCES;

/// The maximum size of a body, both compressed and decompressed, in bytes. An instance's export has a few kilobytes. Decoding
/// a hostile body takes up to 100 times its size in memory.
pub const MAX_BODY: usize = 512 << 10;
/// The maximum length of a component's name.
const MAX_NAME: usize = 256;
/// `DataPointFlags::NoRecordedValueMask` of OTLP.
const NO_VALUE: u32 = 1;

/// Why a request is refused: the status and the text of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub u16, pub String);

impl Refusal {
    pub fn too_large() -> Self {
        Self(413, format!("more than {MAX_BODY} bytes"))
    }
}

/// Undoes the `Content-Encoding` of a body.
///
/// # Errors
/// Fails if the encoding is unknown, the body is damaged, or the message is longer than [`MAX_BODY`].
pub fn decompress(body: Vec<u8>, encoding: Option<&str>) -> Result<Vec<u8>, Refusal> {
    match encoding {
        None | Some("" | "identity") => Ok(body),
        Some("gzip") => {
            let mut message = vec![];
            MultiGzDecoder::new(&*body)
                .take(MAX_BODY as u64 + 1)
                .read_to_end(&mut message)
                .map_err(|error| Refusal(400, format!("the body is not gzip: {error}")))?;
            if message.len() > MAX_BODY {
                return Err(Refusal::too_large());
            }
            Ok(message)
        }
        Some(other) => Err(Refusal(
            415,
            format!("Content-Encoding {other:?} is not supported; expected gzip or identity"),
        )),
    }
}

/// The data points that a message contains for one instance.
#[derive(Debug, PartialEq)]
pub struct Export {
    pub instance: u16,
    pub points: Vec<Point>,
}

/// Decodes a message. Each of its resources is one export; unknown metrics are left out.
///
/// # Errors
/// Fails if the message is invalid, or if a resource does not belong to an instance.
pub fn exports(message: &[u8]) -> Result<Vec<Export>, Refusal> {
    let request = ExportMetricsServiceRequest::decode(message)
        .map_err(|error| Refusal(400, format!("not an ExportMetricsServiceRequest: {error}")))?;
    let resources = request.resource_metrics.into_iter().map(|resource| {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let instance = text_of(&attributes, "service.instance.id")
            .and_then(|id| id.parse().ok())
            .filter(|number| (1..=MAX_INSTANCES).contains(number))
            .ok_or_else(|| Refusal(400, "service.instance.id is not the number of an instance".to_owned()))?;
        let metrics = resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
        Ok(Export {
            instance,
            points: metrics.flat_map(points).collect(),
        })
    });
    resources.collect()
}

/// A data point of any OTLP type.
struct Raw {
    attributes: Vec<KeyValue>,
    start: u64,
    time: u64,
    flags: u32,
    /// `None` if the point has no value.
    amount: Option<Amount>,
}

fn points(metric: Metric) -> Vec<Point> {
    let Some(family) = families::of_runtime(&metric.name) else {
        return vec![];
    };
    // A metric of another type than expected is a different metric that happens to have the same name.
    let (temporality, raw) = match (family.kind, metric.data) {
        (Kind::Counter, Some(Data::Sum(sum))) if sum.is_monotonic => (
            sum.aggregation_temporality,
            sum.data_points.into_iter().map(number).collect(),
        ),
        (Kind::Summary, Some(Data::Histogram(histogram))) => {
            let points = histogram.data_points.into_iter().map(|is| Raw {
                amount: summary(is.sum, is.count),
                ..Raw::at(is.attributes, is.start_time_unix_nano, is.time_unix_nano, is.flags)
            });
            (histogram.aggregation_temporality, points.collect())
        }
        (Kind::Summary, Some(Data::ExponentialHistogram(histogram))) => {
            let points = histogram.data_points.into_iter().map(|is| Raw {
                amount: summary(is.sum, is.count),
                ..Raw::at(is.attributes, is.start_time_unix_nano, is.time_unix_nano, is.flags)
            });
            (histogram.aggregation_temporality, points.collect())
        }
        _ => (0, Vec::<Raw>::new()),
    };
    let temporality = match temporality == AggregationTemporality::Delta as i32 {
        true => Temporality::Delta,
        // Unspecified is treated as cumulative.
        false => Temporality::Cumulative,
    };
    raw.into_iter()
        .filter_map(|raw| raw.point(family, temporality))
        .collect()
}

fn number(is: NumberDataPoint) -> Raw {
    let sum = is.value.map(|value| match value {
        number_data_point::Value::AsDouble(value) => value,
        number_data_point::Value::AsInt(value) => value as f64,
    });
    Raw {
        amount: sum.map(|sum| Amount { sum, count: 0.0 }),
        ..Raw::at(is.attributes, is.start_time_unix_nano, is.time_unix_nano, is.flags)
    }
}

fn summary(sum: Option<f64>, count: u64) -> Option<Amount> {
    sum.map(|sum| Amount {
        sum,
        count: count as f64,
    })
}

impl Raw {
    /// A point without an amount.
    fn at(attributes: Vec<KeyValue>, start: u64, time: u64, flags: u32) -> Self {
        Self {
            attributes,
            start,
            time,
            flags,
            amount: None,
        }
    }

    /// `None` if the point has no value, or an impossible one.
    fn point(self, family: &'static Family, temporality: Temporality) -> Option<Point> {
        let component = text_of(&self.attributes, "component_id").unwrap_or_default();
        let amount = self
            .amount
            .filter(|amount| amount.sum.is_finite() && amount.sum >= 0.0)?;
        (self.flags & NO_VALUE == 0 && component.len() <= MAX_NAME).then(|| Point {
            family,
            component: component.to_owned(),
            attributes: canonical(&self.attributes),
            temporality,
            start: self.start,
            time: self.time,
            amount,
        })
    }
}

fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    attributes
        .iter()
        .find(|attribute| attribute.key == key)
        .and_then(|attribute| text(attribute.value.as_ref()))
}

fn text(value: Option<&AnyValue>) -> Option<&str> {
    match value?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn canonical(attributes: &[KeyValue]) -> String {
    let mut pairs: Vec<_> = attributes
        .iter()
        .map(|attribute| match text(attribute.value.as_ref()) {
            Some(text) => format!("{}={text}", attribute.key),
            None => format!("{}={:?}", attribute.key, attribute.value),
        })
        .collect();
    pairs.sort();
    pairs.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use opentelemetry_proto::tonic::metrics::v1::{
        Gauge, Histogram, HistogramDataPoint, ResourceMetrics, ScopeMetrics, Sum,
    };
    use opentelemetry_proto::tonic::resource::v1::Resource;

    use super::super::families::{CPU, REQUESTS};
    use super::*;

    fn attribute(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue {
                value: Some(Value::StringValue(value.to_owned())),
            }),
            ..KeyValue::default()
        }
    }

    fn message(instance: &str, metrics: Vec<Metric>) -> Vec<u8> {
        let resource = Resource {
            attributes: vec![
                attribute("service.name", "links"),
                attribute("service.instance.id", instance),
            ],
            ..Resource::default()
        };
        let metrics = ScopeMetrics {
            metrics,
            ..ScopeMetrics::default()
        };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(resource),
                scope_metrics: vec![metrics],
                ..ResourceMetrics::default()
            }],
        };
        request.encode_to_vec()
    }

    fn metric(name: &str, data: Data) -> Metric {
        Metric {
            name: name.to_owned(),
            data: Some(data),
            ..Metric::default()
        }
    }

    fn requests(value: number_data_point::Value, flags: u32) -> Data {
        Data::Sum(Sum {
            data_points: vec![NumberDataPoint {
                attributes: vec![attribute("trigger_type", "http"), attribute("component_id", "links")],
                start_time_unix_nano: 10,
                time_unix_nano: 20,
                flags,
                value: Some(value),
                ..NumberDataPoint::default()
            }],
            aggregation_temporality: AggregationTemporality::Cumulative as i32,
            is_monotonic: true,
        })
    }

    fn zipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn known_metrics_become_points_of_their_instance() {
        let cpu = Data::Histogram(Histogram {
            data_points: vec![HistogramDataPoint {
                attributes: vec![attribute("unit", "s"), attribute("component_id", "links")],
                start_time_unix_nano: 30,
                time_unix_nano: 40,
                count: 3,
                sum: Some(0.75),
                ..HistogramDataPoint::default()
            }],
            aggregation_temporality: AggregationTemporality::Delta as i32,
        });
        let sent = message(
            "2",
            vec![
                metric("spin.request_count", requests(number_data_point::Value::AsInt(7), 0)),
                metric("spin.component_cpu_time", cpu.clone()),
                metric("spin.something_else", requests(number_data_point::Value::AsInt(7), 0)),
                // Metrics of another type than expected.
                metric("spin.request_count", Data::Gauge(Gauge::default())),
                metric("spin.request_count", cpu),
                metric(
                    "spin.component_cpu_time",
                    requests(number_data_point::Value::AsInt(7), 0),
                ),
                // Impossible values.
                metric(
                    "spin.request_count",
                    requests(number_data_point::Value::AsDouble(f64::NAN), 0),
                ),
                metric("spin.request_count", requests(number_data_point::Value::AsInt(-1), 0)),
                metric(
                    "spin.request_count",
                    requests(number_data_point::Value::AsInt(0), NO_VALUE),
                ),
            ],
        );
        let exports = exports(&sent).unwrap();
        let point = |family, temporality, start, attributes: &str, sum, count| Point {
            family,
            component: "links".to_owned(),
            attributes: attributes.to_owned(),
            temporality,
            start,
            time: start + 10,
            amount: Amount { sum, count },
        };
        assert_eq!(
            exports,
            [Export {
                instance: 2,
                points: vec![
                    point(
                        &REQUESTS,
                        Temporality::Cumulative,
                        10,
                        "component_id=links\ntrigger_type=http",
                        7.0,
                        0.0
                    ),
                    point(&CPU, Temporality::Delta, 30, "component_id=links\nunit=s", 0.75, 3.0),
                ],
            }]
        );
    }

    #[test]
    fn resources_that_are_not_instances_are_refused() {
        for stranger in ["0", "17", "x", ""] {
            assert_eq!(exports(&message(stranger, vec![])).unwrap_err().0, 400, "{stranger}");
        }
        assert_eq!(exports(b"{\"resourceMetrics\": []}").unwrap_err().0, 400);
        assert_eq!(exports(b"").unwrap(), []);
    }

    #[test]
    fn gzip_is_decompressed_up_to_the_limit() {
        let sent = message("1", vec![]);
        assert_eq!(decompress(sent.clone(), None), Ok(sent.clone()));
        assert_eq!(decompress(sent.clone(), Some("identity")), Ok(sent.clone()));
        assert_eq!(decompress(zipped(&sent), Some("gzip")), Ok(sent.clone()));
        assert_eq!(decompress(sent.clone(), Some("gzip")).unwrap_err().0, 400);
        assert_eq!(decompress(sent, Some("br")).unwrap_err().0, 415);

        let most = vec![0; MAX_BODY];
        assert_eq!(
            decompress(zipped(&most), Some("gzip")).map(|message| message.len()),
            Ok(MAX_BODY)
        );
        let more = vec![0; 100 * MAX_BODY];
        assert_eq!(decompress(zipped(&more), Some("gzip")), Err(Refusal::too_large()));
    }
}
