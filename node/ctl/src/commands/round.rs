//! `rondo round`.

use crate::args::{Global, Round};
use crate::commands::{confirm, now};
use crate::daemon::read_file;
use crate::exit::{Exit, Failure};
use crate::models::PART_BYTES;
use crate::output::{Output, document, line, on_terminal};
use crate::render::follow::Follower;
use crate::render::round::{progress_text, round_json, round_text, rounds_text};
use indicatif::{ProgressBar, ProgressStyle};
use rondo::papers::RECEIPTS_MAX_BYTES;
use rondo::plan::Plan;
use rondo::settings::SETTINGS_MAX_BYTES;
use rondo_proto::control::model_part::Part;
use rondo_proto::control::{
    ListRoundsRequest, ModelPart, ProposeRoundRequest, RecoverRequest, ReleaseContributionRequest,
    RoundPhase, RoundRequest, RoundView,
};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;

/// Longest silence about a training under way, where there is no terminal.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Schema of a round.
const SCHEMA: &str = "rondo.round/1";

pub(crate) async fn run(command: Round, global: &Global, output: Output) -> Result<(), Failure> {
    let request = |name: &str| RoundRequest { round: name.to_owned() };
    let view = match command {
        Round::Propose { plan } => propose(&plan, global).await?,
        Round::Approve(name) => {
            let attempted = format!("approving round {}", name.round);
            let done = global.daemon().await?.approve_round(request(&name.round)).await;
            done.map_err(|status| Failure::refused(&attempted, &status))?.into_inner()
        }
        Round::Start(name) => {
            let attempted = format!("starting round {}", name.round);
            let done = global.daemon().await?.start_round(request(&name.round)).await;
            done.map_err(|status| Failure::refused(&attempted, &status))?.into_inner()
        }
        Round::Pause(name) => {
            let attempted = format!("pausing round {}", name.round);
            let done = global.daemon().await?.pause_round(request(&name.round)).await;
            done.map_err(|status| Failure::refused(&attempted, &status))?.into_inner()
        }
        Round::Resume(name) => {
            let attempted = format!("resuming round {}", name.round);
            let done = global.daemon().await?.resume_round(request(&name.round)).await;
            done.map_err(|status| Failure::refused(&attempted, &status))?.into_inner()
        }
        Round::Abort { round, yes } => {
            let attempted = format!("aborting round {round}");
            if !yes {
                let prompt =
                    format!("End round {round} at all sites for good, and stop what trains?");
                confirm(&attempted, &prompt)?;
            }
            let done = global.daemon().await?.abort_round(request(&round)).await;
            done.map_err(|status| Failure::refused(&attempted, &status))?.into_inner()
        }
        Round::Recover { round, without, yes } => {
            let attempted = format!("recovering round {round}");
            if !yes {
                let whom = without.as_ref().map_or_else(
                    || "the visit that it waits for".to_owned(),
                    |site| format!("all further visits of {site}"),
                );
                let prompt = format!("Pass over {whom}, and go on from this site's checkpoint?");
                confirm(&attempted, &prompt)?;
            }
            let without = without.map(|site| site.to_string()).unwrap_or_default();
            let request = RecoverRequest { round, without };
            let done = global.daemon().await?.recover_round(request).await;
            done.map_err(|status| Failure::refused(&attempted, &status))?.into_inner()
        }
        Round::Show(name) => {
            let attempted = format!("showing round {}", name.round);
            let done = global.daemon().await?.get_round(request(&name.round)).await;
            done.map_err(|status| Failure::refused(&attempted, &status))?.into_inner()
        }
        Round::Release { round, visit } => {
            let attempted = format!("releasing the result of visit {visit} of round {round}");
            let request = ReleaseContributionRequest { round, visit };
            let done = global.daemon().await?.release_contribution(request).await;
            done.map_err(|status| Failure::refused(&attempted, &status))?.into_inner()
        }
        Round::Watch(name) => return watch(&name.round, global, output).await,
        Round::List => return list(global, output).await,
        Round::Export { round, out } => return export(&round, &out, global, output).await,
        Round::Import { file } => import(&file, global).await?,
    };
    output.give(SCHEMA, round_json(&view), || round_text(&view))
}

async fn export(round: &str, out: &Path, global: &Global, output: Output) -> Result<(), Failure> {
    let attempted = format!("exporting the receipts of round {round}");
    let refused = |status| Failure::refused(&attempted, &status);
    let request = RoundRequest { round: round.to_owned() };
    let mut daemon = global.daemon().await?;
    let mut parts = daemon.export_round(request).await.map_err(refused)?.into_inner();
    let mut receipts = Vec::new();
    while let Some(part) = parts.next().await {
        match part.map_err(refused)?.part {
            Some(Part::Receipts(bytes)) if receipts.len() + bytes.len() <= RECEIPTS_MAX_BYTES => {
                receipts.extend_from_slice(&bytes);
            }
            _ => {
                return Err(Failure::new(
                    Exit::Internal,
                    format!("{attempted}: not receipts came"),
                ));
            }
        }
    }
    rondo_imaging::durable::write(out, &receipts)
        .map_err(|e| Failure::storage(format!("writing {}", out.display()), &e))?;
    let body = json!({"file": out, "bytes": receipts.len()});
    output.give("rondo.round-export/1", body, || {
        format!(
            "Receipts written to {}; the other sites take them with `rondo round import`",
            out.display()
        )
    })
}

async fn import(file: &Path, global: &Global) -> Result<RoundView, Failure> {
    let receipts = read_file("the receipts", file, RECEIPTS_MAX_BYTES)?;
    let attempted = format!("importing the receipts {}", file.display());
    let refused = |status| Failure::refused(&attempted, &status);
    let part = |c: &[u8]| ModelPart { part: Some(Part::Receipts(c.to_vec())) };
    let parts: Vec<ModelPart> = receipts.chunks(PART_BYTES).map(part).collect();
    let mut daemon = global.daemon().await?;
    let done = daemon.import_model(tokio_stream::iter(parts)).await.map_err(refused)?;
    let request = RoundRequest { round: done.into_inner().round };
    Ok(daemon.get_round(request).await.map_err(refused)?.into_inner())
}

/// Reads a plan file and checks all of it.
pub(crate) fn plan_file(path: &Path) -> Result<(String, Plan), Failure> {
    let bytes = read_file("the plan", path, SETTINGS_MAX_BYTES)?;
    let bad = |e: &dyn std::fmt::Display| {
        Failure::new(Exit::BadInput, format!("reading the plan {}: {e}", path.display()))
    };
    let text = String::from_utf8(bytes).map_err(|_| bad(&"it is not UTF-8 text"))?;
    let plan = Plan::from_toml(&text, now()).map_err(|e| bad(&e))?;
    Ok((text, plan))
}

async fn propose(path: &Path, global: &Global) -> Result<RoundView, Failure> {
    let (plan_toml, _) = plan_file(path)?;
    let attempted = format!("proposing {}", path.display());
    let proposed = global.daemon().await?.propose_round(ProposeRoundRequest { plan_toml }).await;
    Ok(proposed.map_err(|status| Failure::refused(&attempted, &status))?.into_inner())
}

async fn list(global: &Global, output: Output) -> Result<(), Failure> {
    let rounds = global
        .daemon()
        .await?
        .list_rounds(ListRoundsRequest {})
        .await
        .map_err(|status| Failure::refused("listing rounds", &status))?
        .into_inner()
        .rounds;
    let body = json!({"rounds": rounds.iter().map(round_json).collect::<Vec<_>>()});
    output.give("rondo.rounds/1", body, || rounds_text(&rounds))
}

/// Follows a round to its end. With `--json` every change gives a document with all figures, a line
/// each, on standard output; the last one is the round that is over.
async fn watch(name: &str, global: &Global, output: Output) -> Result<(), Failure> {
    let attempted = format!("watching round {name}");
    let refused = |status| Failure::refused(&attempted, &status);
    let request = RoundRequest { round: name.to_owned() };
    let mut views =
        global.daemon().await?.watch_round(request).await.map_err(refused)?.into_inner();
    let live = on_terminal().then(|| {
        let style =
            ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new_spinner().with_style(style)
    });
    let mut follower = Follower::default();
    let mut said = Instant::now();
    let mut given = None;
    while let Some(view) = views.next().await {
        let view = view.map_err(refused)?;
        let mut news = follower.observe(&view);
        if news.is_empty() && live.is_none() && said.elapsed() >= SILENCE_MAX {
            news.extend(follower.running().map(progress_text));
        }
        if !news.is_empty() {
            said = Instant::now();
        }
        for text in news {
            match &live {
                Some(live) => live.println(text),
                None if output.json => crate::output::note(&text),
                None => line(&text),
            }
        }
        if let Some(live) = &live {
            live.set_message(round_text(&view));
        }
        if follower.is_over() {
            if let Some(live) = &live {
                live.finish_and_clear();
            }
            output.give(SCHEMA, round_json(&view), || round_text(&view))?;
            return if view.phase() == RoundPhase::Aborted {
                let by = view.aborted_by.join(", ");
                let text = format!("{attempted}: {by} aborted it. Propose another plan to go on");
                Err(Failure::after_result(Exit::RoundUnfinished, text))
            } else {
                Ok(())
            };
        }
        if output.json && given.as_ref() != Some(&view) {
            line(&document(SCHEMA, round_json(&view))?);
            given = Some(view);
        }
    }
    let text = format!(
        "{attempted}: the daemon stopped before the round was finished. Start it again; the round goes on where it was"
    );
    Err(Failure::new(Exit::RoundUnfinished, text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_plan_is_refused_here_with_every_problem() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "name = \"x\"\ncycles = 0\nwat = 1\n").unwrap();
        let failure = plan_file(file.path()).unwrap_err();
        assert_eq!(failure.exit, Exit::BadInput);
        for part in ["line 2", "line 3: unknown key `wat`", "`sites` is missing"] {
            assert!(failure.text.contains(part), "{part} is not in:\n{failure}");
        }
        std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
        assert!(plan_file(file.path()).unwrap_err().text.contains("UTF-8"));
    }
}
