//! What the figures in the manifests say about the models of a round.
//!
//! The **retention matrix** has a row for each visit that stands and a column for each site. A cell is
//! the mean validation Dice of the model that the visit made, on the validation cases of the site: at
//! the site that made it, its own figure after training; at the site after it, the figure of the
//! received model before training. Other cells are empty: a model is validated where it comes by.
//!
//! For each site, in the order of the rows: **forgetting** is the best earlier figure less the last one
//! (Chaudhry et al. 2018); **backward transfer** is the last figure less the one right after the site's
//! own last training before it (Lopez-Paz and Ranzato 2017, with one task for each site). Both are
//! absent where there is no earlier figure.
//!
//! The **best** model has the best mean over its row; of equals the later one.

use super::state::{Round, Visit};
use crate::ids::{SiteId, VisitNo};

/// A column of the retention matrix, and what it amounts to.
#[derive(Debug, Clone, PartialEq)]
pub struct Retention {
    /// The site.
    pub site: SiteId,
    /// Validation Dice of the models that came by, by the visit that made them.
    pub figures: Vec<(VisitNo, f64)>,
    /// Best earlier figure less the last.
    pub forgetting: Option<f64>,
    /// Last figure less the one after the site's own last training before it.
    pub backward_transfer: Option<f64>,
}

/// A cell: the visit that made the model, where it was validated, and the figure.
type Cell<'r> = (&'r Visit, &'r SiteId, f64);

impl Round {
    fn cells(&self) -> Vec<Cell<'_>> {
        let mut cells = Vec::new();
        let mut before: Option<&Visit> = None;
        for visit in self.course() {
            let figures = visit.contribution.as_ref().map(|(m, _)| m.validation);
            let figures = figures.unwrap_or_default();
            let received = before.zip(figures.received_dice);
            cells.extend(received.map(|(before, dice)| (before, &visit.site, dice)));
            cells.extend(figures.trained_dice.map(|dice| (visit, &visit.site, dice)));
            before = Some(visit);
        }
        cells.retain(|(_, _, dice)| dice.is_finite());
        cells
    }

    /// The columns of the retention matrix, in the order of the plan's sites.
    #[must_use]
    pub fn retention(&self) -> Vec<Retention> {
        let cells = self.cells();
        let column = |site: &SiteId| {
            let mut column: Vec<&Cell<'_>> = cells.iter().filter(|cell| cell.1 == site).collect();
            column.sort_by_key(|cell| cell.0.number);
            let (last, earlier) = match column.split_last() {
                Some((last, earlier)) => (Some(last.2), earlier),
                None => (None, &[][..]),
            };
            let best = earlier.iter().map(|cell| cell.2).reduce(f64::max);
            let own = earlier.iter().rev().find(|cell| cell.0.site == *site).map(|cell| cell.2);
            let less = |(a, b): (f64, f64)| a - b;
            Retention {
                site: site.clone(),
                forgetting: best.zip(last).map(less),
                backward_transfer: last.zip(own).map(less),
                figures: column.iter().map(|cell| (cell.0.number, cell.2)).collect(),
            }
        };
        self.plan.sites.iter().map(column).collect()
    }

    /// The visit that made the best model, of sites that are not lost; none without figures.
    pub(super) fn best_of_course(&self) -> Option<VisitNo> {
        let cells = self.cells();
        let mean = |visit: &Visit| {
            let row = cells.iter().filter(|cell| cell.0.number == visit.number);
            let (sum, count) =
                row.fold((0.0, 0.0), |(sum, count), cell| (sum + cell.2, count + 1.0));
            (count > 0.0).then_some(sum / count)
        };
        let all = self.course().filter(|visit| !self.is_out(&visit.site));
        let means = all.filter_map(|visit| Some((visit.number, mean(visit)?)));
        means.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(number, _)| number)
    }

    /// The visits whose models the round is about, once it is at its end: the last one, and the best one
    /// where the plan shares it.
    #[must_use]
    pub fn results(&self) -> (Option<VisitNo>, Option<VisitNo>) {
        if self.turn.is_some() { (None, None) } else { (self.tip, self.best.or(self.tip)) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::manifest::Validation;
    use crate::plan::Plan;
    use crate::round::tests::{running, sites, turn};
    use std::sync::Arc;

    /// A round whose visits were contributed with these figures, received and trained.
    fn round(figures: &[(Option<f64>, Option<f64>)]) -> Round {
        let mut sites = sites();
        let id = running(&mut sites);
        while turn(&mut sites) > 0 {}
        let mut round = sites.values().next().unwrap().state.rounds()[&id].clone();
        for (visit, (received_dice, trained_dice)) in round.visits.iter_mut().zip(figures) {
            let (manifest, _) = visit.contribution.as_mut().unwrap();
            Arc::make_mut(manifest).validation =
                Validation { received_dice: *received_dice, trained_dice: *trained_dice };
        }
        round.settle();
        round
    }

    #[test]
    fn forgetting_and_backward_transfer_are_as_defined() {
        // uker, stanford, usz, twice around.
        let round = round(&[
            (None, Some(0.5)),
            (Some(0.25), Some(0.75)),
            (None, Some(0.5)),
            (Some(0.375), Some(0.625)),
            (Some(0.5), None),
            (Some(0.25), Some(0.75)),
        ]);
        let [uker, stanford, usz] = &round.retention()[..] else { panic!("three sites") };
        let numbers = |r: &Retention| r.figures.iter().map(|(n, d)| (n.0, *d)).collect::<Vec<_>>();
        assert_eq!(numbers(uker), [(1, 0.5), (3, 0.375), (4, 0.625)]);
        assert_eq!((uker.forgetting, uker.backward_transfer), (Some(-0.125), Some(0.125)));
        assert_eq!(numbers(stanford), [(1, 0.25), (2, 0.75), (4, 0.5)]);
        assert_eq!((stanford.forgetting, stanford.backward_transfer), (Some(0.25), Some(-0.25)));
        assert_eq!(numbers(usz), [(3, 0.5), (5, 0.25), (6, 0.75)]);
        assert_eq!((usz.forgetting, usz.backward_transfer), (Some(-0.25), Some(0.25)));
        // Rows: 0.375, 0.75, 0.4375, 0.5625, 0.25, 0.75; of equals the later one.
        assert_eq!(round.results(), (Some(VisitNo(6)), Some(VisitNo(6))));
        let none = super::tests::round(&[(None, None); 6]);
        let empty = |r: &Retention| r.figures.is_empty() && r.forgetting.is_none();
        assert!(none.retention().iter().all(empty));
        assert_eq!(none.results(), (Some(VisitNo(6)), Some(VisitNo(6))));
    }

    #[test]
    fn a_round_that_shares_its_best_model_ends_when_all_have_it() {
        let mut sites = sites();
        let text = crate::plan::tests::THREE_SITES;
        let plan = Plan::from_toml(text, 1).unwrap();
        assert!(plan.share_best);
        let mut older = plan.clone();
        older.share_best = false;
        assert!(!String::from_utf8(older.canonical()).unwrap().contains("share_best"));
        let id = crate::round::tests::running_plan(&mut sites, &plan);
        while turn(&mut sites) > 0 {}
        let any = sites.values().next().unwrap();
        let mut round = any.state.rounds()[&id].clone();
        assert_eq!(round.phase(), crate::round::RoundPhase::Finished);
        // Stanford's second visit is the best; only usz, the next, has it so far.
        let (manifest, _) = round.visits[4].contribution.as_mut().unwrap();
        Arc::make_mut(manifest).validation.trained_dice = Some(0.9);
        round.visits[4].received_by.retain(|site, _| site.as_str() == "usz");
        round.settle();
        assert_eq!(round.results(), (Some(VisitNo(6)), Some(VisitNo(5))));
        assert_eq!(round.phase(), crate::round::RoundPhase::Running);
        let missing: Vec<_> = round.recipients(VisitNo(5)).map(SiteId::as_str).collect();
        assert_eq!(missing, ["uker", "usz"]);
        let weights = round.visits[4].weights().unwrap();
        round.visits[4].received_by.insert("uker".parse().unwrap(), weights);
        assert_eq!(round.phase(), crate::round::RoundPhase::Finished);
        Arc::make_mut(&mut round.plan).share_best = false;
        round.settle();
        assert_eq!(round.results(), (Some(VisitNo(6)), Some(VisitNo(6))));
    }
}
