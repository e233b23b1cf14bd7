//! Settings that libgomp and glibc read before `main`, so the program starts itself once more with them.
//!
//! libgomp's workers wait for work by spinning, by default for some ten milliseconds after every
//! parallel loop. Beside any other busy process that more than doubles the processor time of a visit
//! (measured: 28.9 s against 10.2 s), because the spinning takes the place of work. glibc's
//! allocator gives every large tensor back to the kernel and has it zeroed again; one heap that keeps
//! them saves nine tenths of the time spent in the kernel (full-size inference: 7.9 s to 0.7 s of 28 s)
//! for up to twice the memory.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
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

/// Tells the second start that it is the second, and which settings the first one made.
const MARK: &str = "RONDO_TRAINER_SETTLED";

/// Starts this program again with [`SETTINGS`], under the same process id; returns at once the second time.
///
/// # Errors
/// The program's own file cannot be started; it can go on without the settings.
pub(crate) fn settle() -> io::Result<()> {
    if std::env::var_os(MARK).is_some() {
        return Ok(());
    }
    let missing = SETTINGS.iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let settings: Vec<(&str, OsString)> =
        missing.map(|(name, value)| (*name, value.into())).collect();
    let names: Vec<&str> = settings.iter().map(|(name, _)| *name).collect();
    let arguments = std::env::args_os().skip(1);
    let program = std::env::current_exe()?;
    Err(Command::new(program).args(arguments).envs(settings).env(MARK, names.join(" ")).exec())
}

/// Names of the variables that this program gave itself, for children that shall not have them.
pub(crate) fn own() -> Vec<String> {
    let mut names = vec![MARK.to_owned()];
    names.extend(std::env::var(MARK).unwrap_or_default().split(' ').map(str::to_owned));
    names.retain(|name| name == MARK || SETTINGS.iter().any(|(known, _)| known == name));
    names
}
