//! Following a round: what changed since the last look, one line for each change.

use super::round::{progress_text, visit_phase};
use super::{figure, short};
use rondo_proto::control::{ProgressView, RoundPhase, RoundView, VisitPhase, VisitView};
use std::collections::{BTreeMap, BTreeSet};

/// Puts together what the views of one or more sites say about a round, and tells each change once.
///
/// Views of different sites lag behind each other; what one has told is not told again by another.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    phase: i32,
    approved: BTreeSet<String>,
    visits: BTreeMap<u32, Seen>,
    running: Option<ProgressView>,
    paused: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Seen {
    phase: i32,
    held_by: BTreeSet<String>,
    refused_by: BTreeSet<String>,
    stalled: String,
    epoch: u32,
    validation: Option<f64>,
}

impl Follower {
    /// Takes in a view; returns what is new in it.
    pub(crate) fn observe(&mut self, view: &RoundView) -> Vec<String> {
        let mut lines = Vec::new();
        for site in &view.approved_by {
            if self.approved.insert(site.clone()) {
                let (n, all) = (self.approved.len(), view.sites.len());
                lines.push(format!("{site} approved the plan ({n} of {all})"));
            }
        }
        if view.phase > self.phase {
            self.phase = view.phase;
            if view.phase() == RoundPhase::Running {
                lines.push("the round is running".to_owned());
            } else if view.phase() == RoundPhase::Aborted {
                lines.push(format!("{} aborted the round", view.aborted_by.join(", ")));
            }
        }
        for site in view.paused_by.iter().filter(|s| !self.paused.contains(*s)) {
            lines.push(format!("{site} paused the round"));
        }
        for site in self.paused.iter().filter(|s| !view.paused_by.contains(s)) {
            lines.push(format!("{site} resumed the round"));
        }
        self.paused = view.paused_by.iter().cloned().collect();
        for visit in &view.visits {
            self.visit(visit, view.visits.len(), &mut lines);
        }
        if let Some(progress) = &view.progress {
            self.progress(progress, view, &mut lines);
        }
        lines
    }

    /// Whether a view said that the round is finished or aborted.
    pub(crate) fn is_over(&self) -> bool {
        self.phase >= i32::from(RoundPhase::Finished)
    }

    /// The training under way, if one is.
    pub(crate) fn running(&self) -> Option<&ProgressView> {
        self.running.as_ref()
    }

    fn visit(&mut self, v: &VisitView, visits: usize, lines: &mut Vec<String>) {
        let seen = self.visits.entry(v.visit).or_default();
        let name = format!("visit {} of {visits} (cycle {}, {})", v.visit, v.cycle, v.site);
        if v.phase > seen.phase {
            let contributed = i32::from(VisitPhase::Contributed);
            if v.phase() == VisitPhase::PassedOver {
                let by = v.passed_by.join(", ");
                lines.push(format!("{name}: passed over by {by}, {}", v.passed));
            } else if v.phase >= contributed && seen.phase < contributed {
                lines.push(format!(
                    "{name}: contributed {}, validation Dice {} → {}, {} cases, {} epochs, {} updates",
                    short(&v.weights),
                    figure(v.received_dice, 3),
                    figure(v.trained_dice, 3),
                    v.training_cases,
                    v.epochs,
                    v.updates,
                ));
                self.running = self.running.take().filter(|p| p.visit != v.visit);
            } else if v.phase() == VisitPhase::Training {
                lines.push(format!("{name}: {}", visit_phase(v.phase())));
            }
            seen.phase = v.phase;
        }
        for site in &v.held_by {
            if *site != v.site && seen.held_by.insert(site.clone()) {
                lines.push(format!("{name}: handed over to {site}"));
            }
        }
        for refusal in &v.refused_by {
            if seen.refused_by.insert(refusal.site.clone()) {
                lines.push(format!("{name}: refused by {}, {}", refusal.site, refusal.reason));
            }
        }
        if v.stalled != seen.stalled {
            if !v.stalled.is_empty() {
                lines.push(format!("{name}: stalled, {}", v.stalled));
            }
            seen.stalled.clone_from(&v.stalled);
        }
    }

    fn progress(&mut self, p: &ProgressView, view: &RoundView, lines: &mut Vec<String>) {
        let seen = self.visits.entry(p.visit).or_default();
        if seen.phase >= i32::from(VisitPhase::Contributed) {
            return;
        }
        let site = view.visits.iter().find(|v| v.visit == p.visit).map_or("?", |v| v.site.as_str());
        if p.epoch > seen.epoch
            || (p.validation_dice.is_some() && p.validation_dice != seen.validation)
        {
            lines.push(format!("visit {} ({site}): {}", p.visit, progress_text(p)));
            (seen.epoch, seen.validation) = (p.epoch, p.validation_dice);
        }
        self.running = Some(*p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(phase: VisitPhase) -> RoundView {
        let visit = VisitView {
            visit: 1,
            cycle: 1,
            site: "uker".into(),
            phase: phase.into(),
            ..Default::default()
        };
        RoundView {
            phase: RoundPhase::Running.into(),
            sites: vec!["uker".into(), "usz".into()],
            visits: vec![visit],
            ..Default::default()
        }
    }

    #[test]
    fn each_change_is_told_once_and_a_late_view_tells_nothing() {
        let mut follower = Follower::default();
        let mut training = view(VisitPhase::Training);
        assert_eq!(follower.observe(&training).len(), 2);
        assert!(follower.observe(&training).is_empty());
        training.progress =
            Some(ProgressView { visit: 1, epoch: 1, epochs: 4, ..Default::default() });
        assert!(follower.observe(&training)[0].contains("epoch 1/4"));
        assert!(follower.observe(&training).is_empty() && follower.running().is_some());
        let mut done = view(VisitPhase::Contributed);
        done.visits[0].weights = "ab".repeat(32);
        let lines = follower.observe(&done);
        assert!(lines[0].contains("contributed abababababab"), "{lines:?}");
        assert!(follower.running().is_none());
        // Another site is behind.
        assert!(follower.observe(&training).is_empty());
        done.visits[0].held_by = vec!["usz".into()];
        assert!(follower.observe(&done)[0].contains("handed over to usz"));
        assert!(!follower.is_over());
        done.phase = RoundPhase::Finished.into();
        follower.observe(&done);
        assert!(follower.is_over());
    }
}
