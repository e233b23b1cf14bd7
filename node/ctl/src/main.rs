//! `rondo`: what operators, physicists and clinicians use.
//!
//! `args` says what can be asked, `commands` does it (a noun a file), `render` shows it, and `lab`
//! runs many sites on one machine. `rondo help exit-codes` prints the table of exit codes.

mod args;
mod commands;
mod daemon;
mod exit;
mod lab;
mod model_file;
mod models;
mod output;
mod programs;
mod render;

use args::{Cli, Command};
use clap::{CommandFactory as _, Parser as _};
use exit::{Exit, Failure};
use output::Output;
use std::process::ExitCode;
use std::time::Duration;

/// How long work that cannot be interrupted may hold up the end of the program.
const SHUTDOWN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { json: cli.global.json };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            output.failed(&Failure::new(Exit::Internal, format!("starting: {e}")));
            return Exit::Internal.into();
        }
    };
    let done = runtime.block_on(run(cli, output));
    runtime.shutdown_timeout(SHUTDOWN);
    match done {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            output.failed(&failure);
            failure.exit.into()
        }
    }
}

async fn run(cli: Cli, output: Output) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::Site(command) => commands::site::run(command, &global, output).await,
        Command::Peer(command) => commands::peer::run(command, &global, output).await,
        Command::Round(command) => commands::round::run(command, &global, output).await,
        Command::Model(command) => commands::model::run(command, &global, output).await,
        Command::Audit(command) => commands::audit::run(command, &global, output).await,
        Command::Cohort(command) => commands::cohort::run(command, output),
        Command::Image(command) => commands::image::run(command, output),
        Command::Train(passed) => commands::local::run("train", passed, output).await,
        Command::Predict(passed) => commands::local::run("predict", passed, output).await,
        Command::Evaluate(args) => commands::evaluate::run(args, output),
        Command::Compare(args) => commands::compare::run(&args, output),
        Command::Lab(command) => lab::run(command, output).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rondo", &mut script);
            output::line(&String::from_utf8_lossy(&script));
            Ok(())
        }
        Command::ExitCodes => {
            let codes: Vec<_> = Exit::ALL
                .iter()
                .map(|e| serde_json::json!({"code": *e as u8, "name": e.name()}))
                .collect();
            output.give("rondo.exit-codes/1", serde_json::json!({"codes": codes}), Exit::table)
        }
    }
}
