//! Writing NIfTI-1 with the source's affine.

use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use ndarray::s;

use super::header::{self, Scalar};
use super::{Cause, Error, planes_at_once};
use crate::durable;
use crate::volume::Volume;

/// A type the writer stores as it is.
pub trait Voxel: Copy {
    /// How the header names it.
    const SCALAR: Scalar;
    /// Stores the little-endian bytes; `out` has as many as the type.
    fn put(self, out: &mut [u8]);
}

macro_rules! voxel {
    ($($t:ty => $s:ident),*) => {$(
        impl Voxel for $t {
            const SCALAR: Scalar = Scalar::$s;
            fn put(self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
voxel!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64, f32 => F32, f64 => F64);

/// Writes `.nii` or `.nii.gz` (by the name) durably and reproducibly; sform always, qform where
/// the affine has no shear. Affines are stored as 32-bit floats, as NIfTI-1 defines them.
pub fn write<T: Voxel>(path: &Path, volume: &Volume<T>) -> Result<(), Error> {
    let fail = |cause| Error { action: "writing", path: path.to_path_buf(), cause };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let done = if name.ends_with(".nii.gz") {
        durable::write_with(path, |file| {
            let mut gz = GzEncoder::new(file, Compression::fast());
            stream(&mut gz, volume)?;
            gz.finish().map(drop)
        })
    } else if name.ends_with(".nii") {
        durable::write_with(path, |file| stream(file, volume))
    } else {
        return Err(fail(Cause::Name));
    };
    done.map_err(|e: io::Error| fail(e.into()))
}

fn stream<T: Voxel>(out: &mut impl Write, volume: &Volume<T>) -> io::Result<()> {
    let geometry = volume.geometry();
    out.write_all(&header::encode(geometry, T::SCALAR))?;
    let [ni, nj, nk] = geometry.shape();
    let size = T::SCALAR.bytes();
    let plane = ni * nj * size;
    let at_once = planes_at_once(plane, nk);
    let mut planes = vec![0u8; plane * at_once];
    for first in (0..nk).step_by(at_once) {
        let count = at_once.min(nk - first);
        for i in 0..ni {
            for j in 0..nj {
                let line = volume.data().slice(s![i, j, first..first + count]);
                for (n, value) in line.iter().enumerate() {
                    let at = n * plane + (i + ni * j) * size;
                    value.put(&mut planes[at..at + size]);
                }
            }
        }
        out.write_all(&planes[..plane * count])?;
    }
    Ok(())
}
