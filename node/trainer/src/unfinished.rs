//! The state of a visit that is not finished, on disk: with it, a visit goes on after the process was
//! killed, wherever that was.

use crate::cases::Cases;
use anyhow::{Context, Result};
use rondo::ids::Digest;
use rondo_imaging::durable;
use rondo_learn::resume::Saved;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds between two states on disk, unless said otherwise. A crash costs the updates since the last
/// one, and whatever validation or measurement of importance was under way.
pub(crate) const SAVE_EVERY_S: u32 = 60;
/// States of other visits that are kept beside the one that ended.
const MOST: usize = 4;
/// Largest file that is read: the widest network, twice, with Adam's state.
const STATE_MAX_BYTES: u64 = 6 << 30;

/// The file of one visit.
pub(crate) struct Unfinished {
    path: PathBuf,
    every: Duration,
    last: Instant,
    failed: bool,
}

impl Unfinished {
    pub(crate) fn at(path: PathBuf, every: Duration) -> Self {
        Self { path, every, last: Instant::now(), failed: false }
    }

    /// What was kept of this visit, if anything.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the file.
    pub(crate) fn read(&self) -> Result<Option<Saved>> {
        durable::remove_abandoned(&self.path);
        let reading = || format!("reading the saved state {}", self.path.display());
        let file = match fs::File::open(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(reading)?,
        };
        let mut bytes = Vec::new();
        file.take(STATE_MAX_BYTES).read_to_end(&mut bytes).with_context(reading)?;
        Ok(Some(Saved::from_bytes(&bytes).with_context(reading)?))
    }

    /// Whether the last state on disk is old enough for another.
    pub(crate) fn due(&self) -> bool {
        self.last.elapsed() >= self.every
    }

    /// Keeps `state`. A disk that refuses does not stop the visit; the first refusal gives a sentence.
    pub(crate) fn keep(&mut self, state: &Saved) -> Option<String> {
        self.last = Instant::now();
        let error = self.write(&state.to_bytes()).err()?;
        let first = !std::mem::replace(&mut self.failed, true);
        first.then(|| format!("{error:#}; training goes on, but would begin anew after a crash"))
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        durable::write(&self.path, bytes)
            .with_context(|| format!("saving the state of the visit to {}", self.path.display()))
    }

    /// Removes the file, once the visit has its result.
    pub(crate) fn forget(&self) -> Result<()> {
        remove(&self.path)
    }
}

/// Removes a file that may be there or not.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the state `path`, whose visit has its result, and of the others in its folder all but the
/// newest [`MOST`]: their rounds may go on or not.
pub(crate) fn forget(path: &Path) -> Result<()> {
    remove(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut others = Vec::new();
    match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        listing => {
            for entry in listing.with_context(|| format!("listing {}", folder.display()))? {
                let entry = entry?;
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                others.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
    }
    others.sort();
    let many = others.len().saturating_sub(MOST);
    others.iter().take(many).try_for_each(|(_, path)| remove(path))
}

/// A digest over the contents of all cases: other images, labels or masks make another visit.
pub(crate) fn images(splits: [&Cases; 2]) -> Digest {
    Digest::of(splits.map(Cases::digests).concat().as_flattened())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn nothing_damage_and_a_full_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/state");
        let unfinished = Unfinished::at(path.clone(), Duration::from_secs(60));
        assert!(unfinished.read().unwrap().is_none() && !unfinished.due());
        unfinished.write(b"RONDOVIS and half a state").unwrap();
        let said = format!("{:#}", unfinished.read().unwrap_err());
        assert!(said.contains("deeper/state") && said.contains("format"), "{said}");
        unfinished.forget().unwrap();
        unfinished.forget().unwrap();
        assert!(unfinished.read().unwrap().is_none());
        for other in 0..6 {
            fs::write(folder.path().join(format!("deeper/{other}")), b"").unwrap();
        }
        forget(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path().join("deeper")).unwrap().count(), MOST);
        fs::write(folder.path().join("file"), b"").unwrap();
        let blocked = Unfinished::at(folder.path().join("file/state"), Duration::ZERO);
        assert!(blocked.write(b"x").is_err());
    }
}
