//! Watches whether an instance that was started stays healthy.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::appliance::Appliance;
use links_base::endpoint::Endpoint;
use links_base::health::Probe;
use links_base::layout;
use links_base::rotation::{self, Watch};
use links_base::services::{Services, last_lines};
use links_config::links::Config;
use links_config::load::load_links;

/// The time between two checks of an instance that has to stay healthy.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long a dying instance may take to end and to log the reason.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of failed checks in a row that make an instance unhealthy. A single failure may come from a full queue.
const MAX_FAILURES: u32 = 3;

/// Starts every instance that does not run yet, and watches each until it has been healthy for rollout.min_healthy.
///
/// # Errors
/// An instance does not serve. The error says which and why.
pub fn soak_all(appliance: &Appliance, config: &Config) -> anyhow::Result<()> {
    for instance in 1..=config.instances {
        appliance
            .services
            .carry_out("start", &layout::instance_unit(instance))
            .and_then(|()| watch(appliance, config, instance))
            .map_err(|error| explain(appliance, instance, error))?;
    }
    Ok(())
}

/// Adds to an error which instance does not serve, and with which version.
pub fn explain(appliance: &Appliance, instance: u16, error: anyhow::Error) -> anyhow::Error {
    let what = appliance.state.points(instance).map(|version| version.to_string());
    error.context(format!(
        "instance {instance} does not serve with {}",
        what.unwrap_or_else(|| "nothing to run".to_owned())
    ))
}

/// Watches an instance until it has been healthy for rollout.min_healthy.
///
/// # Errors
/// It does not stay healthy. The error quotes its last log lines.
pub fn watch(appliance: &Appliance, config: &Config, instance: u16) -> anyhow::Result<()> {
    let (own, _) = appliance.snapshots.of_instance(instance);
    let own = load_links(&own)?;
    let probe = Probe::new(
        Endpoint::of_running(&appliance.sockets, own.base_port, instance),
        own.health.timeout,
    );
    let watch = Watch::new(&appliance.ready)?;
    let end = Instant::now() + config.rollout.min_healthy;
    let mut failures = 0;
    loop {
        let in_rotation = rotation::ready_instances(&appliance.ready)?.contains(&instance);
        let outcome = probe.ready();
        failures = if outcome.is_ok() { 0 } else { failures + 1 };
        if !in_rotation || failures >= MAX_FAILURES {
            let why = outcome.err().unwrap_or_else(|| "it left the rotation".to_owned());
            let unit = layout::instance_unit(instance);
            await_end(appliance.services, &unit)?;
            bail!(
                "it became ready but did not stay healthy: {why}. Its last log lines:\n{}",
                last_lines(&unit)?
            );
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() && failures == 0 {
            return Ok(());
        }
        watch.wait(left.clamp(Duration::from_millis(1), POLL_INTERVAL))?;
    }
}

/// Waits a moment for an instance to end. An instance whose runtime has died leaves the rotation first and logs the reason a
/// moment later. One that is merely unhealthy may go on.
fn await_end(services: Services, unit: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while Instant::now() < deadline && services.states(&[unit.to_owned()])? == ["active"] {
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
