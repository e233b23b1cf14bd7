//! What the lab says while it works: lines with the time since its start, and on a terminal the
//! training under way below them. All of it on standard error.

use crate::output::{note, on_terminal};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest silence where there is no terminal.
const SILENCE_MAX_SECONDS: u64 = 20;
/// How often the line below is redrawn.
const REDRAW: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Board {
    start: Instant,
    /// Seconds after the start at which something was said last.
    said: AtomicU64,
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
        Self { start: Instant::now(), said: AtomicU64::new(0), below }
    }

    /// A line that stays.
    pub(crate) fn say(&self, text: &str) {
        let at = self.start.elapsed().as_secs();
        self.said.store(at, Ordering::Relaxed);
        let line = format!("[{at:>4} s] {text}");
        match &self.below {
            Some(bar) => bar.suspend(|| note(&line)),
            None => note(&line),
        }
    }

    /// What goes on now: always to be seen on a terminal, elsewhere said when it was quiet for long.
    pub(crate) fn now(&self, text: &str) {
        match &self.below {
            Some(bar) => bar.set_message(text.to_owned()),
            None => {
                let quiet = self
                    .start
                    .elapsed()
                    .as_secs()
                    .saturating_sub(self.said.load(Ordering::Relaxed));
                if quiet >= SILENCE_MAX_SECONDS {
                    self.say(text);
                }
            }
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
