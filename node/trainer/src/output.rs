//! What the program prints: JSON lines for other programs, a bar for a terminal, plain lines otherwise.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use rondo_learn::report::Progress;
use serde::Serialize;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::{IsTerminal, Write};

/// Version of the JSON lines; raised when a field changes its meaning or goes away.
pub(crate) const SCHEMA: u32 = 1;

/// A visit's event as a JSON line.
#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    #[serde(flatten)]
    event: &'a Progress,
}

pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

pub(crate) fn error(text: &str) {
    // Nothing is left to do where even this cannot be written.
    // In one piece: another trainer of this site may begin to write to the same log.
    let line = format!("error: {text}\n");
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Tells what happens.
pub(crate) struct Output {
    json: bool,
    bar: Option<ProgressBar>,
    /// The last validation.
    dice: Cell<Option<f64>>,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
            ProgressBar::no_length()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { json, bar, dice: Cell::new(None) }
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
            return line(&serde_json::to_string(&Line { schema: SCHEMA, event })?);
        }
        match event {
            Progress::Notice { text } => self.notice(text),
            Progress::Started { cases, validation_cases, epochs, updates } => self.event(
                "started",
                Value::Null,
                &format!("{cases} cases, {validation_cases} for validation, {epochs} epochs, about {updates} updates"),
            ),
            Progress::Validated { epoch, dice } => {
                self.dice.set(Some(*dice));
                let model = match epoch {
                    0 => "received model".to_owned(),
                    _ => format!("epoch {epoch}"),
                };
                let text = format!("{model}: validation Dice {dice:.4}");
                self.event("validated", Value::Null, &text)
            }
            Progress::Update { update, updates, .. } => {
                let text = figures(event, self.dice.get());
                match &self.bar {
                    Some(bar) => {
                        bar.set_length(u64::from(*updates));
                        bar.set_position(u64::from(*update));
                        bar.set_message(text);
                        Ok(())
                    }
                    None if is_milestone(*update, *updates) => {
                        line(&format!("update {update}/{updates}  {text}"))
                    }
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

/// All figures of an update, on one line.
fn figures(event: &Progress, dice: Option<f64>) -> String {
    let Progress::Update {
        epoch,
        epochs,
        loss,
        learning_rate,
        segments_per_s,
        eta_s,
        memory_mib,
        ..
    } = event
    else {
        return String::new();
    };
    let mut text = format!(
        "epoch {epoch}/{epochs}  CE {:.4}  VSS {:.4}  KDL {:.3}",
        loss.ce, loss.vss, loss.kdl
    );
    let mut add = |more: String| text.push_str(&more);
    if loss.penalty > 0.0 {
        add(format!("  penalty {:.4}", loss.penalty));
    }
    add(format!("  lr {learning_rate:.1e}"));
    if let Some(dice) = dice {
        add(format!("  Dice {dice:.3}"));
    }
    add(format!("  {segments_per_s:.0} segments/s"));
    if let Some(mib) = memory_mib {
        add(format!("  {mib} MiB"));
    }
    add(format!("  {eta_s:.0} s left"));
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo_learn::loss::Parts;

    #[test]
    fn every_figure_is_in_both_forms() {
        let event = Progress::Update {
            epoch: 2,
            epochs: 3,
            update: 8,
            updates: 12,
            loss: Parts { ce: 0.1, vss: 0.5, kdl: 0.25, penalty: 0.75 },
            learning_rate: 1e-4,
            segments_per_s: 99.6,
            eta_s: 12.3,
            memory_mib: Some(640),
        };
        assert_eq!(
            figures(&event, Some(0.5)),
            "epoch 2/3  CE 0.1000  VSS 0.5000  KDL 0.250  penalty 0.7500  lr 1.0e-4  Dice 0.500  \
             100 segments/s  640 MiB  12 s left"
        );
        assert_eq!(
            serde_json::to_string(&Line { schema: SCHEMA, event: &event }).unwrap(),
            "{\"schema\":1,\"event\":\"update\",\"epoch\":2,\"epochs\":3,\"update\":8,\"updates\":12,\
             \"loss\":{\"ce\":0.1,\"vss\":0.5,\"kdl\":0.25,\"penalty\":0.75},\
             \"learning_rate\":0.0001,\"segments_per_s\":99.6,\"eta_s\":12.3,\"memory_mib\":640}"
        );
    }
}
