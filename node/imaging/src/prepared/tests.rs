#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use super::*;
use crate::cohort::Split;
use crate::nifti;
use crate::phantom::{Centre, SynthOptions, synthesise};
use crate::preprocess::{Background, BiasCorrection, Grid, MaskSource, Normalisation, Settings};
use crate::volume::Volume;
use ndarray::Array3;
use std::os::unix::fs::PermissionsExt;

/// Longer than the kernel's clock stands still.
const TICK: Duration = Duration::from_millis(30);

struct Bench {
    dir: tempfile::TempDir,
    cohort: Cohort,
}

/// Two training cases and one for validation.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let options = SynthOptions {
        train: 2,
        validation: 1,
        test: 0,
        shape: [40, 44, 36],
        ..SynthOptions::small(Centre::Uker)
    };
    synthesise(&dir.path().join("cohort"), &options, &|_| {}).unwrap();
    let cohort = Cohort::load(&dir.path().join("cohort")).unwrap();
    Bench { dir, cohort }
}

impl Bench {
    fn store(&self) -> Store {
        Store::open(&self.dir.path().join("work/prepared")).unwrap()
    }

    fn file(&self, prepared: &Prepared) -> PathBuf {
        self.dir.path().join("work/prepared").join(format!("{}.case", hex(&prepared.digest())))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("work/prepared")).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn one(store: &Store, cohort: &Cohort, case: &Case) -> Prepared {
    store.cases(cohort, &[case], |_| ()).unwrap().pop().unwrap().unwrap()
}

#[test]
fn a_case_is_prepared_once_and_mapped_from_then_on() {
    let bench = bench();
    let case = &bench.cohort.cases[0];
    let mut direct = prepare_image(&case.sources(), &bench.cohort.preprocess).unwrap();
    let label = direct.read_label(&case.label, &bench.cohort.label).unwrap();
    let first = one(&bench.store(), &bench.cohort, case);
    assert_eq!((&first.id, &first.patient), (&case.id, &case.patient));
    assert_eq!(first.image(), direct.image);
    assert_eq!((first.label(), first.brain()), (label.view(), direct.brain.view()));
    assert_eq!(first.geometry(), &direct.geometry);
    // As text, a number may differ in its last bit.
    let (ours, theirs) = (first.steps(), &direct.steps);
    assert_eq!((ours.brain_mask, &ours.notices), (theirs.brain_mask, &theirs.notices));
    let mean = |steps: &Steps| steps.normalisation.mean;
    assert!((mean(ours) / mean(theirs) - 1.0).abs() < 1e-12);
    assert_eq!(first.steps().normalisation.voxels, direct.brain.iter().filter(|b| **b > 0).count());

    let path = bench.file(&first);
    let written = fs::metadata(&path).unwrap();
    assert!(written.len() < 6 * direct.image.len() as u64 + 1000);
    let bytes = fs::read(&path).unwrap();
    assert!(!bytes.windows(case.id.len()).any(|w| w == case.id.as_bytes()), "no id in the file");
    let again = one(&bench.store(), &bench.cohort, case);
    assert_eq!(fs::metadata(&path).unwrap().ino(), written.ino());
    assert_eq!((again.digest(), again.image()), (first.digest(), first.image()));
}

#[test]
fn what_a_case_depends_on_is_its_key_and_nothing_else_is() {
    let Bench { ref dir, ref cohort } = bench();
    let store = Store::open(&dir.path().join("work")).unwrap();
    let digest = |cohort: &Cohort, case: &Case| one(&store, cohort, case).digest();
    let case = &cohort.cases[0];
    let before = digest(cohort, case);
    let moved = dir.path().join("elsewhere.nii.gz");
    fs::copy(&case.image, &moved).unwrap();
    let copy = Case { id: "other".to_owned(), image: moved.clone(), ..case.clone() };
    assert_eq!(digest(cohort, &copy), before);
    assert_ne!(digest(cohort, &cohort.cases[1]), before);
    let mut ignoring = cohort.clone();
    ignoring.label.ignore.push(7);
    assert_ne!(digest(&ignoring, case), before);
    let with = |change: fn(&mut Settings)| {
        let mut changed = cohort.clone();
        change(&mut changed.preprocess);
        digest(&changed, case)
    };
    assert_ne!(with(|s| s.background = Background::Zero), before);
    assert_ne!(with(|s| s.bias_correction = BiasCorrection::N4), before);
    assert_ne!(with(|s| s.grid = Grid::Isotropic { spacing_mm: 2.0, shape: [48; 3] }), before);
    let volume = nifti::read_image(&case.image).unwrap().volume;
    nifti::write(&moved, &volume.map(|v| v + 1.0)).unwrap();
    assert_ne!(digest(cohort, &copy), before, "another image under the same name");
}

/// Archives hand out folders of links; what they lead to is what is read.
#[test]
fn linked_dicom_files_are_part_of_the_key() {
    let Bench { ref dir, ref cohort } = bench();
    let store = Store::open(&dir.path().join("work")).unwrap();
    let case = &cohort.cases[0];
    let volume = nifti::read_image(&case.image).unwrap().volume;
    let linked = |name: &str, volume: &Volume<f32>| {
        let (files, links) = (dir.path().join(name), dir.path().join(format!("{name}-links")));
        crate::dicom::scan::write_series(&files, "p", volume).unwrap();
        fs::create_dir(&links).unwrap();
        for entry in fs::read_dir(&files).unwrap() {
            let path = entry.unwrap().path();
            std::os::unix::fs::symlink(&path, links.join(path.file_name().unwrap())).unwrap();
        }
        one(&store, cohort, &Case { image: links, ..case.clone() })
    };
    let first = linked("first", &volume);
    let other = linked("other", &volume.map(|v| 1000.0 - v.min(1000.0)));
    assert_ne!(first.digest(), other.digest());
    assert_ne!(first.image(), other.image());
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let empty = Case { image: empty, ..case.clone() };
    let refused = store.cases(cohort, &[&empty], |_| ()).unwrap().pop().unwrap().unwrap_err();
    assert!(refused.to_string().contains("holds no file"), "{refused}");
}

#[test]
fn many_cases_come_in_order_and_a_bad_one_alone_is_refused() {
    let bench = bench();
    let label = &bench.cohort.cases[1].label;
    let volume = nifti::read_labels(label).unwrap();
    nifti::write(label, &volume.map(|v| v * 9)).unwrap();
    fs::remove_file(&bench.cohort.cases[2].image).unwrap();
    let cases: Vec<_> = bench.cohort.cases.iter().collect();
    let mut told = Vec::new();
    let results = bench.store().cases(&bench.cohort, &cases, |p| told.push((p.done, p.total)));
    let results = results.unwrap();
    assert_eq!(told, [(1, 3), (2, 3), (3, 3)]);
    assert_eq!(results[0].as_ref().unwrap().id, cases[0].id);
    let said = |n: usize| results[n].as_ref().err().map(ToString::to_string).unwrap();
    assert!(said(1).contains("the value 9"), "{}", said(1));
    assert!(said(2).contains(&*cases[2].image.to_string_lossy()), "{}", said(2));
    assert!(results.iter().flat_map(|r| r.as_ref().err()).all(|e| !e.concerns_all()));
    assert_eq!(bench.names().iter().filter(|n| n.ends_with(".case")).count(), 1);
}

#[test]
fn a_damaged_file_is_prepared_anew() {
    let bench = bench();
    let case = &bench.cohort.cases[0];
    let path = bench.file(&one(&bench.store(), &bench.cohort, case));
    let image = one(&bench.store(), &bench.cohort, case).image().to_owned();
    let whole = fs::read(&path).unwrap();
    let cut = whole[..whole.len() - 1].to_vec();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    for bytes in [cut, Vec::new(), flipped(2000), flipped(30)] {
        let store = bench.store();
        // Even if these very bytes were read whole before: the file was touched since.
        let identity = Identity::of(&File::open(&path).unwrap()).unwrap();
        let sum = file::map(&File::open(&path).unwrap(), &store_key(&path)).unwrap().sum;
        store.seen().put(&identity.settled(), sum);
        std::thread::sleep(TICK);
        fs::write(&path, &bytes).unwrap();
        let prepared = one(&store, &bench.cohort, case);
        assert_eq!(prepared.image(), image);
        drop(prepared);
        assert!(fs::read(&path).unwrap() == whole);
    }
}

fn store_key(path: &Path) -> [u8; 32] {
    seen::unhex(&path.file_stem().unwrap().to_string_lossy()).unwrap()
}

#[test]
fn every_cut_and_every_flipped_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let shape = [3, 4, 5];
    let geometry = Geometry::with_spacing(shape, [1.0, 0.9, 1.1]).unwrap();
    #[allow(clippy::cast_precision_loss)]
    let image = Array3::from_shape_fn(shape, |(i, j, k)| (i * 20 + j * 5 + k) as f32 - 0.1);
    let mask = Volume::new(geometry.clone(), image.map(|v| u8::from(*v > 20.0))).unwrap();
    let mask = mask.data();
    let normalisation = Normalisation { voxels: 60, low: 0.1, high: 2.0, mean: 0.3, sd: 1.0 };
    let notes = Steps {
        brain_mask: MaskSource::File,
        n4_iterations: Some(vec![7, 50]),
        normalisation,
        notices: vec!["odd".to_owned()],
    };
    let key = [7; 32];
    file::write(&path, &key, &geometry, &notes, &image, [mask, mask]).unwrap();
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len() % 64, 60, "it ends with the last voxel");
    let read = |bytes: &[u8], key: &[u8; 32]| {
        // A new file each time: a mapped one must never change.
        let path = dir.path().join("b");
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).unwrap();
        let mapped = file::map(&File::open(&path).unwrap(), key)?;
        mapped.check().map(|()| mapped)
    };
    let mapped = read(&whole, &key).unwrap();
    assert_eq!(
        (mapped.image(), mapped.label(), &mapped.geometry),
        (image.view(), mask.view(), &geometry)
    );
    assert_eq!(mapped.notes, notes);
    assert!(matches!(read(&whole, &[8; 32]), Err(Problem::Foreign)), "of another key");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(read(&bytes, &key).is_err(), "flipped byte {at}");
        assert!(read(&whole[..at], &key).is_err(), "cut at {at}");
    }
    assert!(matches!(read(&[&whole[..], &[0]].concat(), &key), Err(Problem::Length { .. })));
}

#[test]
fn pruning_keeps_what_is_named_and_what_is_mapped() {
    let bench = bench();
    let store = bench.store();
    let cases: Vec<_> = bench.cohort.split(Split::Train).collect();
    let prepared = store.cases(&bench.cohort, &cases, |_| ()).unwrap();
    let [kept, gone] =
        prepared.into_iter().map(Result::unwrap).collect::<Vec<_>>().try_into().unwrap();
    let part = bench.dir.path().join("work/prepared/.x.case.1-1.part");
    fs::write(&part, b"new").unwrap();
    let (path, length) = (bench.file(&gone), fs::metadata(bench.file(&gone)).unwrap().len());
    assert_eq!(store.prune([kept.digest()]).unwrap(), length);
    assert!(!path.exists() && bench.file(&kept).exists() && part.exists());
    assert!(gone.image().iter().all(|v| v.is_finite()), "a removed file stays mapped");
    let old = SystemTime::now() - ABANDONED * 2;
    File::options().write(true).open(&part).unwrap().set_modified(old).unwrap();
    store.prune([kept.digest()]).unwrap();
    assert!(!part.exists());
}

#[test]
fn a_store_that_cannot_be_written_stops_the_work_and_keeps_the_rest() {
    let bench = bench();
    let store = bench.store();
    let first = one(&store, &bench.cohort, &bench.cohort.cases[0]);
    let path = bench.file(&first);
    drop(first);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let cases: Vec<_> = bench.cohort.cases.iter().collect();
    let failed = store.cases(&bench.cohort, &cases, |_| ()).err().unwrap();
    assert!(failed.concerns_all() && failed.to_string().contains("make room"), "{failed}");
    assert!(!bench.names().iter().any(|n| n.ends_with(".part")), "{:?}", bench.names());
    fs::remove_dir(&path).unwrap();
    assert!(store.cases(&bench.cohort, &cases, |_| ()).unwrap().iter().all(Result::is_ok));

    let shared = bench.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o770)).unwrap();
    assert!(Store::open(&shared).err().unwrap().to_string().contains("chmod 700"));
    // Another user's folder: one given away, or, for those who may not give away, a system's.
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(Store::open(&shared).is_ok());
    let given = std::os::unix::fs::chown(&shared, Some(12_345), None).is_ok();
    let others = if given { &shared } else { Path::new("/usr") };
    assert!(matches!(Store::open(others), Err(Error::Shared(_))));
    assert!(matches!(Store::open(&bench.cohort.cases[0].image), Err(Error::Folder { .. })));
}

#[test]
fn only_files_left_alone_are_remembered_and_a_damaged_memory_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (a, path) = (dir.path().join("a"), dir.path().join("seen"));
    fs::write(&a, b"abc").unwrap();
    let identity = Identity::of(&File::open(&a).unwrap()).unwrap();
    let mut seen = Seen::load(&path);
    seen.put(&identity, [5; 32]);
    assert_eq!(seen.get(&identity), None, "it was written just now");
    let identity = identity.settled();
    seen.put(&identity, [5; 32]);
    seen.save(&path);
    assert_eq!(Seen::load(&path).get(&identity), Some([5; 32]));
    std::thread::sleep(TICK);
    fs::write(&a, b"abd").unwrap();
    let touched = Identity::of(&File::open(&a).unwrap()).unwrap();
    assert!(!touched.is(&identity) && Seen::load(&path).get(&touched).is_none());
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        for bytes in [&bytes, &whole[..at]] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(Seen::load(&path).get(&identity), None, "byte {at}");
        }
    }
}
