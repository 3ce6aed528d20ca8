//! Reports progress: as lines to a person, as one event per line to a script.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::json;

use links_base::log::printable;
use links_config::backup::Problem;

/// How to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Text,
    Json,
}

#[derive(Debug)]
pub struct Reporter {
    style: Style,
    /// Shows on a terminal what is going on.
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

    /// Shows what is going on, to a person who watches.
    pub fn doing(&self, what: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(printable(what));
        }
    }

    /// Reports a step of a plan.
    pub fn step(&self, name: &str, text: &str) {
        self.doing(text);
        match self.style {
            Style::Text => self.line(text),
            Style::Json => self.event(&json!({ "event": "step", "step": name, "text": text })),
        }
    }

    /// Reports a step of the undo.
    pub fn undo(&self, text: &str) {
        match self.style {
            Style::Text => self.line(&format!("undoing: {text}")),
            Style::Json => self.event(&json!({ "event": "undo", "text": text })),
        }
    }

    /// Reports something that the administrator should know, though it is no error.
    pub fn notice(&self, text: &str) {
        match self.style {
            Style::Text => self.suspended(|| eprintln!("linksctl: {}", printable(text))),
            Style::Json => self.event(&json!({ "event": "notice", "text": text })),
        }
    }

    /// Reports the result: `text` to a person, `value` to a script.
    ///
    /// # Errors
    /// None in practice.
    pub fn result(&self, text: &str, value: &impl Serialize) -> anyhow::Result<()> {
        match self.style {
            Style::Text => self.line(text),
            Style::Json => self.suspended(|| print(&serde_json::to_string(value).unwrap_or_default())),
        }
        Ok(())
    }

    /// Reports an error to a script. A person gets it as the error of the command.
    pub fn failure(&self, error: &anyhow::Error) {
        if self.style == Style::Json {
            let problem = Problem::of(error);
            self.event(&json!({ "event": "failed", "problem": problem, "error": format!("{error:#}") }));
        }
    }

    fn line(&self, text: &str) {
        self.suspended(|| print(&printable(text)));
    }

    fn event(&self, event: &serde_json::Value) {
        self.suspended(|| print(&event.to_string()));
    }

    fn suspended(&self, work: impl FnOnce()) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(work),
            None => work(),
        }
    }
}

/// Prints a line. A reader that has gone away is no reason to stop in the middle of a restore.
fn print(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// A number of bytes for a person.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while amount >= 1024.0
        && let Some(next) = units.next()
    {
        amount /= 1024.0;
        unit = Some(next);
    }
    let unit = unit.copied().unwrap_or_default();
    match unit {
        "bytes" => format!("{bytes} bytes"),
        _ => format!("{amount:.1} {unit}"),
    }
}

/// A number with its noun, such as `1 link` or `2 links`.
pub fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_are_readable() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(
            (count(1, "link"), count(0, "link")),
            ("1 link".to_owned(), "0 links".to_owned())
        );
    }
}
