//! A site's cases in memory, as training and inference want them.

use anyhow::{Context, Result};
use rondo_imaging::cohort::{Cohort, Split};
use rondo_imaging::preprocess::{PreparedCase, prepare};
use rondo_learn::segment::Case;
use std::path::Path;

/// Cases of one split that could be read, and what was said about the others.
#[derive(Debug, Default)]
pub struct Cases {
    /// Ready to use.
    pub ready: Vec<PreparedCase>,
    /// One sentence per case that was set aside.
    pub set_aside: Vec<String>,
    /// One sentence per peculiarity of a case that is used.
    pub notices: Vec<String>,
}

impl Cases {
    /// Reads and prepares the cases of `split`. `told` hears how many are done, of how many.
    #[must_use]
    pub fn load(cohort: &Cohort, split: Split, mut told: impl FnMut(usize, usize)) -> Self {
        let wanted: Vec<_> = cohort.split(split).collect();
        let mut cases = Self::default();
        for (done, case) in wanted.iter().enumerate() {
            match prepare(cohort, case) {
                Ok(prepared) => {
                    let notices = prepared.notices.iter();
                    cases.notices.extend(notices.map(|text| format!("case `{}`: {text}", case.id)));
                    cases.ready.push(prepared);
                }
                Err(e) => cases.set_aside.push(format!("case `{}` is set aside: {e}", case.id)),
            }
            told(done + 1, wanted.len());
        }
        cases
    }

    /// What the learning library trains on.
    #[must_use]
    pub fn views(&self) -> Vec<Case<'_>> {
        let view = |c| {
            let PreparedCase { id, image, label, brain, .. }: &PreparedCase = c;
            Case { id, image: image.view(), label: label.view(), brain: brain.view() }
        };
        self.ready.iter().map(view).collect()
    }
}

/// Reads a cohort file, or the one inside a folder.
///
/// # Errors
/// Whatever is wrong with it, all at once.
pub fn cohort(path: &Path) -> Result<Cohort> {
    Cohort::load(path).with_context(|| format!("reading the cohort {}", path.display()))
}
