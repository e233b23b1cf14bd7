//! The bias field against SimpleITK's filter on the same input in the same run, where Python has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;

use std::process::Command;

use ndarray::Array3;
use rondo_imaging::bias::{Settings, n4};
use rondo_imaging::volume::{Geometry, Volume};

const SHAPE: [usize; 3] = [44, 52, 40];
const SPACING_MM: [f64; 3] = [4.0, 3.5, 4.5];

const SCRIPT: &str = r"
import sys, numpy, SimpleITK as sitk
folder, shape, spacing, levels, bins, points, order = sys.argv[1:]
numbers = lambda words, kind: [kind(w) for w in words.split(',')]
def read(name, kind):
    values = numpy.fromfile(folder + '/' + name, kind).reshape(numbers(shape, int))
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing(numbers(spacing, float))
    return image
image, mask = read('image', numpy.float32), read('mask', numpy.uint8)
n4 = sitk.N4BiasFieldCorrectionImageFilter()
n4.SetMaximumNumberOfIterations(numbers(levels, int))
n4.SetNumberOfHistogramBins(int(bins))
n4.SetNumberOfControlPoints(numbers(points, int))
n4.SetSplineOrder(int(order))
n4.Execute(image, mask)
field = n4.GetLogBiasFieldAsImage(image)
numpy.ascontiguousarray(sitk.GetArrayFromImage(field).transpose(2, 1, 0)).astype(numpy.float32).tofile(folder + '/field')
";

fn correlation(pairs: &[[f64; 2]]) -> f64 {
    let mean = [0, 1].map(|n| pairs.iter().map(|p| p[n]).sum::<f64>() / pairs.len() as f64);
    let sum =
        |m: usize, n: usize| pairs.iter().map(|p| (p[m] - mean[m]) * (p[n] - mean[n])).sum::<f64>();
    sum(0, 1) / (sum(0, 0) * sum(1, 1)).sqrt()
}

#[test]
fn the_field_is_that_of_simpleitk() {
    let Some(python) = support::python("numpy, SimpleITK") else { return };
    let at = |n: usize, axis: usize| (n as f64 + 0.5) / SHAPE[axis] as f64 * 2.0 - 1.0;
    let mut mask = Array3::zeros(SHAPE);
    let image = Array3::from_shape_fn(SHAPE, |(i, j, k)| {
        let (x, y, z) = (at(i, 0), at(j, 1), at(k, 2));
        mask[[i, j, k]] = u8::from(x * x + y * y + z * z < 0.9);
        let tissue = match (9.0 * x).sin() + (8.0 * y).cos() + (7.0 * z).sin() {
            v if v < -0.5 => 70.0,
            v if v < 0.8 => 110.0,
            _ => 190.0,
        };
        let grain = ((i * 7919 + j * 104_729 + k * 1299) % 97) as f64 / 97.0;
        (tissue * (0.3 * x - 0.25 * y * y + 0.2 * z * x).exp() * (0.97 + 0.06 * grain)) as f32
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("image"), bytemuck::cast_slice(image.as_slice().unwrap()))
        .unwrap();
    std::fs::write(folder.path().join("mask"), mask.as_slice().unwrap()).unwrap();
    let volume = Volume::new(Geometry::with_spacing(SHAPE, SPACING_MM).unwrap(), image).unwrap();

    for settings in [
        Settings { iterations: vec![20; 3], ..Settings::default() },
        Settings {
            iterations: vec![15, 10],
            histogram_bins: 128,
            control_points: [6, 5, 4],
            spline_order: 2,
            ..Settings::default()
        },
    ] {
        let ours = n4(&volume, &mask, &settings).unwrap();
        let words =
            |values: &[usize]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let output = Command::new(&python)
            .args(["-c", SCRIPT])
            .arg(folder.path())
            .arg(words(&SHAPE))
            .arg(SPACING_MM.map(|s| s.to_string()).join(","))
            .arg(words(&settings.iterations))
            .arg(settings.histogram_bins.to_string())
            .arg(words(&settings.control_points))
            .arg(settings.spline_order.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = std::fs::read(folder.path().join("field")).unwrap();
        let theirs: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        let pairs: Vec<[f64; 2]> = (ours.log_field.iter().zip(&theirs).zip(&mask))
            .filter(|(_, m)| **m > 0)
            .map(|((a, b), _)| [f64::from(*a), f64::from(*b)])
            .collect();
        let r = correlation(&pairs);
        assert!(r > 0.999, "{r}");
    }
}
