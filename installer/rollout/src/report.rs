//! Reports the progress of a rollout: as lines to a person, as events to a script.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;

use super::plan::Step;
use links_release::Version;

/// Something that happens in a rollout. With `--json`, each event is a line of output.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Something that was left by an earlier, interrupted rollout was undone.
    Recovered {
        text: String,
    },
    Planned {
        wanted: Version,
        instances: Vec<u16>,
        interrupts: bool,
        /// Whether the instances run now. Otherwise the change takes effect at their next start.
        live: bool,
    },
    Step {
        step: &'static str,
        instance: Option<u16>,
        text: String,
    },
    Failed {
        step: &'static str,
        instance: Option<u16>,
        error: String,
    },
    Undo {
        step: &'static str,
        instance: Option<u16>,
        text: String,
    },
    Notice {
        text: String,
    },
    Done {
        seconds: f64,
    },
}

impl Event {
    pub fn step(step: &Step) -> Self {
        Self::Step {
            step: step.name(),
            instance: step.instance(),
            text: step.to_string(),
        }
    }

    pub fn undoing(step: &Step) -> Self {
        Self::Undo {
            step: step.name(),
            instance: step.instance(),
            text: step.to_string(),
        }
    }

    pub fn failed(step: &Step, error: &anyhow::Error) -> Self {
        Self::Failed {
            step: step.name(),
            instance: step.instance(),
            error: format!("{error:#}"),
        }
    }

    /// The line for a person. `None` for a failure, which is printed as the error of the command.
    fn line(&self) -> Option<String> {
        Some(match self {
            Self::Recovered { text } => text.clone(),
            Self::Notice { text } => text.clone(),
            Self::Planned {
                wanted,
                instances,
                interrupts,
                live,
            } => {
                let list: Vec<_> = instances.iter().map(u16::to_string).collect();
                match (instances.is_empty(), *live, *interrupts) {
                    (true, ..) => format!("every instance already has {wanted}"),
                    (_, false, _) => format!("from the next start on: {wanted}"),
                    (_, _, true) => format!(
                        "moving instance {} to {wanted}; this interrupts service for a moment",
                        list.join(", ")
                    ),
                    (_, _, false) => format!("moving instance {} to {wanted}", list.join(", then ")),
                }
            }
            Self::Step { text, .. } => text.clone(),
            Self::Failed { .. } => return None,
            Self::Undo { text, .. } => format!("undoing: {text}"),
            Self::Done { seconds } => format!("done in {seconds:.1} s"),
        })
    }
}

/// How to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Text,
    Json,
    #[cfg(test)]
    Silent,
}

#[derive(Debug)]
pub struct Reporter {
    style: Style,
    /// Shows on a terminal that the rollout is still going on.
    spinner: Option<ProgressBar>,
}

impl Reporter {
    pub fn new(style: Style) -> Self {
        let watched = style == Style::Text && std::io::stderr().is_terminal();
        Self {
            style,
            spinner: watched.then(|| {
                let spinner = ProgressBar::new_spinner();
                spinner.enable_steady_tick(Duration::from_millis(100));
                spinner
            }),
        }
    }

    #[cfg(test)]
    pub fn silent() -> Self {
        Self {
            style: Style::Silent,
            spinner: None,
        }
    }

    pub fn report(&mut self, event: &Event) {
        match self.style {
            Style::Text => {
                let Some(line) = event.line() else { return };
                match &self.spinner {
                    Some(spinner) => spinner.suspend(|| print(&line)),
                    None => print(&line),
                }
            }
            Style::Json => match serde_json::to_string(event) {
                Ok(line) => print(&line),
                Err(error) => links_base::log::error!("writing an event: {error}"),
            },
            #[cfg(test)]
            Style::Silent => {}
        }
    }
}

fn print(line: &str) {
    // A closed terminal is no reason to leave a rollout half done.
    let _ = writeln!(std::io::stdout(), "{line}");
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use links_release::testing::version;

    use super::*;

    fn planned(instances: Vec<u16>, interrupts: bool, live: bool) -> String {
        let event = Event::Planned {
            wanted: version("new"),
            instances,
            interrupts,
            live,
        };
        event.line().unwrap()
    }

    #[test]
    fn a_plan_that_interrupts_service_says_so() {
        assert_eq!(
            planned(vec![1], true, true),
            "moving instance 1 to release new with configuration a; this interrupts service for a moment"
        );
        for (instances, interrupts, live) in [(vec![1, 2], false, true), (vec![1], true, false), (vec![], true, true)] {
            let line = planned(instances, interrupts, live);
            assert!(!line.contains("interrupts"), "{line}");
        }
    }

    #[test]
    fn an_event_is_one_line_of_json() {
        let event = serde_json::to_string(&Event::step(&Step::Restart(2))).unwrap();
        assert_eq!(
            event,
            r#"{"event":"step","step":"restart","instance":2,"text":"instance 2: drain, restart, wait until it is ready"}"#
        );
    }
}
