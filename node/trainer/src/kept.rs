//! The result of the last visit on the trainer's own disk, so that a finished visit is never trained
//! again because a process died before the daemon had its weights.

use anyhow::{Context, Result};
use prost::Message as _;
use rondo::checkpoint::{Layout, VerifiedCheckpoint};
use rondo::ids::Digest;
use rondo_imaging::durable;
use rondo_proto::convert::digest;
use rondo_proto::trainer::{TrainResult, TrainTask};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the result of one task is kept: named by the digest of the whole task, so that another
/// seed, recipe or received model is another result.
pub(crate) struct Kept {
    folder: PathBuf,
    task: Digest,
}

impl Kept {
    pub(crate) fn of(work: &Path, task: &TrainTask) -> Self {
        Self { folder: work.join("results"), task: Digest::of(&task.encode_to_vec()) }
    }

    /// The task's name among files.
    pub(crate) fn name(&self) -> String {
        self.task.to_string()
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}.{ending}", self.task))
    }

    /// Weights and figures of this task, if they are here and whole.
    pub(crate) fn read(&self, layout: &Layout) -> Option<(Vec<u8>, TrainResult)> {
        let result = TrainResult::decode(fs::read(self.path("result")).ok()?.as_slice()).ok()?;
        let weights = digest("weights", &result.weights).ok()?;
        let bytes = fs::read(self.path("safetensors")).ok()?;
        let verified = VerifiedCheckpoint::verify(bytes, weights, layout).ok()?;
        Some((verified.bytes().to_vec(), result))
    }

    /// Keeps weights, then the figures that make them count.
    pub(crate) fn write(&self, bytes: &[u8], result: &TrainResult) -> Result<()> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("creating {}", self.folder.display()))?;
        for (path, bytes) in
            [(self.path("safetensors"), bytes), (self.path("result"), &result.encode_to_vec())]
        {
            durable::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes results of other tasks; the daemon has those.
    pub(crate) fn forget_others(&self) -> Result<()> {
        let own = self.task.to_string();
        let listing = fs::read_dir(&self.folder);
        for entry in listing.with_context(|| format!("listing {}", self.folder.display()))? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(&own) {
                let path = entry.path();
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rondo::checkpoint::Extras;
    use rondo::recipe::Architecture;

    #[test]
    fn a_result_counts_only_for_its_task_and_whole() {
        let work = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(&Architecture { n1: 1, n2: 1, n3: 1, m: 1 }, Extras::NONE);
        let mut bytes = layout.header().to_vec();
        bytes.resize(usize::try_from(layout.len()).expect("small"), 0);
        let task = TrainTask { visit: 2, seed: 7, ..TrainTask::default() };
        let kept = Kept::of(work.path(), &task);
        assert!(kept.read(&layout).is_none());
        let weights = Digest::of(&bytes).as_bytes().to_vec();
        kept.write(&bytes, &TrainResult { weights, visit: 2, ..TrainResult::default() })
            .expect("written");
        let other = Kept::of(work.path(), &TrainTask { seed: 8, ..task.clone() });
        assert!(other.read(&layout).is_none(), "another seed is another task");
        assert_eq!(kept.read(&layout).map(|(b, r)| (b, r.visit)), Some((bytes.clone(), 2)));
        durable::write(&kept.path("safetensors"), &bytes[..bytes.len() - 1]).expect("written");
        assert!(kept.read(&layout).is_none(), "half a model is no result");
        other.forget_others().expect("removed");
        assert_eq!(fs::read_dir(&kept.folder).expect("listed").count(), 0);
    }
}
