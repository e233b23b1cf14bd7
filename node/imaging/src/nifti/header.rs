//! The two header layouts, brought to one shape.

use nalgebra::{Matrix3, Matrix4, Quaternion, Rotation3, UnitQuaternion};

use super::{Cause, MAX_EDGE, MAX_OFFSET, MAX_VOXELS};
use crate::volume::Geometry;

pub(super) const V1_BYTES: usize = 348;
pub(super) const V2_BYTES: usize = 540;
/// sform and qform that put a corner farther apart than this are reported.
const FORM_DISAGREEMENT_MM: f64 = 0.1;
/// An affine whose axes deviate more than this from right angles has no qform.
const SHEAR_TOLERANCE: f64 = 1e-4;

/// Which standard a file follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 348-byte header.
    One,
    /// 540-byte header.
    Two,
}

/// Type of a stored voxel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Scalar {
    const CODES: [(Self, i16, usize); 10] = [
        (Self::U8, 2, 1),
        (Self::I16, 4, 2),
        (Self::I32, 8, 4),
        (Self::F32, 16, 4),
        (Self::F64, 64, 8),
        (Self::I8, 256, 1),
        (Self::U16, 512, 2),
        (Self::U32, 768, 4),
        (Self::I64, 1024, 8),
        (Self::U64, 1280, 8),
    ];

    fn from_code(code: i16) -> Result<Self, Cause> {
        Self::CODES.iter().find(|c| c.1 == code).map(|c| c.0).ok_or(Cause::Scalar(code))
    }

    /// What the standards call a type that is not read.
    pub(super) fn name_of_unread(code: i16) -> &'static str {
        match code {
            0 => "unknown",
            1 => "one bit",
            32 => "complex64",
            128 => "RGB colour",
            1536 => "128-bit float",
            1792 => "complex128",
            2048 => "complex256",
            2304 => "RGBA colour",
            _ => "not defined by NIfTI",
        }
    }

    fn row(self) -> (Self, i16, usize) {
        *Self::CODES.iter().find(|c| c.0 == self).unwrap_or(&Self::CODES[0])
    }

    pub(super) fn code(self) -> i16 {
        self.row().1
    }

    /// Bytes of one voxel.
    pub fn bytes(self) -> usize {
        self.row().2
    }
}

/// What a header says, checked.
#[derive(Debug, Clone)]
pub struct Header {
    /// The standard the file follows.
    pub version: Version,
    /// Byte order.
    pub big_endian: bool,
    /// Type of a stored voxel.
    pub scalar: Scalar,
    /// Grid in RAS millimetres.
    pub geometry: Geometry,
    /// Value = slope · stored + inter.
    pub slope: f64,
    /// See `slope`.
    pub inter: f64,
    /// Peculiarities a user should know of.
    pub notices: Vec<String>,
    pub(super) offset: u64,
}

impl Header {
    /// Bytes of voxels that follow the offset.
    pub fn voxel_bytes(&self) -> u64 {
        self.geometry.voxels() as u64 * self.scalar.bytes() as u64
    }
}

struct Fields<'a> {
    bytes: &'a [u8],
    big: bool,
}

macro_rules! field {
    ($name:ident, $n:literal) => {
        fn $name(&self, at: usize) -> $name {
            let mut b = [0u8; $n];
            b.copy_from_slice(&self.bytes[at..at + $n]);
            if self.big { $name::from_be_bytes(b) } else { $name::from_le_bytes(b) }
        }
    };
}

#[allow(non_camel_case_types)]
impl Fields<'_> {
    field!(i16, 2);
    field!(i32, 4);
    field!(i64, 8);
    field!(f32, 4);
    field!(f64, 8);

    fn f32s<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|n| f64::from(self.f32(at + 4 * n)))
    }

    fn f64s<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|n| self.f64(at + 8 * n))
    }
}

/// The fields both layouts share, as stored.
struct Raw {
    dim: [i64; 8],
    datatype: i16,
    pixdim: [f64; 8],
    offset: f64,
    slope: f64,
    inter: f64,
    units: u8,
    qform_code: i32,
    sform_code: i32,
    quaternion: [f64; 3],
    qoffset: [f64; 3],
    srow: [f64; 12],
}

/// How long the header is, by its first four bytes; the flag says big endian.
pub(super) fn layout(first: [u8; 4]) -> Result<(Version, bool), Cause> {
    match (i32::from_le_bytes(first), i32::from_be_bytes(first)) {
        (348, _) => Ok((Version::One, false)),
        (_, 348) => Ok((Version::One, true)),
        (540, _) => Ok((Version::Two, false)),
        (_, 540) => Ok((Version::Two, true)),
        _ => Err(Cause::NotNifti),
    }
}

/// Parses 348 or 540 bytes, as [`layout`] says.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, Cause> {
    let first = bytes.first_chunk().copied().ok_or(Cause::NotNifti)?;
    let (version, big) = layout(first)?;
    let f = Fields { bytes, big };
    let raw = match version {
        Version::One => {
            if bytes.len() < V1_BYTES {
                return Err(Cause::NotNifti);
            }
            match &bytes[344..348] {
                b"n+1\0" => {}
                b"ni1\0" => return Err(Cause::Pair),
                _ => return Err(Cause::NotNifti),
            }
            Raw {
                dim: std::array::from_fn(|n| i64::from(f.i16(40 + 2 * n))),
                datatype: f.i16(70),
                pixdim: f.f32s(76),
                offset: f64::from(f.f32(108)),
                slope: f64::from(f.f32(112)),
                inter: f64::from(f.f32(116)),
                units: bytes[123],
                qform_code: i32::from(f.i16(252)),
                sform_code: i32::from(f.i16(254)),
                quaternion: f.f32s(256),
                qoffset: f.f32s(268),
                srow: f.f32s(280),
            }
        }
        Version::Two => {
            if bytes.len() < V2_BYTES {
                return Err(Cause::NotNifti);
            }
            match &bytes[4..12] {
                b"n+2\0\r\n\x1a\n" => {}
                b"ni2\0\r\n\x1a\n" => return Err(Cause::Pair),
                _ => return Err(Cause::NotNifti),
            }
            Raw {
                dim: std::array::from_fn(|n| f.i64(16 + 8 * n)),
                datatype: f.i16(12),
                pixdim: f.f64s(104),
                offset: f.i64(168) as f64,
                slope: f.f64(176),
                inter: f.f64(184),
                units: f.i32(500) as u8,
                qform_code: f.i32(344),
                sform_code: f.i32(348),
                quaternion: f.f64s(352),
                qoffset: f.f64s(376),
                srow: f.f64s(400),
            }
        }
    };
    interpret(version, big, &raw)
}

fn interpret(version: Version, big_endian: bool, raw: &Raw) -> Result<Header, Cause> {
    let mut notices = Vec::new();
    let shape = shape(&raw.dim)?;
    let scalar = Scalar::from_code(raw.datatype)?;
    let least = if version == Version::One { V1_BYTES + 4 } else { V2_BYTES + 4 };
    if !(raw.offset >= least as f64 && raw.offset <= MAX_OFFSET as f64 && raw.offset.fract() == 0.0)
    {
        return Err(Cause::Field { field: "vox_offset", value: raw.offset });
    }
    // A slope of 0 (nifti1.h) or NaN (nibabel) means that nothing is scaled.
    let (slope, inter) =
        if raw.slope == 0.0 || raw.slope.is_nan() { (1.0, 0.0) } else { (raw.slope, raw.inter) };
    if !slope.is_finite() || !inter.is_finite() {
        return Err(Cause::Field {
            field: "scl_slope",
            value: if slope.is_finite() { inter } else { slope },
        });
    }
    let unit_mm = match raw.units & 7 {
        1 => 1000.0,
        3 => 0.001,
        _ => 1.0,
    };
    if unit_mm != 1.0 {
        notices.push(format!("positions are stored in units of {unit_mm} mm and were converted"));
    }
    let affine = affine(raw, &shape, unit_mm, &mut notices)?;
    Ok(Header {
        version,
        big_endian,
        scalar,
        geometry: Geometry::new(shape, affine)?,
        slope,
        inter,
        notices,
        offset: raw.offset as u64,
    })
}

fn shape(dim: &[i64; 8]) -> Result<[usize; 3], Cause> {
    let impossible = || Cause::Dimensions(dim.to_vec());
    let axes =
        usize::try_from(dim[0]).ok().filter(|n| (1..=7).contains(n)).ok_or_else(impossible)?;
    let mut shape = [1usize; 3];
    for axis in 0..axes.min(3) {
        let n = usize::try_from(dim[axis + 1]).map_err(|_| impossible())?;
        if n == 0 || n > MAX_EDGE {
            return Err(impossible());
        }
        shape[axis] = n;
    }
    if shape.iter().product::<usize>() > MAX_VOXELS {
        return Err(impossible());
    }
    // Axes beyond the third are often written as 0 when they are not used.
    match dim[4..].iter().take(axes.saturating_sub(3)).find(|n| !(0..=1).contains(*n)) {
        Some(n) if *n < 0 => Err(impossible()),
        Some(n) => Err(Cause::Frames(*n)),
        None => Ok(shape),
    }
}

fn affine(
    raw: &Raw,
    shape: &[usize; 3],
    unit_mm: f64,
    notices: &mut Vec<String>,
) -> Result<Matrix4<f64>, Cause> {
    let mut spacing = [raw.pixdim[1], raw.pixdim[2], raw.pixdim[3]];
    for axis in 0..3 {
        // The spacing of an axis of one voxel is often left out.
        if shape[axis] == 1 && spacing[axis] == 0.0 {
            spacing[axis] = 1.0;
        }
    }
    let positive = spacing.iter().all(|s| s.is_finite() && *s > 0.0);
    let to_mm = |mut m: Matrix4<f64>| {
        m.fixed_view_mut::<3, 4>(0, 0).scale_mut(unit_mm);
        m
    };
    let sform = || {
        to_mm(Matrix4::from_fn(|r, c| {
            if r < 3 { raw.srow[4 * r + c] } else { f64::from(u8::from(c == 3)) }
        }))
    };
    match (raw.sform_code > 0, raw.qform_code > 0) {
        (true, quaternion) => {
            let affine = sform();
            if !positive {
                notices.push(format!(
                    "the stored spacing {spacing:?} is not positive; the sform was used instead"
                ));
            } else if quaternion {
                let geometry = Geometry::new(*shape, affine)?;
                match qform(raw, spacing).map(|other| geometry.corner_distance_mm(&to_mm(other))) {
                    Ok(apart) if apart <= FORM_DISAGREEMENT_MM => {}
                    Ok(apart) => notices.push(format!(
                        "sform and qform disagree by up to {apart:.2} mm; the sform was used"
                    )),
                    Err(_) => notices
                        .push("the qform describes no rotation; the sform was used".to_owned()),
                }
            }
            Ok(affine)
        }
        _ if !positive => Err(Cause::Spacing(spacing)),
        (false, true) => Ok(to_mm(qform(raw, spacing)?)),
        (false, false) => {
            notices.push(
                "the file states no orientation; axes were taken as right, anterior, superior"
                    .into(),
            );
            Ok(to_mm(Matrix4::from_diagonal(&nalgebra::Vector4::new(
                spacing[0], spacing[1], spacing[2], 1.0,
            ))))
        }
    }
}

/// nifti1.h, "METHOD 2"; a qfac of 0 counts as 1.
fn qform(raw: &Raw, spacing: [f64; 3]) -> Result<Matrix4<f64>, Cause> {
    let [b, c, d] = raw.quaternion;
    if [b, c, d].iter().chain(&raw.qoffset).any(|v| !v.is_finite()) {
        return Err(Cause::Field { field: "quatern", value: f64::NAN });
    }
    let square = b * b + c * c + d * d;
    // Rounding may push the vector part just over 1: then the rotation is by 180 degrees.
    if square > 1.0 + 1e-3 {
        return Err(Cause::Field { field: "quatern", value: square.sqrt() });
    }
    let q =
        UnitQuaternion::from_quaternion(Quaternion::new((1.0 - square).max(0.0).sqrt(), b, c, d));
    let mut affine = q.to_homogeneous();
    let qfac = if raw.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
    for (axis, s) in [spacing[0], spacing[1], spacing[2] * qfac].into_iter().enumerate() {
        affine.column_mut(axis).scale_mut(s);
        affine[(axis, 3)] = raw.qoffset[axis];
    }
    Ok(affine)
}

/// A little-endian NIfTI-1 header with both forms where the affine has no shear.
pub(super) fn encode(geometry: &Geometry, scalar: Scalar) -> [u8; V1_BYTES + 4] {
    let mut out = [0u8; V1_BYTES + 4];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    put(40, &3i16.to_le_bytes());
    for axis in 0..7 {
        let n = geometry.shape().get(axis).copied().unwrap_or(1);
        put(42 + 2 * axis, &(n as i16).to_le_bytes());
    }
    put(70, &scalar.code().to_le_bytes());
    put(72, &(8 * scalar.bytes() as i16).to_le_bytes());
    let affine = geometry.affine();
    let spacing = geometry.spacing_mm();
    for (axis, s) in spacing.iter().enumerate() {
        put(80 + 4 * axis, &(*s as f32).to_le_bytes());
    }
    put(108, &((V1_BYTES + 4) as f32).to_le_bytes());
    put(112, &1f32.to_le_bytes());
    put(123, &[2]);
    let mut qfac = 1f32;
    if let Some((quaternion, flipped)) = quaternion(affine, spacing) {
        qfac = if flipped { -1.0 } else { 1.0 };
        put(252, &1i16.to_le_bytes());
        for (n, v) in quaternion.into_iter().enumerate() {
            put(256 + 4 * n, &(v as f32).to_le_bytes());
            put(268 + 4 * n, &(affine[(n, 3)] as f32).to_le_bytes());
        }
    }
    put(76, &qfac.to_le_bytes());
    put(254, &1i16.to_le_bytes());
    for row in 0..3 {
        for column in 0..4 {
            put(280 + 16 * row + 4 * column, &(affine[(row, column)] as f32).to_le_bytes());
        }
    }
    put(344, b"n+1\0");
    out
}

/// Vector part of the rotation with a positive real part, and whether the third axis is flipped.
fn quaternion(affine: &Matrix4<f64>, spacing: [f64; 3]) -> Option<([f64; 3], bool)> {
    let mut r: Matrix3<f64> = affine.fixed_view::<3, 3>(0, 0).into_owned();
    for (axis, s) in spacing.into_iter().enumerate() {
        r.column_mut(axis).unscale_mut(s);
    }
    if (r.transpose() * r - Matrix3::identity()).abs().max() > SHEAR_TOLERANCE {
        return None;
    }
    let flipped = r.determinant() < 0.0;
    if flipped {
        r.column_mut(2).neg_mut();
    }
    let q = UnitQuaternion::from_rotation_matrix(&Rotation3::from_matrix_unchecked(r));
    let sign = if q.w < 0.0 { -1.0 } else { 1.0 };
    Some(([q.i * sign, q.j * sign, q.k * sign], flipped))
}
