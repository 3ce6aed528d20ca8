//! Every metric that the agent can expose, with its name, type and help text. Names and units follow Prometheus' conventions
//! ("Metric and label naming"): base units, and `_total` for counters.

/// One metric family: all samples that share a name.
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
    /// A sum and a count without quantiles. The rate of the sum divided by the rate of the count is the mean.
    Summary,
    /// For each bound the number of values that do not exceed it, plus a sum and a count.
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
        /// All families, in the order in which the page lists them.
        pub static ALL: &[&Family] = &[$(&$constant),*];
    };
}

families! {
    BUILD_INFO: Gauge, "links_build_info", "The version of links-agent that serves this page; always 1.";
    INSTANCES: Gauge, "links_instances_wanted", "Instances that links.toml asks for.";

    UP: Gauge, "links_instance_up", "Whether the instance's runtime has been started.";
    READY: Gauge, "links_instance_ready", "Whether the instance is in nginx's rotation.";
    INSTANCE_INFO: Gauge, "links_instance_info", "The release and the runtime that the instance runs; always 1.";
    STARTS: Counter, "links_instance_starts_total", "Starts of the instance's runtime since boot.";
    START_TIME: Gauge, "links_instance_start_time_seconds", "Last start of the instance's runtime, in seconds since 1970.";
    RESIDENT: Gauge, "links_instance_resident_memory_bytes", "Resident memory of the processes of the instance's runtime.";
    DRAIN: Gauge, "links_instance_last_drain_seconds", "How long the instance's last drain took.";

    REQUESTS: Counter, "links_requests_total", "Requests that reached a component, as reported by the runtimes.";
    CPU: Summary, "links_component_cpu_seconds", "Processor time of each Wasm instance of a component, measured when it ends.";
    MEMORY: Summary, "links_component_memory_bytes", "Memory of each Wasm instance of a component, measured when it ends.";
    MEMORY_ON_INIT: Summary, "links_component_memory_on_init_bytes", "Memory of each Wasm instance of a component, measured when it starts.";

    ROLLOUT_SUCCESS: Gauge, "links_rollout_last_success", "Whether the last rollout that had something to change succeeded.";
    ROLLOUT_INFO: Gauge, "links_rollout_last_info", "The release and the result of that rollout; always 1.";
    ROLLOUT_TIME: Gauge, "links_rollout_last_timestamp_seconds", "When that rollout ended, in seconds since 1970.";
    ROLLOUT_DURATION: Gauge, "links_rollout_last_duration_seconds", "How long that rollout took.";

    CERTIFICATE_START: Gauge, "links_certificate_not_before_timestamp_seconds", "When the certificate of a name with HTTPS began to be valid, in seconds since 1970.";
    CERTIFICATE_END: Gauge, "links_certificate_not_after_timestamp_seconds", "When the certificate of a name with HTTPS ends, in seconds since 1970; 0 if the name has none.";

    BACKUP_INTERVAL: Gauge, "links_backup_interval_seconds", "Time between two backups, as links.toml asks; absent while the timer is off.";
    BACKUP_SUCCESS: Gauge, "links_backup_last_success", "Whether the last attempt to make a backup succeeded.";
    BACKUP_TIME: Gauge, "links_backup_last_timestamp_seconds", "When the last attempt to make a backup ended, in seconds since 1970.";
    BACKUP_FAILURES: Gauge, "links_backup_failures", "Attempts to make a backup that have failed since the last one that succeeded.";
    BACKUP_GOOD_TIME: Gauge, "links_backup_last_success_timestamp_seconds", "When the last backup was begun that succeeded, in seconds since 1970.";
    BACKUP_DURATION: Gauge, "links_backup_last_success_duration_seconds", "How long the last backup that succeeded took.";
    BACKUP_SIZE: Gauge, "links_backup_last_success_size_bytes", "Size of the last backup that succeeded.";

    HTTP_REQUESTS: Counter, "links_http_requests_total", "Requests that nginx has answered, by route and status.";
    HTTP_DURATION: Histogram, "links_http_request_duration_seconds", "Time in nginx from the first byte of a request to the last byte of its response.";
    HTTP_UPSTREAM: Histogram, "links_http_upstream_duration_seconds", "Time that instances took for the requests that nginx passed to them.";
    HTTP_CACHE: Counter, "links_http_cache_requests_total", "Requests that nginx looked up in its cache, by result.";

    CLICKS: Counter, "links_clicks_total", "Clicks counted in the database, by who clicked.";
    CLICK_BATCHES: Counter, "links_click_batches_total", "Batches of clicks that the database has accepted.";
    JOURNAL_LINES: Counter, "links_journal_lines_total", "Lines read from nginx's journal.";
    JOURNAL_MALFORMED: Counter, "links_journal_malformed_lines_total", "Lines of the journal that could not be parsed.";
    JOURNAL_REPLACED: Counter, "links_journal_replaced_total", "Times that the journal was replaced by another file or emptied.";
    JOURNAL_LAG_BYTES: Gauge, "links_journal_lag_bytes", "Bytes of the journal whose clicks are not counted yet.";
    JOURNAL_LAG: Gauge, "links_journal_lag_seconds", "Age of the oldest click that has been read but not counted yet.";

    DATABASE_SIZE: Gauge, "links_database_size_bytes", "Size of the database: of the local file with its write-ahead log, or as the server reports it.";
    DATABASE_LOG: Gauge, "links_database_wal_bytes", "Size of the write-ahead log of a local database that the agent checkpoints.";
    CHECKPOINT_FAILURES: Counter, "links_database_checkpoint_failures_total", "Checkpoints by the agent that have failed.";
    DATABASE_FREE: Gauge, "links_database_filesystem_free_bytes", "Free space on the file system of the local database.";
    DATABASE_LINKS: Gauge, "links_database_links", "Links in the database, counted at most once a minute, or once an hour on a server.";

    OTLP_RECEIVED: Counter, "links_otlp_received_requests_total", "Exports of metrics received from the instance.";
    OTLP_REJECTED: Counter, "links_otlp_rejected_requests_total", "Exports that were refused, for example because they could not be parsed.";
    OTLP_IGNORED: Counter, "links_otlp_ignored_points_total", "Data points ignored because there were too many series.";
    OTLP_FORWARDED: Counter, "links_otlp_forwarded_requests_total", "Exports that the collector has accepted.";
    OTLP_DROPPED: Counter, "links_otlp_dropped_requests_total", "Exports that the collector never accepted.";
    OTLP_QUEUED: Gauge, "links_otlp_queued_requests", "Exports waiting to be sent to the collector.";
}

/// The family that exposes a metric of the runtimes, by the runtimes' name for it (Spin 4.0.2:
/// crates/trigger-http/src/server.rs, crates/factors-executor/src/lib.rs).
pub fn of_runtime(name: &str) -> Option<&'static Family> {
    Some(match name {
        "spin.request_count" => &REQUESTS,
        "spin.component_cpu_time" => &CPU,
        "spin.component_memory_used" => &MEMORY,
        "spin.component_memory_used_on_init" => &MEMORY_ON_INIT,
        _ => return None,
    })
}

/// All families that [`of_runtime`] returns.
pub static RUNTIME: [&Family; 4] = [&REQUESTS, &CPU, &MEMORY, &MEMORY_ON_INIT];
