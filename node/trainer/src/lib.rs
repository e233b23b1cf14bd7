//! The process of a site that reads images and trains. It has no network: before anything else, it
//! denies itself every socket that is not local (see [`sandbox`]).

pub mod args;
mod bench;
pub mod cases;
mod config;
mod fault;
mod import;
mod kept;
mod metrics;
mod output;
mod parity;
mod predict;
pub mod recipe;
pub mod sandbox;
mod self_test;
mod serve;
mod tensorboard;
mod train;
mod unfinished;

use args::{Args, Command};
use clap::Parser;
use std::process::ExitCode;

/// Exit code when everything asked for was done.
pub const DONE: u8 = 0;
/// Exit code when the work failed; the error says why.
pub const FAILED: u8 = 1;
/// Exit code when the work was done, but some cases were set aside.
pub const SET_ASIDE: u8 = 3;
/// Exit code when the network could not be denied: nothing was read or done.
pub const NO_SANDBOX: u8 = 4;

/// Entry of the program, for its own binary and for test binaries that stand in for it.
#[must_use]
pub fn main() -> ExitCode {
    // Before the first thread, so that every later one inherits it.
    if let Err(error) = sandbox::deny_network() {
        output::error(&error.to_string());
        return ExitCode::from(NO_SANDBOX);
    }
    // Masks and weights come from patients' images: what is written is for this user alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let args = Args::parse();
    let done = fault::caught(|| match args.command {
        Command::Train(args) => train::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Import(args) => import::run(&args),
        Command::ShowRecipe(args) => recipe::show(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Parity(args) => parity::run(&args),
        Command::SelfTest(args) => self_test::run(&args),
    });
    match done.and_then(|done| done) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::error(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}
