#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use nalgebra::{Matrix4, Rotation3, Vector3};
use ndarray::Array3;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::volume::{Geometry, Volume};

/// A file field by field, in either version and byte order.
#[derive(Clone)]
struct Built {
    version: Version,
    big: bool,
    dim: [i64; 8],
    code: i16,
    pixdim: [f64; 8],
    offset: i64,
    slope: f64,
    inter: f64,
    units: u8,
    qform_code: i32,
    quatern: [f64; 6],
    sform_code: i32,
    srow: [f64; 12],
    voxels: Vec<u8>,
}

fn built(version: Version, big: bool) -> Built {
    Built {
        version,
        big,
        dim: [3, 2, 3, 2, 1, 1, 1, 1],
        code: 2,
        pixdim: [1.0, 0.5, 0.5, 2.0, 0.0, 0.0, 0.0, 0.0],
        offset: if version == Version::One { 352 } else { 544 },
        slope: 0.0,
        inter: 0.0,
        units: 2,
        qform_code: 0,
        quatern: [0.0; 6],
        sform_code: 1,
        srow: [0.5, 0.0, 0.0, -3.0, 0.0, 0.5, 0.0, 4.0, 0.0, 0.0, 2.0, 5.0],
        voxels: (0..12).collect(),
    }
}

impl Built {
    fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0u8; if self.version == Version::One { 348 } else { 540 }];
        let big = self.big;
        let mut put = |at: usize, little: &[u8]| {
            out[at..at + little.len()].copy_from_slice(little);
            if big {
                out[at..at + little.len()].reverse();
            }
        };
        match self.version {
            Version::One => {
                put(0, &348i32.to_le_bytes());
                (0..8).for_each(|n| put(40 + 2 * n, &(self.dim[n] as i16).to_le_bytes()));
                put(70, &self.code.to_le_bytes());
                (0..8).for_each(|n| put(76 + 4 * n, &(self.pixdim[n] as f32).to_le_bytes()));
                put(108, &(self.offset as f32).to_le_bytes());
                put(112, &(self.slope as f32).to_le_bytes());
                put(116, &(self.inter as f32).to_le_bytes());
                put(123, &[self.units]);
                put(252, &(self.qform_code as i16).to_le_bytes());
                put(254, &(self.sform_code as i16).to_le_bytes());
                (0..6).for_each(|n| put(256 + 4 * n, &(self.quatern[n] as f32).to_le_bytes()));
                (0..12).for_each(|n| put(280 + 4 * n, &(self.srow[n] as f32).to_le_bytes()));
                out[344..].copy_from_slice(b"n+1\0");
            }
            Version::Two => {
                put(0, &540i32.to_le_bytes());
                put(12, &self.code.to_le_bytes());
                (0..8).for_each(|n| put(16 + 8 * n, &self.dim[n].to_le_bytes()));
                (0..8).for_each(|n| put(104 + 8 * n, &self.pixdim[n].to_le_bytes()));
                put(168, &self.offset.to_le_bytes());
                put(176, &self.slope.to_le_bytes());
                put(184, &self.inter.to_le_bytes());
                put(344, &self.qform_code.to_le_bytes());
                put(348, &self.sform_code.to_le_bytes());
                (0..6).for_each(|n| put(352 + 8 * n, &self.quatern[n].to_le_bytes()));
                (0..12).for_each(|n| put(400 + 8 * n, &self.srow[n].to_le_bytes()));
                put(500, &i32::from(self.units).to_le_bytes());
                out[4..12].copy_from_slice(b"n+2\0\r\n\x1a\n");
            }
        }
        out.resize(usize::try_from(self.offset).unwrap_or(0).clamp(out.len(), 4096), 0);
        out.extend_from_slice(&self.voxels);
        out
    }

    fn read(&self) -> Result<Image, Error> {
        read_bytes(&self.bytes())
    }

    fn cause(&self) -> String {
        self.read().expect_err("must be refused").cause.to_string()
    }
}

fn stored(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume.nii");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn read_bytes(bytes: &[u8]) -> Result<Image, Error> {
    let (_dir, path) = stored(bytes);
    read_image(&path)
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const LAYOUTS: [(Version, bool); 4] =
    [(Version::One, false), (Version::One, true), (Version::Two, false), (Version::Two, true)];

#[test]
fn every_scalar_type_in_both_versions_and_byte_orders() {
    for (version, big) in LAYOUTS {
        macro_rules! check {
            ($($t:ty = $code:literal),*) => {$(
                let mut file = built(version, big);
                file.code = $code;
                let values: Vec<$t> = (0..12).map(|n| (n * 10) as $t).collect();
                file.voxels = values.iter().flat_map(|v| if big { v.to_be_bytes() } else { v.to_le_bytes() }).collect();
                (file.slope, file.inter) = (0.5, -3.0);
                let image = file.read().unwrap();
                assert_eq!((image.header.version, image.header.big_endian), (version, big));
                assert_eq!(image.volume.geometry().spacing_mm(), [0.5, 0.5, 2.0]);
                for ((i, j, k), v) in image.volume.data().indexed_iter() {
                    let n = i + 2 * j + 6 * k;
                    assert_eq!(*v, n as f32 * 5.0 - 3.0, "type {} at {i} {j} {k}", $code);
                }
            )*};
        }
        check!(
            u8 = 2,
            i16 = 4,
            i32 = 8,
            f32 = 16,
            f64 = 64,
            i8 = 256,
            u16 = 512,
            u32 = 768,
            i64 = 1024,
            u64 = 1280
        );
    }
}

#[test]
fn slope_of_zero_or_nan_scales_nothing() {
    for slope in [0.0, f64::NAN] {
        let mut file = built(Version::One, false);
        (file.slope, file.inter) = (slope, 100.0);
        assert_eq!(file.read().unwrap().volume.data()[[1, 0, 0]], 1.0);
    }
}

#[test]
fn sform_wins_and_disagreement_is_reported() {
    let mut file = built(Version::One, false);
    file.qform_code = 1;
    file.quatern = [0.0, 0.0, 0.0, -3.0, 4.0, 5.0];
    assert_eq!(file.read().unwrap().header.notices, Vec::<String>::new());
    file.quatern[3] = 7.0;
    let image = file.read().unwrap();
    assert_eq!(image.volume.geometry().affine()[(0, 3)], -3.0);
    assert!(
        image.header.notices[0].contains("disagree by up to 10.00 mm"),
        "{:?}",
        image.header.notices
    );
}

#[test]
fn a_broken_qform_beside_a_sound_sform_is_reported() {
    let mut file = built(Version::Two, true);
    (file.qform_code, file.quatern[0]) = (1, 3.0);
    let image = file.read().unwrap();
    assert_eq!(image.volume.geometry().affine()[(0, 3)], -3.0);
    assert_eq!(image.header.notices, ["the qform describes no rotation; the sform was used"]);
}

#[test]
fn other_types_and_other_packers_are_named() {
    for (code, name) in [(1, "one bit"), (128, "RGB colour"), (2304, "RGBA"), (1536, "128-bit")] {
        let mut file = built(Version::One, false);
        file.code = code;
        assert!(file.cause().contains(&format!("voxel type {code} ({name}")), "{}", file.cause());
    }
    for (start, name) in
        [(&[0x28u8, 0xb5, 0x2f, 0xfd][..], "zstd"), (b"BZh9", "bzip2"), (b"PK\x03\x04", "zip")]
    {
        let text = read_bytes(&[start, &[0; 400]].concat()).unwrap_err().to_string();
        assert!(text.contains(&format!("compressed with {name}")), "{text}");
    }
}

#[test]
fn extensions_are_skipped_members_joined_and_single_trailing_axes_dropped() {
    for (version, big) in LAYOUTS {
        let mut file = built(version, big);
        let plain = file.read().unwrap().volume;
        file.dim = [5, 2, 3, 2, 1, 1, 0, 0];
        file.offset += 512;
        let bytes = file.bytes();
        assert_eq!(read_bytes(&bytes).unwrap().volume, plain);
        let members = [gz(&bytes[..100]), gz(&bytes[100..600]), gz(&bytes[600..])].concat();
        assert_eq!(read_bytes(&members).unwrap().volume, plain);
    }
}

#[test]
fn planes_turned_together_take_bounded_memory() {
    assert_eq!(planes_at_once(240 * 240 * 4, 155), PLANES_AT_ONCE);
    assert_eq!(planes_at_once(240 * 240 * 4, 3), 3);
    assert_eq!(planes_at_once(MAX_EDGE * MAX_EDGE, 16), 2);
    assert_eq!(planes_at_once(8 * MAX_EDGE * MAX_EDGE, 16), 1);
}

#[test]
fn qform_alone_with_a_qfac_of_zero_or_minus_one() {
    let mut file = built(Version::Two, false);
    (file.qform_code, file.sform_code) = (1, 0);
    file.quatern = [0.0, 0.0, 1.0, 1.0, 2.0, 3.0];
    for (qfac, third) in [(0.0, 2.0), (1.0, 2.0), (-1.0, -2.0)] {
        file.pixdim[0] = qfac;
        let affine = *file.read().unwrap().volume.geometry().affine();
        let expected = Matrix4::new(
            -0.5, 0.0, 0.0, 1.0, 0.0, -0.5, 0.0, 2.0, 0.0, 0.0, third, 3.0, 0.0, 0.0, 0.0, 1.0,
        );
        assert!((affine - expected).abs().max() < 1e-12, "qfac {qfac}: {affine}");
    }
}

#[test]
fn without_orientation_and_in_metres() {
    let mut file = built(Version::One, false);
    file.sform_code = 0;
    file.units = 1;
    for n in 1..4 {
        file.pixdim[n] = 0.001;
    }
    let image = file.read().unwrap();
    assert_eq!(image.header.notices.len(), 2);
    assert!((image.volume.geometry().spacing_mm()[0] - 1.0).abs() < 1e-6);
}

#[test]
fn hostile_headers_are_refused_by_name() {
    for (version, big) in LAYOUTS {
        let file = built(version, big);
        let with = |change: fn(&mut Built)| {
            let mut file = file.clone();
            change(&mut file);
            file.cause()
        };
        for (change, words) in [
            ((|f| f.dim[1] = 0) as fn(&mut Built), "impossible dimensions"),
            (|f| f.dim[2] = -5, "impossible dimensions"),
            (|f| f.dim[0] = 9, "impossible dimensions"),
            (|f| f.dim[3] = 32767, "impossible dimensions"),
            (|f| f.dim[1..4].fill(4096), "impossible dimensions"),
            (|f| (f.dim[0], f.dim[4]) = (4, 30), "30 frames"),
            (|f| f.code = 32, "voxel type 32"),
            (|f| f.code = 0, "voxel type 0"),
            (|f| f.offset = 0, "vox_offset"),
            (|f| f.slope = f64::INFINITY, "scl_slope"),
            (|f| (f.sform_code, f.pixdim[2]) = (0, -1.0), "not positive"),
            (|f| (f.sform_code, f.pixdim[3]) = (0, 0.0), "not positive"),
            (|f| (f.sform_code, f.qform_code, f.quatern[0]) = (0, 1, 3.0), "quatern"),
            (|f| f.srow[0] = f64::NAN, "not a finite matrix"),
            (|f| f.srow[10] = 0.0, "spacing"),
            (|f| (f.srow[2], f.srow[10]) = (2.0, 0.0), "singular"),
            (|f| f.voxels.truncate(11), "cut short"),
            // A claim of 2 GiB in a file of half a kilobyte allocates nothing.
            (|f| (f.code, f.dim[1], f.dim[2], f.dim[3]) = (64, 4096, 4096, 16), "cut short"),
        ] {
            let cause = with(change);
            assert!(cause.contains(words), "{version:?} {big}: {cause} should say {words}");
        }
    }
    let mut pair = built(Version::One, false).bytes();
    pair[344..348].copy_from_slice(b"ni1\0");
    assert!(read_bytes(&pair).unwrap_err().to_string().contains("pair"));
    assert!(read_bytes(b"not an image").unwrap_err().to_string().contains("no NIfTI"));
    assert!(read_bytes(b"").is_err());
}

#[test]
fn voxels_that_are_no_numbers_or_no_labels() {
    let mut file = built(Version::One, false);
    file.code = 16;
    let mut values = [0f32; 12];
    values[7] = f32::NAN;
    file.voxels = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(file.cause().contains("voxel [1, 0, 1] is not a finite number"));
    let (_dir, path) = stored(&file.bytes());
    assert!(read_mask(&path).is_err());
    values[7] = 1.5;
    file.voxels = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (_dir, path) = stored(&file.bytes());
    assert!(read_labels(&path).unwrap_err().to_string().contains("holds 1.5, which is no label"));
    assert_eq!(read_mask(&path).unwrap().data().sum(), 1);
}

#[test]
fn every_cut_is_noticed() {
    for (version, big) in LAYOUTS {
        let bytes = built(version, big).bytes();
        for whole in [bytes.clone(), gz(&bytes)] {
            assert!(read_bytes(&whole).is_ok());
            for cut in 0..whole.len() {
                assert!(
                    read_bytes(&whole[..cut]).is_err(),
                    "{version:?} cut after {cut} of {}",
                    whole.len()
                );
            }
        }
    }
}

#[test]
fn no_flipped_byte_of_compressed_voxels_changes_one() {
    let bytes = built(Version::One, false).bytes();
    let (whole, image) = (gz(&bytes), read_bytes(&bytes).unwrap());
    let mut refused = 0;
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        // Some bits say nothing about voxels: a time, a system, padding.
        match read_bytes(&flipped) {
            Ok(read) => assert_eq!(read.volume, image.volume, "byte {at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > whole.len() - 10, "{refused} of {}", whole.len());
}

#[test]
fn a_gz_bomb_is_read_no_further_than_its_header_says() {
    let mut bytes = built(Version::One, false).bytes();
    bytes.resize(bytes.len() + 1000, 0);
    let image = read_bytes(&gz(&bytes)).unwrap();
    assert_eq!(image.header.notices, ["1000 bytes after the last voxel were ignored"]);
    bytes.resize(bytes.len() + (64 << 20), 0);
    assert!(read_bytes(&gz(&bytes)).unwrap_err().to_string().contains("more than 1 MiB"));
}

#[test]
fn names_with_dots_stay_whole() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::new(
        Geometry::with_spacing([2, 3, 4], [1.0; 3]).unwrap(),
        Array3::<u8>::ones((2, 3, 4)),
    )
    .unwrap();
    for name in ["pat.01.seg.nii", "pat.01.seg.nii.gz"] {
        write(&dir.path().join(name), &volume).unwrap();
        assert!(dir.path().join(name).exists());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    assert!(
        write(&dir.path().join("pat.mha"), &volume)
            .unwrap_err()
            .to_string()
            .contains("must end in")
    );
}

#[test]
fn a_sheared_grid_has_no_qform_but_comes_back() {
    let mut affine = Matrix4::identity();
    affine[(0, 2)] = 0.3;
    let volume =
        Volume::new(Geometry::new([3, 3, 3], affine).unwrap(), Array3::<u8>::zeros((3, 3, 3)))
            .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sheared.nii");
    write(&path, &volume).unwrap();
    assert_eq!(std::fs::read(&path).unwrap()[252], 0);
    assert!(read_header(&path).unwrap().geometry.matches(volume.geometry()));
}

fn geometry() -> impl Strategy<Value = Geometry> {
    let shape = prop::array::uniform3(1usize..7);
    let spacing = prop::array::uniform3(0.3f64..6.0);
    let rest = (
        prop::array::uniform3(-3.1f64..3.1),
        prop::array::uniform3(-200.0f64..200.0),
        any::<bool>(),
    );
    (shape, spacing, rest).prop_map(|(shape, spacing, (angles, origin, mirrored))| {
        let mut affine =
            Rotation3::from_euler_angles(angles[0], angles[1], angles[2]).to_homogeneous();
        for (axis, mm) in spacing.into_iter().enumerate() {
            affine.column_mut(axis).scale_mut(if mirrored && axis == 0 { -mm } else { mm });
        }
        affine.fixed_view_mut::<3, 1>(0, 3).copy_from(&Vector3::from(origin));
        Geometry::new(shape, affine).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read(geometry in geometry(), seed in any::<u32>(), compressed in any::<bool>()) {
        let [i, j, k] = geometry.shape();
        let data = Array3::from_shape_fn((i, j, k), |(a, b, c)| {
            ((a * 7919 + b * 104_729 + c * 1_299_709) as f32 + seed as f32).sin() * 1e3
        });
        let volume = Volume::new(geometry, data).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(if compressed { "v.nii.gz" } else { "v.nii" });
        write(&path, &volume).unwrap();
        let image = read_image(&path).unwrap();
        prop_assert_eq!(image.volume.data(), volume.data());
        prop_assert!(image.volume.geometry().matches(volume.geometry()));
        // qform and sform say the same.
        prop_assert_eq!(image.header.notices, Vec::<String>::new());
        // Affines are stored as 32-bit floats: from then on nothing changes.
        let again = dir.path().join("again.nii");
        write(&again, &image.volume).unwrap();
        prop_assert_eq!(read_image(&again).unwrap().volume, image.volume);
    }

    #[test]
    fn no_header_makes_the_reader_panic(layout in 0usize..4, changes in prop::collection::vec((0usize..560, any::<u8>()), 1..12)) {
        let (version, big) = LAYOUTS[layout];
        let mut bytes = built(version, big).bytes();
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let _ = read_bytes(&bytes);
    }
}
