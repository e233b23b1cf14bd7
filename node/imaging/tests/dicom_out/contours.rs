//! Contours that another program drew.

use dicom_core::VR;
use dicom_dictionary_std::{tags, uids};
use rondo_imaging::dicom::rtstruct;

use crate::case::{Case, FRAME, joined, list, object, patient_mm, save, series, text};

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
    let why = read(&["gtv 1"]).unwrap_err().to_string();
    assert!(why.contains("named gtv 1; there are \"Skull\", \"GTV 1\""), "{why}");
    let both = read(&["GTV 1", "gtv 1"]).unwrap();
    assert!(both.notices[0].contains("no region is named \"gtv 1\""), "{:?}", both.notices);
    let all = read(&["GTV*"]).unwrap();
    assert!(all.label == both.label && all.notices.is_empty());
    assert!(read(&[]).unwrap_err().to_string().contains("\"Skull\", \"GTV 1\""));
    assert!(read(&["Skull", "GTV 1"]).unwrap().notices[0].contains("\"Skull\": has no contours"));
}
