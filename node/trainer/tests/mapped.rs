//! A cohort many times larger than what its training may keep in memory.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use rondo::recipe::{Preset, Recipe};
use rondo_imaging::cohort::{Cohort, Split};
use rondo_imaging::nifti;
use rondo_imaging::phantom::{Centre, SynthOptions, synthesise};
use rondo_learn::segment;
use rondo_trainer::cases::{Cases, prune, store};

/// Cases of the cohort, all of the same few files: each is mapped on its own.
const CASES: usize = 400;
/// What segments in preparation, the index and threads may take.
const KEPT_KIB: u64 = 64 * 1024;

/// KiB of this process by the name of a line in `/proc/self/status`.
fn kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn segments_come_from_maps_and_not_from_memory() {
    let folder = tempfile::tempdir().unwrap();
    let options = SynthOptions {
        train: 2,
        validation: 1,
        test: 0,
        shape: [96, 96, 80],
        ..SynthOptions::small(Centre::Uker)
    };
    synthesise(&folder.path().join("cohort"), &options, &|_| {}).unwrap();
    let mut cohort = Cohort::load(&folder.path().join("cohort")).unwrap();
    let store = store(&folder.path().join("work")).unwrap();
    let few = Cases::load(&cohort, Split::Train, &store, |_, _| ()).unwrap();
    let two: Vec<_> = cohort.split(Split::Train).cloned().collect();
    cohort.cases = two.iter().cycle().take(CASES).cloned().collect();

    let (anonymous, mapped) = (kib("RssAnon"), kib("VmSize"));
    let cases = Cases::load(&cohort, Split::Train, &store, |_, _| ()).unwrap();
    assert_eq!((cases.ready.len(), cases.set_aside.len()), (CASES, 0), "{:?}", cases.set_aside);
    assert_eq!(cases.digests()[..2], few.digests());
    let volumes = CASES as u64 * 96 * 96 * 80 * 6 / 1024;
    assert!(kib("VmSize") > mapped + volumes, "every case is mapped: {volumes} KiB");
    let rate = segment::rate(&cases.views(), &Recipe::preset(Preset::Paper), 1, 1.0).unwrap();
    let grown = kib("RssAnon").saturating_sub(anonymous);
    println!("{rate:?}, {grown} KiB more memory for {volumes} KiB of cases");
    assert!(grown < KEPT_KIB, "{grown} KiB more memory for {volumes} KiB of cases");
    assert!(rate.segments_per_s > 100.0, "{rate:?}");
}

#[test]
fn a_bad_case_is_set_aside_and_pruning_spares_what_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let options = SynthOptions {
        train: 3,
        validation: 1,
        test: 0,
        shape: [40, 44, 36],
        ..SynthOptions::small(Centre::Uker)
    };
    synthesise(&folder.path().join("cohort"), &options, &|_| {}).unwrap();
    let cohort = Cohort::load(&folder.path().join("cohort")).unwrap();
    let work = folder.path().join("work");
    let store = store(&work).unwrap();
    let files = || {
        let entries = std::fs::read_dir(work.join("prepared")).unwrap();
        entries.filter(|e| e.as_ref().unwrap().path().extension().is_some()).count()
    };
    let mut told = Vec::new();
    let all = Cases::load(&cohort, Split::Train, &store, |done, of| told.push((done, of))).unwrap();
    let validation = Cases::load(&cohort, Split::Validation, &store, |_, _| ()).unwrap();
    assert_eq!((all.ready.len(), files(), told.last()), (3, 4, Some(&(3, 3))));
    let wrong = cohort.split(Split::Train).next().unwrap();
    let label = nifti::read_labels(&wrong.label).unwrap();
    nifti::write(&wrong.label, &label.map(|v| v * 5)).unwrap();
    let now = Cases::load(&cohort, Split::Train, &store, |_, _| ()).unwrap();
    assert_eq!((now.ready.len(), now.set_aside.len()), (2, 1));
    assert!(now.set_aside[0].contains(&wrong.id) && now.set_aside[0].contains("the value 5"));
    prune(&store, &[&now, &validation]).unwrap();
    assert_eq!(files(), 4, "its files may be back tomorrow");
    nifti::write(&wrong.label, &label.map(|v| 1 - (*v).min(1))).unwrap();
    let now = Cases::load(&cohort, Split::Train, &store, |_, _| ()).unwrap();
    assert_eq!((now.ready.len(), files()), (3, 5));
    prune(&store, &[&now, &validation]).unwrap();
    assert_eq!(files(), 4, "the one of the label before is gone");
}
