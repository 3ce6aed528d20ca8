//! Which signals are exported, and by which protocol, from OpenTelemetry's environment variables, interpreted as by Spin 4.
//! The OpenTelemetry crates read the other variables themselves (endpoints, headers, samplers, intervals).

use anyhow::{Result, bail};

/// The transport of OTLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Protocol {
    Http,
    Grpc,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }

    /// The path of the gRPC method that takes the signal.
    pub fn service(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }
}

/// The protocol of each signal, or `None` if the signal is not exported.
#[derive(Debug, Default, PartialEq)]
pub struct Settings {
    pub traces: Option<Protocol>,
    pub metrics: Option<Protocol>,
    pub logs: Option<Protocol>,
}

impl Settings {
    /// Reads the settings. `variable` returns the value of an environment variable.
    ///
    /// # Errors
    /// The protocol is http/json, which Spin refuses, too.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
        // Any value disables the export, even "false", as in Spin.
        if is_set("OTEL_SDK_DISABLED") {
            return Ok(Self::default());
        }
        let wanted = |signal: Signal| {
            is_set("OTEL_EXPORTER_OTLP_ENDPOINT") || is_set(&format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.name()))
        };
        let protocol = |signal: Signal| {
            let own = variable(&format!("OTEL_EXPORTER_OTLP_{}_PROTOCOL", signal.name()));
            let protocol = own.or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
            Ok(Some(match protocol.as_deref() {
                Some("grpc") => Protocol::Grpc,
                None | Some("" | "http/protobuf") => Protocol::Http,
                Some("http/json") => bail!("the OTLP protocol http/json is not supported; use http/protobuf or grpc"),
                Some(other) => {
                    tracing::warn!("{other:?} is not an OTLP protocol; using http/protobuf");
                    Protocol::Http
                }
            }))
        };
        let exported = |signal| if wanted(signal) { protocol(signal) } else { Ok(None) };
        Ok(Self {
            traces: exported(Signal::Traces)?,
            metrics: exported(Signal::Metrics)?,
            logs: exported(Signal::Logs)?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::read(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_is_exported_by_default() {
        for variables in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")],
            &[("OTEL_SERVICE_NAME", "links"), ("OTEL_TRACES_SAMPLER", "always_on")],
            &[
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
                ("OTEL_SDK_DISABLED", "false"),
            ],
        ] {
            assert_eq!(read(variables).unwrap(), Settings::default(), "{variables:?}");
        }
    }

    #[test]
    fn signals_are_enabled_together_or_one_by_one() {
        let all = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")]).unwrap();
        let http = Some(Protocol::Http);
        assert_eq!((all.traces, all.metrics, all.logs), (http, http, http));
        let one = read(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c/v1/metrics")]).unwrap();
        assert_eq!((one.traces, one.metrics), (None, Some(Protocol::Http)));
        let other = read(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ]);
        assert_eq!(other.unwrap().traces, Some(Protocol::Grpc));
    }

    #[test]
    fn the_protocol_of_a_signal_overrides_the_common_one() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf"),
        ])
        .unwrap();
        assert_eq!(
            (settings.traces, settings.metrics),
            (Some(Protocol::Grpc), Some(Protocol::Http))
        );
        let json = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ];
        assert!(read(&json).unwrap_err().to_string().contains("http/json"));
    }
}
