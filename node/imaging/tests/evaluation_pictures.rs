//! From folders of masks and images to pictures, a page and CSV files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, s};
use rondo_imaging::lesion::Connectivity;
use rondo_imaging::metrics::{Evaluation, EvaluationCase, Options, evaluate, match_folders};
use rondo_imaging::picture::{self, Album, AlbumOptions, Error, Kind, album, check_folder, draw};
use rondo_imaging::volume::{Geometry, Volume};
use rondo_imaging::{nifti, page};

const SHAPE: [usize; 3] = [40, 48, 20];

fn put<T: nifti::Voxel + Clone>(path: &Path, data: Array3<T>, k_mm: f64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let (i, j, k) = data.dim();
    let geometry = Geometry::with_spacing([i, j, k], [2.0, 2.0, k_mm]).unwrap();
    nifti::write(path, &Volume::new(geometry, data).unwrap()).unwrap();
}

fn mask(cubes: &[[usize; 3]]) -> Array3<u8> {
    let mut data = Array3::zeros(SHAPE);
    for [i, j, k] in cubes {
        data.slice_mut(s![*i..i + 3, *j..j + 3, *k..k + 2]).fill(1);
    }
    data
}

fn head() -> Array3<f32> {
    Array3::from_shape_fn(SHAPE, |(i, j, k)| {
        let r2: f64 = [(i, 20.0), (j, 24.0), (k, 10.0)]
            .map(|(at, half)| ((at as f64 - half) / half).powi(2))
            .iter()
            .sum();
        if r2 < 0.9 { 100.0 + ((i * 7 + j * 13 + k * 5) % 40) as f32 } else { 1.0 }
    })
}

/// `a`: nothing at all. `b`: one lesion found. `c`: two missed, one false.
/// `d`: as b, without image. `e`: as b, its image on another grid.
fn folders(dir: &Path) -> (Vec<EvaluationCase>, Evaluation) {
    let (r, p, i) = (dir.join("reference"), dir.join("prediction"), dir.join("image"));
    for (id, reference, prediction) in [
        ("a", vec![], vec![]),
        ("b", vec![[10, 20, 8]], vec![[11, 20, 8]]),
        ("c", vec![[10, 20, 8], [25, 20, 8]], vec![[18, 30, 12]]),
        ("d", vec![[10, 20, 8]], vec![[11, 20, 8]]),
        ("e", vec![[10, 20, 8]], vec![[11, 20, 8]]),
    ] {
        put(&r.join(format!("{id}.nii.gz")), mask(&reference), 3.0);
        put(&p.join(format!("{id}.nii.gz")), mask(&prediction), 3.0);
        if id != "d" {
            put(&i.join(format!("{id}.nii")), head(), if id == "e" { 2.5 } else { 3.0 });
        }
    }
    let cases = match_folders(&r, &p, None).unwrap();
    let evaluation = evaluate(&cases, &Options::default(), &|_| ()).unwrap();
    (cases, evaluation)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_case_that_can_be_is_pictured() {
    let dir = tempfile::tempdir().unwrap();
    let (cases, evaluation) = folders(dir.path());
    let folder = dir.path().join("new/pictures");
    check_folder(&folder).unwrap();
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let options = AlbumOptions { findings: 2, folder: Some(folder.clone()), keep_bytes: 1 << 20 };
    let images = dir.path().join("image");
    let made = album(&cases, &images, &evaluation, &options, &|p| assert_eq!(p.total, 5)).unwrap();
    assert_eq!(made.kept.keys().collect::<Vec<_>>(), ["b", "c"]);
    let kinds: Vec<_> = made.kept["c"].findings.iter().map(|f| f.kind).collect();
    assert_eq!(
        (kinds.as_slice(), made.kept["c"].left_out),
        ([Kind::Missed, Kind::FalsePositive].as_slice(), 1)
    );
    assert_eq!(made.left_out.iter().collect::<Vec<_>>(), [(&"c".to_owned(), &1)]);
    assert!(made.problems["d"].contains("no image d.nii.gz"), "{:?}", made.problems);
    assert!(made.problems["e"].contains("another grid"), "{:?}", made.problems);
    assert_eq!((made.problems.len(), made.not_kept.len()), (2, 0));

    assert_eq!(names(&folder), ["a", "b", "c"]);
    assert!(names(&folder.join("a")).is_empty());
    let of_b =
        ["01-found-axial.png", "01-found-coronal.png", "01-found-sagittal.png", "sheet-1.png"];
    assert_eq!(names(&folder.join("b")), of_b);
    assert_eq!(names(&folder.join("c")).len(), 7);
    assert_eq!(made.written, 11);
    assert!(matches!(check_folder(&folder), Err(Error::Exists(_))));

    let file = dir.path().join("page.html");
    page::write(&file, &evaluation, Some(&made)).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let page = std::fs::read_to_string(&file).unwrap();
    let sheets: Vec<&str> = page.split("data:image/png;base64,").skip(1).collect();
    assert_eq!(sheets.len(), 2);
    for (sheet, id) in sheets.iter().zip(["b", "c"]) {
        use base64::Engine as _;
        let base64 = sheet.split('"').next().unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
        assert_eq!(png, made.kept[id].sheets[0]);
        assert_eq!(png, std::fs::read(folder.join(id).join("sheet-1.png")).unwrap());
        assert!(image::load_from_memory(&png).is_ok());
    }
    assert!(page.contains("<strong>d</strong> has no picture"));
}

#[test]
fn a_page_without_room_has_the_worst_cases() {
    let dir = tempfile::tempdir().unwrap();
    let (cases, evaluation) = folders(dir.path());
    let images = dir.path().join("image");
    let run = |keep_bytes| -> Album {
        let options = AlbumOptions { findings: 12, folder: None, keep_bytes };
        album(&cases, &images, &evaluation, &options, &|_| ()).unwrap()
    };
    let all = run(usize::MAX);
    let of_c: usize = all.kept["c"].sheets.iter().map(Vec::len).sum();
    let some = run(of_c);
    assert_eq!(some.kept.keys().collect::<Vec<_>>(), ["c"]);
    assert!(some.not_kept.contains("b"));
    let page = page::html(&evaluation, Some(&some)).unwrap();
    assert!(page.contains("with most errors only. Without pictures here: b"), "{page}");
    assert!(run(0).kept.is_empty());
}

/// More cases than are drawn at once, so that the last ones are met when the page is full.
#[test]
fn cases_beyond_a_full_page_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let [r, p, i] = ["reference", "prediction", "image"].map(|name| dir.path().join(name));
    for n in 0..24 {
        // From 16 on in turns: nothing to picture, a lesion found, the same without its image.
        let kind = if n < 16 { 1 } else { n % 3 };
        let cubes: &[[usize; 3]] = if kind == 0 { &[] } else { &[[10, 20, 8]] };
        let name = format!("c{n:02}.nii.gz");
        put(&r.join(&name), mask(cubes), 3.0);
        put(&p.join(&name), mask(if n < 16 { &[] } else { cubes }), 3.0);
        if kind != 2 {
            put(&i.join(&name), head(), 3.0);
        }
    }
    let cases = match_folders(&r, &p, None).unwrap();
    let evaluation = evaluate(&cases, &Options::default(), &|_| ()).unwrap();
    let names = |kind: usize| (16..24).filter(move |n| n % 3 == kind).map(|n| format!("c{n:02}"));
    let reached = AtomicUsize::new(0);
    let run = |folder: Option<PathBuf>, keep_bytes| {
        reached.store(0, Ordering::Relaxed);
        let options = AlbumOptions { findings: 12, folder, keep_bytes };
        let progress = |p: rondo_imaging::Progress<'_>| {
            reached.fetch_max(p.done, Ordering::Relaxed);
        };
        let made = album(&cases, &i, &evaluation, &options, &progress).unwrap();
        assert_eq!(reached.load(Ordering::Relaxed), 24);
        made
    };
    let folder = dir.path().join("pictures");
    for folder in [None, Some(folder.clone())] {
        let made = run(folder, 1);
        let expected: Vec<_> = (0..16).map(|n| format!("c{n:02}")).chain(names(1)).collect();
        assert!(made.kept.is_empty() && made.not_kept.iter().eq(&expected), "{:?}", made.not_kept);
        assert!(made.problems.keys().cloned().eq(names(2)), "{:?}", made.problems);
    }
    let picture = std::fs::metadata(folder.join("c00/sheet-1.png")).unwrap();
    assert_eq!(picture.permissions().mode() & 0o777, 0o600);
    let made = run(None, usize::MAX);
    assert!(made.not_kept.is_empty() && made.problems.keys().cloned().eq(names(2)));
    assert!(names(0).all(|id| !made.kept.contains_key(&id)));
}

#[test]
fn an_id_leads_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut cases, evaluation) = folders(dir.path());
    cases.truncate(1);
    for id in ["../a", "..", "/tmp/a", "a/b", "", "a/"] {
        cases[0].id = id.to_owned();
        let options =
            AlbumOptions { findings: 1, folder: Some(dir.path().join("pictures")), keep_bytes: 0 };
        let made =
            album(&cases, &dir.path().join("image"), &evaluation, &options, &|_| ()).unwrap();
        assert!(made.problems[id].contains("cannot name a folder"), "{id}: {:?}", made.problems);
    }
    assert!(!dir.path().join("pictures").exists());
}

/// The heads with 6.5 mm slices: as high as they are in millimetres, and the tumour where it is.
#[test]
fn thick_slices_have_the_right_aspect() {
    let path = |file: &str| support::shared(&format!("data/contrast-tumour/{file}"));
    let (Some(image), Some(label)) = (path("brain2_image.nii.gz"), path("brain2_label.nii.gz"))
    else {
        return;
    };
    let image = nifti::read_image(&image).unwrap().volume;
    let label = nifti::read_mask(&label).unwrap();
    let options = picture::Options { findings: 1, slices: true };
    let none = Array3::zeros(label.data().dim());
    let made = draw(&image, label.data(), &none, Connectivity::TwentySix, &options).unwrap();
    let slices: Vec<_> = (made.pictured[0].slices.iter())
        .map(|(_, png)| image::load_from_memory(png).unwrap().to_rgb8())
        .collect();
    // Half a millimetre a pixel: the same height of coronal and sagittal, width of axial and
    // coronal, and depth of axial and sagittal.
    let [axial, coronal, sagittal] = slices.try_into().unwrap();
    assert_eq!(axial.width(), coronal.width());
    assert_eq!(coronal.height(), sagittal.height());
    assert_eq!(axial.height(), sagittal.width());
    let box_mm = f64::from(coronal.height()) / 2.0;
    let stack_mm = image.geometry().shape()[2] as f64 * 6.5;
    assert!((stack_mm - 20.0..=stack_mm + 20.0).contains(&box_mm), "{box_mm} of {stack_mm} mm");
    let at = made.pictured[0].finding.at_mm;
    for (picture, left) in [(&axial, at[0] > 0.0), (&coronal, at[0] > 0.0)] {
        let yellow: Vec<f64> = (picture.enumerate_pixels())
            .filter(|(_, _, p)| p.0 == [255, 225, 0])
            .map(|(x, _, _)| f64::from(x))
            .collect();
        assert!(!yellow.is_empty());
        let mean = yellow.iter().sum::<f64>() / yellow.len() as f64;
        // The patient's right is on the left; the middle of the head is close to the origin here.
        assert_eq!(mean < f64::from(picture.width()) / 2.0, left, "{at:?}");
    }
}
