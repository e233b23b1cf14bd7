//! Planes in space: their order, the checks that they form one grid, and its affine.
//!
//! PS3.3 C.7.6.2.1.1: the voxel of column i and row j of a plane lies at `position + row * i *
//! (column spacing) + column * j * (row spacing)`, in LPS millimetres.

use std::path::Path;

use nalgebra::{Matrix4, Vector3};

use super::header::{Frame, Image, PixelFormat};
use super::{Error, Fault};
use crate::nifti::{MAX_EDGE, MAX_VOXELS};
use crate::volume::Geometry;

/// Direction cosines are printed with 6 digits or more.
const COSINE_TOLERANCE: f64 = 1e-3;
/// Planes of one series may differ this much in a direction cosine.
const SAME_DIRECTION: f64 = 1e-4;
/// Planes nearer than this lie at the same place.
const SAME_PLACE_MM: f64 = 1e-3;
/// A step between planes may differ from the usual one by this much, or by this share of it:
/// positions are often rounded to 0.01 mm.
const STEP_TOLERANCE: (f64, f64) = (0.015, 0.01);

/// One plane of the grid.
#[derive(Debug, Clone)]
pub(super) struct Plane {
    /// Index of the file.
    pub(super) image: usize,
    /// Index of the frame in the file.
    pub(super) frame: usize,
    pub(super) format: PixelFormat,
    pub(super) slope: f64,
    pub(super) intercept: f64,
}

/// Planes in order of k, and their grid.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) geometry: Geometry,
    pub(super) planes: Vec<Plane>,
    pub(super) notices: Vec<String>,
}

struct Placed<'a> {
    plane: Plane,
    frame: &'a Frame,
    offset: f64,
    name: String,
}

/// Orders the planes of one series and checks that they form a grid.
pub(super) fn stack(folder: &Path, images: &mut [Image]) -> Result<Stack, Error> {
    for image in images.iter_mut() {
        if let Err(cause) = &mut image.content {
            let cause = std::mem::replace(cause, super::Cause::Truncated);
            return Err(Error::File { path: image.path.clone(), cause });
        }
    }
    let uid = images.first().map(|i| i.series_uid.clone()).unwrap_or_default();
    arrange(images).map_err(|fault| Error::Series { path: folder.to_path_buf(), uid, fault })
}

fn arrange(images: &[Image]) -> Result<Stack, Fault> {
    let mut placed = placed(images)?;
    let Some(first) = placed.first() else { return Err(Fault::Empty) };
    let normal = normal(first)?;
    for other in &placed {
        same_grid(first, other)?;
        for (a, b, what) in [
            (&images[first.plane.image].study_uid, &images[other.plane.image].study_uid, "study"),
            (
                &images[first.plane.image].frame_of_reference_uid,
                &images[other.plane.image].frame_of_reference_uid,
                "frame of reference",
            ),
        ] {
            if a != b {
                return Err(Fault::Differ { what, a: first.name.clone(), b: other.name.clone() });
            }
        }
    }
    let (rows, columns) = (first.plane.format.rows, first.plane.format.columns);
    let count = placed.len();
    if count > MAX_EDGE || rows.saturating_mul(columns).saturating_mul(count) > MAX_VOXELS {
        return Err(Fault::TooManyVoxels { shape: [columns, rows, count] });
    }
    for plane in &mut placed {
        plane.offset = Vector3::from(plane.frame.position).dot(&normal);
    }
    placed.sort_by(|a, b| a.offset.total_cmp(&b.offset));
    evenly_spaced(&placed)?;

    let first = &placed[0];
    let [row, column] = directions(first.frame);
    let step = match count {
        1 => match first.frame.thickness_mm {
            Some(thickness) if thickness > 0.0 => normal * thickness,
            _ => return Err(Fault::Thickness { slice: first.name.clone() }),
        },
        _ => {
            let last = Vector3::from(placed[count - 1].frame.position);
            (last - Vector3::from(first.frame.position)) / (count - 1) as f64
        }
    };
    let mut notices = Vec::new();
    straight(&placed, &step)?;
    let shift = (step - normal * step.dot(&normal)).norm();
    if shift * (count - 1) as f64 > 0.1 {
        notices.push(format!(
            "each slice is shifted by {shift:.4} mm in its plane against the one before: the grid is sheared"
        ));
    }
    let promised = images.iter().filter_map(|i| i.images_in_acquisition).max().unwrap_or(0);
    if promised > count as i64 {
        notices.push(format!(
            "the headers speak of {promised} images in the acquisition, {count} are there: slices at an end may be missing"
        ));
    }
    let mut affine = Matrix4::identity();
    let axes = [
        row * first.frame.spacing_mm[1],
        column * first.frame.spacing_mm[0],
        step,
        Vector3::from(first.frame.position),
    ];
    for (c, axis) in axes.into_iter().enumerate() {
        // LPS to RAS.
        affine.fixed_view_mut::<3, 1>(0, c).copy_from(&Vector3::new(-axis.x, -axis.y, axis.z));
    }
    let geometry = Geometry::new([columns, rows, count], affine)?;
    Ok(Stack { geometry, planes: placed.into_iter().map(|p| p.plane).collect(), notices })
}

fn placed(images: &[Image]) -> Result<Vec<Placed<'_>>, Fault> {
    let mut placed = Vec::new();
    for (image, of) in images.iter().enumerate() {
        let Ok((format, frames)) = &of.content else { continue };
        for (at, frame) in frames.iter().enumerate() {
            let file = of.path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
            let name = match (of.instance_number, frames.len()) {
                (Some(number), 1) => format!("{file} (instance {number})"),
                (None, 1) => file.into_owned(),
                _ => format!("{file} (frame {})", at + 1),
            };
            let plane = Plane {
                image,
                frame: at,
                format: *format,
                slope: frame.slope,
                intercept: frame.intercept,
            };
            placed.push(Placed { plane, frame, offset: 0.0, name });
            if placed.len() > MAX_EDGE {
                return Err(Fault::TooManyVoxels {
                    shape: [format.columns, format.rows, images.len().max(placed.len())],
                });
            }
        }
    }
    Ok(placed)
}

fn directions(frame: &Frame) -> [Vector3<f64>; 2] {
    let [a, b, c, d, e, f] = frame.orientation;
    [Vector3::new(a, b, c), Vector3::new(d, e, f)]
}

fn normal(of: &Placed<'_>) -> Result<Vector3<f64>, Fault> {
    let [row, column] = directions(of.frame);
    let unit = |v: &Vector3<f64>| (v.norm() - 1.0).abs() < COSINE_TOLERANCE;
    if !unit(&row) || !unit(&column) || row.dot(&column).abs() > COSINE_TOLERANCE {
        return Err(Fault::Orientation { slice: of.name.clone() });
    }
    if of.frame.spacing_mm.iter().any(|s| *s <= 0.0) {
        return Err(Fault::PixelSpacing { slice: of.name.clone() });
    }
    Ok(row.cross(&column).normalize())
}

fn same_grid(first: &Placed<'_>, other: &Placed<'_>) -> Result<(), Fault> {
    let apart =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let what = if (first.plane.format.rows, first.plane.format.columns)
        != (other.plane.format.rows, other.plane.format.columns)
    {
        "number of rows and columns"
    } else if apart(&first.frame.orientation, &other.frame.orientation) > SAME_DIRECTION {
        "orientation"
    } else if apart(&first.frame.spacing_mm, &other.frame.spacing_mm)
        > SAME_DIRECTION * first.frame.spacing_mm[0].abs()
    {
        "pixel spacing"
    } else {
        return Ok(());
    };
    Err(Fault::Differ { what, a: first.name.clone(), b: other.name.clone() })
}

fn evenly_spaced(placed: &[Placed<'_>]) -> Result<(), Fault> {
    let steps: Vec<f64> = placed.windows(2).map(|w| w[1].offset - w[0].offset).collect();
    let double: Vec<usize> = (0..steps.len()).filter(|n| steps[*n] < SAME_PLACE_MM).collect();
    if let Some(&at) = double.first() {
        return Err(Fault::Duplicate {
            a: placed[at].name.clone(),
            b: placed[at + 1].name.clone(),
            pairs: double.len(),
        });
    }
    let mut sorted = steps.clone();
    sorted.sort_by(f64::total_cmp);
    let Some(&usual) = sorted.get(sorted.len() / 2) else { return Ok(()) };
    let tolerance = STEP_TOLERANCE.0.max(STEP_TOLERANCE.1 * usual);
    let odd: Vec<usize> =
        (0..steps.len()).filter(|n| (steps[*n] - usual).abs() > tolerance).collect();
    let Some(&at) = odd.first() else { return Ok(()) };
    let between = |at: usize| (placed[at].name.clone(), placed[at + 1].name.clone());
    let missing = |at: &usize| {
        let times = steps[*at] / usual;
        (times > 1.5 && (times - times.round()).abs() < 0.1).then(|| times.round() as usize - 1)
    };
    // Only whole steps are missing: something was not copied. Otherwise the spacing varies.
    if odd.iter().all(|n| missing(n).is_some()) {
        let gaps = odd.iter().take(8).map(|&n| {
            let (a, b) = between(n);
            format!("{} between {a} and {b}", missing(&n).unwrap_or_default())
        });
        let gaps = gaps.collect::<Vec<_>>().join(", ");
        let more =
            if odd.len() > 8 { format!(" and {} more gaps", odd.len() - 8) } else { String::new() };
        return Err(Fault::Missing { gaps: gaps + &more, usual_mm: usual });
    }
    let (a, b) = between(at);
    Err(Fault::Spacing { a, b, found_mm: steps[at], usual_mm: usual, places: odd.len() })
}

fn straight(placed: &[Placed<'_>], step: &Vector3<f64>) -> Result<(), Fault> {
    let origin = Vector3::from(placed[0].frame.position);
    let tolerance = STEP_TOLERANCE.0.max(STEP_TOLERANCE.1 * step.norm()) * 2.0;
    for (n, plane) in placed.iter().enumerate() {
        let off = (Vector3::from(plane.frame.position) - (origin + step * n as f64)).norm();
        if off > tolerance {
            return Err(Fault::Crooked { slice: plane.name.clone(), off_mm: off });
        }
    }
    Ok(())
}
