//! A trainer whose libtorch is missing, of another version, or itself missing says so.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::path::Path;
use std::process::Command;

const LAUNCHER: &str = env!("CARGO_BIN_EXE_rondo-trainer");
const PROGRAM: &str = env!("CARGO_BIN_EXE_rondo-trainer-libtorch");

/// What `rondo-trainer` in `folder` says when it cannot start.
fn refusal(folder: &Path) -> String {
    let mut launcher = Command::new(folder.join("rondo-trainer"));
    let done = launcher.arg("--version").env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert_eq!(done.status.code(), Some(127));
    assert!(done.stdout.is_empty());
    String::from_utf8(done.stderr).unwrap()
}

/// The program without the folder where it found libtorch at its build.
fn without_libtorch(program: &mut [u8]) {
    let own = b"$ORIGIN/../lib/rondo:$ORIGIN:";
    let at = program.windows(own.len()).position(|part| part == own).unwrap() + own.len();
    let end = at + program[at..].iter().position(|byte| *byte == 0).unwrap();
    program[at..end].fill(b'x');
}

#[test]
fn an_installed_program_finds_its_libraries_beside_it() {
    let home = tempfile::tempdir().unwrap();
    let [bin, lib] = ["bin", "lib/rondo"].map(|folder| home.path().join(folder));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&lib).unwrap();
    fs::copy(LAUNCHER, bin.join("rondo-trainer")).unwrap();
    let mut program = fs::read(PROGRAM).unwrap();
    without_libtorch(&mut program);
    fs::copy(PROGRAM, lib.join("rondo-trainer-libtorch")).unwrap();
    fs::write(lib.join("rondo-trainer-libtorch"), &program).unwrap();
    let installed = Path::new(env!("LIBTORCH")).join("lib").canonicalize().unwrap();
    for file in fs::read_dir(installed).unwrap().map(|entry| entry.unwrap().path()) {
        std::os::unix::fs::symlink(&file, lib.join(file.file_name().unwrap())).unwrap();
    }
    let mut launcher = Command::new(bin.join("rondo-trainer"));
    let done = launcher.arg("--version").env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stdout.starts_with(b"rondo-trainer "));
}

#[test]
fn what_cannot_start_is_named_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let [bin, lib] = ["bin", "lib/rondo"].map(|folder| home.path().join(folder));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&lib).unwrap();
    fs::copy(LAUNCHER, bin.join("rondo-trainer")).unwrap();
    let said = refusal(&bin);
    assert!(said.contains("rondo-trainer-libtorch is not beside"), "{said}");

    let mut program = fs::read(PROGRAM).unwrap();
    without_libtorch(&mut program);
    fs::copy(PROGRAM, bin.join("rondo-trainer-libtorch")).unwrap();
    fs::write(bin.join("rondo-trainer-libtorch"), &program).unwrap();
    let said = refusal(&bin);
    assert!(said.contains("libtorch cannot be used: lib"), "{said}");
    assert!(said.contains("=> not found") && said.contains("make libtorch"), "{said}");

    // Libraries of these names, but without what this build calls.
    let other = Path::new(env!("LIBTORCH")).join("lib/libc10.so");
    for name in ["libtorch_cpu.so", "libtorch.so", "libc10.so"] {
        fs::copy(&other, lib.join(name)).unwrap();
    }
    let said = refusal(&bin);
    assert!(said.contains("libtorch cannot be used: undefined symbol:"), "{said}");
}
