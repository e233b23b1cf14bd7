#![allow(clippy::unwrap_used, clippy::expect_used)]

use rand_chacha::ChaCha8Rng;

use super::centre::ADULT_BRAIN_CM3;
use super::*;
use crate::cohort::{SMALL_CM3, check, stats};
use crate::lesion::{Connectivity, components};
use crate::preprocess::{Background, prepare_image};

fn tiny(centre: Centre) -> SynthOptions {
    SynthOptions {
        train: 2,
        validation: 1,
        test: 1,
        shape: [40, 44, 40],
        ..SynthOptions::small(centre)
    }
}

#[test]
fn the_same_seed_makes_the_same_head_and_every_patient_differs() {
    let options = tiny(Centre::Usz);
    let a = phantom(&options, "usz-0001").unwrap();
    assert_eq!(a.image, phantom(&options, "usz-0001").unwrap().image);
    assert_ne!(a.image, phantom(&options, "usz-0002").unwrap().image);
    let reseeded = SynthOptions { seed: 2, ..options };
    assert_ne!(a.image, phantom(&reseeded, "usz-0001").unwrap().image);
}

#[test]
fn labels_hold_what_was_drawn_and_lie_in_the_brain() {
    for centre in Centre::ALL {
        let options = SynthOptions::small(centre);
        for n in 0..3 {
            let id = format!("{}-{n}", centre.name());
            let made = phantom(&options, &id).unwrap();
            let lesions = components(made.label.data(), Connectivity::TwentySix);
            assert_eq!(lesions.list.len(), made.painted.lesions, "{id}");
            assert!(lesions.list.iter().all(|l| l.voxels >= 4), "{id}");
            assert!(made.label.data().iter().zip(made.brain.data()).all(|(l, b)| *l <= *b), "{id}");
            assert!(made.image.data().iter().all(|v| v.is_finite()), "{id}");
            let (brain, all) = (
                made.brain.data().map(|v| u64::from(*v)).sum(),
                made.label.data().map(|v| u64::from(*v)).sum(),
            );
            assert!(
                brain > 30_000 && all as f64 <= 1.05 * ALL_SHARE_OF_BRAIN * brain as f64,
                "{id}: {all} of {brain}"
            );
        }
    }
}

/// Sizes in cm³, largest first, that are painted into a patient's head.
fn sizes_of(options: &SynthOptions, id: &str) -> Vec<f64> {
    let mut hash = Sha256::new();
    hash.update(options.seed.to_le_bytes());
    hash.update(id.as_bytes());
    let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
    let profile = options.centre.profile();
    let [thin, thick] = profile.through_plane_mm;
    if thick > thin {
        let _: f64 = rng.random_range(thin..=thick);
    }
    let grid = Geometry::with_spacing(options.shape, options.spacing_mm).unwrap();
    let mut head = head::synthetic(&grid, &profile, options.skull, &mut rng);
    enhance::healthy(&mut head, &profile, &mut rng);
    metastasis::draw_sizes(&profile, head.brain_cm3(), &mut rng).0
}

/// Labels of adult heads as written, each metastasis against the size drawn for it, and what a site
/// counts of them. A metastasis is a whole number of voxels, so each may be half a voxel off.
#[test]
fn written_labels_have_the_sizes_drawn() {
    for (centre, patients) in [(Centre::Stanford, 5), (Centre::Uker, 10)] {
        let options = SynthOptions {
            train: patients,
            validation: 0,
            test: 0,
            shape: [84, 106, 84],
            spacing_mm: [2.0; 3],
            ..SynthOptions::small(centre)
        };
        let dir = tempfile::tempdir().unwrap();
        let made = synthesise(dir.path(), &options, &|_| {}).unwrap();
        let cohort = Cohort::load(&made.cohort).unwrap();
        let voxel_cm3 = options.spacing_mm.iter().product::<f64>() / 1000.0;
        let half = 0.5001 * voxel_cm3;
        let (mut left_out, mut drawn) = (0, Vec::new());
        let all: Vec<Vec<f64>> =
            cohort.cases.par_iter().map(|case| sizes_of(&options, &case.id)).collect();
        for (case, sizes) in cohort.cases.iter().zip(all) {
            let label = nifti::read_mask(&case.label).unwrap();
            let found = components(label.data(), Connectivity::TwentySix);
            let mut written: Vec<f64> =
                found.list.iter().map(|l| l.voxels as f64 * voxel_cm3).collect();
            written.sort_by(f64::total_cmp);
            for size in sizes {
                match written.last() {
                    Some(last) if (last - size).abs() <= half => {
                        written.pop();
                        drawn.push(size);
                    }
                    _ => left_out += 1,
                }
            }
            assert!(written.is_empty(), "{}: nobody drew {written:?} cm³", case.id);
        }
        assert_eq!((drawn.len(), left_out), (made.metastases, made.left_out));
        assert!(drawn.len() > patients && left_out <= drawn.len() / 100, "{made:?}");

        let table = stats(&cohort, &|_| {});
        let (total, n) = (table.total, drawn.len() as f64);
        assert_eq!((table.set_aside.len(), total.metastases), (0, drawn.len()));
        let mean = drawn.iter().sum::<f64>() / n;
        assert!((total.mean_cm3.unwrap() - mean).abs() <= half, "{total:?}: mean {mean}");
        drawn.sort_by(f64::total_cmp);
        let median = f64::midpoint(drawn[(drawn.len() - 1) / 2], drawn[drawn.len() / 2]);
        assert!((total.median_cm3.unwrap() - median).abs() <= half, "{total:?}: {median}");
        let up_to = |cm3: f64| drawn.partition_point(|v| *v <= cm3) as f64 / n;
        let small = total.share_up_to_0_1_cm3.unwrap();
        let range = up_to(SMALL_CM3 - half)..=up_to(SMALL_CM3 + half);
        assert!(range.contains(&small), "{total:?}: share in {range:?}");
    }
}

/// No threshold finds metastases: what is as bright as they are is mostly something else.
#[test]
fn a_threshold_does_not_separate_metastases() {
    let options = SynthOptions::small(Centre::Uker);
    let mut best = 0f64;
    let made: Vec<_> = (0..6).map(|n| phantom(&options, &format!("t-{n}")).unwrap()).collect();
    for step in 0..14 {
        let (mut found, mut wrong, mut all) = (0, 0, 0);
        for p in &made {
            let mut image = p.image.data().clone();
            crate::preprocess::normalise(&mut image, p.brain.data(), Background::Zero).unwrap();
            let bright = image.map(|v| u8::from(*v > 1.0 + 0.3 * step as f32));
            let result = crate::metrics::evaluate_case(
                "t",
                p.label.data(),
                &bright,
                [1.0; 3],
                &Default::default(),
            );
            found += result.detected;
            wrong += result.false_positives;
            all += result.reference_lesions;
        }
        let (s, p) = (found as f64 / all as f64, found as f64 / (found + wrong).max(1) as f64);
        best = best.max(2.0 * s * p / (s + p).max(1e-9));
    }
    assert!(best < 0.6, "a threshold reaches F1 = {best}");
}

#[test]
fn a_cohort_is_written_checked_and_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let options = tiny(Centre::Stanford);
    let made = synthesise(dir.path(), &options, &|p| assert!(p.done <= p.total)).unwrap();
    let cohort = Cohort::load(&made.cohort).unwrap();
    assert_eq!((cohort.cases.len(), cohort.split(Split::Train).count()), (4, 2));
    let report = check(&cohort, &|_| {});
    assert_eq!((report.usable.len(), report.set_aside), (4, vec![]));
    assert_eq!(stats(&cohort, &|_| {}).total.metastases, made.metastases);
    let case = &cohort.cases[0];
    let mut made = prepare_image(&case.sources(), &cohort.preprocess).unwrap();
    let label = made.read_label(&case.label, &cohort.label).unwrap();
    assert!(label.iter().any(|v| *v > 0) && made.image.dim() == (40, 44, 40));
    // A prediction goes back onto the grid of its image.
    let path = dir.path().join("prediction.nii.gz");
    nifti::write(&path, &Volume::new(made.geometry.clone(), label).unwrap()).unwrap();
    assert!(nifti::read_header(&path).unwrap().geometry.matches(&made.geometry));
    assert!(matches!(synthesise(dir.path(), &options, &|_| {}), Err(Error::Exists(_))));
}

#[test]
fn an_interrupted_synthesis_goes_on() {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = tiny(Centre::Ucsf);
    let made = synthesise(whole.path(), &options, &|_| {}).unwrap();
    // A folder in place of the label of the last case stops the work there.
    let stop = cut.path().join("label/ucsf-0004.nii.gz");
    std::fs::create_dir_all(&stop).unwrap();
    assert!(synthesise(cut.path(), &options, &|_| {}).is_err());
    assert!(!cut.path().join("cohort.toml").exists());
    let first = cut.path().join("image/ucsf-0001.nii.gz");
    let written = std::fs::metadata(&first).unwrap().modified().unwrap();
    std::fs::remove_dir(&stop).unwrap();
    let other = SynthOptions { seed: 9, ..options.clone() };
    assert!(matches!(synthesise(cut.path(), &other, &|_| {}), Err(Error::Unfinished(_))));
    let resumed = synthesise(cut.path(), &options, &|_| {}).unwrap();
    assert_eq!(std::fs::metadata(&first).unwrap().modified().unwrap(), written);
    assert_eq!(Synthesised { cohort: made.cohort.clone(), ..resumed }, made);
    for part in ["image", "label", "brain"] {
        for n in 1..=4 {
            let name = format!("{part}/ucsf-{n:04}.nii.gz");
            let read = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
            assert!(read(whole.path()) == read(cut.path()), "{name}");
        }
    }
    assert_eq!(std::fs::read_dir(cut.path()).unwrap().count(), 4);
}

#[test]
fn a_real_anatomy_is_painted_on_its_own_grid() {
    let dir = tempfile::tempdir().unwrap();
    let head = phantom(&tiny(Centre::Uker), "anatomy").unwrap();
    // As a scanner tilted to the skull base stores it: no axis along the room's, three spacings.
    let mut affine = nalgebra::Rotation3::from_euler_angles(0.4, -0.2, 0.3).to_homogeneous();
    for (axis, mm) in [0.9, 1.0, 1.4].into_iter().enumerate() {
        affine.column_mut(axis).scale_mut(if axis == 0 { -mm } else { mm });
        affine[(axis, 3)] = 12.5 * mm;
    }
    let oblique = Geometry::new(head.image.geometry().shape(), affine).unwrap();
    let on = |data: &Array3<f32>| Volume::new(oblique.clone(), data.clone()).unwrap();
    let brain = Volume::new(oblique.clone(), head.brain.data().clone()).unwrap();
    let (image, mask) = (dir.path().join("t1.nii.gz"), dir.path().join("mask.nii.gz"));
    nifti::write(&image, &on(head.image.data())).unwrap();
    nifti::write(&mask, &brain).unwrap();
    let options = SynthOptions {
        anatomy: Some(Anatomy { image: image.clone(), mask: Some(mask) }),
        ..tiny(Centre::Usz)
    };
    let made = phantom(&options, "usz-1").unwrap();
    assert!(made.image.geometry().matches(&oblique));
    // Label, brain and brightness stay together on that grid.
    let (mut inside, mut bright) = (0, 0);
    let mut brain: Vec<f32> = made
        .image
        .data()
        .iter()
        .zip(made.brain.data())
        .filter(|(_, b)| **b > 0)
        .map(|(v, _)| *v)
        .collect();
    brain.sort_by(f32::total_cmp);
    let typical = brain[brain.len() / 2];
    for ((v, l), b) in made.image.data().iter().zip(made.label.data()).zip(made.brain.data()) {
        assert!(l <= b);
        inside += usize::from(*l);
        bright += usize::from(*l > 0 && *v > typical);
    }
    assert!(inside > 0 && bright as f64 > 0.5 * inside as f64, "{bright} of {inside}");
    // Bent or mirrored, it is no copy of the head it was painted on.
    let healthy = made.image.data().iter().zip(head.image.data()).filter(|(a, b)| a == b).count();
    assert!(healthy < made.image.data().len() / 10);
    let other = dir.path().join("other.nii.gz");
    let grid = Geometry::with_spacing([40, 44, 40], [2.0; 3]).unwrap();
    nifti::write(&other, &Volume::new(grid, head.brain.data().clone()).unwrap()).unwrap();
    let wrong = SynthOptions { anatomy: Some(Anatomy { image, mask: Some(other) }), ..options };
    assert!(matches!(phantom(&wrong, "usz-1"), Err(Error::MaskGrid(_))));
}

#[test]
fn impossible_orders_are_refused() {
    let folder = Path::new("/nowhere");
    let none = SynthOptions { train: 0, validation: 0, test: 0, ..tiny(Centre::Uker) };
    assert!(matches!(synthesise(folder, &none, &|_| {}), Err(Error::Cases(0))));
    for shape in [[31, 64, 64], [64, 64, 513]] {
        let odd = SynthOptions { shape, ..tiny(Centre::Uker) };
        assert!(matches!(synthesise(folder, &odd, &|_| {}), Err(Error::Shape(_))));
    }
    let flat = SynthOptions { spacing_mm: [1.0, 1.0, 0.0], ..tiny(Centre::Uker) };
    assert!(matches!(synthesise(folder, &flat, &|_| {}), Err(Error::Geometry(_))));
}

/// The sizes have the mean of the table under the cap of this brain. The grid is the paper's, coarser.
#[test]
fn an_adult_brain_has_the_volume_that_the_sizes_reckon_with() {
    let grid = Geometry::with_spacing([80, 80, 52], [3.0; 3]).unwrap();
    let profile = Centre::Uker.profile();
    let patients = 12;
    let sum: f64 = (0..patients)
        .into_par_iter()
        .map(|seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            head::synthetic(&grid, &profile, true, &mut rng).brain_cm3()
        })
        .sum();
    let mean = sum / patients as f64;
    assert!((mean / ADULT_BRAIN_CM3 - 1.0).abs() < 0.03, "{mean} cm³");
}
