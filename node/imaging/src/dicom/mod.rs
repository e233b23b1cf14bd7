//! DICOM magnetic resonance series: a folder of files to a volume.

mod series;

pub use series::{Identity, Series, SeriesChoice, SeriesSummary, Slice};
