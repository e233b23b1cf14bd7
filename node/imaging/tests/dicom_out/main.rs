//! Predictions written as DICOM SEG and RTSTRUCT on an oblique, anisotropic series, read back voxel
//! for voxel; contours of others; and what must be refused. Where Python has pydicom, numpy and
//! highdicom, they read the same files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod case;
mod contours;
mod damaged;
mod python;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{InMemDicomObject, open_file};
use ndarray::Array3;
use rondo_imaging::dicom::{Grouping, Series, rtstruct, segmentation};
use rondo_imaging::lesion::{Connectivity, components};
use rondo_imaging::volume::{Geometry, Volume};

use case::{SHAPE, described, names, painted, series};

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
