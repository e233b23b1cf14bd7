//! Methods against forgetting, seen from outside: what they keep of the model that came.
#![allow(clippy::unwrap_used)]

mod heads;

use heads::{heads, quiet, recipe, views};
use rondo::recipe::{Method, Recipe};
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::{Choice, Device};
use rondo_learn::report::Progress;
use rondo_learn::train::{Outcome, Visit, train};
use std::ops::ControlFlow;

fn visit(
    recipe: &Recipe,
    received: Option<&Weights>,
    on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Outcome {
    let mut heads = heads();
    if received.is_some() {
        heads.iter_mut().for_each(|h| h.image.mapv_inplace(|v| 1.0 - v));
    }
    let cases = views(&heads);
    let visit = Visit { recipe, seed: 5, received, cases: &cases, validation: &[] };
    train(&visit, &Device::open(Choice::Cpu).unwrap(), on).unwrap()
}

/// Σ Ω (θ − θ*)²
fn distance(from: &Weights, to: &Weights) -> f64 {
    let importance = &from.importance.as_ref().unwrap().1;
    let pairs = from.parameters.iter().zip(&to.parameters).zip(importance);
    pairs.map(|((a, b), w)| f64::from(*w) * f64::from(a - b).powi(2)).sum()
}

#[test]
fn important_parameters_stay_near_what_came_and_importance_adds_up() {
    for method in [Method::Ewc, Method::Mas] {
        let recipe =
            Recipe { method, importance_segments: 12, anchor_lambda: 100.0, epochs: 2, ..recipe() };
        let first = visit(&recipe, None, &mut quiet);
        let before = first.weights.importance.clone().unwrap().1;
        assert_eq!(first.report.loss_last_epoch.penalty, 0.0, "a fresh model is held by nothing");
        assert!(before.iter().all(|v| *v >= 0.0));
        let some = before.iter().filter(|v| **v > 0.0).count();
        assert!(some > before.len() / 2, "{some} of {} parameters matter", before.len());

        let received = Weights::from_bytes(&first.weights.to_bytes()).unwrap();
        assert_eq!(received, first.weights, "importance travels with the weights");
        let held = visit(&recipe, Some(&received), &mut quiet);
        let after = held.weights.importance.clone().unwrap().1;
        assert!(after.iter().zip(&before).all(|(a, b)| a >= b) && after != before);
        assert!(held.report.loss_last_epoch.penalty > 0.0);

        let tl =
            visit(&Recipe { method: Method::Tl, ..recipe.clone() }, Some(&received), &mut quiet);
        assert_eq!(
            (tl.report.loss_last_epoch.penalty, tl.weights.importance.as_ref()),
            (0.0, None)
        );
        let (near, far) = (distance(&received, &held.weights), distance(&received, &tl.weights));
        assert!(near < 0.7 * far, "{method}: {near} against {far} of transfer alone");
    }
}

#[test]
fn a_model_that_tells_no_importance_is_trained_and_the_lack_is_told() {
    let plain = visit(&Recipe { method: Method::Tl, ..recipe() }, None, &mut quiet).weights;
    let mut notices = Vec::new();
    let mut listen = |event| {
        if let Progress::Notice { text } = event {
            notices.push(text);
        }
        ControlFlow::Continue(())
    };
    let recipe = Recipe { method: Method::Mas, importance_segments: 5, ..recipe() };
    let done = visit(&recipe, Some(&plain), &mut listen);
    assert!(notices.iter().any(|n| n.contains("does not tell which")), "{notices:?}");
    assert!(done.weights.importance.is_some());
}
