//! The threads that watch a runtime: one probes it, and one measures its memory.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::machine::{Event, Probing};
use links_base::endpoint::Endpoint;
use links_base::health::Probe;
use links_base::process::Group;
use links_config::links::Health;

/// The interval of probes before the first healthy answer. A warm start takes 10 to 40 ms.
const PROBE_AT_START: Duration = Duration::from_millis(10);
/// The default interval at which systemd's watchdog is fed: a third of `WatchdogSec=` in the unit.
const FEED: Duration = Duration::from_secs(10);
/// The interval at which the runtime's memory is measured.
const MEASURE: Duration = Duration::from_secs(5);

/// What a thread reports to the supervisor.
pub enum Message {
    Event(Event),
    /// The watchdog may be fed: the runtime answers, or the machine waits for its end with its own deadlines.
    Alive,
    /// The resident memory of the runtime's processes, in bytes.
    Memory(Option<u64>),
}

/// Starts a thread that probes until the returned sender is dropped. The sender changes how it probes.
pub fn spawn_prober(
    listen: &[Endpoint],
    health: &Health,
    sender: Sender<Message>,
    mut probing: Probing,
) -> Sender<Probing> {
    let probes: Vec<_> = listen
        .iter()
        .map(|endpoint| Probe::new(endpoint.clone(), health.timeout))
        .collect();
    let interval = health.interval;
    let feed = sd_notify::watchdog_enabled().map_or(FEED, |watchdog| watchdog / 3);
    let (change, changed) = mpsc::channel();
    std::thread::spawn(move || {
        loop {
            let messages = match probing {
                Probing::Eager | Probing::Regular => {
                    // Liveness decides whether the process is restarted, readiness only whether it is in rotation: a
                    // database outage is no reason to restart.
                    let alive = probes.iter().try_for_each(Probe::alive);
                    let ready = alive.clone().and_then(|()| probes.iter().try_for_each(Probe::ready));
                    [
                        alive.is_ok().then_some(Message::Alive),
                        Some(Message::Event(ready.map_or_else(Event::NotReady, |()| Event::Ready))),
                    ]
                }
                Probing::Off => [Some(Message::Alive), None],
            };
            for message in messages.into_iter().flatten() {
                if sender.send(message).is_err() {
                    return;
                }
            }
            let pause = match probing {
                Probing::Eager => PROBE_AT_START,
                Probing::Regular => interval.min(feed),
                Probing::Off => feed,
            };
            match changed.recv_timeout(pause) {
                Ok(new) => probing = new,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    change
}

/// Starts a thread that measures the runtime's memory until the receiver is gone. Reading /proc may take long on a host with
/// many processes.
pub fn spawn_gauge(group: Group, sender: Sender<Message>) {
    std::thread::spawn(move || {
        while sender.send(Message::Memory(group.resident_bytes())).is_ok() {
            std::thread::sleep(MEASURE);
        }
    });
}
