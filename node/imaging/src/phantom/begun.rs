//! A cohort in the making: which options it is made with and which of its cases are whole, so that an
//! interrupted synthesis goes on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::metastasis::Painted;
use super::{Error, Source, SynthOptions};
use crate::durable;

/// Changes whenever the same options make other volumes.
const MAKING: u32 = 2;
/// Folder beside the volumes until the cohort file is written.
const FOLDER: &str = ".unfinished";
/// Longest note that is read.
const MAX_NOTE_BYTES: u64 = 4096;

/// Notes of a synthesis that is not finished.
pub(super) struct Begun {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Note {
    made_with: String,
    painted: Option<Painted>,
}

impl Begun {
    /// Begins in a folder, or goes on where the same options have begun.
    pub(super) fn new(
        cohort: &Path,
        options: &SynthOptions,
        source: &Source,
    ) -> Result<Self, Error> {
        let folder = cohort.join(FOLDER);
        let failed = |source| Error::Folder { path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let begun = Self { folder: folder.clone() };
        let made_with = digest(options, source);
        match begun.read("options") {
            Some(note) if note.made_with == made_with => {}
            Some(_) => return Err(Error::Unfinished(cohort.to_path_buf())),
            None => begun.write("options", &Note { made_with, painted: None }).map_err(failed)?,
        }
        Ok(begun)
    }

    /// What was painted into a case whose files are all written.
    pub(super) fn painted(&self, id: &str) -> Option<Painted> {
        self.read(id).and_then(|note| note.painted)
    }

    /// Notes that all files of a case are written.
    pub(super) fn note(&self, id: &str, painted: Painted) -> Result<(), Error> {
        let note = Note { made_with: String::new(), painted: Some(painted) };
        self.write(id, &note).map_err(|source| Error::Folder { path: self.folder.clone(), source })
    }

    /// Removes the notes; what cannot be removed harms nothing.
    pub(super) fn finished(self) {
        let _ = std::fs::remove_dir_all(self.folder);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn read(&self, name: &str) -> Option<Note> {
        let path = self.file(name);
        let short = std::fs::metadata(&path).ok()?.len() <= MAX_NOTE_BYTES;
        serde_json::from_slice(&std::fs::read(path).ok().filter(|_| short)?).ok()
    }

    fn write(&self, name: &str, note: &Note) -> std::io::Result<()> {
        durable::write(&self.file(name), &serde_json::to_vec(note)?)
    }
}

/// Of everything that decides what the volumes hold.
fn digest(options: &SynthOptions, source: &Source) -> String {
    let mut hash = Sha256::new();
    hash.update(MAKING.to_le_bytes());
    // The derived form names every field, so no option is forgotten.
    hash.update(format!("{:?}", SynthOptions { anatomy: None, ..options.clone() }));
    if let Source::Real(image, mask) = source {
        hash.update(format!("{:?}", image.geometry()));
        image.data().iter().for_each(|v| hash.update(v.to_le_bytes()));
        mask.iter().for_each(|v| hash.update([*v]));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
