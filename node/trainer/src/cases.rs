//! A site's cases, mapped from their prepared files, as training wants them.

use anyhow::{Context, Result, bail};
use rondo_imaging::cohort::{Case as CohortCase, Cohort, Split, same_image};
use rondo_imaging::prepared::{Prepared, Store};
use rondo_learn::segment::Case;
use std::path::Path;

/// Cases of one split that could be read, and what was said about the others.
#[derive(Debug, Default)]
pub struct Cases {
    /// Ready to use, in the order of the cohort.
    pub ready: Vec<Prepared>,
    /// One sentence per case that was set aside.
    pub set_aside: Vec<String>,
    /// One sentence per peculiarity of a case that is used.
    pub notices: Vec<String>,
}

impl Cases {
    /// Maps the cases of `split`; those that are not in the store yet, or whose files changed, are
    /// prepared first. `told` hears how many are done, of how many.
    ///
    /// # Errors
    /// What is wrong with the store, for example a full disk. A bad case is set aside instead.
    pub fn load(
        cohort: &Cohort,
        split: Split,
        store: &Store,
        mut told: impl FnMut(usize, usize),
    ) -> Result<Self> {
        let wanted: Vec<_> = cohort.split(split).collect();
        let results = store
            .cases(cohort, &wanted, |progress| told(progress.done, progress.total))
            .with_context(|| format!("preparing the {} cases", split.name()))?;
        let mut cases = Self::default();
        for (case, result) in wanted.iter().zip(results) {
            match result {
                Ok(prepared) => {
                    let notices = prepared.steps().notices.iter();
                    cases.notices.extend(notices.map(|text| format!("case `{}`: {text}", case.id)));
                    cases.ready.push(prepared);
                }
                Err(e) => cases.set_aside.push(format!("case `{}` is set aside: {e}", case.id)),
            }
        }
        Ok(cases)
    }

    /// Cases of one split of several cohorts, as if they were of one. A case is then called
    /// `cohort/case`, since two sites may give a case the same name.
    ///
    /// # Errors
    /// As [`Cases::load`].
    pub fn pool(
        cohorts: &[Cohort],
        split: Split,
        store: &Store,
        mut told: impl FnMut(usize, usize),
    ) -> Result<Self> {
        if let [only] = cohorts {
            return Self::load(only, split, store, told);
        }
        let mut pooled = Self::default();
        for cohort in cohorts {
            let mut cases = Self::load(cohort, split, store, &mut told)?;
            let name = &cohort.name;
            for case in &mut cases.ready {
                case.id = format!("{name}/{}", case.id);
            }
            let of = |text: String| format!("{name}: {text}");
            pooled.ready.append(&mut cases.ready);
            pooled.set_aside.extend(cases.set_aside.into_iter().map(of));
            pooled.notices.extend(cases.notices.into_iter().map(of));
        }
        Ok(pooled)
    }

    /// What the learning library trains on.
    #[must_use]
    pub fn views(&self) -> Vec<Case<'_>> {
        let view = |case| {
            let case: &Prepared = case;
            Case { id: &case.id, image: case.image(), label: case.label(), brain: case.brain() }
        };
        self.ready.iter().map(view).collect()
    }

    /// What the cases hold, in their order: equal digests, equal arrays.
    #[must_use]
    pub fn digests(&self) -> Vec<[u8; 32]> {
        self.ready.iter().map(Prepared::digest).collect()
    }
}

/// Opens the prepared cases in a work folder.
///
/// # Errors
/// A folder that cannot be made, or that other users may write to.
pub fn store(work: &Path) -> Result<Store> {
    Ok(Store::open(&work.join("prepared"))?)
}

/// Removes the prepared cases that none of `used` has. While a case is set aside nothing is removed:
/// the disk with its files may just not be mounted.
///
/// # Errors
/// A file that cannot be removed.
pub fn prune(store: &Store, used: &[&Cases]) -> Result<()> {
    if used.iter().any(|cases| !cases.set_aside.is_empty()) {
        return Ok(());
    }
    store
        .prune(used.iter().flat_map(|cases| cases.digests()))
        .context("removing prepared cases that are no longer used")?;
    Ok(())
}

/// Refuses one image in several cohorts: it would be trained on twice, or trained on and judged by,
/// whatever labels its centres drew.
///
/// # Errors
/// The names of both cases.
pub fn check_distinct(cohorts: &[Cohort]) -> Result<()> {
    if cohorts.len() < 2 {
        return Ok(());
    }
    let of = |cohort: &'_ Cohort| {
        cohort.cases.iter().map(|case| format!("{}/{}", cohort.name, case.id)).collect::<Vec<_>>()
    };
    let names: Vec<String> = cohorts.iter().flat_map(of).collect();
    let all: Vec<&CohortCase> = cohorts.iter().flat_map(|cohort| &cohort.cases).collect();
    match same_image(&all) {
        Some([a, b]) => {
            bail!("cases `{}` and `{}` hold the same image; remove one of them", names[a], names[b])
        }
        None => Ok(()),
    }
}

/// Reads a cohort file, or the one inside a folder.
///
/// # Errors
/// Whatever is wrong with it, all at once.
pub fn cohort(path: &Path) -> Result<Cohort> {
    Cohort::load(path).with_context(|| format!("reading the cohort {}", path.display()))
}
