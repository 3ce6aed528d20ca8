//! Metrics of components: their requests, and what their instances use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, Meter};

/// Counts the requests of a component. OpenTelemetry's own counter looks its attributes up for every request.
#[derive(Debug)]
pub struct Requests(Arc<AtomicU64>);

impl Requests {
    pub(super) fn new(meter: &Meter, application: &str, component: &str) -> Self {
        let count = Arc::new(AtomicU64::new(0));
        let attributes = [
            KeyValue::new("trigger_type", "http"),
            KeyValue::new("app_id", application.to_owned()),
            KeyValue::new("component_id", component.to_owned()),
        ];
        let counted = count.clone();
        meter
            .u64_observable_counter("spin.request_count")
            .with_callback(move |counter| match counted.load(Relaxed) {
                // Spin does not report a component before its first request.
                0 => {}
                count => counter.observe(count, &attributes),
            })
            .build();
        Self(count)
    }

    pub fn count(&self) {
        self.0.fetch_add(1, Relaxed);
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
    pub(super) fn new(meter: &Meter, component: &str) -> Self {
        // As in Spin, the unit is an attribute.
        let attributes = |unit: &'static str| {
            [
                KeyValue::new("component_id", component.to_owned()),
                KeyValue::new("unit", unit),
            ]
        };
        Self {
            cpu_time: meter.f64_histogram("spin.component_cpu_time").build(),
            memory_used: meter.u64_histogram("spin.component_memory_used").build(),
            memory_used_on_init: meter.u64_histogram("spin.component_memory_used_on_init").build(),
            seconds: attributes("s"),
            bytes: attributes("By"),
        }
    }

    /// Records the usage of an instance. Memory is in bytes.
    pub fn record(&self, cpu_time: Duration, memory_used: u64, memory_used_on_init: u64) {
        self.cpu_time.record(cpu_time.as_secs_f64(), &self.seconds);
        self.memory_used_on_init.record(memory_used_on_init, &self.bytes);
        self.memory_used.record(memory_used, &self.bytes);
    }
}
