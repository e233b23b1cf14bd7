//! A magnetic resonance series as the rest of the crate sees it, and how one is chosen.

use std::fmt;
use std::path::PathBuf;

use crate::volume::Geometry;

/// One series on its grid, without voxels.
#[derive(Debug, Clone)]
pub struct Series {
    /// Index i runs along a row (columns), j down a column (rows), k along the slice normal
    /// `row x column` of PS3.3 C.7.6.2.1.1; RAS millimetres.
    pub geometry: Geometry,
    /// In order of k, one for each plane. Frames of one multi-frame file repeat its UID and path
    /// and differ in `frame`.
    pub slices: Vec<Slice>,
    /// Study Instance UID (0020,000D).
    pub study_uid: String,
    /// Series Instance UID (0020,000E).
    pub series_uid: String,
    /// Frame of Reference UID (0020,0052).
    pub frame_of_reference_uid: String,
    /// Modality (0008,0060).
    pub modality: String,
    /// What was odd and did not stop the reading; holds no attribute of a patient.
    pub notices: Vec<String>,
    /// What an object of the same patient and study must repeat.
    pub identity: Identity,
}

/// Where one plane of the grid comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// SOP Class UID (0008,0016).
    pub sop_class_uid: String,
    /// SOP Instance UID (0008,0018).
    pub sop_instance_uid: String,
    /// The file.
    pub path: PathBuf,
    /// Number of the frame, from 1, in a multi-frame object; `None` where a file is one slice.
    pub frame: Option<u32>,
}

/// Attributes of patient and study (PS3.3 C.7.1.1 and C.7.2.1), decoded; absent ones are empty.
///
/// Only for objects of the same study. `Debug` shows none of it, so that no log can.
#[derive(Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is named as its attribute")]
pub struct Identity {
    pub patient_name: String,
    pub patient_id: String,
    pub patient_birth_date: String,
    pub patient_sex: String,
    pub study_instance_uid: String,
    pub study_date: String,
    pub study_time: String,
    pub study_id: String,
    pub accession_number: String,
    pub referring_physician_name: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(withheld)")
    }
}

/// Which series of a folder is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeriesChoice {
    /// The only magnetic resonance series, or else the only one of them that is T1-weighted with
    /// contrast agent; anything else is an error that lists the series.
    #[default]
    Only,
    /// The series of this Series Instance UID.
    Uid(String),
}

/// One series found in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesSummary {
    /// Series Instance UID (0020,000E).
    pub uid: String,
    /// Series Description (0008,103E), control characters removed and cut at 64 characters.
    pub description: String,
    /// Modality (0008,0060).
    pub modality: String,
    /// Images, counting the frames of multi-frame objects.
    pub images: usize,
    /// Whether it is a magnetic resonance series, which [`super::read_series`] reads.
    pub readable: bool,
    /// Whether the headers say T1-weighted with contrast agent.
    pub t1_contrast: bool,
}

impl fmt::Display for SeriesSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {:?}, {} images)", self.uid, self.modality, self.description, self.images)
    }
}
