//! Traces for the user's collector: each request has one trace, from the instance to the database.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::http::Client;
use links_tests::otlp::{Span, spans};
use links_tests::servers::{Collector, LibSql};
use links_tests::{Host, eventually};

const TOKEN: &str = "turso-s3cret";
/// Long enough for spans to arrive: they are sent in batches, every few seconds.
const TIMEOUT: Duration = Duration::from_secs(40);

#[test]
fn a_trace_goes_from_the_request_to_the_database() -> Result<()> {
    let host = Host::builder().serving()?;
    let collector = Collector::start(&host.network(), 4318)?;
    let quiet = "[rollout]\nmin_healthy = \"200ms\"\n";
    let telemetry = format!("{quiet}[telemetry]\nendpoint = \"http://127.0.0.1:4318\"\n");
    let traces = Traces {
        collector: &collector,
        // Spin 4.0.2 has no spans for the database calls of WASI 0.3 components.
        has_database_spans: !host.runtime()?.is_spin(),
        site: host.site()?,
    };

    // Without an endpoint nothing is sent, neither now nor after one is configured.
    traces.request(1)?;
    host.configure_links(&telemetry)?;
    traces.request(2)?;
    traces.is_complete(2)?;
    ensure!(
        traces.trace(1)?.is_empty(),
        "spans from before the endpoint was configured were sent"
    );

    let _libsql = LibSql::start_in(&host, TOKEN)?;
    host.credential("turso_token", TOKEN)?;
    host.configure_runtime(&LibSql::runtime_toml())?;
    traces.request(3)?;
    traces.is_complete(3)?;
    for collected in collector.collected() {
        let text = String::from_utf8_lossy(&collected.message).into_owned();
        ensure!(!text.contains(TOKEN), "{text}");
    }

    // A client decides neither which trace its request belongs to nor whether it is traced.
    let forged = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{forged}-00f067aa0ba902b7-00");
    let client = traces.site.clone().header("traceparent", &parent);
    ensure!(client.get(&nowhere(4))?.status == 404);
    traces.is_complete(4)?;
    ensure!(traces.spans()?.iter().all(|span| span.trace != forged));
    Ok(())
}

/// A link that does not exist. Each request needs its own, because nginx caches a 404 for a second.
fn nowhere(number: u8) -> String {
    format!("/no-such-link-{number}")
}

/// Whether the span is a database call, which OpenTelemetry marks with `db.system`.
fn is_database_call(span: &Span) -> bool {
    span.attributes
        .iter()
        .any(|(key, value)| key == "db.system" && value == "sqlite")
}

/// Requests to a host, and their traces as the collector has received them.
struct Traces<'a> {
    collector: &'a Collector,
    /// Whether the runtime has spans for database calls.
    has_database_spans: bool,
    site: Client,
}

impl Traces<'_> {
    /// Requests a link that is in no cache.
    fn request(&self, number: u8) -> Result<()> {
        let answer = self.site.get(&nowhere(number))?;
        ensure!(answer.status == 404, "{answer}");
        Ok(())
    }

    /// All spans that have arrived.
    fn spans(&self) -> Result<Vec<Span>> {
        let collected = self.collector.collected();
        let exports = collected.iter().filter(|it| it.path == "/v1/traces");
        let all = exports.map(|it| spans(&it.message)).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().collect())
    }

    /// The spans of the trace of request `number`.
    fn trace(&self, number: u8) -> Result<Vec<Span>> {
        let spans = self.spans()?;
        let path = ("url.path".to_owned(), nowhere(number));
        let request = spans.iter().find(|span| span.attributes.contains(&path));
        let Some(id) = request.map(|request| request.trace.clone()) else {
            return Ok(vec![]);
        };
        Ok(spans.into_iter().filter(|span| span.trace == id).collect())
    }

    /// Waits until the trace of request `number` is complete: a root span of the request, its child for the component, and a
    /// database call.
    fn is_complete(&self, number: u8) -> Result<()> {
        let mut last = vec![];
        let found = eventually("the trace is complete", TIMEOUT, || {
            last = self.trace(number)?;
            let request = last.iter().find(|span| span.parent.is_empty());
            let component = last.iter().find(|span| span.name == "execute_wasm_component redirect");
            let has_call = !self.has_database_spans || last.iter().any(is_database_call);
            let is_child = request.is_some_and(|request| component.is_some_and(|it| it.parent == request.id));
            Ok((is_child && has_call).then(|| last.clone()))
        })
        .with_context(|| {
            let all = self.spans().unwrap_or_default();
            let all = all
                .iter()
                .map(|it| format!("{} {}: {} <- {}", it.trace, it.name, it.id, it.parent));
            format!("all spans:\n{}", all.collect::<Vec<_>>().join("\n"))
        })?;
        for span in &found {
            println!("trace {number}: {} {} <- {}", span.name, span.id, span.parent);
            let known = span.parent.is_empty() || found.iter().any(|other| other.id == span.parent);
            ensure!(known, "the parent of {span:?} is missing from {found:#?}");
            let [name, instance, version] = &span.service;
            ensure!(
                name == "links" && ["1", "2"].contains(&&**instance) && !version.is_empty(),
                "{span:?}"
            );
        }
        Ok(())
    }
}
