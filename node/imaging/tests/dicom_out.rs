//! Predictions written as DICOM SEG and RTSTRUCT on an oblique, anisotropic series, read back voxel
//! for voxel; contours of others; and what must be refused. Where Python has pydicom, numpy and
//! highdicom, they read the same files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::mem::InMemElement;
use dicom_object::{FileMetaTableBuilder, InMemDicomObject, open_file};
use ndarray::Array3;
use rondo_imaging::dicom::{
    self, Description, Grouping, Series, SeriesChoice, rtstruct, segmentation,
};
use rondo_imaging::lesion::{Connectivity, components};
use rondo_imaging::volume::{Geometry, Volume};

const SHAPE: [usize; 3] = [17, 14, 9];
/// Column, row, slice.
const SPACING_MM: [f64; 3] = [0.7, 0.9, 2.5];
const FRAME: &str = "1.2.826.0.1.3680043.10.999.3";

struct Case {
    folder: tempfile::TempDir,
    series: Series,
}

impl Case {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn text(tag: dicom_core::Tag, vr: VR, value: impl Into<String>) -> InMemElement {
    DataElement::new(tag, vr, value.into())
}

fn list(tag: dicom_core::Tag, items: Vec<InMemDicomObject>) -> InMemElement {
    DataElement::new(tag, VR::SQ, DataSetSequence::from(items))
}

fn object<const N: usize>(elements: [InMemElement; N]) -> InMemDicomObject {
    InMemDicomObject::from_element_iter(elements)
}

fn joined(values: &[f64]) -> String {
    values.iter().map(|v| format!("{v:.10}")).collect::<Vec<_>>().join("\\")
}

/// Columns: directions along row, column, normal, in LPS.
fn directions() -> nalgebra::Matrix3<f64> {
    *nalgebra::Rotation3::from_euler_angles(0.4, -0.3, 0.6).matrix()
}

fn patient_mm([i, j, k]: [f64; 3]) -> [f64; 3] {
    let at = nalgebra::Vector3::new(i * SPACING_MM[0], j * SPACING_MM[1], k * SPACING_MM[2]);
    let p = nalgebra::Vector3::new(-31.0, 12.5, 40.25) + directions() * at;
    [p[0], p[1], p[2]]
}

fn series() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("series");
    std::fs::create_dir(&images).unwrap();
    let d = directions();
    let orientation = [d[(0, 0)], d[(1, 0)], d[(2, 0)], d[(0, 1)], d[(1, 1)], d[(2, 1)]];
    for k in 0..SHAPE[2] {
        let pixels: Vec<u16> =
            (0..SHAPE[0] * SHAPE[1]).map(|n| (n * 7 + k * 31) as u16 % 1000).collect();
        let slice = object([
            text(tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192"),
            text(tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY"),
            text(tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE),
            text(tags::SOP_INSTANCE_UID, VR::UI, format!("1.2.826.0.1.3680043.10.999.4.{}", k + 1)),
            text(tags::STUDY_DATE, VR::DA, "20260102"),
            text(tags::STUDY_TIME, VR::TM, "101112"),
            text(tags::ACCESSION_NUMBER, VR::SH, "A1"),
            text(tags::MODALITY, VR::CS, "MR"),
            text(tags::MANUFACTURER, VR::LO, "Test"),
            text(tags::REFERRING_PHYSICIAN_NAME, VR::PN, "Referrer^R"),
            text(tags::SERIES_DESCRIPTION, VR::LO, "T1 post contrast"),
            text(tags::PATIENT_NAME, VR::PN, "Mül\u{f6}^Phantom"),
            text(tags::PATIENT_ID, VR::LO, "P1"),
            text(tags::PATIENT_BIRTH_DATE, VR::DA, "19700101"),
            text(tags::PATIENT_SEX, VR::CS, "O"),
            text(tags::SCANNING_SEQUENCE, VR::CS, "SE"),
            text(tags::SEQUENCE_VARIANT, VR::CS, "NONE"),
            text(tags::MR_ACQUISITION_TYPE, VR::CS, "2D"),
            text(tags::SLICE_THICKNESS, VR::DS, "2.5"),
            text(tags::STUDY_INSTANCE_UID, VR::UI, "1.2.826.0.1.3680043.10.999.1"),
            text(tags::SERIES_INSTANCE_UID, VR::UI, "1.2.826.0.1.3680043.10.999.2"),
            text(tags::STUDY_ID, VR::SH, "S1"),
            text(tags::SERIES_NUMBER, VR::IS, "3"),
            text(tags::INSTANCE_NUMBER, VR::IS, (k + 1).to_string()),
            text(tags::IMAGE_POSITION_PATIENT, VR::DS, joined(&patient_mm([0.0, 0.0, k as f64]))),
            text(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, joined(&orientation)),
            text(tags::FRAME_OF_REFERENCE_UID, VR::UI, FRAME),
            text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2"),
            DataElement::new(tags::SAMPLES_PER_PIXEL, VR::US, PrimitiveValue::from(1u16)),
            DataElement::new(tags::ROWS, VR::US, PrimitiveValue::from(SHAPE[1] as u16)),
            DataElement::new(tags::COLUMNS, VR::US, PrimitiveValue::from(SHAPE[0] as u16)),
            text(tags::PIXEL_SPACING, VR::DS, joined(&[SPACING_MM[1], SPACING_MM[0]])),
            DataElement::new(tags::BITS_ALLOCATED, VR::US, PrimitiveValue::from(16u16)),
            DataElement::new(tags::BITS_STORED, VR::US, PrimitiveValue::from(16u16)),
            DataElement::new(tags::HIGH_BIT, VR::US, PrimitiveValue::from(15u16)),
            DataElement::new(tags::PIXEL_REPRESENTATION, VR::US, PrimitiveValue::from(0u16)),
            DataElement::new(
                tags::PIXEL_DATA,
                VR::OW,
                PrimitiveValue::U16(pixels.into_iter().collect()),
            ),
        ]);
        save(slice, &images.join(format!("{:02}.dcm", (k * 5) % SHAPE[2])));
    }
    let series = dicom::read_series_geometry(&images, &SeriesChoice::Only).unwrap();
    assert_eq!(series.geometry.shape(), SHAPE);
    Case { folder, series }
}

fn save(object: InMemDicomObject, path: &Path) {
    let meta = FileMetaTableBuilder::new().transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
    object.with_meta(meta).unwrap().write_to_file(path).unwrap();
}

fn described(grouping: Grouping) -> Description {
    Description {
        name: "Metastasis".to_owned(),
        grouping,
        algorithm: "DeepMedic".to_owned(),
        algorithm_version: "round 7".to_owned(),
        date: "20260203".to_owned(),
        time: "040506".to_owned(),
    }
}

/// A block with a hole that holds an island, two voxels that touch in an edge, a single voxel, and
/// a lesion in the far corner of the grid.
fn painted(geometry: &Geometry) -> Volume<u8> {
    let mut mask = Array3::<u8>::zeros(SHAPE);
    for ((i, j, k), voxel) in mask.indexed_iter_mut() {
        let block = (2..9).contains(&i) && (2..9).contains(&j) && (2..5).contains(&k);
        let hole = (3..8).contains(&i) && (4..7).contains(&j) && k == 3;
        let island = [i, j, k] == [5, 5, 3];
        let touching = [[11, 3, 6], [12, 4, 6]].contains(&[i, j, k]);
        let single = [i, j, k] == [12, 10, 1];
        let border = i >= SHAPE[0] - 2 && j >= SHAPE[1] - 3 && k >= SHAPE[2] - 2;
        *voxel = u8::from((block && !hole) || island || touching || single || border);
    }
    Volume::new(geometry.clone(), mask).unwrap()
}

fn names(parts: usize) -> Vec<String> {
    (1..=parts).map(|n| format!("Metastasis {n}")).collect()
}

#[test]
fn what_is_written_is_read_back_voxel_for_voxel() {
    let case = series();
    let prediction = painted(&case.series.geometry);
    let lesions = components(prediction.data(), Connectivity::TwentySix);
    assert_eq!(lesions.list.len(), 4);
    let (seg, contours) = (case.path("seg.dcm"), case.path("rtstruct.dcm"));
    for grouping in [Grouping::Whole, Grouping::PerLesion(Connectivity::TwentySix)] {
        let description = described(grouping);
        segmentation::write(&seg, &case.series, &prediction, &description).unwrap();
        assert_eq!(segmentation::read(&seg, &case.series).unwrap(), prediction);
        rtstruct::write(&contours, &case.series, &prediction, &description).unwrap();
        let rois = match grouping {
            Grouping::Whole => vec!["Metastasis".to_owned()],
            Grouping::PerLesion(_) => names(4),
        };
        let reading = rtstruct::read(&contours, &case.series, &rois).unwrap();
        assert_eq!((reading.label, reading.notices), (prediction.clone(), vec![]));
    }
    for (n, name) in names(4).into_iter().enumerate() {
        let one = rtstruct::read_label(&contours, &case.series, &[name]).unwrap();
        assert_eq!(one.data(), lesions.labels.map(|l| u8::from(*l == n as u32 + 1)));
    }
}

#[test]
fn the_same_prediction_gives_the_same_bytes_and_another_one_other_identifiers() {
    let case = series();
    let prediction = painted(&case.series.geometry);
    let uids = |path: &Path| {
        let file = open_file(path).unwrap();
        [tags::SOP_INSTANCE_UID, tags::SERIES_INSTANCE_UID]
            .map(|tag| file.element(tag).unwrap().to_str().unwrap().into_owned())
    };
    let mut fewer = prediction.data().clone();
    fewer[[12, 10, 1]] = 0;
    let fewer = Volume::new(case.series.geometry.clone(), fewer).unwrap();
    let (a, b, c) = (case.path("a.dcm"), case.path("b.dcm"), case.path("c.dcm"));
    let description = described(Grouping::Whole);
    segmentation::write(&a, &case.series, &prediction, &description).unwrap();
    segmentation::write(&b, &case.series, &prediction, &description).unwrap();
    segmentation::write(&c, &case.series, &fewer, &description).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let [first, second] = [uids(&a), uids(&c)];
    assert!(first.iter().all(|uid| uid.starts_with("2.25.") && !second.contains(uid)));
    assert_ne!(first[0], first[1]);
    rtstruct::write(&a, &case.series, &prediction, &description).unwrap();
    rtstruct::write(&b, &case.series, &prediction, &description).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    assert!(uids(&a).iter().all(|uid| !first.contains(uid)));
}

#[test]
fn nothing_found_is_written_and_read() {
    let case = series();
    let nothing = painted(&case.series.geometry).map(|_| 0u8);
    let path = case.path("nothing.dcm");
    for grouping in [Grouping::Whole, Grouping::PerLesion(Connectivity::TwentySix)] {
        let description = described(grouping);
        segmentation::write(&path, &case.series, &nothing, &description).unwrap();
        assert_eq!(segmentation::read(&path, &case.series).unwrap(), nothing);
        rtstruct::write(&path, &case.series, &nothing, &description).unwrap();
        let reading = rtstruct::read(&path, &case.series, &["Metastasis".to_owned()]).unwrap();
        assert_eq!(reading.label, nothing);
        assert!(reading.notices[0].contains("no contours"), "{:?}", reading.notices);
    }
}

#[test]
fn planes_of_a_multi_frame_object_are_referenced_by_their_number() {
    let case = series();
    let mut series = case.series.clone();
    for (slice, n) in series.slices.iter_mut().zip(1..) {
        slice.sop_class_uid = uids::ENHANCED_MR_IMAGE_STORAGE.to_owned();
        slice.sop_instance_uid = "1.2.826.0.1.3680043.10.999.8".to_owned();
        slice.frame = Some(n);
    }
    let prediction = painted(&series.geometry);
    let (seg, contours) = (case.path("seg.dcm"), case.path("rtstruct.dcm"));
    segmentation::write(&seg, &series, &prediction, &described(Grouping::Whole)).unwrap();
    rtstruct::write(&contours, &series, &prediction, &described(Grouping::Whole)).unwrap();
    assert_eq!(segmentation::read(&seg, &series).unwrap(), prediction);
    let rois = ["Metastasis".to_owned()];
    assert_eq!(rtstruct::read_label(&contours, &series, &rois).unwrap(), prediction);
    let items =
        |object: &InMemDicomObject, tag| object.element(tag).unwrap().items().unwrap().to_vec();
    let number = |object: &InMemDicomObject| {
        object.element(tags::REFERENCED_FRAME_NUMBER).unwrap().to_int::<u32>().unwrap()
    };
    let file = open_file(&seg).unwrap();
    let frames: Vec<u32> = items(&file, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE)
        .iter()
        .map(|frame| items(frame, tags::DERIVATION_IMAGE_SEQUENCE)[0].clone())
        .map(|derived| number(&items(&derived, tags::SOURCE_IMAGE_SEQUENCE)[0]))
        .collect();
    assert_eq!(frames, [2, 3, 4, 5, 7, 8, 9]);
    let referenced = &items(&file, tags::REFERENCED_SERIES_SEQUENCE)[0];
    assert_eq!(items(referenced, tags::REFERENCED_INSTANCE_SEQUENCE).len(), 1);
    let file = open_file(&contours).unwrap();
    let region = &items(&file, tags::ROI_CONTOUR_SEQUENCE)[0];
    let first = &items(region, tags::CONTOUR_SEQUENCE)[0];
    assert_eq!(number(&items(first, tags::CONTOUR_IMAGE_SEQUENCE)[0]), 2);
}

/// A structure set of another maker, as plain as they come.
struct Drawn {
    frame: &'static str,
    series: Option<&'static str>,
    kind: &'static str,
    contours: Vec<Vec<[f64; 3]>>,
    /// Put in place of the coordinates of the last contour.
    data: Option<&'static str>,
}

impl Drawn {
    fn new(contours: Vec<Vec<[f64; 3]>>) -> Self {
        let series = Some("1.2.826.0.1.3680043.10.999.2");
        Self { frame: FRAME, series, kind: "CLOSED_PLANAR", contours, data: None }
    }

    fn read(&self, case: &Case) -> Result<rtstruct::Reading, rtstruct::Error> {
        let path = case.path("drawn.dcm");
        let last = self.contours.len() - 1;
        let contours = self.contours.iter().enumerate().map(|(n, points)| {
            let flat: Vec<f64> = points.iter().flat_map(|p| patient_mm(*p)).collect();
            let data = self.data.filter(|_| n == last).map_or(joined(&flat), str::to_owned);
            object([
                text(tags::CONTOUR_GEOMETRIC_TYPE, VR::CS, self.kind),
                text(tags::NUMBER_OF_CONTOUR_POINTS, VR::IS, points.len().to_string()),
                text(tags::CONTOUR_DATA, VR::DS, data),
            ])
        });
        let referenced = self.series.map(|uid| {
            let series = object([text(tags::SERIES_INSTANCE_UID, VR::UI, uid)]);
            let study = object([list(tags::RT_REFERENCED_SERIES_SEQUENCE, vec![series])]);
            object([list(tags::RT_REFERENCED_STUDY_SEQUENCE, vec![study])])
        });
        let roi = |number: &str, name: &str| {
            object([
                text(tags::ROI_NUMBER, VR::IS, number),
                text(tags::REFERENCED_FRAME_OF_REFERENCE_UID, VR::UI, self.frame),
                text(tags::ROI_NAME, VR::LO, name),
            ])
        };
        let file = object([
            text(tags::SOP_CLASS_UID, VR::UI, uids::RT_STRUCTURE_SET_STORAGE),
            text(tags::SOP_INSTANCE_UID, VR::UI, "1.2.826.0.1.3680043.10.999.9"),
            list(tags::REFERENCED_FRAME_OF_REFERENCE_SEQUENCE, referenced.into_iter().collect()),
            list(tags::STRUCTURE_SET_ROI_SEQUENCE, vec![roi("4", "Skull"), roi("7", "GTV 1")]),
            list(
                tags::ROI_CONTOUR_SEQUENCE,
                vec![object([
                    text(tags::REFERENCED_ROI_NUMBER, VR::IS, "7"),
                    list(tags::CONTOUR_SEQUENCE, contours.collect()),
                ])],
            ),
        ]);
        save(file, &path);
        rtstruct::read(&path, &case.series, &["GTV 1".to_owned()])
    }

    fn refused(&self, case: &Case) -> String {
        let why = self.read(case).unwrap_err().to_string();
        assert!(why.contains("drawn.dcm") && !why.contains('\n'), "{why}");
        why
    }
}

fn rectangle([i0, i1]: [f64; 2], [j0, j1]: [f64; 2], k: f64) -> Vec<[f64; 3]> {
    vec![[i0, j0, k], [i1, j0, k], [i1, j1, k], [i0, j1, k]]
}

#[test]
fn a_contour_in_a_contour_is_a_hole() {
    let case = series();
    let outer = rectangle([1.5, 9.5], [1.5, 9.5], 4.0);
    let inner = rectangle([3.5, 6.5], [3.5, 7.5], 4.0);
    for kind in ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"] {
        let drawn = Drawn { kind, ..Drawn::new(vec![inner.clone(), outer.clone()]) };
        let label = drawn.read(&case).unwrap().label;
        for ((i, j, k), v) in label.data().indexed_iter() {
            let outer = (2..10).contains(&i) && (2..10).contains(&j) && k == 4;
            let inner = (4..7).contains(&i) && (4..8).contains(&j);
            assert_eq!(*v, u8::from(outer && !inner), "{i} {j} {k}");
        }
    }
}

#[test]
fn contours_between_slices_go_to_the_nearest_and_do_not_cancel() {
    let case = series();
    let at = |k| rectangle([1.5, 4.5], [1.5, 4.5], k);
    let small = vec![[1.0, 1.0, 2.0]; 2];
    let beyond = rectangle([-6.0, 2.5], [-6.0, 2.5], 7.0);
    let reading = Drawn::new(vec![at(2.0), at(2.4), small, at(-0.4), beyond]).read(&case).unwrap();
    let voxels =
        |k| reading.label.data().index_axis(ndarray::Axis(2), k).iter().filter(|v| **v > 0).count();
    assert_eq!([voxels(0), voxels(2), voxels(3), voxels(7)], [9, 9, 0, 9]);
    let notices = reading.notices.join("; ");
    for part in ["2 contours lie between slices, up to 1.00 mm", "1 contours of fewer", "cut off"] {
        assert!(notices.contains(part), "{notices}");
    }
}

#[test]
fn contours_that_do_not_belong_are_refused() {
    let case = series();
    let good = || Drawn::new(vec![rectangle([1.5, 4.5], [1.5, 4.5], 2.0)]);
    assert_eq!(good().read(&case).unwrap().label.data().iter().filter(|v| **v > 0).count(), 9);
    assert!(Drawn { series: None, ..good() }.read(&case).is_ok());

    let why = Drawn { frame: "1.2.3", ..good() }.refused(&case);
    assert!(why.contains("frame of reference \"1.2.3\"") && why.contains(FRAME), "{why}");
    let why = Drawn { frame: "", ..good() }.refused(&case);
    assert!(why.contains("frame of reference"), "{why}");
    let why = Drawn { series: Some("1.2.4"), ..good() }.refused(&case);
    assert!(why.contains("drawn on series 1.2.4") && why.contains("choose that series"), "{why}");
    let why = Drawn { kind: "POINT", ..good() }.refused(&case);
    assert!(why.contains("\"POINT\"") && why.contains("closed"), "{why}");

    let why = Drawn::new(vec![rectangle([1.5, 4.5], [1.5, 4.5], 9.2)]).refused(&case);
    assert!(why.contains("lies 3.00 mm beyond the last slice"), "{why}");
    let why = Drawn::new(vec![rectangle([1.5, 4.5], [1.5, 4.5], -2.0)]).refused(&case);
    assert!(why.contains("lies 5.00 mm beyond the first slice"), "{why}");
    let why = Drawn::new(vec![rectangle([-9.0, -4.5], [1.5, 4.5], 2.0)]).refused(&case);
    assert!(why.contains("beside the image"), "{why}");
    let tilted = vec![[1.5, 1.5, 2.0], [6.5, 1.5, 2.0], [6.5, 6.5, 2.6]];
    let why = Drawn::new(vec![rectangle([1.5, 4.5], [1.5, 4.5], 2.0), tilted]).refused(&case);
    assert!(why.contains("contour 2") && why.contains("spans 1.50 mm"), "{why}");
}

#[test]
fn coordinates_that_are_no_place_are_refused() {
    let case = series();
    let with = |data| Drawn {
        data: Some(data),
        ..Drawn::new(vec![rectangle([1.5, 4.5], [1.5, 4.5], 2.0)])
    };
    for data in [
        "NaN\\0\\0\\1\\0\\0\\1\\1\\0\\0\\1\\0",
        "0\\inf\\0\\1\\0\\0\\1\\1\\0\\0\\1\\0",
        "0\\1e9\\0\\1\\0\\0\\1\\1\\0\\0\\1\\0",
        "0\\zero\\0\\1\\0\\0\\1\\1\\0\\0\\1\\0",
        "0\\\\0\\1\\0\\0\\1\\1\\0\\0\\1\\0",
    ] {
        let why = with(data).refused(&case);
        assert!(why.contains("has a coordinate") && why.contains("contour 1"), "{why}");
    }
    let why = with("0\\0\\0\\1").refused(&case);
    assert!(why.contains("no whole points"), "{why}");
    let why = with("0\\0\\0\\1\\1\\1\\2\\2\\2").refused(&case);
    assert!(why.contains("3 points where it states \"4\""), "{why}");
}

#[test]
fn regions_are_chosen_by_name() {
    let case = series();
    let path = case.path("drawn.dcm");
    Drawn::new(vec![rectangle([1.5, 4.5], [1.5, 4.5], 2.0)]).read(&case).unwrap();
    let read = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        rtstruct::read(&path, &case.series, &names)
    };
    let why = read(&["GTV 1", "gtv 1"]).unwrap_err().to_string();
    assert!(why.contains("named \"gtv 1\"; there are \"Skull\", \"GTV 1\""), "{why}");
    assert!(read(&[]).unwrap_err().to_string().contains("\"Skull\", \"GTV 1\""));
    assert!(read(&["Skull", "GTV 1"]).unwrap().notices[0].contains("\"Skull\": has no contours"));
}

#[test]
fn a_prediction_on_another_grid_is_not_written() {
    let case = series();
    let path = case.path("out.dcm");
    let mut moved = *case.series.geometry.affine();
    moved[(2, 3)] += 0.5;
    let moved = Geometry::new(SHAPE, moved).unwrap();
    let smaller = Geometry::new([5, 5, 5], *case.series.geometry.affine()).unwrap();
    let description = described(Grouping::Whole);
    for (geometry, part) in [(moved, "0.500 mm apart"), (smaller, "[5, 5, 5]")] {
        let prediction = Volume::new(geometry.clone(), Array3::zeros(geometry.shape())).unwrap();
        for why in [
            segmentation::write(&path, &case.series, &prediction, &description)
                .unwrap_err()
                .to_string(),
            rtstruct::write(&path, &case.series, &prediction, &description)
                .unwrap_err()
                .to_string(),
        ] {
            assert!(why.contains("grid of the series") && why.contains(part), "{why}");
        }
    }
    assert!(!path.exists());
}

#[test]
fn a_segmentation_of_another_grid_or_kind_is_refused() {
    let case = series();
    let (seg, contours) = (case.path("seg.dcm"), case.path("rtstruct.dcm"));
    let prediction = painted(&case.series.geometry);
    let description = described(Grouping::Whole);
    segmentation::write(&seg, &case.series, &prediction, &description).unwrap();
    rtstruct::write(&contours, &case.series, &prediction, &description).unwrap();
    let why =
        |series: &Series, path: &Path| segmentation::read(path, series).unwrap_err().to_string();
    assert!(why(&case.series, &contours).contains("no Segmentation"));
    let kind = rtstruct::read_label(&seg, &case.series, &names(1)).unwrap_err().to_string();
    assert!(kind.contains("no RT Structure Set"), "{kind}");

    let mut other = case.series.clone();
    other.frame_of_reference_uid = "1.2.3".to_owned();
    assert!(why(&other, &seg).contains("frame of reference"));
    let mut affine = *case.series.geometry.affine();
    affine[(1, 3)] += 0.3;
    other = case.series.clone();
    other.geometry = Geometry::new(SHAPE, affine).unwrap();
    assert!(why(&other, &seg).contains("mm off the nearest slice"));
    other.geometry = Geometry::new([17, 15, 9], affine).unwrap();
    assert!(why(&other, &seg).contains("17 columns and 14 rows against 17 and 15"));

    let mut file = open_file(&seg).unwrap();
    let bits = file.element(tags::PIXEL_DATA).unwrap().to_bytes().unwrap().into_owned();
    let half = bits[..bits.len() / 2].to_vec();
    file.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PrimitiveValue::from(half)));
    file.write_to_file(&seg).unwrap();
    assert!(why(&case.series, &seg).contains("bytes of frames are due"));
}

/// Every cut is an error, or leaves out only what comes after the contours.
#[test]
fn truncated_files_are_refused() {
    let case = series();
    let prediction = painted(&case.series.geometry);
    let description = described(Grouping::PerLesion(Connectivity::TwentySix));
    let path = case.path("cut.dcm");
    segmentation::write(&path, &case.series, &prediction, &description).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(segmentation::read(&path, &case.series).is_err(), "{length} of {}", whole.len());
    }
    rtstruct::write(&path, &case.series, &prediction, &description).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(11) {
        std::fs::write(&path, &whole[..length]).unwrap();
        if let Ok(label) = rtstruct::read_label(&path, &case.series, &names(4)) {
            assert_eq!(label, prediction, "{length} of {}", whole.len());
        }
    }
}

/// The interpreter, if it has what the check imports.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("RONDO_TEST_PYTHON").map_or("python3".into(), PathBuf::from);
    let imports = Command::new(&python).args(["-c", "import numpy, pydicom, highdicom"]).output();
    match imports {
        Ok(out) if out.status.success() => Some(python),
        _ => {
            eprintln!("SKIPPED: {} lacks numpy, pydicom or highdicom", python.display());
            None
        }
    }
}

/// Format 1.0 of numpy, unsigned bytes.
fn save_npy(path: &Path, mask: &Array3<u8>) {
    let (i, j, k) = mask.dim();
    let mut header =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({k}, {j}, {i}), }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(mask.view().reversed_axes().iter());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn pydicom_and_highdicom_read_the_same() {
    let Some(python) = python() else { return };
    let case = series();
    let prediction = painted(&case.series.geometry);
    let [seg, contours, mask, theirs] =
        ["seg.dcm", "rtstruct.dcm", "mask.npy", "highdicom.dcm"].map(|name| case.path(name));
    save_npy(&mask, prediction.data());
    for grouping in [Grouping::Whole, Grouping::PerLesion(Connectivity::TwentySix)] {
        let description = described(grouping);
        segmentation::write(&seg, &case.series, &prediction, &description).unwrap();
        rtstruct::write(&contours, &case.series, &prediction, &description).unwrap();
        let out = Command::new(&python)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dicom_out_check.py"))
            .args([&case.path("series"), &mask, &seg, &contours, &theirs])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success() && said.starts_with("checked"),
            "{said}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert_eq!(segmentation::read(&theirs, &case.series).unwrap(), prediction);
    }
}

/// Whatever a damaged byte makes of a file, reading it ends with a mask on the grid or an error.
#[test]
fn no_flipped_byte_brings_the_readers_down() {
    let case = series();
    let mut one = Array3::<u8>::zeros(SHAPE);
    one[[3, 4, 5]] = 1;
    let prediction = Volume::new(case.series.geometry.clone(), one).unwrap();
    let path = case.path("flipped.dcm");
    let rois = ["Metastasis".to_owned()];
    let description = described(Grouping::Whole);
    let mut refused = [0usize; 2];
    rtstruct::write(&path, &case.series, &prediction, &description).unwrap();
    let contours = std::fs::read(&path).unwrap();
    segmentation::write(&path, &case.series, &prediction, &description).unwrap();
    let seg = std::fs::read(&path).unwrap();
    for (n, whole) in [contours, seg].into_iter().enumerate() {
        for at in (128..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= [0xff, 0x01, 0x80][at % 3];
            std::fs::write(&path, &bytes).unwrap();
            let label = match n {
                0 => rtstruct::read_label(&path, &case.series, &rois).ok(),
                _ => segmentation::read(&path, &case.series).ok(),
            };
            match label {
                Some(label) => assert_eq!(label.geometry(), &case.series.geometry),
                None => refused[n] += 1,
            }
        }
    }
    assert!(refused.iter().all(|n| *n > 50), "{refused:?}");
}

/// A file that claims what it does not hold is refused at once and without reserving it.
#[test]
fn hostile_lengths_and_nesting_are_refused() {
    let case = series();
    let path = case.path("hostile.dcm");
    let mut start = vec![0u8; 128];
    start.extend(b"DICM");
    start.extend(b"\x02\0\x10\0UI\x12\x001.2.840.10008.1.2\0");
    let element = |group: u16, element: u16, length: u32| {
        let mut bytes = group.to_le_bytes().to_vec();
        bytes.extend(element.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes
    };
    let class = |uid: &str| {
        let mut bytes = element(8, 0x16, uid.len() as u32);
        bytes.extend(uid.as_bytes());
        bytes
    };
    let undefined = u32::MAX;
    let huge = |start: &[u8]| {
        let mut bytes = start.to_vec();
        bytes.extend(class("1.2.840.10008.5.1.4.1.1.481.3\0"));
        for tag in [0x39, 0x40] {
            bytes.extend(element(0x3006, tag, undefined));
            bytes.extend(element(0xfffe, 0xe000, undefined));
        }
        bytes.extend(element(0x3006, 0x50, 0xffff_fff0));
        bytes.extend(b"1\\2\\3");
        bytes
    };
    let deep = |start: &[u8]| {
        let mut bytes = start.to_vec();
        for _ in 0..200_000 {
            bytes.extend(element(0x3006, 0x39, undefined));
            bytes.extend(element(0xfffe, 0xe000, undefined));
        }
        bytes
    };
    let many = |start: &[u8]| {
        let mut bytes = start.to_vec();
        bytes.extend(element(0x3006, 0x39, undefined));
        for _ in 0..5_000_000 {
            bytes.extend(element(0xfffe, 0xe000, 0));
        }
        bytes
    };
    let value = |group: u16, number: u16, value: &[u8]| {
        let mut bytes = element(group, number, value.len() as u32);
        bytes.extend(value);
        bytes
    };
    let within = |tag: u16, item: &[u8]| value(0x3006, tag, &value(0xfffe, 0xe000, item));
    let points = |start: &[u8]| {
        let mut roi = value(0x3006, 0x22, b"7 ");
        roi.extend(value(0x3006, 0x24, format!("{FRAME}\0").as_bytes()));
        roi.extend(value(0x3006, 0x26, b"GTV 1 "));
        let mut contour = value(0x3006, 0x42, b"CLOSED_PLANAR ");
        contour.extend(value(0x3006, 0x50, &b"1\\".repeat(3 * rtstruct::MAX_POINTS)));
        let mut drawn = within(0x40, &contour);
        drawn.extend(value(0x3006, 0x84, b"7 "));
        let mut bytes = start.to_vec();
        bytes.extend(class("1.2.840.10008.5.1.4.1.1.481.3\0"));
        bytes.extend(within(0x20, &roi));
        bytes.extend(within(0x39, &drawn));
        bytes
    };
    let nothing = Vec::new();
    for (bytes, why) in [
        (points(&start), "more than 4000000 points"),
        (huge(&start), "cut short"),
        (deep(&start), "nested deeper"),
        (many(&start), "more attributes"),
        (start.clone(), "cut short"),
        (vec![7; 4000], "no DICOM file"),
        (nothing, "no DICOM file"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let started = std::time::Instant::now();
        let refused = rtstruct::read(&path, &case.series, &["GTV 1".to_owned()]).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
        let refused = segmentation::read(&path, &case.series).unwrap_err().to_string();
        assert!(refused.contains("hostile.dcm"), "{refused}");
        assert!(started.elapsed().as_secs() < 20);
    }
    let sparse = std::fs::File::create(&path).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let refused = rtstruct::read(&path, &case.series, &["GTV 1".to_owned()]).unwrap_err();
    assert!(refused.to_string().contains("larger than 128 MiB"), "{refused}");
}
