//! N4 of a whole head, against SimpleITK with the same settings.

use std::path::Path;

use ndarray::Array3;
use rondo_imaging::bias::{NonPositive, Settings, n4};
use rondo_imaging::nifti;
use serde_json::{Value, json};

use crate::head::Head;
use crate::peer::Peer;
use crate::turns::{Turns, timed};

const PACKAGE: &str = "SimpleITK";
/// What our time may be of the peer's.
const BOUND: f64 = 1.0;
/// Least correlation of the two logarithmic fields inside the mask.
const LEAST_CORRELATION: f64 = 0.98;

/// One report, with the field on the whole grid; every second voxel of an axis is fitted, as heads are
/// prepared.
pub(crate) fn run(
    repeats: usize,
    peer: Option<&mut Peer>,
    work: &Path,
    head: &Head,
) -> Result<Vec<Value>, String> {
    // The peer takes voxels without a logarithm as they are, so ours does too.
    let settings = Settings { nonpositive: NonPositive::Raw, ..Settings::for_heads() };
    Ok(vec![turns("n4", repeats, peer, work, head, &settings)?])
}

fn turns(
    bench: &str,
    repeats: usize,
    mut peer: Option<&mut Peer>,
    work: &Path,
    Head { image, mask }: &Head,
    settings: &Settings,
) -> Result<Value, String> {
    let fail = |e: nifti::Error| e.to_string();
    let [image_file, mask_file, field_file] =
        ["n4-image.nii", "n4-mask.nii", "n4-field.nii"].map(|name| work.join(name));
    nifti::write(&image_file, image).map_err(fail)?;
    nifti::write(&mask_file, mask).map_err(fail)?;
    let request = json!({
        "do": "n4", "image": image_file, "mask": mask_file, "output": field_file,
        "settings": {
            "shrink": settings.shrink, "iterations": settings.iterations,
            "convergence": settings.convergence, "fwhm": settings.fwhm,
            "wiener_noise": settings.wiener_noise, "histogram_bins": settings.histogram_bins,
            "control_points": settings.control_points, "spline_order": settings.spline_order,
        },
    });
    let name = peer.as_ref().and_then(|p| p.name(PACKAGE));
    let mut field = None;
    let turns = Turns::take(
        repeats,
        || {
            let (took, result) = timed(|| n4(image, mask.data(), settings));
            field = Some(result.map_err(|e| e.to_string())?);
            Ok(took)
        },
        peer.as_mut().filter(|_| name.is_some()).map(|peer| || Ok(peer.ask(&request)?.0)),
    )?;
    let mut report = turns.report(bench, name.as_deref(), Some(BOUND));
    report["shape"] = json!(image.geometry().shape());
    report["shrink"] = json!(settings.shrink);
    if let Some(field) = field {
        report["iterations"] = json!(field.iterations);
        if name.is_some() {
            let theirs = nifti::read_image(&field_file).map_err(fail)?.volume;
            let same = correlation(&field.log_field, theirs.data(), mask.data());
            if same.is_nan() || same < LEAST_CORRELATION {
                return Err(format!(
                    "{bench}: the fields correlate at {same}, below {LEAST_CORRELATION}"
                ));
            }
            report["correlation_of_log_fields"] = json!(same);
        }
    }
    Ok(report)
}

fn correlation(a: &Array3<f32>, b: &Array3<f32>, mask: &Array3<u8>) -> f64 {
    let inside = || {
        (a.iter().zip(b).zip(mask))
            .filter(|(_, m)| **m > 0)
            .map(|((a, b), _)| [f64::from(*a), f64::from(*b)])
    };
    let n = inside().count() as f64;
    let mean = inside().fold([0.0; 2], |m, p| [m[0] + p[0] / n, m[1] + p[1] / n]);
    let [aa, ab, bb] = inside().fold([0.0; 3], |s, p| {
        let [x, y] = [p[0] - mean[0], p[1] - mean[1]];
        [s[0] + x * x, s[1] + x * y, s[2] + y * y]
    });
    ab / (aa * bb).sqrt()
}
