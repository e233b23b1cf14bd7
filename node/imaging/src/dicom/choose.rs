//! Which series of a folder is read.
//!
//! Candidates are the magnetic resonance series (Modality MR, SOP class MR, Enhanced MR or Legacy
//! Converted Enhanced MR Image Storage). A uid decides; without one, the only candidate is taken, or
//! else the only candidate that says it is T1-weighted with contrast agent. A series says so when
//! all of this holds for one of its images ([`says_t1_contrast`]):
//! - T1: a word of series description or protocol name is `t1…` or a T1 sequence's name (`mprage`,
//!   `spgr`, `fspgr`, `bravo`, `vibe`, `tfe`, `tfl`, `flash`, `thrive`, `lava`), or Acquisition
//!   Contrast (0008,9209) is T1, and no word names another weighting (`t2`, `flair` without T1, …);
//! - contrast agent: Contrast/Bolus Agent (0018,0010) or its sequence (0018,0012) is there and does
//!   not deny it, or a word says so (`gd`, `post`, `ce`, `km`, `+c`, …), and none says before it
//!   (`pre`, `native`, `nativ`, `without`, `ohne`);
//! - Image Type (0008,0008) names no localizer, projection, reformat or subtraction.

use std::collections::BTreeMap;
use std::path::Path;

use dicom_dictionary_std::uids;

use super::header::Image;
use super::{Error, SeriesChoice, SeriesSummary};

const T1_WORDS: &[&str] =
    &["mprage", "rage", "spgr", "fspgr", "bravo", "vibe", "tfe", "tfl", "flash", "thrive", "lava"];
const OTHER_WORDS: &[&str] = &[
    "t2",
    "t2w",
    "pd",
    "swi",
    "dwi",
    "adc",
    "dti",
    "perf",
    "perfusion",
    "dsc",
    "dce",
    "asl",
    "tof",
    "mra",
    "mip",
    "sub",
    "subtraction",
    "loc",
    "localizer",
    "localiser",
    "scout",
    "survey",
    "mp2rage",
];
const AGENT_WORDS: &[&str] = &[
    "gd",
    "gad",
    "gado",
    "gadolinium",
    "contrast",
    "postcontrast",
    "post",
    "ce",
    "km",
    "kontrast",
    "enhanced",
    "gadovist",
    "dotarem",
    "t1c",
    "t1ce",
    "t1gd",
    "t1post",
    "t1km",
    "cont",
    "inj",
];
const BEFORE_WORDS: &[&str] =
    &["pre", "native", "nativ", "without", "ohne", "noncontrast", "precontrast"];
const DERIVED_TYPES: &[&str] = &[
    "LOCALIZER",
    "PROJECTION IMAGE",
    "MIP",
    "MINIP",
    "MPR",
    "REFORMATTED",
    "RESAMPLED",
    "SUBTRACT",
    "SUBTRACTION",
];

/// What the headers of an image say of its weighting.
pub(super) struct Said {
    pub(super) names: String,
    pub(super) agent: String,
    pub(super) agent_sequence: bool,
    pub(super) acquisition_contrast: String,
    /// Values separated by backslashes.
    pub(super) image_type: String,
}

pub(super) fn says_t1_contrast(said: &Said) -> bool {
    let names = said.names.to_lowercase();
    let words: Vec<&str> = names.split(|c: char| !c.is_alphanumeric()).collect();
    let any = |list: &[&str]| words.iter().any(|w| list.contains(w));
    let t1 = words.iter().any(|w| w.starts_with("t1")) || any(T1_WORDS);
    let t1 = t1 || said.acquisition_contrast.eq_ignore_ascii_case("T1");
    let agent = said.agent.trim().to_lowercase();
    let denied = ["no", "none", "n", "0", "nein", "without"].contains(&agent.as_str());
    let given = !agent.is_empty() && !denied || said.agent_sequence;
    let plus = ["+c", "c+", "+gd", "+km", "+ c"].iter().any(|p| names.contains(p));
    let derived = said.image_type.split('\\').any(|t| DERIVED_TYPES.contains(&t.trim()));
    let flair = words.contains(&"flair") && !words.iter().any(|w| w.starts_with("t1"));
    t1 && !flair
        && !any(OTHER_WORDS)
        && (given || plus || any(AGENT_WORDS))
        && !any(BEFORE_WORDS)
        && !derived
}

fn is_mr(image: &Image) -> bool {
    image.modality == "MR"
        && [
            uids::MR_IMAGE_STORAGE,
            uids::ENHANCED_MR_IMAGE_STORAGE,
            uids::LEGACY_CONVERTED_ENHANCED_MR_IMAGE_STORAGE,
        ]
        .contains(&image.sop_class_uid.as_str())
}

/// The series of a folder by uid, each in order of its files.
pub(super) fn group(images: Vec<Image>) -> BTreeMap<String, Vec<Image>> {
    let mut series = BTreeMap::<String, Vec<Image>>::new();
    for image in images {
        series.entry(image.series_uid.clone()).or_default().push(image);
    }
    series
}

pub(super) fn summary(uid: &str, images: &[Image]) -> SeriesSummary {
    let first = images.first();
    SeriesSummary {
        uid: uid.to_owned(),
        description: first.map(|i| i.description.clone()).unwrap_or_default(),
        modality: first.map(|i| i.modality.clone()).unwrap_or_default(),
        images: images.iter().map(|i| i.frames).sum(),
        readable: images.iter().any(is_mr),
        t1_contrast: images.iter().any(|i| i.t1_contrast) && images.iter().any(is_mr),
    }
}

/// The images of the chosen series.
pub(super) fn choose(
    folder: &Path,
    images: Vec<Image>,
    choice: &SeriesChoice,
) -> Result<Vec<Image>, Error> {
    let files = images.len();
    let mut series = group(images);
    let summaries: Vec<_> = series.iter().map(|(uid, images)| summary(uid, images)).collect();
    let path = folder.to_path_buf();
    let uid = match choice {
        SeriesChoice::Uid(uid) => match summaries.iter().find(|s| s.uid == uid.trim()) {
            None => {
                return Err(Error::UnknownSeries {
                    path,
                    uid: uid.clone(),
                    found: list(&summaries),
                });
            }
            Some(found) if !found.readable => {
                return Err(Error::NotMr { path, series: found.to_string() });
            }
            Some(found) => found.uid.clone(),
        },
        SeriesChoice::Only => {
            let candidates: Vec<_> = summaries.iter().filter(|s| s.readable).collect();
            let enhanced: Vec<_> = candidates.iter().copied().filter(|s| s.t1_contrast).collect();
            match (candidates.as_slice(), enhanced.as_slice()) {
                ([], _) => return Err(Error::NoSeries { path, files, found: list(&summaries) }),
                ([only], _) | (_, [only]) => only.uid.clone(),
                _ => {
                    return Err(Error::SeveralSeries {
                        path,
                        t1_contrast: enhanced.len(),
                        found: list(&summaries),
                    });
                }
            }
        }
    };
    // Other objects that share the uid (a presentation state, a report) hold no plane.
    let mut chosen = series.remove(&uid).unwrap_or_default();
    chosen.retain(is_mr);
    Ok(chosen)
}

fn list(summaries: &[SeriesSummary]) -> String {
    const MOST: usize = 40;
    let mut lines: Vec<_> = summaries.iter().take(MOST).map(ToString::to_string).collect();
    if summaries.len() > MOST {
        lines.push(format!("and {} more", summaries.len() - MOST));
    }
    if lines.is_empty() { "no DICOM file".into() } else { lines.join("; ") }
}
