//! Where things are said: results on standard output, progress and notes on standard error.

use crate::exit::Failure;
use crate::render::span;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Shortest time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// A document of `--json`: its schema first, then the fields of `body`.
#[derive(Serialize)]
struct Document<'a, T> {
    schema: &'a str,
    #[serde(flatten)]
    body: T,
}

/// How results are given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Gives the result of a command: one document of `schema`, or `text` for people.
    pub(crate) fn give<T: Serialize>(
        self,
        schema: &str,
        body: T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let said = if self.json { document(schema, body)? } else { text() };
        line(&said);
        Ok(())
    }

    /// Tells of a failure: always a sentence on standard error, with `--json` a document too.
    pub(crate) fn failed(self, failure: &Failure) {
        if self.json && !failure.after_result {
            let body = serde_json::json!({
                "exit_code": failure.exit as u8,
                "kind": failure.exit.name(),
                "reason": failure.reason,
                "error": failure.text,
            });
            if let Ok(text) = document("rondo.error/1", body) {
                line(&text);
            }
        }
        note(&format!("error: {}", failure.text));
    }
}

/// The text of a document.
pub(crate) fn document<T: Serialize>(schema: &str, body: T) -> Result<String, Failure> {
    serde_json::to_string(&Document { schema, body })
        .map_err(|e| Failure::new(crate::exit::Exit::Internal, format!("writing JSON: {e}")))
}

/// A line on standard output. A reader that went away is no failure of ours.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A line on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Whether progress may be redrawn.
pub(crate) fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Progress of a long piece of work with a known number of items.
pub(crate) struct Steps {
    what: &'static str,
    bar: Option<ProgressBar>,
    said: Mutex<Option<Instant>>,
    start: Instant,
}

impl Steps {
    pub(crate) fn new(what: &'static str) -> Self {
        let bar = on_terminal().then(|| {
            let style = "{prefix} {wide_bar} {pos}/{len} · {per_sec} · ETA {eta} · {msg}";
            ProgressBar::new(0)
                .with_style(
                    ProgressStyle::with_template(style)
                        .unwrap_or_else(|_| ProgressStyle::default_bar()),
                )
                .with_prefix(what)
        });
        Self { what, bar, said: Mutex::new(None), start: Instant::now() }
    }

    /// Item `item` was done: `done` of `total`.
    pub(crate) fn at(&self, done: usize, total: usize, item: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(item.to_owned());
            return;
        }
        let Ok(mut said) = self.said.lock() else { return };
        if done == total || said.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            let left = total.saturating_sub(done) as f64 / done.max(1) as f64;
            let left = match self.start.elapsed().as_secs_f64() * left {
                s if s >= 1.0 => format!(", about {} left", span(s)),
                _ => String::new(),
            };
            note(&format!("{}: {done} of {total} ({item}){left}", self.what));
            *said = Some(Instant::now());
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_document_begins_with_its_schema() {
        let text = document("rondo.test/1", serde_json::json!({"a": 1.5, "b": null})).unwrap();
        assert_eq!(text, r#"{"schema":"rondo.test/1","a":1.5,"b":null}"#);
    }
}
