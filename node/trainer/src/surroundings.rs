//! Settings that libgomp and glibc read before `main`, so they are made for a program about to start.
//!
//! libgomp's workers wait for work by spinning, by default for some ten milliseconds after every
//! parallel loop. Beside any other busy process that more than doubles the processor time of a visit
//! (measured: 28.9 s against 10.2 s), because the spinning takes the place of work. glibc's
//! allocator gives every large tensor back to the kernel and has it zeroed again; one heap that keeps
//! them saves nine tenths of the time spent in the kernel (full-size inference: 7.9 s to 0.7 s of 28 s)
//! for up to twice the memory.

use std::env;
use std::process::Command;

/// Set where an operator has not set them; any that is set wins.
const SETTINGS: [(&str, &str); 5] = [
    // Some tenths of a millisecond: as long as most gaps within an update, shorter than a time slice.
    // A bf16 update of 10 segments on two cores takes 210 ms with 2,000, 195 with this, 171 with
    // 100,000; beside a process that keeps one core busy 520, less than 700, and 1,190.
    ("GOMP_SPINCOUNT", "10000"),
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_MAX_", "0"),
    ("MALLOC_TOP_PAD_", "67108864"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
];

/// Names of the variables that were set here, for the children of the program that shall not have them.
const MARK: &str = "RONDO_TRAINER_SETTINGS";

/// Gives a program about to start the settings that its user did not make.
pub(crate) fn settle(command: &mut Command) {
    let missing = SETTINGS.into_iter().filter(|(name, _)| env::var_os(name).is_none());
    let missing: Vec<_> = missing.collect();
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    command.envs(missing).env(MARK, names.join(" "));
}
