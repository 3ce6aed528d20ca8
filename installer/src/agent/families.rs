//! Every metric that the agent can expose: name, type, and what it says. Names and units follow Prometheus' convention
//! ("Metric and label naming"): base units, `_total` for counters, one name for one thing.

/// The samples of one name.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    /// A sum and a count, without quantiles: a rate of the one by a rate of the other is the mean.
    Summary,
    /// Counts of what is not larger than a bound each, a sum and a count.
    Histogram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Summary => "summary",
            Self::Histogram => "histogram",
        }
    }
}

macro_rules! families {
    ($($constant:ident: $kind:ident, $name:literal, $help:literal;)*) => {
        $(pub static $constant: Family = Family { name: $name, kind: Kind::$kind, help: $help };)*
        /// In the order of the page.
        pub static ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    BUILD_INFO: Gauge, "links_build_info", "The version of linksctl that answers; always 1.";
    INSTANCES: Gauge, "links_instances_wanted", "Instances that links.toml asks for.";

    UP: Gauge, "links_instance_up", "Whether the instance's supervisor has started its runtime.";
    READY: Gauge, "links_instance_ready", "Whether the instance is in nginx's rotation.";
    INSTANCE_INFO: Gauge, "links_instance_info", "The release and the runtime that the instance runs; always 1.";
    STARTS: Counter, "links_instance_starts_total", "Starts of the instance's runtime since the boot.";
    START_TIME: Gauge, "links_instance_start_time_seconds", "Last start of the instance's runtime, since 1970.";
    RESIDENT: Gauge, "links_instance_resident_memory_bytes", "Memory of the processes of the instance's runtime.";
    DRAIN: Gauge, "links_instance_last_drain_seconds", "How long the instance's last drain took.";

    REQUESTS: Counter, "links_requests_total", "Requests that reached a component, as the runtimes have sent.";
    CPU: Summary, "links_component_cpu_seconds", "Processor time of instances of a component, at their end.";
    MEMORY: Summary, "links_component_memory_bytes", "Memory of instances of a component, at their end.";
    MEMORY_ON_INIT: Summary, "links_component_memory_on_init_bytes", "Memory of instances of a component, when they began.";

    ROLLOUT_SUCCESS: Gauge, "links_rollout_last_success", "Whether the last rollout that had something to change succeeded.";
    ROLLOUT_INFO: Gauge, "links_rollout_last_info", "The release and the result of that rollout; always 1.";
    ROLLOUT_TIME: Gauge, "links_rollout_last_timestamp_seconds", "When that rollout ended, since 1970.";
    ROLLOUT_DURATION: Gauge, "links_rollout_last_duration_seconds", "How long that rollout took.";

    HTTP_REQUESTS: Counter, "links_http_requests_total", "Requests that nginx has answered, by what was asked for and the status.";
    HTTP_DURATION: Histogram, "links_http_request_duration_seconds", "From a request's first byte to the last of its answer, in nginx.";
    HTTP_UPSTREAM: Histogram, "links_http_upstream_duration_seconds", "How long instances took for requests that nginx asked them for.";
    HTTP_CACHE: Counter, "links_http_cache_requests_total", "Requests that nginx's cache was asked for, by what it did.";

    CLICKS: Counter, "links_clicks_total", "Clicks that the database has counted, by who clicked.";
    CLICK_BATCHES: Counter, "links_click_batches_total", "Batches of clicks that the database has taken.";
    JOURNAL_LINES: Counter, "links_journal_lines_total", "Lines of nginx's journal that were read.";
    JOURNAL_MALFORMED: Counter, "links_journal_malformed_lines_total", "Lines of the journal that could not be understood.";
    JOURNAL_REPLACED: Counter, "links_journal_replaced_total", "Times that the journal was another file, or was emptied.";
    JOURNAL_LAG_BYTES: Gauge, "links_journal_lag_bytes", "Bytes of the journal that are not counted yet.";
    JOURNAL_LAG: Gauge, "links_journal_lag_seconds", "Age of the oldest click that was read and is not counted yet.";

    DATABASE_SIZE: Gauge, "links_database_size_bytes", "The database: a local one with its write-ahead log, or what a server tells of it.";
    DATABASE_LOG: Gauge, "links_database_wal_bytes", "The write-ahead log of a local database that the agent checkpoints.";
    CHECKPOINT_FAILURES: Counter, "links_database_checkpoint_failures_total", "Checkpoints by the agent that failed.";
    DATABASE_FREE: Gauge, "links_database_filesystem_free_bytes", "Free space where the local database is.";
    DATABASE_LINKS: Gauge, "links_database_links", "Links in the database, counted once a minute at most, on a server once an hour.";

    OTLP_RECEIVED: Counter, "links_otlp_received_requests_total", "Exports of metrics that came from the instance.";
    OTLP_REJECTED: Counter, "links_otlp_rejected_requests_total", "Exports that could not be understood.";
    OTLP_IGNORED: Counter, "links_otlp_ignored_points_total", "Data points left out because there are too many series.";
    OTLP_FORWARDED: Counter, "links_otlp_forwarded_requests_total", "Exports that the collector has taken.";
    OTLP_DROPPED: Counter, "links_otlp_dropped_requests_total", "Exports that the collector never got.";
    OTLP_QUEUED: Gauge, "links_otlp_queued_requests", "Exports that wait for the collector.";
}

/// What the runtimes send that is exposed, by the name that it has there (Spin 4.0.2: crates/trigger-http/src/server.rs,
/// crates/factors-executor/src/lib.rs).
pub fn of_runtime(name: &str) -> Option<&'static Family> {
    Some(match name {
        "spin.request_count" => &REQUESTS,
        "spin.component_cpu_time" => &CPU,
        "spin.component_memory_used" => &MEMORY,
        "spin.component_memory_used_on_init" => &MEMORY_ON_INIT,
        _ => return None,
    })
}

/// What [`of_runtime`] gives.
pub static RUNTIME: [&Family; 4] = [&REQUESTS, &CPU, &MEMORY, &MEMORY_ON_INIT];
