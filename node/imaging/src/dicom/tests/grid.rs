//! Order, geometry, values.

use dicom_core::value::DataSetSequence;
use nalgebra::{Rotation3, Vector3, Vector4};

use super::*;

#[test]
fn slices_are_ordered_in_space_not_by_name() {
    let (series, volume) = read(&folder((0..5).map(slice).collect())).unwrap();
    assert_values(&volume, |i, j, k| f32::from(stored(i, j, k)));
    let geometry = volume.geometry();
    assert_eq!((geometry.shape(), geometry.spacing_mm()), ([8, 6, 5], [0.75, 0.5, 2.0]));
    let at = geometry.affine() * Vector4::new(2.0, 3.0, 4.0, 1.0);
    assert_eq!([at.x, at.y, at.z], [3.0 - 1.5, 4.0 - 1.5, 8.0]);
    let uids: Vec<_> = series.slices.iter().map(|s| s.sop_instance_uid.as_str()).collect();
    assert_eq!(uids, ["1.2.3.9.1", "1.2.3.9.2", "1.2.3.9.3", "1.2.3.9.4", "1.2.3.9.5"]);
    assert_eq!(series.identity.patient_name, PATIENT);
    assert!(!format!("{series:?}").contains("Geheim"));
    assert_eq!(
        (series.study_uid.as_str(), series.frame_of_reference_uid.as_str()),
        ("1.2.3.4", "1.2.3.6")
    );
}

#[test]
fn geometry_alone_is_the_same() {
    let dir = folder((0..3).map(slice).collect());
    let (series, _) = read(&dir).unwrap();
    let alone = read_series_geometry(dir.path(), &SeriesChoice::Only).unwrap();
    assert_eq!((alone.geometry, alone.slices), (series.geometry, series.slices));
}

#[test]
fn every_uncompressed_syntax_gives_the_same_volume() {
    for syntax in [
        uids::IMPLICIT_VR_LITTLE_ENDIAN,
        uids::EXPLICIT_VR_LITTLE_ENDIAN,
        elements::EXPLICIT_VR_BIG_ENDIAN,
        uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    ] {
        let dir = tempfile::tempdir().unwrap();
        for k in 0..3 {
            save(&dir.path().join(k.to_string()), slice(k), syntax);
        }
        let (series, volume) = read(&dir).unwrap();
        assert_values(&volume, |i, j, k| f32::from(stored(i, j, k)));
        assert_eq!(
            (volume.geometry().spacing_mm()[2], series.identity.patient_id.as_str()),
            (2.0, PATIENT)
        );
    }
}

#[test]
fn samples_of_every_width_and_place() {
    // Bits allocated, stored, high bit, signed; bytes of a sample; its value.
    let cases: [([u16; 4], &[u8], f32); 8] = [
        ([8, 8, 7, 0], &[200], 200.0),
        ([8, 8, 7, 1], &[200], -56.0),
        ([16, 12, 11, 0], &[0xBC, 0xFA], 2748.0),
        ([16, 12, 11, 1], &[0xBC, 0xFA], -1348.0),
        ([16, 12, 15, 0], &[0xCF, 0xAB], 2748.0),
        ([16, 16, 15, 1], &[0xFE, 0xFF], -2.0),
        ([32, 32, 31, 1], &[0xFE, 0xFF, 0xFF, 0xFF], -2.0),
        ([32, 24, 23, 0], &[1, 0, 1, 0xFF], 65537.0),
    ];
    for ([allocated, bits, high, signed], bytes, value) in cases {
        let slices = (0..2).map(|k| {
            let mut s = slice(k);
            put(&mut s, tags::BITS_ALLOCATED, VR::US, allocated);
            put(&mut s, tags::BITS_STORED, VR::US, bits);
            put(&mut s, tags::HIGH_BIT, VR::US, high);
            put(&mut s, tags::PIXEL_REPRESENTATION, VR::US, signed);
            let pixels: Vec<u8> = bytes.repeat(ROWS * COLUMNS);
            put(&mut s, tags::PIXEL_DATA, VR::OW, PrimitiveValue::U8(pixels.into()));
            s
        });
        let (_, volume) = read(&folder(slices.collect())).unwrap();
        assert_values(&volume, |_, _, _| value);
    }
}

#[test]
fn each_slice_has_its_own_slope_and_intercept() {
    let slices = (0..3).map(|k| {
        let mut s = slice(k);
        put(&mut s, tags::RESCALE_SLOPE, VR::DS, format!("{}", 0.5 * (k + 1) as f32));
        put(&mut s, tags::RESCALE_INTERCEPT, VR::DS, format!("-{k}"));
        s
    });
    let (_, volume) = read(&folder(slices.collect())).unwrap();
    assert_values(&volume, |i, j, k| f32::from(stored(i, j, k)) * 0.5 * (k + 1) as f32 - k as f32);
}

/// A turned head: position and orientation of each slice are rotated, and the slices may be shifted
/// against each other in their plane.
fn turned(
    rotation: &Rotation3<f64>,
    shift: Vector3<f64>,
    count: usize,
) -> (TempDir, Vec<Vector3<f64>>) {
    let ds = |v: &[f64]| v.iter().map(f64::to_string).collect::<Vec<_>>().join("\\");
    let mut positions = Vec::new();
    let slices = (0..count).map(|k| {
        let mut s = slice(k);
        let at = Vector3::new(-3.0, -4.0, 2.0 * k as f64) + shift * k as f64;
        let position = rotation * at;
        let (row, column) = (rotation * Vector3::x(), rotation * Vector3::y());
        let cosines = [row.as_slice(), column.as_slice()].concat();
        put(&mut s, tags::IMAGE_POSITION_PATIENT, VR::DS, ds(position.as_slice()));
        put(&mut s, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, ds(&cosines));
        positions.push(position);
        s
    });
    (folder(slices.collect()), positions)
}

#[test]
fn oblique_and_sheared_series_lie_where_their_slices_do() {
    for (seed, shift) in [(1.0, 0.0), (2.0, 0.0), (-0.4, 0.7)] {
        let rotation = Rotation3::from_euler_angles(0.3 * seed, -0.5 * seed, 0.9 * seed);
        let (dir, positions) = turned(&rotation, Vector3::new(0.0, shift, 0.0), 6);
        let (series, volume) = read(&dir).unwrap();
        assert_values(&volume, |i, j, k| f32::from(stored(i, j, k)));
        for (k, position) in positions.iter().enumerate() {
            for (i, j) in [(0.0, 0.0), (7.0, 0.0), (3.0, 5.0)] {
                let lps = position + rotation * Vector3::new(0.75 * i, 0.5 * j, 0.0);
                let at = volume.geometry().affine() * Vector4::new(i, j, k as f64, 1.0);
                let off = (Vector3::new(-at.x, -at.y, at.z) - lps).norm();
                assert!(off < 1e-9, "voxel {i}, {j}, {k} is {off} mm away");
            }
        }
        let told = series.notices.iter().filter(|n| !n.contains("T1-weighted")).count();
        assert_eq!(told, usize::from(shift != 0.0), "{:?}", series.notices);
    }
}

#[test]
fn missing_slices_are_named_by_their_neighbours() {
    let dir = folder([0, 1, 2, 5, 6, 8, 9].map(slice).into());
    assert_says(
        &refused(&dir),
        &[
            "slices are missing at a spacing of 2.000 mm",
            "2 between 88.dcm (instance 3) and 87.dcm (instance 6)",
            "1 between 86.dcm (instance 7) and 85.dcm (instance 9)",
            "copy the series again",
        ],
    );
}

#[test]
fn slices_missing_at_an_end_are_noticed_where_the_headers_tell() {
    let slices = (0..3).map(|k| {
        let mut s = slice(k);
        put(&mut s, tags::IMAGES_IN_ACQUISITION, VR::IS, "5");
        s
    });
    let (series, _) = read(&folder(slices.collect())).unwrap();
    assert_says(&series.notices[0], &["speak of 5 images", "3 are there"]);
}

fn moved(k: usize, position: &str) -> InMemDicomObject {
    let mut s = slice(k);
    put(&mut s, tags::IMAGE_POSITION_PATIENT, VR::DS, position);
    s
}

#[test]
fn slices_that_form_no_grid_are_named() {
    let says = |objects: Vec<InMemDicomObject>, parts: &[&str]| {
        assert_says(&refused(&folder(objects)), parts);
    };
    says(
        vec![slice(0), slice(1), slice(2), slice(1)],
        &["87.dcm (instance 2) and 89.dcm (instance 2) lie at the same place", "remove copies"],
    );
    says(
        vec![slice(0), slice(1), slice(2), slice(3), moved(4, "-3\\-4\\8.9")],
        &["the spacing varies: 2.900 mm between 87.dcm (instance 4) and 86.dcm (instance 5)"],
    );
    says(
        vec![slice(0), slice(1), moved(2, "-2\\-4\\4"), slice(3), slice(4)],
        &["88.dcm (instance 3) lies 1.000 mm off the straight line"],
    );
    let mut tilted = slice(2);
    put(&mut tilted, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\0.8\\0.6");
    says(
        vec![slice(0), slice(1), tilted],
        &["88.dcm (instance 3) and 89.dcm (instance 2) differ in orientation"],
    );
    let mut coarse = slice(2);
    put(&mut coarse, tags::PIXEL_SPACING, VR::DS, "0.6\\0.75");
    says(vec![slice(0), slice(1), coarse], &["differ in pixel spacing"]);
    let mut foreign = slice(2);
    put(&mut foreign, tags::FRAME_OF_REFERENCE_UID, VR::UI, "1.2.7");
    says(vec![slice(0), slice(1), foreign], &["differ in frame of reference", "split the series"]);
    let mut skewed = slice(0);
    put(&mut skewed, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0.5\\1\\0");
    says(vec![skewed], &["90.dcm (instance 1)", "perpendicular unit vectors"]);
    let mut flat = slice(0);
    put(&mut flat, tags::PIXEL_SPACING, VR::DS, "0\\-1");
    says(vec![flat], &["pixel spacing is not positive"]);
}

#[test]
fn one_slice_is_as_thick_as_it_says() {
    let (_, volume) = read(&folder(vec![slice(3)])).unwrap();
    assert_eq!(volume.geometry().shape(), [8, 6, 1]);
    assert_eq!(volume.geometry().spacing_mm()[2], 2.0);
    let mut thin = slice(3);
    thin.remove_element(tags::SLICE_THICKNESS);
    assert_says(&refused(&folder(vec![thin])), &["the only slice", "no positive slice thickness"]);
}

fn group(tag: Tag, items: &[(Tag, VR, &str)]) -> DataElement<InMemDicomObject> {
    let mut item = InMemDicomObject::new_empty();
    for (tag, vr, value) in items {
        put(&mut item, *tag, *vr, *value);
    }
    DataElement::new(tag, VR::SQ, DataSetSequence::from(vec![item]))
}

/// Three frames, the last first, with a slope of its own for the middle one.
pub(super) fn enhanced() -> InMemDicomObject {
    let mut s = slice(0);
    for tag in [
        tags::IMAGE_POSITION_PATIENT,
        tags::IMAGE_ORIENTATION_PATIENT,
        tags::PIXEL_SPACING,
        tags::SLICE_THICKNESS,
    ] {
        s.remove_element(tag);
    }
    put(&mut s, tags::SOP_CLASS_UID, VR::UI, uids::ENHANCED_MR_IMAGE_STORAGE);
    put(&mut s, tags::NUMBER_OF_FRAMES, VR::IS, "3");
    let mut shared = InMemDicomObject::new_empty();
    shared.put(group(
        tags::PLANE_ORIENTATION_SEQUENCE,
        &[(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0")],
    ));
    shared.put(group(
        tags::PIXEL_MEASURES_SEQUENCE,
        &[(tags::PIXEL_SPACING, VR::DS, "0.5\\0.75"), (tags::SLICE_THICKNESS, VR::DS, "2")],
    ));
    let frames = [2, 1, 0].map(|k: usize| {
        let mut item = InMemDicomObject::new_empty();
        let position = format!("-3\\-4\\{}", 2 * k);
        item.put(group(
            tags::PLANE_POSITION_SEQUENCE,
            &[(tags::IMAGE_POSITION_PATIENT, VR::DS, position.as_str())],
        ));
        if k == 1 {
            item.put(group(
                tags::PIXEL_VALUE_TRANSFORMATION_SEQUENCE,
                &[(tags::RESCALE_SLOPE, VR::DS, "3"), (tags::RESCALE_INTERCEPT, VR::DS, "0")],
            ));
        }
        item
    });
    let sequence = |items: Vec<InMemDicomObject>| DataSetSequence::from(items);
    s.put(DataElement::new(
        tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE,
        VR::SQ,
        sequence(vec![shared]),
    ));
    s.put(DataElement::new(
        tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE,
        VR::SQ,
        sequence(frames.into()),
    ));
    let pixels: Vec<u16> = [2, 1, 0]
        .iter()
        .flat_map(|k| (0..ROWS * COLUMNS).map(|n| stored(n % COLUMNS, n / COLUMNS, *k)))
        .collect();
    put(&mut s, tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into()));
    s
}

#[test]
fn enhanced_multi_frame_objects_are_read_by_their_functional_groups() {
    for syntax in [
        uids::EXPLICIT_VR_LITTLE_ENDIAN,
        uids::IMPLICIT_VR_LITTLE_ENDIAN,
        uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
        elements::EXPLICIT_VR_BIG_ENDIAN,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("enhanced");
        save(&path, enhanced(), syntax);
        // The file itself may be named, too.
        let (series, volume) = read_series(&path, &SeriesChoice::Only).unwrap();
        assert_values(&volume, |i, j, k| {
            f32::from(stored(i, j, k)) * if k == 1 { 3.0 } else { 1.0 }
        });
        assert_eq!(volume.geometry().spacing_mm(), [0.75, 0.5, 2.0]);
        let frames: Vec<_> = series.slices.iter().map(|s| s.frame).collect();
        assert_eq!(frames, [Some(3), Some(2), Some(1)]);
    }
}

#[test]
fn several_frames_without_positions_are_refused() {
    let mut s = enhanced();
    put(&mut s, tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE);
    assert_says(
        &refused(&folder(vec![s])),
        &["90.dcm", "holds 3 frames but is no Enhanced MR object", "single slices"],
    );
    let mut s = enhanced();
    put(&mut s, tags::NUMBER_OF_FRAMES, VR::IS, "4");
    assert_says(&refused(&folder(vec![s])), &["4 frames and functional groups for 3"]);
}
