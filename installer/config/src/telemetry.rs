//! Which telemetry the runtimes export, and where to, as environment variables of the OpenTelemetry specification ("OTLP
//! Exporter Configuration", "Environment Variable Specification").

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::credentials::Credentials;
use super::links::{Config, Protocol, Sampling};
use super::unresolved::Error;
use links_base::secrets::{OTLP_HEADER, Secret};

/// The interval of metric exports in milliseconds. When a runtime ends, the metrics since its last export are lost.
const METRIC_INTERVAL: u32 = 10_000;
/// The prefix of the variables that hold an endpoint or secret headers.
pub const OTLP: &str = "OTEL_EXPORTER_OTLP_";

/// Where one signal is sent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The URL in the form of a signal's variable: with the signal's path for HTTP, without a path for gRPC.
    pub url: String,
    pub protocol: Protocol,
    /// Headers for the collector, which may be secret.
    pub headers: Option<String>,
}

/// Leaves out the headers, because the output may end up in a log.
impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.url, self.protocol)
    }
}

/// The telemetry that the runtime of an instance exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exports {
    traces: Option<Target>,
    logs: Option<Target>,
    metrics: Metrics,
    sampling: Sampling,
}

/// Where the instances send their metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Metrics {
    Nowhere,
    /// To the user's collector.
    Direct(Target),
    /// To the agent at this address, which may forward them to a collector.
    ViaAgent(SocketAddr, Option<Target>),
}

impl Exports {
    /// Decides where the telemetry goes.
    ///
    /// # Errors
    /// The credential of the headers is missing.
    pub fn new(config: &Config, credentials: &Credentials) -> Result<Self, Error> {
        let telemetry = &config.telemetry;
        let secret = |name: &String| match credentials.get(name) {
            Some(secret) => Ok(secret.to_owned()),
            None => Err(Error::MissingCredential { name: name.clone() }),
        };
        let headers = telemetry
            .headers
            .as_ref()
            .map(|reference| secret(&reference.credential))
            .transpose()?;
        let target = |wanted: bool, path: &str| {
            let endpoint = telemetry.endpoint.as_ref().filter(|_| wanted)?;
            Some(Target {
                url: match telemetry.protocol {
                    Protocol::Http => format!("{endpoint}{path}"),
                    Protocol::Grpc => endpoint.clone(),
                },
                protocol: telemetry.protocol,
                headers: headers.clone(),
            })
        };
        let metrics = target(telemetry.metrics, "/v1/metrics");
        Ok(Self {
            traces: target(telemetry.traces, "/v1/traces"),
            logs: target(telemetry.logs, "/v1/logs"),
            metrics: match (config.metrics.listen, metrics) {
                (Some(_), forward) => Metrics::ViaAgent(config.metrics.otlp_listen, forward),
                (None, Some(target)) => Metrics::Direct(target),
                (None, None) => Metrics::Nowhere,
            },
            sampling: telemetry.sampling,
        })
    }

    /// The collector to which the agent forwards the metrics.
    pub fn forward(&self) -> Option<&Target> {
        match &self.metrics {
            Metrics::ViaAgent(_, forward) => forward.as_ref(),
            Metrics::Nowhere | Metrics::Direct(_) => None,
        }
    }

    /// The collectors to which the instances send telemetry themselves, not through the agent.
    pub fn direct(&self) -> impl Iterator<Item = &Target> {
        let metrics = match &self.metrics {
            Metrics::Direct(target) => Some(target),
            Metrics::Nowhere | Metrics::ViaAgent(..) => None,
        };
        [self.traces.as_ref(), self.logs.as_ref(), metrics]
            .into_iter()
            .flatten()
    }

    /// Names and values of the environment variables, which hold secrets. Empty if nothing is exported.
    ///
    /// `version` is that of the release, in characters that need no escaping in `OTEL_RESOURCE_ATTRIBUTES`. `for_agent` is the
    /// secret with which the agent accepts telemetry; it is sent to nobody else.
    pub fn environment(&self, instance: u16, version: &str, for_agent: Option<&Secret>) -> Vec<(String, String)> {
        let agent = |address: &SocketAddr| Target {
            url: format!("http://{address}/v1/metrics"),
            protocol: Protocol::Http,
            headers: for_agent.map(|secret| format!("{OTLP_HEADER}={}", secret.as_str())),
        };
        let metrics = match &self.metrics {
            Metrics::Nowhere => None,
            Metrics::Direct(target) => Some(target.clone()),
            Metrics::ViaAgent(address, _) => Some(agent(address)),
        };
        let mut variables = vec![];
        for (signal, target) in [("TRACES", &self.traces), ("METRICS", &metrics), ("LOGS", &self.logs)] {
            let Some(target) = target else { continue };
            let mut set = |what: &str, value: String| variables.push((format!("{OTLP}{signal}_{what}"), value));
            set("ENDPOINT", target.url.clone());
            set("PROTOCOL", target.protocol.to_string());
            if let Some(headers) = &target.headers {
                set("HEADERS", headers.clone());
            }
        }
        if variables.is_empty() {
            return variables;
        }
        let mut set = |name: &str, value: String| variables.push((name.to_owned(), value));
        if self.traces.is_some() {
            set("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned());
            set("OTEL_TRACES_SAMPLER_ARG", self.sampling.to_string());
        }
        if metrics.is_some() {
            set("OTEL_METRIC_EXPORT_INTERVAL", METRIC_INTERVAL.to_string());
        }
        set(
            "OTEL_RESOURCE_ATTRIBUTES",
            format!("service.name=links,service.instance.id={instance},service.version={version}"),
        );
        variables
    }
}

/// The headers in a credential of the form `NAME=VALUE,NAME=VALUE` with percent-encoded values (W3C Baggage without properties,
/// as in `OTEL_EXPORTER_OTLP_HEADERS`). `None` if it has another form.
pub fn headers(secret: &str) -> Option<Vec<(String, String)>> {
    let header = |text: &str| {
        let (name, value) = text.split_once('=')?;
        let (name, value) = (name.trim().to_ascii_lowercase(), decoded(value.trim())?);
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let plain = |character: char| character == ' ' || character.is_ascii_graphic();
        let fits = !name.is_empty() && name.bytes().all(token) && value.chars().all(plain);
        fits.then_some((name, value))
    };
    secret.split(',').map(header).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = vec![];
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn exports(links: &str) -> Exports {
        let mut credentials = Credentials::default();
        credentials.insert("otlp", "authorization=Bearer%20s3cret");
        Exports::new(&Config::parse(links, "links.toml").unwrap(), &credentials).unwrap()
    }

    fn environment(links: &str) -> Vec<String> {
        let set = exports(links).environment(2, "1.2.3", None);
        set.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    const RESOURCE: &str = "OTEL_RESOURCE_ATTRIBUTES=service.name=links,service.instance.id=2,service.version=1.2.3";

    #[test]
    fn nothing_is_exported_unless_configured() {
        assert_eq!(environment("metrics.listen = \"off\""), [""; 0]);
        // Headers and switches have no effect without an endpoint.
        let switches = "[metrics]\nlisten = \"off\"\n[telemetry]\nlogs = true\nheaders = \"credential:otlp\"";
        assert_eq!(environment(switches), [""; 0]);
    }

    #[test]
    fn by_default_only_metrics_are_exported_and_only_to_the_agent() {
        assert_eq!(
            environment(""),
            [
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://127.0.0.1:9465/v1/metrics",
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/protobuf",
                "OTEL_METRIC_EXPORT_INTERVAL=10000",
                RESOURCE,
            ]
        );
        assert_eq!(exports("").forward(), None);
    }

    #[test]
    fn traces_and_logs_are_sent_directly_and_metrics_via_the_agent() {
        let links = "[telemetry]\nendpoint = \"https://otel.example/base/\"\nheaders = \"credential:otlp\"\nlogs = true\nsampling = 0.25";
        assert_eq!(
            environment(links),
            [
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://otel.example/base/v1/traces",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS=authorization=Bearer%20s3cret",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://127.0.0.1:9465/v1/metrics",
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/protobuf",
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=https://otel.example/base/v1/logs",
                "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=http/protobuf",
                "OTEL_EXPORTER_OTLP_LOGS_HEADERS=authorization=Bearer%20s3cret",
                "OTEL_TRACES_SAMPLER=parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG=0.25",
                "OTEL_METRIC_EXPORT_INTERVAL=10000",
                RESOURCE,
            ]
        );
        let forward = exports(links).forward().cloned().unwrap();
        assert_eq!(forward.url, "https://otel.example/base/v1/metrics");
        assert_eq!(
            format!("{forward:?}"),
            "https://otel.example/base/v1/metrics by http/protobuf",
            "no secret"
        );
    }

    #[test]
    fn only_the_agent_gets_the_secret_of_the_instances() {
        let secret = Secret::of_digit('7');
        let carrying = |links: &str| {
            let set = exports(links).environment(2, "1.2.3", Some(&secret));
            let with = set.into_iter().filter(|(_, value)| value.contains(secret.as_str()));
            with.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let header = format!(
            "OTEL_EXPORTER_OTLP_METRICS_HEADERS=links-otlp-secret={}",
            secret.as_str()
        );
        let telemetry =
            "[telemetry]\nendpoint = \"https://otel.example\"\nheaders = \"credential:otlp\"\nlogs = true\n";
        assert_eq!(carrying(""), std::slice::from_ref(&header));
        assert_eq!(carrying(telemetry), [header]);
        assert_eq!(carrying(&format!("metrics.listen = \"off\"\n{telemetry}")), [""; 0]);
    }

    #[test]
    fn without_the_agent_metrics_are_sent_directly() {
        let links = "metrics.listen = \"off\"\n[telemetry]\nendpoint = \"http://127.0.0.1:4317\"\nprotocol = \"grpc\"\ntraces = false";
        assert_eq!(
            environment(links),
            [
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://127.0.0.1:4317",
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=grpc",
                "OTEL_METRIC_EXPORT_INTERVAL=10000",
                RESOURCE,
            ]
        );
        assert_eq!(exports(links).forward(), None);
    }

    #[test]
    fn headers_are_decoded_and_anything_else_is_refused() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            headers("Authorization=Basic%20YTpi==, x-scope=a%2Cb"),
            Some(vec![pair("authorization", "Basic YTpi=="), pair("x-scope", "a,b")])
        );
        for wrong in ["s3cret", "=x", "a b=c", "a=%", "a=%zz", "a=%0a", "a=b,", "a=\u{e4}"] {
            assert_eq!(headers(wrong), None, "{wrong}");
        }
    }
}
