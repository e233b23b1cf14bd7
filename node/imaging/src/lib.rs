//! From a scanner's files to numbers, and back to the scanner's geometry.
//!
//! `nifti` reads a [`volume::Volume`]; a [`cohort::Cohort`] names a site's cases; [`preprocess`]
//! turns a case into what a network sees; [`metrics`] judges a prediction; [`phantom`] makes
//! cohorts of synthetic heads. Nothing here knows a tensor or a socket.

pub mod cohort;
pub mod distance;
pub mod durable;
pub mod lesion;
pub mod metrics;
pub mod nifti;
pub mod phantom;
pub mod preprocess;
pub mod surface;
pub mod ttest;
pub mod volume;
