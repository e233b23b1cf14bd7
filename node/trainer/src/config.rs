//! `trainer.toml`: what hospital IT decides about a trainer.

use crate::unfinished::SAVE_EVERY_S;
use anyhow::{Context, Result};
use rondo::settings;
use rondo_learn::device::Choice;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A day: a longer time between two states would be as good as none.
const SAVE_EVERY_MAX_S: u32 = 24 * 3600;

/// A resolved configuration. Relative paths are relative to the folder of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Cohort file, or the folder it lies in.
    pub(crate) cohort: PathBuf,
    /// What to train on.
    pub(crate) device: Choice,
    /// Folder for prepared cases, unfinished visits, and results that the daemon does not have yet.
    pub(crate) work: PathBuf,
    /// Seconds between two states of an unfinished visit on disk.
    pub(crate) save_every_s: u32,
}

impl Config {
    /// Reads the file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let reading = || format!("reading the trainer configuration {}", path.display());
        let mut text = String::new();
        let limit = settings::SETTINGS_MAX_BYTES as u64 + 1;
        std::fs::File::open(path)
            .and_then(|file| file.take(limit).read_to_string(&mut text))
            .with_context(reading)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&text, folder).with_context(reading)
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, settings::Problems> {
        settings::parse("trainer configuration", text, |t| {
            let (cohort, work) = (t.text("cohort"), t.text("work"));
            let device = t.parsed("device");
            let save_every_s = t.integer32("save_every_s", 0, SAVE_EVERY_MAX_S);
            for (key, absent) in [("cohort", cohort.is_none()), ("work", work.is_none())] {
                if absent && !t.was_given(key) {
                    t.missing(key);
                }
            }
            Some(Self {
                cohort: folder.join(cohort?),
                device: device.unwrap_or(Choice::Auto),
                work: folder.join(work?),
                save_every_s: save_every_s.unwrap_or(SAVE_EVERY_S),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_come_together() {
        let text = "device = \"gpu\"\nsocket = \"x\"\n";
        let report = Config::parse(text, Path::new("/srv")).map(|_| ()).unwrap_err().to_string();
        for part in
            ["`cohort` is missing", "`work` is missing", "line 1: `device`", "unknown key `socket`"]
        {
            assert!(report.contains(part), "{part} is not in:\n{report}");
        }
        let config = Config::parse("cohort = \"/a\"\nwork = \"w\"\n", Path::new("/srv"));
        let found = config.map(|c| (c.work, c.save_every_s));
        assert_eq!(found, Ok((PathBuf::from("/srv/w"), SAVE_EVERY_S)));
        let example = include_str!("../../../deploy/examples/trainer.toml");
        assert!(Config::parse(example, Path::new("/srv")).is_ok());
    }
}
