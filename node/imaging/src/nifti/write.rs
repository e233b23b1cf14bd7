//! Writing NIfTI-1 with the source's affine.

use std::io::{self, Write};
use std::path::Path;

use rayon::prelude::*;

use super::gzip::Encoder;
use super::header::{self, Scalar};
use super::{Cause, Error};
use crate::durable;
use crate::transposition::{self, EDGE, Lines};
use crate::volume::{Geometry, Volume};

/// Planes turned by one thread at a time: files store i fastest, memory k.
const PLANES_AT_ONCE: usize = 2 * EDGE;
/// Voxels of the planes that are turned together, but one plane always.
const WAITING_VOXELS: usize = 1 << 24;
/// Values that one thread looks at or narrows at a time.
const VALUES_AT_ONCE: usize = 1 << 14;
/// Values narrowed before they are written.
const WAITING_VALUES: usize = 1 << 20;

/// A type the writer stores as it is; files are little-endian, and so is the machine.
pub trait Voxel: bytemuck::Pod + Send + Sync {
    /// How the header names it.
    const SCALAR: Scalar;
}

macro_rules! voxel {
    ($($t:ty => $s:ident),*) => {$(
        impl Voxel for $t {
            const SCALAR: Scalar = Scalar::$s;
        }
    )*};
}
voxel!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64);

/// Writes `.nii` or `.nii.gz` (by the name) durably and reproducibly; sform always, qform where
/// the affine has no shear. Affines are stored as 32-bit floats, as NIfTI-1 defines them.
pub fn write<T: Voxel>(path: &Path, volume: &Volume<T>) -> Result<(), Error> {
    write_as(path, volume, |v| v)
}

/// Writes an image in the narrowest of `i16`, `u16` and `f32` that holds every value exactly, as
/// scanners' values are mostly whole numbers: half the size, and the same numbers.
pub fn write_narrow(path: &Path, volume: &Volume<f32>) -> Result<(), Error> {
    match narrowest(volume.data().as_slice().unwrap_or_default()) {
        Scalar::I16 => write_as(path, volume, |v| low_bits(v) as i16),
        Scalar::U16 => write_as(path, volume, |v| low_bits(v) as u16),
        _ => write(path, volume),
    }
}

/// [`write_narrow`] for values that are in the order of files already, i fastest.
pub(crate) fn write_planes(path: &Path, grid: &Geometry, values: &[f32]) -> Result<(), Error> {
    match narrowest(values) {
        Scalar::I16 => write_values(path, grid, values, |v| low_bits(v) as i16),
        Scalar::U16 => write_values(path, grid, values, |v| low_bits(v) as u16),
        _ => write_values(path, grid, values, |v| v),
    }
}

/// A float of this size has no bits for a fraction, and its lowest bit counts ones: 1.5 · 2^23.
const WHOLE: f32 = 12_582_912.0;

/// The narrowest type that holds every value exactly.
fn narrowest(values: &[f32]) -> Scalar {
    let all = |least, most| {
        values.par_chunks(VALUES_AT_ONCE).all(|values| are_whole_within(values, least, most))
    };
    if all(-32768.0, 32767.0) {
        Scalar::I16
    } else if all(0.0, 65535.0) {
        Scalar::U16
    } else {
        Scalar::F32
    }
}

/// Looks at every value, whatever it finds, so that several take one instruction.
fn are_whole_within(values: &[f32], least: f32, most: f32) -> bool {
    values.iter().fold(true, |all, &v| all & (v >= least) & (v <= most) & (v + WHOLE - WHOLE == v))
}

/// A whole number below 2^22 in two's complement. Unlike `as`, which cuts what is too large, several
/// take one instruction.
fn low_bits(whole: f32) -> u32 {
    (whole + WHOLE).to_bits()
}

fn write_as<T: Voxel, S: Voxel>(
    path: &Path,
    volume: &Volume<T>,
    stored: impl Fn(T) -> S + Sync,
) -> Result<(), Error> {
    file(path, volume.geometry(), S::SCALAR, |out| turned(out, volume, stored))
}

fn write_values<S: Voxel>(
    path: &Path,
    grid: &Geometry,
    values: &[f32],
    stored: impl Fn(f32) -> S + Sync,
) -> Result<(), Error> {
    file(path, grid, S::SCALAR, |out| {
        let mut waiting = vec![S::zeroed(); WAITING_VALUES.min(values.len())];
        for values in values.chunks(WAITING_VALUES) {
            let waiting = &mut waiting[..values.len()];
            let pieces = waiting.par_chunks_mut(VALUES_AT_ONCE);
            pieces.zip(values.par_chunks(VALUES_AT_ONCE)).for_each(|(to, from)| {
                to.iter_mut().zip(from).for_each(|(to, v)| *to = stored(*v));
            });
            out.write_all(bytemuck::cast_slice(waiting))?;
        }
        Ok(())
    })
}

/// Writes the header and what `fill` writes, compressed where the name says so.
fn file(
    path: &Path,
    grid: &Geometry,
    scalar: Scalar,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    let fail = |cause| Error { action: "writing", path: path.to_path_buf(), cause };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let header = header::encode(grid, scalar);
    let done = if name.ends_with(".nii.gz") {
        durable::write_with(path, |file| {
            let mut gz = Encoder::new(file)?;
            gz.write_all(&header)?;
            fill(&mut gz)?;
            gz.finish().map(drop)
        })
    } else if name.ends_with(".nii") {
        durable::write_with(path, |file| {
            file.write_all(&header)?;
            fill(file)
        })
    } else {
        return Err(fail(Cause::Name));
    };
    done.map_err(|e: io::Error| fail(e.into()))
}

fn turned<T: Voxel, S: Voxel>(
    out: &mut dyn Write,
    volume: &Volume<T>,
    stored: impl Fn(T) -> S + Sync,
) -> io::Result<()> {
    let [ni, nj, nk] = volume.geometry().shape();
    // A volume is in C layout.
    let values = volume.data().as_slice().unwrap_or_default();
    let together = PLANES_AT_ONCE * rayon::current_num_threads();
    let together = together.min(WAITING_VOXELS / (ni * nj)).clamp(1, nk);
    let mut planes = vec![S::zeroed(); ni * nj * together];
    for first in (0..nk).step_by(together) {
        let planes = &mut planes[..ni * nj * together.min(nk - first)];
        planes.par_chunks_mut(ni * nj * PLANES_AT_ONCE).enumerate().for_each(|(n, to)| {
            let k = first + n * PLANES_AT_ONCE;
            let count = to.len() / (ni * nj);
            for i in (0..ni).step_by(EDGE) {
                for j in 0..nj {
                    let from = Lines { apart: nj * nk, first: (i * nj + j) * nk + k };
                    let place = Lines { apart: ni * nj, first: ni * j + i };
                    let shape = [EDGE.min(ni - i), count];
                    transposition::turn(values, from, to, place, shape, &stored);
                }
            }
        });
        out.write_all(bytemuck::cast_slice(planes))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use ndarray::Array3;

    use super::super::read_image;
    use super::*;
    use crate::volume::Geometry;

    #[test]
    fn the_narrowest_type_that_holds_every_value_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.nii.gz");
        let geometry = Geometry::with_spacing([3, 2, 70], [1.0, 2.0, 0.5]).unwrap();
        for (least, most, scalar) in [
            (-32768.0, 32767.0, Scalar::I16),
            (0.0, 65535.0, Scalar::U16),
            (-1.0, 32768.0, Scalar::F32),
            (0.0, 0.5, Scalar::F32),
            (-3e38, 3e38, Scalar::F32),
        ] {
            let mut data =
                Array3::from_shape_fn((3, 2, 70), |(i, j, k)| (i + 3 * j + 7 * k) as f32);
            (data[[0, 0, 0]], data[[2, 1, 69]]) = (least, most);
            let volume = Volume::new(geometry.clone(), data).unwrap();
            let in_file_order: Vec<f32> = volume.data().t().iter().copied().collect();
            for planes in [false, true] {
                match planes {
                    false => write_narrow(&path, &volume).unwrap(),
                    true => write_planes(&path, &geometry, &in_file_order).unwrap(),
                }
                let back = read_image(&path).unwrap();
                assert_eq!((back.header.scalar, back.volume.data()), (scalar, volume.data()));
            }
        }
    }
}
