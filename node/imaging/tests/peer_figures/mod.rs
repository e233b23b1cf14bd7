//! Figures that public Python tools compute while a test runs.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// A folder with what `make.py` wrote. `None`, and a line that says so, where the Python of
/// `RONDO_TEST_PYTHON`, or else `python3`, does not have the modules.
pub(crate) fn made(what: &str, modules: &[&str], seed: u32) -> Option<tempfile::TempDir> {
    let python = std::env::var_os("RONDO_TEST_PYTHON").unwrap_or_else(|| OsString::from("python3"));
    let asked = Command::new(&python)
        .args(["-c", &format!("import {}", modules.join(", "))])
        .stderr(Stdio::null())
        .status();
    if !asked.is_ok_and(|status| status.success()) {
        let python = python.display();
        eprintln!(
            "SKIPPED: {python} does not have {}; RONDO_TEST_PYTHON names one that has",
            modules.join(", ")
        );
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer_figures/make.py");
    let status = Command::new(&python)
        .arg("-B")
        .arg(script)
        .arg(what)
        .arg(folder.path())
        .arg(seed.to_string())
        .status()
        .unwrap();
    assert!(status.success(), "making {what} with seed {seed}");
    Some(folder)
}
