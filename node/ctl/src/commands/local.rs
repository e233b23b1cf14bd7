//! `rondo train` and `rondo predict`: work of the trainer on this machine, without any peer.

use crate::args::Passed;
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::programs::{self, TRAINER, show_event, train_or_predict};
use serde_json::json;
use std::ffi::OsString;

/// Runs `verb` of the trainer. Without `--json` its own progress and result are shown as they are;
/// with it, progress goes to standard error and the result is one document.
pub(crate) async fn run(verb: &'static str, passed: Passed, output: Output) -> Result<(), Failure> {
    let (json, rest) = arguments(verb, passed.rest, output.json);
    if !json {
        let program = programs::find(TRAINER)?;
        let status = programs::hand_over(&program, &rest).await?;
        return match status.code() {
            Some(0) => Ok(()),
            Some(2) => {
                Err(Failure::new(Exit::Usage, format!("`rondo {verb} --help` lists the options")))
            }
            Some(programs::TRAINER_SET_ASIDE) => {
                let text =
                    "the rest was done, but some cases were set aside; the notes above name them";
                Err(Failure::new(Exit::SetAside, text))
            }
            code => {
                let text = format!(
                    "rondo-trainer {}; its own message stands above",
                    programs::ended(status)
                );
                let started = code != Some(programs::NOT_STARTED);
                let exit = if started { Exit::Trainer } else { Exit::Program };
                Err(Failure::new(exit, text))
            }
        };
    }
    let outcome = train_or_predict(&rest, show_event).await?;
    let body = json!({"result": outcome.result, "notices": outcome.notices});
    Output { json: true }.give(&format!("rondo.{verb}/1"), body, String::new)?;
    if outcome.set_aside {
        let text = format!("some cases were set aside:\n  {}", outcome.notices.join("\n  "));
        return Err(Failure::after_result(Exit::SetAside, text));
    }
    Ok(())
}

/// Whether JSON is wanted, and what the trainer is given; it gets `--json` from the one who reads it.
fn arguments(verb: &str, rest: Vec<OsString>, json: bool) -> (bool, Vec<OsString>) {
    let asked = json || rest.iter().any(|arg| arg == "--json");
    let help = rest.iter().any(|arg| arg == "--help" || arg == "-h");
    let kept = rest.into_iter().filter(|arg| arg != "--json");
    (asked && !help, [verb.into()].into_iter().chain(kept).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_found_among_the_trainers_options() {
        let rest = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            arguments("train", rest("--json --out x"), false),
            (true, rest("train --out x"))
        );
        assert_eq!(arguments("train", rest("--out x"), true), (true, rest("train --out x")));
        assert_eq!(arguments("predict", rest("--help"), true), (false, rest("predict --help")));
    }
}
