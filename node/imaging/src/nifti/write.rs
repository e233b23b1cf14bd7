//! Writing NIfTI-1 with the source's affine.

use std::io::{self, Write};
use std::path::Path;

use rayon::prelude::*;

use super::gzip::Encoder;
use super::header::{self, Scalar};
use super::{Cause, Error};
use crate::durable;
use crate::volume::Volume;

/// Planes turned together: files store i fastest, memory k. Two lines of the cache as 32-bit values.
const PLANES_AT_ONCE: usize = 32;
/// Voxels of the planes that are turned together, but one plane always.
const WAITING_VOXELS: usize = 1 << 24;

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
    let all = |fits: fn(&f32) -> bool| {
        volume.data().as_slice().is_some_and(|values| values.par_iter().all(fits))
    };
    if all(|v| f32::from(*v as i16) == *v) {
        write_as(path, volume, |v| v as i16)
    } else if all(|v| f32::from(*v as u16) == *v) {
        write_as(path, volume, |v| v as u16)
    } else {
        write(path, volume)
    }
}

fn write_as<T: Voxel, S: Voxel>(
    path: &Path,
    volume: &Volume<T>,
    stored: impl Fn(T) -> S + Sync,
) -> Result<(), Error> {
    let fail = |cause| Error { action: "writing", path: path.to_path_buf(), cause };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let done = if name.ends_with(".nii.gz") {
        durable::write_with(path, |file| {
            let mut gz = Encoder::new(file)?;
            stream(&mut gz, volume, stored)?;
            gz.finish().map(drop)
        })
    } else if name.ends_with(".nii") {
        durable::write_with(path, |file| stream(file, volume, stored))
    } else {
        return Err(fail(Cause::Name));
    };
    done.map_err(|e: io::Error| fail(e.into()))
}

fn stream<T: Voxel, S: Voxel>(
    out: &mut impl Write,
    volume: &Volume<T>,
    stored: impl Fn(T) -> S + Sync,
) -> io::Result<()> {
    let geometry = volume.geometry();
    out.write_all(&header::encode(geometry, S::SCALAR))?;
    let [ni, nj, nk] = geometry.shape();
    // A volume is in C layout.
    let values = volume.data().as_slice().unwrap_or_default();
    // Rows of one j lie together, those of all planes: each processor then fills its own piece.
    let together = (WAITING_VOXELS / (ni * nj)).clamp(1, PLANES_AT_ONCE).min(nk);
    let mut rows = vec![S::zeroed(); nj * ni * together];
    for first in (0..nk).step_by(together) {
        let count = together.min(nk - first);
        let rows = &mut rows[..nj * ni * count];
        rows.par_chunks_exact_mut(ni * count).enumerate().for_each(|(j, rows)| {
            for (i, of_i) in values.chunks_exact(nj * nk).enumerate() {
                let at = j * nk + first;
                let to = rows[i..].iter_mut().step_by(ni);
                for (value, to) in of_i[at..at + count].iter().zip(to) {
                    *to = stored(*value);
                }
            }
        });
        for n in 0..count {
            for j in 0..nj {
                let at = (j * count + n) * ni;
                out.write_all(bytemuck::cast_slice(&rows[at..at + ni]))?;
            }
        }
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
            write_narrow(&path, &volume).unwrap();
            let back = read_image(&path).unwrap();
            assert_eq!((back.header.scalar, back.volume.data()), (scalar, volume.data()));
        }
    }
}
