//! Reads a site's images and trains; `rondo-trainer` starts it.

use std::process::ExitCode;

fn main() -> ExitCode {
    rondo_trainer::main()
}
