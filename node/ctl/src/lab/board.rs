//! What the lab says while it works: lines with the time since its start, and on a terminal the
//! training under way below them. All of it on standard error.

use crate::output::{note, on_terminal};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// How often the line below is redrawn.
const REDRAW: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Board {
    start: Instant,
    below: Option<ProgressBar>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let below = on_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
            let bar = ProgressBar::new_spinner()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(REDRAW);
            bar
        });
        Self { start: Instant::now(), below }
    }

    /// A line that stays.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("[{:>4} s] {text}", self.start.elapsed().as_secs());
        match &self.below {
            Some(bar) => bar.suspend(|| note(&line)),
            None => note(&line),
        }
    }

    /// What goes on now; only shown on a terminal.
    pub(crate) fn now(&self, text: &str) {
        if let Some(bar) = &self.below {
            bar.set_message(text.to_owned());
        }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Some(bar) = &self.below {
            bar.finish_and_clear();
        }
    }
}
