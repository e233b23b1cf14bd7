//! The programs under test, and the processes that run.

use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};

/// The daemon under test.
#[must_use]
pub fn node() -> PathBuf {
    beside("node-under-test").expect("cargo builds it for every test of this package")
}

/// The trainer under test.
#[must_use]
pub fn trainer() -> PathBuf {
    beside("trainer-under-test").expect("cargo builds it for every test of this package")
}

/// A program of another package, in the same target folder.
///
/// # Panics
/// With advice if it was not built.
#[must_use]
pub fn packaged(name: &str) -> PathBuf {
    beside(name).unwrap_or_else(|| {
        panic!(
            "the program {name} is not built yet: run `make test`, which builds the programs first"
        )
    })
}

/// A program in the target folder that this test was built into, if it is there.
#[must_use]
pub fn beside(name: &str) -> Option<PathBuf> {
    // target/debug/deps/scenario-0123456789abcdef
    let test = std::env::current_exe().expect("the running test has a path");
    let program = test.parent()?.parent()?.join(name);
    program.is_file().then_some(program)
}

/// A running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its id.
    pub pid: u32,
    /// Its command line, with blanks between the arguments.
    pub command: String,
}

/// Every process whose command line names `path` or something below it.
#[must_use]
pub fn running_with(path: &Path) -> Vec<Running> {
    let path = path.to_string_lossy();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // A process may end while it is looked at; one that ended but was not waited for has no command.
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if pid != std::process::id() && command.contains(&*path) {
            found.push(Running { pid, command });
        }
    }
    found
}

/// Sends `signal` to a process, if it is still there.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// `kill -9` of every process whose command line names `path` or something below it.
pub fn kill_all_with(path: &Path) {
    for process in running_with(path) {
        signal(process.pid, Signal::KILL);
    }
}
