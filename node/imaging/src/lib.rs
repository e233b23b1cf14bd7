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
pub mod volume;

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
