//! Figures that public Python tools compute while a test runs.

use std::path::Path;
use std::process::Command;

/// A folder with what `make.py` wrote. `None`, and a line that says so, where the Python of
/// `RONDO_TEST_PYTHON`, or else `python3`, does not have the modules.
pub(crate) fn made(what: &str, modules: &str, seed: u32) -> Option<tempfile::TempDir> {
    let python = crate::support::python(modules)?;
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
