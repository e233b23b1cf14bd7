//! Which series, and what else lies in a folder.

use super::*;

fn named(k: usize, series: &str, description: &str) -> InMemDicomObject {
    let mut s = slice(k);
    put(&mut s, tags::SERIES_INSTANCE_UID, VR::UI, series);
    put(&mut s, tags::SERIES_DESCRIPTION, VR::LO, description);
    s
}

#[test]
fn several_series_are_listed_with_what_to_write() {
    let dir = folder(vec![
        named(0, "1.5.1", "ax T2"),
        named(0, "1.5.2", "ax FLAIR"),
        named(1, "1.5.2", "ax FLAIR"),
    ]);
    assert_says(
        &refused(&dir),
        &[
            "none says it is",
            "give the uid",
            "1.5.1 (MR \"ax T2\", 1 images); 1.5.2 (MR \"ax FLAIR\", 2 images)",
        ],
    );
    let chosen = |uid: &str| read_series(dir.path(), &SeriesChoice::Uid(uid.into()));
    assert_eq!(chosen("1.5.2").unwrap().1.geometry().shape(), [8, 6, 2]);
    assert_says(
        &message(&chosen("1.5.3").unwrap_err()),
        &["choosing series 1.5.3", "is not there", "1.5.2"],
    );
    let listed = list_series(dir.path()).unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!((listed[1].uid.as_str(), listed[1].images, listed[1].readable), ("1.5.2", 2, true));
}

#[test]
fn the_only_t1_series_with_contrast_is_taken() {
    let mut by_agent = named(0, "1.5.4", "sag BRAVO");
    put(&mut by_agent, tags::CONTRAST_BOLUS_AGENT, VR::LO, "Gadovist 7 ml");
    let mut reformat = named(0, "1.5.6", "t1_mprage_km");
    put(&mut reformat, tags::IMAGE_TYPE, VR::CS, "DERIVED\\SECONDARY\\MPR");
    let mut denied = named(0, "1.5.7", "t1_mprage");
    put(&mut denied, tags::CONTRAST_BOLUS_AGENT, VR::LO, "NONE");
    let others = || {
        vec![
            named(0, "1.5.1", "t2_tse KM"),
            named(0, "1.5.2", "t1 pre Gd"),
            named(0, "1.5.3", "t1_mprage nativ"),
            named(0, "1.5.8", "FLAIR +C"),
            reformat.clone(),
            denied.clone(),
        ]
    };
    for (uid, right) in [
        ("1.5.4", by_agent),
        ("1.5.5", named(0, "1.5.5", "t1_mprage_sag_KM")),
        ("1.5.9", named(0, "1.5.9", "Ax T1+C")),
    ] {
        let dir = folder([others(), vec![right.clone()]].concat());
        assert_eq!(read(&dir).unwrap().0.series_uid, uid);
        let twice = folder([others(), vec![right, named(0, "1.6", "T1 post contrast")]].concat());
        assert_says(&refused(&twice), &["2 say they are", uid, "1.6"]);
    }
}

#[test]
fn other_files_and_other_modalities_do_not_disturb() {
    let dir = folder((0..3).map(slice).collect());
    write_raw(&dir.path().join("README.md"), b"about these images");
    write_raw(&dir.path().join("empty.dcm"), b"");
    write_raw(&dir.path().join("photo.jpg"), &[0xFF; 5000]);
    let mut directory = InMemDicomObject::new_empty();
    put(&mut directory, tags::SOP_CLASS_UID, VR::UI, uids::MEDIA_STORAGE_DIRECTORY_STORAGE);
    put(&mut directory, tags::SOP_INSTANCE_UID, VR::UI, "1.9");
    save(&dir.path().join("DICOMDIR"), directory, uids::EXPLICIT_VR_LITTLE_ENDIAN);
    let mut ct = named(0, "1.5.1", "planning CT");
    put(&mut ct, tags::MODALITY, VR::CS, "CT");
    put(&mut ct, tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE);
    let below = dir.path().join("a/b");
    std::fs::create_dir_all(&below).unwrap();
    save(&below.join("ct.dcm"), ct.clone(), uids::EXPLICIT_VR_LITTLE_ENDIAN);
    save(&below.join("deep.dcm"), slice(3), uids::EXPLICIT_VR_LITTLE_ENDIAN);
    #[cfg(unix)]
    std::os::unix::fs::symlink(dir.path(), below.join("loop")).unwrap();
    assert_eq!(read(&dir).unwrap().1.geometry().shape(), [8, 6, 4]);
    let chosen = read_series(dir.path(), &SeriesChoice::Uid("1.5.1".into())).unwrap_err();
    assert_says(&message(&chosen), &["planning CT", "no magnetic resonance images"]);
    assert_says(
        &refused(&folder(vec![ct])),
        &["none of its 1 DICOM files", "planning CT", "MR series"],
    );
    assert_says(
        &refused(&tempfile::tempdir().unwrap()),
        &["none of its 0 DICOM files", "no DICOM file"],
    );
    let absent = read_series(&dir.path().join("none"), &SeriesChoice::Only).unwrap_err();
    assert_says(&message(&absent), &["none", "check the path"]);
}

#[test]
fn a_walk_ends() {
    let dir = folder(vec![slice(0)]);
    let mut deep = dir.path().to_path_buf();
    for _ in 0..=MAX_DEPTH {
        deep.push("d");
    }
    std::fs::create_dir_all(&deep).unwrap();
    assert_says(&refused(&dir), &["more than 16 folders deep"]);
}

#[test]
fn what_is_wrong_with_another_series_does_not_matter() {
    let mut odd = named(0, "1.5.1", "screen capture");
    odd.remove_element(tags::IMAGE_POSITION_PATIENT);
    put(&mut odd, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB");
    let dir = folder(vec![slice(0), slice(1), odd]);
    let choice = SeriesChoice::Uid("1.2.3.5".into());
    assert_eq!(read_series(dir.path(), &choice).unwrap().1.geometry().shape(), [8, 6, 2]);
    let odd = read_series(dir.path(), &SeriesChoice::Uid("1.5.1".into())).unwrap_err();
    assert_says(&message(&odd), &["88.dcm", "colour image"]);
}
