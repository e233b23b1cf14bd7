//! `rondo-trainer`: starts the program that links libtorch, once it is sure that it can start.
//!
//! The system's loader ends a program whose libraries are missing before its first instruction, with
//! a sentence that helps nobody. So this one links nothing, asks the loader what it would say, and
//! says what to do about it. It also makes the settings that must stand before a program starts.

mod surroundings;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The program that does the work: beside this one, or where a package installs it.
const PROGRAM: &str = "rondo-trainer-libtorch";
const FOLDERS: [&str; 2] = [".", "../lib/rondo"];
/// Exit code when it cannot be started, as of a shell that cannot start a program.
const NOT_STARTED: u8 = 127;

fn main() -> ExitCode {
    let error = match program() {
        Err(error) => error,
        Ok(program) => match problem(&program) {
            Some(problem) => format!(
                "libtorch cannot be used: {problem}. This program needs libtorch {}, where it was built or in `../lib/rondo` beside it: run `make libtorch` in the checkout, install the package again, or name the folder in LD_LIBRARY_PATH",
                option_env!("RONDO_LIBTORCH_VERSION").unwrap_or("as at its build"),
            ),
            None => start(&program),
        },
    };
    eprintln!("error: {error}");
    ExitCode::from(NOT_STARTED)
}

fn program() -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|e| format!("finding out where this program is: {e}"))?;
    let mut places = FOLDERS.iter().map(|folder| own.with_file_name(folder).join(PROGRAM));
    places.find(|place| place.is_file()).ok_or_else(|| {
        format!(
            "{PROGRAM} is not beside {}: run `make build` in the checkout, or install the package again",
            own.display()
        )
    })
}

/// What the loader could not find or bind of the program's libraries; none if it cannot be asked.
fn problem(program: &Path) -> Option<String> {
    // What `ldd -r` sets; the program itself does not run.
    let asked = [("LD_TRACE_LOADED_OBJECTS", "1"), ("LD_WARN", "yes"), ("LD_BIND_NOW", "yes")];
    let said = Command::new(program).envs(asked).output().ok()?;
    let lines = [said.stdout, said.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let mut lines = lines.iter().flat_map(|text| text.lines()).map(str::trim);
    // What libraries miss of each other they may look up when they need it, or never.
    let own = format!("({})", program.display());
    let bad = |line: &&str| {
        ["=> not found", "error while loading"].iter().any(|words| line.contains(words))
            || line.starts_with("undefined symbol:") && line.contains(&own)
    };
    lines.find(bad).map(str::to_owned)
}

/// Runs the program in place of this one; returns only why that failed.
fn start(program: &Path) -> String {
    let mut command = Command::new(program);
    command.args(env::args_os().skip(1)).arg0("rondo-trainer");
    surroundings::settle(&mut command);
    format!("starting {}: {}", program.display(), command.exec())
}
