//! What a lab run found out: one document, and the same as text.

use super::federation::Made;
use super::judge::{Aside, Judgement, TestSet};
use super::node::Memory;
use crate::render::figures::pooled_table;
use crate::render::model::{hop_json, hops, hops_text};
use crate::render::round::visit_json;
use crate::render::site::{trainer_json, trainer_text};
use crate::render::{bytes, figure, short, span};
use rondo_imaging::metrics::Pooled;
use rondo_proto::control::{RoundView, SiteView, VisitView};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Schema of [`Report`].
pub(crate) const SCHEMA: &str = "rondo.lab/1";

/// Everything a lab run found out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) round: String,
    pub(crate) name: String,
    pub(crate) plan: Value,
    pub(crate) sites: Vec<SiteReport>,
    pub(crate) visits: Vec<Value>,
    pub(crate) models: Vec<ModelReport>,
    pub(crate) evaluations: Vec<VisitEvaluation>,
    pub(crate) passport: PassportReport,
    #[serde(rename = "final")]
    pub(crate) last: FinalReport,
    pub(crate) set_aside: Vec<Aside>,
    pub(crate) notices: Vec<String>,
    pub(crate) seconds: Seconds,
    pub(crate) predict_peak_bytes: u64,
    pub(crate) files: Files,
}

#[derive(Debug, Serialize)]
pub(crate) struct SiteReport {
    site: String,
    fingerprint: String,
    trainer: Value,
    #[serde(skip)]
    trainer_text: String,
    log: PathBuf,
    #[serde(flatten)]
    memory: Memory,
}

impl SiteReport {
    pub(crate) fn new(site: &SiteView, log: PathBuf, memory: Memory) -> Self {
        let trainer = site.trainer.clone().unwrap_or_default();
        Self {
            site: site.site.clone(),
            fingerprint: site.fingerprint.clone(),
            trainer: trainer_json(&trainer),
            trainer_text: trainer_text(&trainer),
            log,
            memory,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct ModelReport {
    visit: u32,
    weights: String,
    bytes: u64,
    file: PathBuf,
    passport: PathBuf,
}

/// One model at one visit on every test set.
#[derive(Debug, Serialize)]
pub(crate) struct VisitEvaluation {
    visit: u32,
    cycle: u32,
    site: String,
    /// `received` or `trained`.
    model: &'static str,
    weights: String,
    sets: Vec<TestSet>,
}

#[derive(Debug, Serialize)]
pub(crate) struct PassportReport {
    verified: bool,
    hops: Vec<Value>,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct FinalReport {
    weights: String,
    pooled: Option<Pooled>,
    pooled_in_brain: Option<Pooled>,
}

/// How long the parts of the run took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Seconds {
    pub(crate) setup: f64,
    pub(crate) round: f64,
    pub(crate) evaluation: f64,
    pub(crate) total: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Files {
    pub(crate) json: PathBuf,
    pub(crate) text: PathBuf,
}

/// What the parts of a lab run came to.
pub(crate) struct Findings<'a> {
    pub(crate) round: &'a RoundView,
    pub(crate) sites: Vec<SiteReport>,
    pub(crate) made: &'a [Made],
    pub(crate) judgements: &'a BTreeMap<String, Judgement>,
    pub(crate) seconds: Seconds,
    pub(crate) files: Files,
}

impl Report {
    pub(crate) fn new(findings: Findings<'_>) -> Option<Self> {
        let Findings { round, sites, made, judgements, seconds, files } = findings;
        let last = made.last()?;
        let hops = hops(last.passport.hops());
        let all = judgements.get(&last.weights).and_then(Judgement::all);
        let mut set_aside: Vec<Aside> = Vec::new();
        for aside in judgements.values().flat_map(|j| &j.set_aside) {
            if !set_aside.iter().any(|a| a.site == aside.site && a.case == aside.case) {
                set_aside.push(aside.clone());
            }
        }
        let mut notices: Vec<String> =
            judgements.values().flat_map(|j| j.notices.clone()).collect();
        notices.sort();
        notices.dedup();
        Some(Self {
            round: round.round.clone(),
            name: round.name.clone(),
            plan: serde_json::from_str(&round.plan_json).unwrap_or_default(),
            sites,
            visits: round.visits.iter().map(visit_json).collect(),
            models: made
                .iter()
                .map(|m| ModelReport {
                    visit: m.visit,
                    weights: m.weights.clone(),
                    bytes: m.bytes,
                    file: m.file.clone(),
                    passport: m.passport_file.clone(),
                })
                .collect(),
            evaluations: round.visits.iter().flat_map(|v| evaluations(v, judgements)).collect(),
            passport: PassportReport {
                verified: true,
                hops: hops.iter().map(hop_json).collect(),
                text: hops_text(&hops),
            },
            last: FinalReport {
                weights: last.weights.clone(),
                pooled: all.map(|set| set.pooled.clone()),
                pooled_in_brain: all.and_then(|set| set.pooled_in_brain.clone()),
            },
            set_aside,
            notices,
            seconds,
            predict_peak_bytes: judgements
                .values()
                .map(|j| j.trainer_peak_bytes)
                .max()
                .unwrap_or(0),
            files,
        })
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}, round {}\n\nSites\n", self.name, self.round);
        for site in &self.sites {
            text.push_str(&format!(
                "  {:<12} {}; memory at most {} (daemon), {} (trainer)\n",
                site.site,
                site.trainer_text,
                bytes(site.memory.node_peak_bytes),
                bytes(site.memory.trainer_peak_bytes),
            ));
        }
        text.push_str("\nTest sets (lesions pooled; contour figures are means over found lesions; FPR: false positives per volume)\n");
        for (n, evaluation) in self.evaluations.iter().enumerate() {
            let VisitEvaluation { visit, cycle, site, .. } = evaluation;
            let first = n == 0 || self.evaluations.get(n - 1).is_some_and(|e| e.visit != *visit);
            if first {
                text.push_str(&format!("\nVisit {visit} (cycle {cycle}) at {site}\n"));
                text.push_str(&self.visit_table(*visit));
                text.push('\n');
            }
        }
        if let Some(last) = self.evaluations.last() {
            text.push_str("\nFinal model with predictions outside the brain removed\n");
            text.push_str(&in_brain_table(&last.sets));
            text.push('\n');
        }
        text.push_str(&format!(
            "\nPassport of the final model {}: verified, {} visits\n{}\n",
            short(&self.last.weights),
            self.passport.hops.len(),
            self.passport.text,
        ));
        for notice in &self.notices {
            text.push_str(&format!("note: {notice}\n"));
        }
        for aside in &self.set_aside {
            text.push_str(&format!("set aside: {} of {}\n", aside.case, aside.site));
        }
        let Seconds { setup, round, evaluation, total } = self.seconds;
        text.push_str(&format!(
            "\nTime: {} in all; set-up {}, round {}, evaluation {} (memory at most {})\n",
            span(total),
            span(setup),
            span(round),
            span(evaluation),
            bytes(self.predict_peak_bytes),
        ));
        let pooled = self.last.pooled.as_ref();
        text.push_str(&format!(
            "Final model on all test sets together: sensitivity {}, precision {}\n",
            figure(pooled.and_then(|p| p.sensitivity), 3),
            figure(pooled.and_then(|p| p.precision), 3),
        ));
        let Files { json, text: own } = &self.files;
        text.push_str(&format!("Report: {} and {}", own.display(), json.display()));
        text
    }

    fn visit_table(&self, visit: u32) -> String {
        let rows = self.evaluations.iter().filter(|e| e.visit == visit).flat_map(|e| {
            e.sets.iter().map(|set| {
                let model = format!("{} {}", e.model, short(&e.weights));
                (vec![model, set.site.clone()], &set.pooled)
            })
        });
        pooled_table(&["model", "test set"], rows.collect())
    }
}

fn in_brain_table(sets: &[TestSet]) -> String {
    let rows =
        sets.iter().filter_map(|set| Some((vec![set.site.clone()], set.pooled_in_brain.as_ref()?)));
    pooled_table(&["test set"], rows.collect())
}

/// The received and the trained model of a visit; a fresh start has no received one.
fn evaluations(v: &VisitView, judgements: &BTreeMap<String, Judgement>) -> Vec<VisitEvaluation> {
    [("received", &v.parent), ("trained", &v.weights)]
        .into_iter()
        .filter_map(|(model, weights)| {
            Some(VisitEvaluation {
                visit: v.visit,
                cycle: v.cycle,
                site: v.site.clone(),
                model,
                weights: weights.clone(),
                sets: judgements.get(weights)?.sets.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::models::tests::parcel;
    use rondo_imaging::metrics::pool;

    #[test]
    fn the_report_holds_both_models_of_a_visit_and_the_passport() {
        let (parcel, roster, ..) = parcel();
        let passport = crate::models::verify(&parcel, &roster).unwrap();
        let weights = passport.weights().to_string();
        let made = [Made {
            visit: 1,
            weights: weights.clone(),
            bytes: 9,
            file: "m".into(),
            passport_file: "p".into(),
            passport,
        }];
        let set = |site: &str| TestSet {
            site: site.into(),
            pooled: pool(&[]),
            pooled_in_brain: None,
            cases: Vec::new(),
        };
        let judgement = Judgement { sets: vec![set("uker"), set("all")], ..Default::default() };
        let judgements = BTreeMap::from([(weights.clone(), judgement)]);
        let first = VisitView {
            visit: 1,
            cycle: 1,
            site: "uker".into(),
            weights: weights.clone(),
            ..Default::default()
        };
        let second = VisitView { visit: 2, parent: weights.clone(), ..first.clone() };
        let round = RoundView { visits: vec![first, second], ..Default::default() };
        let report = Report::new(Findings {
            round: &round,
            sites: vec![SiteReport::new(&SiteView::default(), "log".into(), Memory::default())],
            made: &made,
            judgements: &judgements,
            seconds: Seconds { setup: 1.0, round: 2.0, evaluation: 3.0, total: 6.0 },
            files: Files { json: "r.json".into(), text: "r.txt".into() },
        })
        .unwrap();
        let models: Vec<_> = report.evaluations.iter().map(|e| (e.visit, e.model)).collect();
        assert_eq!(models, [(1, "trained"), (2, "received"), (2, "trained")]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["final"]["pooled"]["sensitivity"], Value::Null);
        assert_eq!(json["passport"]["hops"].as_array().unwrap().len(), 1);
        let text = report.text();
        for part in ["Visit 2 (cycle 1) at uker", "verified, 1 visits", "r.json", "sensitivity –"]
        {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
