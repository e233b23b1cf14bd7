//! `rondo-trainer`: reads a site's images and trains; it denies itself the network first of all.

use std::process::ExitCode;

fn main() -> ExitCode {
    rondo_trainer::main()
}
