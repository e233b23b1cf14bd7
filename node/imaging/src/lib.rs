//! From a scanner's files to numbers, and back to the scanner's geometry.
//!
//! `nifti` reads a [`volume::Volume`]; a [`cohort::Cohort`] names a site's cases; [`preprocess`]
//! turns a case into what a network sees; [`metrics`] judges a prediction;
//! [`phantom`] makes cohorts of synthetic heads. Nothing here knows a tensor or a socket.

pub mod bias;
mod bounds;
pub mod brain;
pub mod cohort;
pub mod comparison;
pub mod dicom;
pub mod distance;
pub mod durable;
pub mod lesion;
pub mod metrics;
mod nearest;
pub mod nifti;
pub mod orientation;
pub mod page;
pub mod phantom;
pub mod picture;
pub mod prepared;
pub mod preprocess;
pub mod repeats;
pub mod resample;
pub mod source;
pub mod spreadsheet;
pub mod surface;
mod transposition;
pub mod volume;

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Cases whose volumes are in memory together, some 20 bytes a voxel each (240×240×155: 180 MB).
pub const CASES_AT_ONCE: usize = 8;

/// Does the work of every case, [`CASES_AT_ONCE`] at a time; results in their order.
fn over_cases<'c, C: Sync, T: Send>(
    cases: &'c [C],
    id: impl Fn(&C) -> &str + Sync,
    progress: OnProgress<'_>,
    work: impl Fn(&'c C) -> T + Sync,
) -> Vec<T> {
    let done = AtomicUsize::new(0);
    let one = |case: &'c C| {
        let result = work(case);
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        progress(Progress { done, total: cases.len(), item: id(case) });
        result
    };
    cases
        .chunks(CASES_AT_ONCE)
        .flat_map(|some| some.par_iter().map(one).collect::<Vec<_>>())
        .collect()
}

/// How far a long piece of work has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Items finished.
    pub done: usize,
    /// Items in all.
    pub total: usize,
    /// The item just finished, for example a case id.
    pub item: &'a str,
}

/// Receives progress, possibly from several threads.
pub type OnProgress<'a> = &'a (dyn Fn(Progress<'_>) + Sync);
