//! Rounds and their visits.

use super::{bytes, figure, short, span, table};
use rondo_proto::control::{
    FigureView, ProgressView, RetentionView, RoundPhase, RoundView, VisitPhase, VisitView,
};
use serde_json::{Value, json};

pub(crate) fn round_phase(phase: RoundPhase) -> &'static str {
    match phase {
        RoundPhase::Unspecified => "unknown",
        RoundPhase::Proposed => "proposed",
        RoundPhase::Approved => "approved",
        RoundPhase::Running => "running",
        RoundPhase::Finished => "finished",
        RoundPhase::Aborted => "aborted",
    }
}

pub(crate) fn visit_phase(phase: VisitPhase) -> &'static str {
    match phase {
        VisitPhase::Unspecified => "unknown",
        VisitPhase::Registered => "registered",
        VisitPhase::Approved => "approved",
        VisitPhase::Training => "training",
        VisitPhase::Contributed => "contributed",
        VisitPhase::HandedOver => "handed over",
        VisitPhase::PassedOver => "passed over",
    }
}

pub(crate) fn round_json(round: &RoundView) -> Value {
    json!({
        "round": round.round,
        "name": round.name,
        "topology": round.topology,
        "cycles": round.cycles,
        "phase": round_phase(round.phase()),
        "sites": round.sites,
        "approved_by": round.approved_by,
        "visits": round.visits.iter().map(visit_json).collect::<Vec<_>>(),
        "plan": serde_json::from_str::<Value>(&round.plan_json).unwrap_or_default(),
        "progress": round.progress.as_ref().map(progress_json),
        "paused_by": round.paused_by,
        "aborted_by": round.aborted_by,
        "final": (!round.final_weights.is_empty()).then_some(&round.final_weights),
        "best": (!round.best_weights.is_empty()).then_some(&round.best_weights),
        "retention": round.retention.iter().map(retention_json).collect::<Vec<_>>(),
    })
}

fn retention_json(r: &RetentionView) -> Value {
    let figure = |f: &FigureView| json!({"visit": f.visit, "dice": f.dice});
    json!({
        "site": r.site,
        "figures": r.figures.iter().map(figure).collect::<Vec<_>>(),
        "forgetting": r.forgetting,
        "backward_transfer": r.backward_transfer,
    })
}

/// Whose model, validated where: a row for each visit, a column for each site.
fn retention_table(round: &RoundView) -> String {
    let head: Vec<&str> =
        ["model of", ""].into_iter().chain(round.sites.iter().map(String::as_str)).collect();
    let cell = |r: &RetentionView, visit: u32| {
        figure(r.figures.iter().find(|f| f.visit == visit).map(|f| f.dice), 3)
    };
    let of = |site: &String| round.retention.iter().find(|r| r.site == *site);
    let row = |label: [String; 2], value: &dyn Fn(&RetentionView) -> String| -> Vec<String> {
        let cells = round.sites.iter().map(|site| of(site).map(value).unwrap_or_default());
        label.into_iter().chain(cells).collect()
    };
    let made = round
        .visits
        .iter()
        .filter(|v| round.retention.iter().any(|r| r.figures.iter().any(|f| f.visit == v.visit)));
    let visits =
        made.map(|v| row([format!("visit {}", v.visit), v.site.clone()], &|r| cell(r, v.visit)));
    let mut rows: Vec<Vec<String>> = visits.collect();
    rows.push(row(["forgetting".to_owned(), String::new()], &|r| figure(r.forgetting, 3)));
    let transfer = ["backward transfer".to_owned(), String::new()];
    rows.push(row(transfer, &|r| figure(r.backward_transfer, 3)));
    let numbers: Vec<usize> = (2..head.len()).collect();
    table(&head, &numbers, rows)
}

pub(crate) fn visit_json(v: &VisitView) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "visit": v.visit,
        "cycle": v.cycle,
        "site": v.site,
        "phase": visit_phase(v.phase()).replace(' ', "-"),
        "weights": some(&v.weights),
        "parent": some(&v.parent),
        "received_dice": v.received_dice,
        "trained_dice": v.trained_dice,
        "training_cases": v.training_cases,
        "epochs": v.epochs,
        "updates": v.updates,
        "stalled": some(&v.stalled),
        "passed": some(&v.passed),
        "passed_by": v.passed_by,
        "held_by": v.held_by,
        "filters": v.filters,
        "refused_by": v.refused_by.iter().map(|r| json!({"site": r.site, "reason": r.reason})).collect::<Vec<_>>(),
        "signed_at": (v.signed_at > 0).then_some(v.signed_at),
    })
}

fn progress_json(p: &ProgressView) -> Value {
    json!({
        "visit": p.visit,
        "epoch": p.epoch,
        "epochs": p.epochs,
        "update": p.update,
        "updates": p.updates,
        "cross_entropy": p.cross_entropy,
        "vss": p.vss,
        "kdl": p.kdl,
        "penalty": p.penalty,
        "learning_rate": p.learning_rate,
        "segments_per_second": p.segments_per_second,
        "validation_dice": p.validation_dice,
        "eta_seconds": p.eta_seconds,
        "memory_mib": p.memory_mib,
    })
}

/// The round in full: head, approvals, visits.
pub(crate) fn round_text(round: &RoundView) -> String {
    let approvals: Vec<String> = (round.sites.iter())
        .map(|site| {
            let approved = round.approved_by.contains(site);
            format!("{site} {}", if approved { "yes" } else { "not yet" })
        })
        .collect();
    let mut text = format!(
        "{} ({})\nround      {}\ntopology   {}, {} cycle(s)\napproved   {}\n{}",
        round.name,
        round_phase(round.phase()),
        round.round,
        round.topology,
        round.cycles,
        approvals.join(", "),
        visits_table(&round.visits),
    );
    if round.retention.iter().any(|r| !r.figures.is_empty()) {
        text.push_str(&format!(
            "\nvalidation Dice of each model at each site\n{}",
            retention_table(round)
        ));
    }
    for (what, weights) in
        [("final model", &round.final_weights), ("best model", &round.best_weights)]
    {
        if !weights.is_empty() {
            text.push_str(&format!("\n{what:<11} {weights}"));
        }
    }
    for (what, sites) in [("paused", &round.paused_by), ("aborted", &round.aborted_by)] {
        if !sites.is_empty() {
            text.push_str(&format!("\n{what} by {}", sites.join(", ")));
        }
    }
    for v in &round.visits {
        if !v.filters.is_empty() {
            text.push_str(&format!("\nvisit {}, filters: {}", v.visit, v.filters.join(", ")));
        }
        if let Some(advice) = advice(&v.stalled) {
            text.push_str(&format!("\nvisit {} at {}: {advice}", v.visit, v.site));
        }
    }
    if let Some(progress) = &round.progress {
        text.push_str(&format!("\nvisit {} here: {}", progress.visit, progress_text(progress)));
    }
    text
}

/// What helps a visit that waits for somebody.
fn advice(stalled: &str) -> Option<&'static str> {
    Some(match stalled {
        "held" => "its operator lets the result go with `rondo round release ROUND VISIT`",
        "policy" => "the site's own policy.toml does not let it out; its daemon's log says why",
        "privacy-budget" => {
            "another release would cost more than `epsilon_max` in the site's policy.toml; its operator raises it and restarts the daemon, or the round ends here"
        }
        _ => return None,
    })
}

fn visits_table(visits: &[VisitView]) -> String {
    let head = [
        "visit",
        "cycle",
        "site",
        "state",
        "checkpoint",
        "Dice before",
        "after",
        "cases",
        "epochs",
        "updates",
        "held by",
    ];
    let row = |v: &VisitView| {
        let state = if v.phase() == VisitPhase::PassedOver {
            format!("passed over: {} ({})", v.passed, v.passed_by.join(" "))
        } else if v.stalled.is_empty() {
            visit_phase(v.phase()).to_owned()
        } else {
            format!("{}, stalled: {}", visit_phase(v.phase()), v.stalled)
        };
        let state = v.refused_by.iter().fold(state, |state, refusal| {
            format!("{state}, refused by {}: {}", refusal.site, refusal.reason)
        });
        vec![
            v.visit.to_string(),
            v.cycle.to_string(),
            v.site.clone(),
            state,
            short(&v.weights).to_owned(),
            figure(v.received_dice, 3),
            figure(v.trained_dice, 3),
            v.training_cases.to_string(),
            v.epochs.to_string(),
            v.updates.to_string(),
            v.held_by.join(" "),
        ]
    };
    table(&head, &[0, 1, 5, 6, 7, 8, 9], visits.iter().map(row).collect())
}

/// One line about a training under way.
pub(crate) fn progress_text(p: &ProgressView) -> String {
    let penalty =
        if p.penalty > 0.0 { format!(" penalty {:.4}", p.penalty) } else { String::new() };
    let validation =
        p.validation_dice.map_or_else(String::new, |d| format!(" · validation Dice {d:.3}"));
    let memory = p
        .memory_mib
        .map_or_else(String::new, |mib| format!(" · {} in use", bytes(u64::from(mib) << 20)));
    format!(
        "epoch {}/{} · update {}/{} · CE {:.4} VSS {:.4} KDL {:.3}{penalty} · lr {:.1e}{validation} · {:.0} segments/s{memory} · ETA {}",
        p.epoch,
        p.epochs,
        p.update,
        p.updates,
        p.cross_entropy,
        p.vss,
        p.kdl,
        p.learning_rate,
        p.segments_per_second,
        span(p.eta_seconds),
    )
}

pub(crate) fn rounds_text(rounds: &[RoundView]) -> String {
    if rounds.is_empty() {
        return "No rounds. Propose one with `rondo round propose PLAN.toml`.".to_owned();
    }
    let head = ["round", "name", "state", "topology", "sites", "approved", "contributed"];
    let row = |r: &RoundView| {
        let contributed = r.visits.iter().filter(|v| !v.weights.is_empty()).count();
        vec![
            short(&r.round).to_owned(),
            r.name.clone(),
            round_phase(r.phase()).to_owned(),
            format!("{} × {}", r.topology, r.cycles),
            r.sites.join(" → "),
            format!("{}/{}", r.approved_by.len(), r.sites.len()),
            format!("{contributed}/{}", r.visits.len()),
        ]
    };
    table(&head, &[], rounds.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rondo_proto::control::GateRefusalView;

    #[test]
    fn states_are_kept_apart_and_stalls_are_shown() {
        let visit = VisitView {
            visit: 2,
            site: "usz".into(),
            phase: VisitPhase::Training.into(),
            stalled: "trainer-absent".into(),
            ..Default::default()
        };
        let round = RoundView {
            phase: RoundPhase::Running.into(),
            sites: vec!["uker".into(), "usz".into()],
            approved_by: vec!["uker".into()],
            visits: vec![visit],
            ..Default::default()
        };
        let text = round_text(&round);
        for part in ["running", "uker yes, usz not yet", "training, stalled: trainer-absent"] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let json = round_json(&round);
        assert!(!text.contains("rondo round release"), "{text}");
        assert_eq!(json["visits"][0]["phase"], "training");
        assert_eq!(json["visits"][0]["weights"], Value::Null);
        assert_eq!(json["phase"], "running");
    }

    #[test]
    fn what_is_held_refused_or_filtered_is_said() {
        let refusal = GateRefusalView { site: "usz".into(), reason: "norm".into() };
        let refused = VisitView {
            visit: 1,
            phase: VisitPhase::HandedOver.into(),
            refused_by: vec![refusal],
            filters: vec!["clip l2 1".into()],
            ..Default::default()
        };
        let held = VisitView { visit: 2, stalled: "held".into(), ..Default::default() };
        let broke = VisitView { visit: 3, stalled: "privacy-budget".into(), ..Default::default() };
        let round = RoundView { visits: vec![refused, held, broke], ..Default::default() };
        let text = round_text(&round);
        for part in [
            "handed over, refused by usz: norm",
            "visit 1, filters: clip l2 1",
            "rondo round release ROUND VISIT",
            "its operator raises it",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let json = &round_json(&round)["visits"][0];
        assert_eq!(json["refused_by"][0], json!({"site": "usz", "reason": "norm"}));
        assert_eq!(json["filters"][0], "clip l2 1");
    }

    #[test]
    fn every_live_figure_is_shown() {
        let progress = ProgressView {
            visit: 3,
            epoch: 2,
            epochs: 8,
            update: 40,
            updates: 160,
            cross_entropy: 0.125,
            vss: 0.5,
            kdl: 2.0,
            penalty: 0.0625,
            learning_rate: 1e-3,
            segments_per_second: 420.0,
            validation_dice: Some(0.75),
            eta_seconds: 75.0,
            memory_mib: Some(1536),
        };
        let text = progress_text(&progress);
        assert_eq!(
            text,
            "epoch 2/8 · update 40/160 · CE 0.1250 VSS 0.5000 KDL 2.000 penalty 0.0625 · lr 1.0e-3 \
             · validation Dice 0.750 · 420 segments/s · 1.5 GiB in use · ETA 1 min 15 s"
        );
        let text = progress_text(&ProgressView::default());
        assert!(!text.contains("penalty") && !text.contains("in use"), "{text}");
        let round = RoundView { progress: Some(progress), ..Default::default() };
        let json = &round_json(&round)["progress"];
        for (key, value) in [("penalty", 0.0625), ("memory_mib", 1536.0), ("eta_seconds", 75.0)] {
            assert_eq!(json[key].as_f64(), Some(value), "{key}");
        }
        assert!(round_text(&round).contains("visit 3 here: epoch 2/8"));
    }
}
