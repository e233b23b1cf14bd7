//! `Cohort::parse`; what is accepted is written and read again unchanged.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rondo_imaging::cohort::Cohort;
use rondo_imaging_fuzz::Scratch;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("cohort"));

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let folder = SCRATCH.folder();
    match Cohort::parse(text, folder) {
        Ok(cohort) => {
            let path = cohort.save(folder).expect("an accepted cohort can be written");
            assert_eq!(Cohort::load(&path).expect("a written cohort can be read"), cohort);
        }
        Err(problems) => assert!(!problems.is_empty()),
    }
});
