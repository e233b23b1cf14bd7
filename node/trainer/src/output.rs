//! What the program prints: JSON lines for other programs, a bar for a terminal, plain lines otherwise.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use rondo_learn::report::Progress;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};

/// Version of the JSON lines; raised when a field changes its meaning or goes away.
pub(crate) const SCHEMA: u32 = 1;

pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

pub(crate) fn error(text: &str) {
    // Nothing is left to do where even this cannot be written.
    let _ = writeln!(std::io::stderr().lock(), "error: {text}");
}

/// Tells what happens.
pub(crate) struct Output {
    json: bool,
    bar: Option<ProgressBar>,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
            ProgressBar::no_length()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { json, bar }
    }

    /// One event: a JSON line, or `text` for people.
    pub(crate) fn event(&self, event: &str, fields: Value, text: &str) -> Result<()> {
        if !self.json {
            return match &self.bar {
                Some(bar) => bar.suspend(|| line(text)),
                None => line(text),
            };
        }
        let mut object = json!({"schema": SCHEMA, "event": event});
        if let (Value::Object(all), Value::Object(more)) = (&mut object, fields) {
            all.extend(more);
        }
        line(&object.to_string())
    }

    pub(crate) fn notice(&self, text: &str) -> Result<()> {
        self.event("notice", json!({"text": text}), &format!("note: {text}"))
    }

    /// How far something countable is.
    pub(crate) fn count(&self, what: &str, done: usize, total: usize) -> Result<()> {
        if self.json {
            return self.event("count", json!({"what": what, "done": done, "total": total}), "");
        }
        match &self.bar {
            Some(bar) => {
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                bar.set_message(what.to_owned());
                Ok(())
            }
            None if done == total => line(&format!("{what}: {total}")),
            None => Ok(()),
        }
    }

    /// A visit's progress.
    pub(crate) fn progress(&self, event: &Progress) -> Result<()> {
        if self.json {
            let mut value = serde_json::to_value(event)?;
            if let Value::Object(fields) = &mut value {
                fields.insert("schema".to_owned(), json!(SCHEMA));
            }
            return line(&value.to_string());
        }
        match event {
            Progress::Notice { text } => self.notice(text),
            Progress::Started { cases, validation_cases, epochs, updates } => self.event(
                "started",
                Value::Null,
                &format!("{cases} cases, {validation_cases} for validation, {epochs} epochs, about {updates} updates"),
            ),
            Progress::Validated { epoch: 0, dice } => {
                self.event("validated", Value::Null, &format!("received model: validation Dice {dice:.4}"))
            }
            Progress::Validated { epoch, dice } => {
                self.event("validated", Value::Null, &format!("epoch {epoch}: validation Dice {dice:.4}"))
            }
            Progress::Update { epoch, epochs, update, updates, loss, segments_per_s, eta_s, .. } => {
                let text = format!(
                    "epoch {epoch}/{epochs}  CE {:.4}  VSS {:.4}  KDL {:.3}  {segments_per_s:.0} segments/s  {eta_s:.0} s left",
                    loss.ce, loss.vss, loss.kdl
                );
                match &self.bar {
                    Some(bar) => {
                        bar.set_length(u64::from(*updates));
                        bar.set_position(u64::from(*update));
                        bar.set_message(text);
                        Ok(())
                    }
                    None if is_milestone(*update, *updates) => line(&format!("update {update}/{updates}  {text}")),
                    None => Ok(()),
                }
            }
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Some twenty lines for a log, whatever the length of the visit.
fn is_milestone(update: u32, updates: u32) -> bool {
    update.is_multiple_of((updates / 20).max(1)) || update == updates
}
