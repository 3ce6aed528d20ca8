//! Supervises one instance: carries out what [`Machine`] decides.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::fcntl::Flock;
use nix::sys::signal::Signal;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::flag::Flag;
use crate::instance::{self, Instance};
use crate::machine::{Action, Event, Machine};
use crate::traffic::observe;
use crate::watch::{Message, spawn_gauge, spawn_prober};
use links_base::instance_stats::Recorder;
use links_base::layout::{self, Layout};
use links_base::notify::notify;
use links_base::process::{self, Process};
use links_base::{files, log};

/// The margin on the timeouts that systemd gets, for work besides the waiting.
const MARGIN: Duration = Duration::from_secs(10);

/// Runs instance `instance` until it is stopped or its runtime ends.
///
/// # Errors
/// The instance cannot be started, does not become healthy in time, or its runtime exits on its own.
pub fn run(layout: &Layout, instance: u16) -> anyhow::Result<()> {
    let run_dir = layout.instance_run_dir(instance);
    fs::create_dir_all(&run_dir).with_context(|| format!("Making {}", run_dir.display()))?;
    let _lock = lock(&run_dir.join("lock"), instance)?;
    let flag = Flag::new(layout, instance)?;
    let Instance {
        mut command,
        listen,
        health,
        times,
    } = instance::prepare(layout, instance)?;

    process::adopt_orphans()?;
    let (sender, messages) = mpsc::channel();
    let stop = sender.clone();
    process::on_signals([SIGTERM, SIGINT], move || {
        stop.send(Message::Event(Event::StopRequested)).is_ok()
    })?;
    let exit = sender.clone();
    let started = Instant::now();
    let running = Process::start(&mut command, Signal::SIGKILL, move |status| {
        // This fails once the supervisor is leaving, which is fine.
        let _ = exit.send(Message::Event(Event::Exited(process::describe(status))));
    })
    .with_context(|| format!("Starting {}", Path::new(command.get_program()).display()))?;

    let mut recorder = Recorder::started(layout.instance_metrics(instance));
    spawn_gauge(running.group(), sender.clone());
    let (mut machine, actions) = Machine::start(times);
    let mut actions = VecDeque::from(actions);
    let mut probing = machine.probing();
    let prober = spawn_prober(&listen, &health, sender, probing);
    let mut deadline = None;

    // The prober's thread ends when `prober` is dropped.
    let outcome = 'supervision: loop {
        while let Some(action) = actions.pop_front() {
            match action {
                Action::SetFlag => flag.set()?,
                Action::ClearFlag => flag.clear()?,
                Action::NotifyReady => {
                    log::notice!("instance {instance}: ready after {} ms", started.elapsed().as_millis());
                    notify(&[NotifyState::Ready]);
                }
                Action::NotifyStopping => notify(&[NotifyState::Stopping]),
                Action::NotifyStatus(text) => notify(&[NotifyState::Status(&text)]),
                Action::ExtendTimeout(time) => notify(&[NotifyState::ExtendTimeoutUsec(microseconds(time + MARGIN))]),
                Action::Log(text) => log::notice!("instance {instance}: {text}"),
                Action::Drained(time) => recorder.drained(time),
                Action::Observe => {
                    let observed = Event::Observed(observe(layout, instance, &listen));
                    actions.extend(machine.on(observed, started.elapsed()));
                }
                Action::Wake(after) => deadline = Some(Instant::now() + after),
                Action::Terminate => running.terminate(),
                Action::Kill => running.kill(),
                Action::Leave(outcome) => break 'supervision outcome,
            }
        }
        if machine.probing() != probing {
            probing = machine.probing();
            // The prober's thread runs until `prober` is dropped.
            let _ = prober.send(probing);
        }
        let message = match deadline {
            Some(at) => messages.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let event = match message {
            Ok(Message::Event(event)) => event,
            Ok(Message::Alive) => {
                notify(&[NotifyState::Watchdog]);
                continue;
            }
            Ok(Message::Memory(bytes)) => {
                recorder.memory(bytes);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {
                deadline = None;
                Event::Deadline
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the supervisor's own threads have ended"),
        };
        actions.extend(machine.on(event, started.elapsed()));
    };
    drop(prober);
    flag.clear()?;
    // Spin serves from a child process, which outlives Spin if Spin was killed.
    process::end_orphans()?;
    outcome.map_err(|error| anyhow::anyhow!("instance {instance}: {error}"))
}

/// Takes the lock of an instance, which the kernel releases however the process ends.
fn lock(path: &Path, instance: u16) -> anyhow::Result<Flock<File>> {
    let locked = files::lock(path, 0o600, &std::process::id().to_string())?;
    locked.with_context(|| {
        let holder = fs::read_to_string(path).unwrap_or_default();
        let unit = layout::instance_unit(instance);
        format!("instance {instance} is already run by process {holder}; `systemctl stop {unit}` stops it")
    })
}

/// The duration in microseconds, at most 71 minutes. links.toml allows less than that for a start or a drain.
fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_only_one_supervisor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = lock(&path, 1).unwrap();
        let error = lock(&path, 1).unwrap_err().to_string();
        assert!(
            error.contains(&format!("already run by process {}", std::process::id())),
            "{error}"
        );
        drop(held);
        lock(&path, 1).unwrap();
    }

    #[test]
    fn a_failed_start_leaves_no_flag() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        fs::write(layout.ready_flag(2), b"").unwrap();
        // No release is installed.
        run(&layout, 1).unwrap_err();
        assert!(!layout.ready_flag(1).exists());
        assert!(
            layout.ready_flag(2).exists(),
            "the flag of another instance was removed"
        );
    }

    #[test]
    fn a_second_supervisor_does_not_touch_the_flag() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.ready_dir()).unwrap();
        fs::create_dir_all(layout.instance_run_dir(1)).unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        let _held = lock(&layout.instance_run_dir(1).join("lock"), 1).unwrap();
        let error = run(&layout, 1).unwrap_err().to_string();
        assert!(error.contains("already run"), "{error}");
        assert!(layout.ready_flag(1).exists());
    }

    #[test]
    fn the_longest_timeout_fits_into_the_notification() {
        assert_eq!(microseconds(Duration::from_hours(1) + MARGIN), 3_610_000_000);
    }
}
