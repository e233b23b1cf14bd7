#![allow(clippy::unwrap_used, clippy::expect_used)]

use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, Normal};

use super::*;
use crate::cohort::{check, stats};
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

/// The written labels of adult heads against the paper's Table 1, measured as a site would. The
/// tolerance follows from the number of metastases and volumes written: what four such figures exceed
/// by chance once in a thousand times, and half a voxel.
#[test]
fn written_labels_fit_the_table_of_the_paper() {
    let options = SynthOptions {
        train: 10,
        validation: 3,
        test: 3,
        shape: [112, 134, 112],
        spacing_mm: [1.5; 3],
        ..SynthOptions::small(Centre::Stanford)
    };
    let dir = tempfile::tempdir().unwrap();
    let made = synthesise(dir.path(), &options, &|_| {}).unwrap();
    let table = stats(&Cohort::load(&made.cohort).unwrap(), &|_| {});
    assert_eq!((table.set_aside.len(), table.total.metastases), (0, made.metastases));
    assert!(made.left_out + made.limited <= made.metastases / 100, "{made:?}");

    let profile = options.centre.profile();
    let z = Normal::standard().inverse_cdf(1.0 - 0.001 / 4.0 / 2.0);
    let (n, volumes) = (table.total.metastases as f64, table.total.volumes as f64);
    let half_voxel = 0.5 * 1.5f64.powi(3) / 1000.0;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let sizes = Sizes::of(&profile);
    let mut drawn: Vec<f64> = (0..100_000).map(|_| sizes.draw(&mut rng)).collect();
    drawn.sort_by(f64::total_cmp);
    let counts: Vec<f64> =
        (0..20_000).map(|_| draw_count(profile.per_volume, &mut rng) as f64).collect();
    let sd = |values: &[f64], mean: f64| {
        (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    let total = table.total;
    let off = total.metastases_per_volume.unwrap() - profile.per_volume;
    assert!(off.abs() < z * sd(&counts, profile.per_volume) / volumes.sqrt(), "{off} per volume");
    let off = total.mean_cm3.unwrap() - profile.mean_cm3;
    let error = sd(&drawn, profile.mean_cm3) / n.sqrt();
    assert!(off.abs() < z * error + half_voxel, "mean off by {off} ± {error}");
    let off = total.share_up_to_0_1_cm3.unwrap() - profile.share_small;
    let error = (profile.share_small * (1.0 - profile.share_small) / n).sqrt();
    assert!(off.abs() < z * error, "share off by {off} ± {error}");
    let quantile = |share: f64| drawn[(share * drawn.len() as f64) as usize];
    let (low, high) = (0.5 - z / 2.0 / n.sqrt(), 0.5 + z / 2.0 / n.sqrt());
    let median = total.median_cm3.unwrap();
    let range = quantile(low) - half_voxel..quantile(high) + half_voxel;
    assert!(range.contains(&median), "median {median} is not in {range:?}");
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
