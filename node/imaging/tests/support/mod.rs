//! What tests need from outside the project, and how they say that it is not there.
#![allow(dead_code)] // every test uses a part

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Says that the present test leaves something unchecked; `make test` counts these lines. The test
/// harness swallows what passing tests print, but not what goes to the error stream itself.
pub(crate) fn skipped(why: impl Display) {
    let thread = std::thread::current();
    let test = format!("{}::{}", env!("CARGO_CRATE_NAME"), thread.name().unwrap_or("?"));
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes());
}

/// A file or folder of `shared` beside the project.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if !path.exists() {
        skipped(format!("{} is not there", path.display()));
        return None;
    }
    Some(path)
}

/// Folders of public figures about images: those of `RONDO_GOLDEN_IMAGING`, a list like `PATH`, or
/// else the shared one.
pub(crate) fn golden_imaging() -> Vec<PathBuf> {
    let named = std::env::var_os("RONDO_GOLDEN_IMAGING").unwrap_or_default();
    let named: Vec<PathBuf> =
        std::env::split_paths(&named).filter(|f| !f.as_os_str().is_empty()).collect();
    if named.is_empty() { shared("golden/imaging").into_iter().collect() } else { named }
}

/// The Python of `RONDO_TEST_PYTHON`, or else `python3`, if it has these modules.
pub(crate) fn python(modules: &str) -> Option<OsString> {
    let python = std::env::var_os("RONDO_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let asked = Command::new(&python)
        .args(["-c", &format!("import {modules}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if asked.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let python = python.display();
    skipped(format!("{python} cannot import {modules}; RONDO_TEST_PYTHON names one that can"));
    None
}
