//! Judging one pair of masks on the paper's grid, against surface-distance and scipy.

use std::path::Path;

use ndarray::Array3;
use rondo_imaging::metrics::{CaseResult, Settings, dice, evaluate_case};
use rondo_imaging::surface::SurfaceDistances;
use serde_json::{Value, json};

use crate::pair::{SHAPE, pair};
use crate::peer::Peer;
use crate::turns::{Turns, timed};

const PACKAGE: &str = "surface-distance";
const SPACING_MM: [f64; 3] = [1.0; 3];
/// What our time may be of the peer's.
const BOUND: f64 = 0.2;
const SEED: u64 = 7;
/// Greatest difference between figures of both sides, which are shares or mm.
const TOLERANCE: f64 = 1e-6;

/// Two reports: the whole case with every lesion, and the whole-mask figures alone.
pub(crate) fn run(
    repeats: usize,
    mut peer: Option<&mut Peer>,
    folder: &Path,
) -> Result<Vec<Value>, String> {
    let (reference, prediction) = pair(SEED);
    let settings = Settings::default();
    let write = |name: &str, mask: &Array3<u8>| {
        let path = folder.join(name);
        let bytes = mask.as_slice().ok_or("the mask is not in C order")?;
        #[allow(clippy::disallowed_methods)]
        std::fs::write(&path, bytes).map_err(|e| format!("writing {}: {e}", path.display()))?;
        Ok::<_, String>(path)
    };
    let request = json!({
        "do": "case", "shape": SHAPE, "spacing_mm": SPACING_MM, "tolerance_mm": settings.tolerance_mm,
        "reference": write("reference", &reference)?, "prediction": write("prediction", &prediction)?,
    });
    let mut reports = Vec::new();
    for (bench, what) in [("evaluate", "case"), ("evaluate-whole-mask", "whole")] {
        let name = peer.as_ref().and_then(|p| p.name(PACKAGE));
        let mut request = request.clone();
        request["do"] = json!(what);
        let (mut ours, mut theirs) = (Value::Null, Value::Null);
        let turns = Turns::take(
            repeats,
            || {
                let (took, result) = timed(|| match what {
                    "case" => as_peer(&evaluate_case(
                        "pair",
                        &reference,
                        &prediction,
                        SPACING_MM,
                        &settings,
                    )),
                    _ => whole(&reference, &prediction, settings.tolerance_mm),
                });
                ours = result;
                Ok(took)
            },
            peer.as_mut().filter(|_| name.is_some()).map(|peer| {
                || {
                    let (took, result) = peer.ask(&request)?;
                    theirs = result;
                    Ok(took)
                }
            }),
        )?;
        if !theirs.is_null() {
            same(bench, &ours, &theirs)?;
        }
        let mut report = turns.report(bench, name.as_deref(), Some(BOUND));
        report["shape"] = json!(SHAPE);
        report["same_figures"] = json!(!theirs.is_null());
        reports.push(report);
    }
    Ok(reports)
}

/// The figures of the whole masks alone: three calls of the peer.
fn whole(reference: &Array3<u8>, prediction: &Array3<u8>, tolerance_mm: f64) -> Value {
    let surfaces = SurfaceDistances::new(reference.view(), prediction.view(), SPACING_MM);
    json!({
        "dice": dice(reference, prediction).0, "surface_dice": surfaces.dice_at(tolerance_mm),
        "hd95_mm": surfaces.hausdorff_mm(95.0), "hd_mm": surfaces.hausdorff_mm(100.0),
    })
}

/// Our figures in the peer's layout.
fn as_peer(case: &CaseResult) -> Value {
    let lesions: Vec<_> = (case.lesions.iter())
        .map(|l| {
            let mut entry = json!({ "voxels": l.volume_mm3, "detected": l.detected });
            if l.detected {
                entry["dice"] = json!(l.dice);
                entry["surface_dice"] = json!(l.surface_dice);
                entry["hd95_mm"] = json!(l.hd95_mm);
                entry["hd_mm"] = json!(l.hd_mm);
            }
            entry
        })
        .collect();
    json!({
        "whole_mask": case.whole_mask, "lesions": lesions,
        "predicted_components": case.predicted_components, "false_positives": case.false_positives,
    })
}

/// A time is only worth something when both sides found the same.
fn same(at: &str, ours: &Value, theirs: &Value) -> Result<(), String> {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            a.iter().try_for_each(|(key, value)| same(&format!("{at}.{key}"), value, &theirs[key]))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => (a.iter().zip(b).enumerate())
            .try_for_each(|(n, (a, b))| same(&format!("{at}[{n}]"), a, b)),
        (Value::Number(a), Value::Number(b))
            if (a.as_f64().zip(b.as_f64())).is_some_and(|(a, b)| (a - b).abs() <= TOLERANCE) =>
        {
            Ok(())
        }
        _ if ours == theirs => Ok(()),
        _ => Err(format!("{at}: ours is {ours}, the peer's {theirs}")),
    }
}
