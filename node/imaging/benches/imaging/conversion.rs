//! A folder of DICOM slices to NIfTI, against SimpleITK.

use std::path::Path;

use rondo_imaging::dicom::scan::write_series;
use rondo_imaging::volume::{self, Geometry, Volume};
use rondo_imaging::{nifti, source};
use serde_json::{Value, json};

use crate::peer::Peer;
use crate::turns::{Turns, timed};

const PACKAGE: &str = "SimpleITK";
/// What our time may be of the peer's.
const BOUND: f64 = 1.0;

/// Radians between the slices and the patient's axes.
const TILT: (f64, f64, f64) = (0.1, -0.2, 0.05);

/// The head as an oblique scan, in values that a scanner stores.
fn tilted(head: &Volume<f32>) -> Result<Volume<f32>, volume::Error> {
    let turn = nalgebra::Rotation3::from_euler_angles(TILT.0, TILT.1, TILT.2).to_homogeneous();
    let grid = Geometry::new(head.geometry().shape(), turn * head.geometry().affine())?;
    let (low, high) =
        head.data().iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    let scale = 4000.0 / (high - low).max(f32::MIN_POSITIVE);
    Volume::new(grid, head.data().map(|v| (v - low) * scale))
}

/// Two reports: to `.nii` and to `.nii.gz`. Without a folder of slices, `head` makes one.
pub(crate) fn run(
    repeats: usize,
    mut peer: Option<&mut Peer>,
    work: &Path,
    given: Option<&Path>,
    head: impl FnOnce() -> Result<Volume<f32>, String>,
) -> Result<Vec<Value>, String> {
    let made = work.join("series");
    let folder = match given {
        Some(folder) => folder,
        None => {
            let head = head()?;
            let scan = tilted(&head).map_err(|e| e.to_string())?;
            write_series(&made, "phantom", &scan).map_err(|e| e.to_string())?;
            &made
        }
    };
    let mut reports = Vec::new();
    for (bench, name) in [("dicom-to-nii", "volume.nii"), ("dicom-to-nii-gz", "volume.nii.gz")] {
        let (ours, theirs) =
            (work.join(format!("ours-{name}")), work.join(format!("theirs-{name}")));
        let package = peer.as_ref().and_then(|p| p.name(PACKAGE));
        let request = json!({ "do": "dicom", "folder": folder, "output": theirs });
        let mut slices = 0;
        let turns = Turns::take(
            repeats,
            || {
                let (took, result) = timed(|| {
                    let headers = source::convert(folder, None, &ours);
                    headers.map(|h| h.series.map_or(0, |s| s.slices.len()))
                });
                slices = result.map_err(|e| e.to_string())?;
                Ok(took)
            },
            peer.as_mut().filter(|_| package.is_some()).map(|peer| || Ok(peer.ask(&request)?.0)),
        )?;
        if package.is_some() {
            same(&ours, &theirs)?;
        }
        let mut report = turns.report(bench, package.as_deref(), Some(BOUND));
        report["slices"] = json!(slices);
        report["synthetic"] = json!(given.is_none());
        let size = |path: &Path| std::fs::metadata(path).ok().map(|m| m.len());
        report["bytes_written"] = json!(size(&ours));
        report["peer_bytes_written"] = json!(size(&theirs));
        reports.push(report);
    }
    Ok(reports)
}

/// Both files hold the same values at the same places.
fn same(ours: &Path, theirs: &Path) -> Result<(), String> {
    let read = |path: &Path| nifti::read_image(path).map(|i| i.volume).map_err(|e| e.to_string());
    let (a, b) = (read(ours)?, read(theirs)?);
    if let Some(difference) = a.geometry().difference(b.geometry()) {
        return Err(format!("the peer's grid differs from ours: {difference}"));
    }
    let unlike = a.data().iter().zip(b.data()).filter(|(a, b)| a != b).count();
    if unlike > 0 {
        return Err(format!("{unlike} voxels differ from the peer's"));
    }
    Ok(())
}
