//! `rondo train` and `rondo predict`: work of the trainer on this machine, without any peer.

use crate::args::Passed;
use crate::exit::{Exit, Failure};
use crate::models::{is_one_file, unpack};
use crate::output::Output;
use crate::programs::{self, TRAINER, show_event, train_or_predict};
use serde_json::json;
use std::ffi::OsString;
use std::path::Path;
use tempfile::NamedTempFile;

/// Runs `verb` of the trainer. Without `--json` its own progress and result are shown as they are;
/// with it, progress goes to standard error and the result is one document.
pub(crate) async fn run(verb: &'static str, passed: Passed, output: Output) -> Result<(), Failure> {
    let (json, mut rest) = arguments(verb, passed.rest, output.json);
    // The file goes when this function ends, after the trainer.
    let _weights = unpacked_model(&mut rest)?;
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

/// Gives the trainer, which knows weights only, those of a `--model` that is one file.
fn unpacked_model(rest: &mut [OsString]) -> Result<Option<NamedTempFile>, Failure> {
    let value = rest.iter().position(|arg| arg == "--model").map(|at| at + 1);
    let Some(model) = value.and_then(|at| rest.get_mut(at)) else { return Ok(None) };
    if !is_one_file(Path::new(model)) {
        return Ok(None);
    }
    let weights = unpack(Path::new(model))?;
    *model = weights.path().into();
    Ok(Some(weights))
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

    #[test]
    fn only_a_model_that_is_one_file_is_unpacked() {
        for line in ["predict --model m.safetensors", "predict --model", "train --out m.rondo"] {
            let mut rest: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let before = rest.clone();
            assert!(matches!(unpacked_model(&mut rest), Ok(None)), "{line}");
            assert_eq!(rest, before);
        }
        let mut rest = ["predict", "--model", "nowhere.rondo"].map(OsString::from);
        assert_eq!(unpacked_model(&mut rest).map(|_| ()).map_err(|e| e.exit), Err(Exit::BadInput));
    }
}
