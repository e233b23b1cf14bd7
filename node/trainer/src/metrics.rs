//! The figures of a local visit in its folder: `metrics.jsonl`, and an event file for TensorBoard.

use crate::output::SCHEMA;
use crate::tensorboard::Writer;
use anyhow::{Context, Result};
use rondo_learn::report::Progress;
use rondo_learn::resume::Saved;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One JSON object for each update and each validation.
const LINES: &str = "metrics.jsonl";
/// What `tensorboard --logdir` is given.
const EVENTS: &str = "tensorboard";
/// Longest line that is read back; ours have some 300 bytes.
const LINE_MAX_BYTES: u64 = 4096;

/// A line of [`LINES`].
#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    /// Unix time in seconds.
    at: f64,
    /// Updates made, for events that do not say it themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    update: Option<u32>,
    #[serde(flatten)]
    event: &'a Progress,
}

/// What a line must say to stay when a visit goes on.
#[derive(Deserialize)]
struct Made {
    event: String,
    update: u32,
}

/// Updates and validations of a visit so far.
#[derive(Debug, Clone, Copy)]
struct Progressed(u32, usize);

/// Both files of a visit, open.
pub(crate) struct Log {
    path: PathBuf,
    lines: File,
    events: Writer,
    update: u32,
}

impl Log {
    /// Opens the files in the folder `out` of a visit that begins, or goes on from a state.
    pub(crate) fn open(out: &Path, state: Option<&Saved>) -> Result<Self> {
        Self::after(out, state.map(|state| Progressed(state.updates(), state.validations())))
    }

    /// What was said of later updates and validations is removed, because they are made again.
    fn after(out: &Path, made: Option<Progressed>) -> Result<Self> {
        let path = out.join(LINES);
        let opened = OpenOptions::new().create(true).read(true).append(true).open(&path);
        let doing = || format!("opening {} for the figures of the visit", path.display());
        let lines = opened.with_context(doing)?;
        let kept = made.map_or(Ok(0), |made| bytes_to_keep(&lines, made)).with_context(doing)?;
        lines.set_len(kept).with_context(doing)?;
        let folder = out.join(EVENTS);
        let events = Writer::begin(&folder, made.map_or(0, |Progressed(n, _)| n.saturating_add(1)))
            .with_context(|| format!("beginning an event file in {}", folder.display()))?;
        Ok(Self { path, lines, events, update: made.map_or(0, |Progressed(n, _)| n) })
    }

    /// Writes down what an update or a validation gave; everything else is for the screen.
    pub(crate) fn hear(&mut self, event: &Progress) -> Result<()> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        let figures = match event {
            Progress::Update {
                update, loss, learning_rate, segments_per_s, memory_mib, ..
            } => {
                self.update = *update;
                let mut figures = vec![
                    ("loss/ce", loss.ce),
                    ("loss/vss", loss.vss),
                    ("loss/kdl", loss.kdl),
                    ("loss/penalty", loss.penalty),
                    ("learning_rate", *learning_rate as f32),
                    ("segments_per_s", *segments_per_s as f32),
                ];
                figures.extend(memory_mib.map(|mib| ("memory_mib", mib as f32)));
                figures
            }
            Progress::Validated { dice, .. } => vec![("validation/dice", *dice as f32)],
            Progress::Notice { .. } | Progress::Started { .. } => return Ok(()),
        };
        let says_update = matches!(event, Progress::Update { .. });
        let line = Line {
            schema: SCHEMA,
            at: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64(),
            update: (!says_update).then_some(self.update),
            event,
        };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        (self.lines.write_all(text.as_bytes()))
            .with_context(|| format!("writing {}", self.path.display()))?;
        self.events.scalars(self.update, &figures).context("writing the event file for TensorBoard")
    }
}

/// Bytes of the whole lines about what was `made`; a process may have died within a line.
fn bytes_to_keep(lines: &File, made: Progressed) -> std::io::Result<u64> {
    let mut reader = BufReader::new(lines);
    let (mut kept, mut validations, mut line) = (0, 0, Vec::new());
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_MAX_BYTES).read_until(b'\n', &mut line)?;
        let of = serde_json::from_slice::<Made>(&line).ok().filter(|_| line.ends_with(b"\n"));
        let Some(of) = of else { return Ok(kept) };
        validations += usize::from(of.event == "validated");
        if of.update > made.0 || validations > made.1 {
            return Ok(kept);
        }
        kept += read as u64;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::tensorboard::tests::read;
    use rondo_learn::loss::Parts;
    use serde_json::Value;

    fn update(update: u32) -> Progress {
        Progress::Update {
            epoch: 1,
            epochs: 2,
            update,
            updates: 9,
            loss: Parts { ce: 0.1, vss: 0.75, kdl: 2.5, penalty: 0.25 },
            learning_rate: 1e-3,
            segments_per_s: 40.0,
            eta_s: 3.5,
            memory_mib: (update > 1).then_some(512),
        }
    }

    fn lines(out: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(out.join(LINES)).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    #[test]
    fn a_visit_that_goes_on_says_no_update_twice() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path();
        let mut log = Log::after(out, None).unwrap();
        log.hear(&Progress::Notice { text: "case x".to_owned() }).unwrap();
        log.hear(&Progress::Validated { epoch: 0, dice: 0.25 }).unwrap();
        for event in [update(1), update(2), Progress::Validated { epoch: 1, dice: 0.5 }, update(3)]
        {
            log.hear(&event).unwrap();
        }
        let text = std::fs::read_to_string(out.join(LINES)).unwrap();
        assert!(text.contains("\"ce\":0.1,") && !text.contains("case x"), "{text}");
        // Killed within a line; the state kept is that after update 2.
        std::fs::write(out.join(LINES), &text[..text.len() - 5]).unwrap();
        let mut log = Log::after(out, Some(Progressed(2, 1))).unwrap();
        log.hear(&update(3)).unwrap();
        log.hear(&Progress::Validated { epoch: 2, dice: 0.75 }).unwrap();
        let said: Vec<_> = lines(out)
            .iter()
            .map(|l| (l["event"].clone(), l["update"].as_u64().unwrap()))
            .collect();
        let events = ["validated", "update", "update", "update", "validated"];
        assert_eq!(
            said,
            events.into_iter().map(Value::from).zip([0, 1, 2, 3, 3]).collect::<Vec<_>>()
        );
        let last = &lines(out)[3];
        assert_eq!((&last["loss"]["penalty"], &last["memory_mib"]), (&0.25.into(), &512.into()));

        let mut files: Vec<_> =
            std::fs::read_dir(out.join(EVENTS)).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let events: Vec<_> = files.iter().map(|f| read(&std::fs::read(f).unwrap())).collect();
        assert_eq!(events[0][1], (0, "log 1".to_owned(), 0.0));
        assert_eq!(events[0][2], (0, "validation/dice".to_owned(), 0.25));
        assert_eq!(events[1][1], (3, "log 1".to_owned(), 0.0), "3 and later are forgotten");
        assert_eq!(events[1].last(), Some(&(3, "validation/dice".to_owned(), 0.75)));
        assert!(events[1].contains(&(3, "memory_mib".to_owned(), 512.0)));

        Log::after(out, Some(Progressed(0, 1))).unwrap();
        assert_eq!(lines(out).len(), 1, "only the validation of the received model was made");
        Log::after(out, None).unwrap();
        assert!(lines(out).is_empty(), "a new visit in the same folder begins anew");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = Log::open(Path::new("/proc/none"), None).err().unwrap();
        assert!(format!("{error:#}").contains("/proc/none/metrics.jsonl"), "{error:#}");
    }
}
