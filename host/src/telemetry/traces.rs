//! Spans of requests and of the host calls that they make.

use http::{Method, Request};
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context as Trace, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;

use crate::serve::listen::Peer;

/// Starts spans.
#[derive(Clone, Debug)]
pub struct Tracer(pub(super) SdkTracer);

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
