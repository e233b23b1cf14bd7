//! One visit from outside: same bytes twice, the received model judged first, stops and bad numbers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod heads;

use heads::{Head, NARROW, head, heads, quiet, recipe, views};
use rondo::checkpoint::{Extras, Layout};
use rondo::recipe::{Architecture, Method, OptimizerOnArrival, Recipe, Select};
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::{Choice, Device};
use rondo_learn::report::Progress;
use rondo_learn::train::{Error, Outcome, Visit, train};
use std::ops::ControlFlow;

fn run(
    recipe: &Recipe,
    received: Option<&Weights>,
    heads: &[Head],
    on: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Outcome, Error> {
    let cases = views(heads);
    let visit = Visit {
        recipe,
        seed: 5,
        received,
        cases: &cases,
        validation: cases.get(..1).unwrap_or_default(),
    };
    train(&visit, &Device::open(Choice::Cpu).unwrap(), on)
}

#[test]
fn the_same_visit_gives_the_same_bytes_and_a_teacher_matters() {
    let heads = heads();
    let first = run(&recipe(), None, &heads, &mut quiet).unwrap();
    let again = run(&recipe(), None, &heads, &mut quiet).unwrap();
    assert_eq!(first.weights.to_bytes(), again.weights.to_bytes());
    assert_eq!(Layout::new(&NARROW, Extras::NONE).check(&first.weights.to_bytes()), Ok(()));
    let report = &first.report;
    assert_eq!((report.cases, report.epochs, report.updates, report.segments), (3, 3, 15, 90));
    assert_eq!(report.checks.iter().map(|c| c.epoch).collect::<Vec<_>>(), [2, 3]);
    assert_eq!((report.dice_before, report.loss_last_epoch.kdl), (None, 0.0));
    assert!((report.learning_rate - 1e-4).abs() < 1e-12);

    let mut events = Vec::new();
    let mut listen = |event| {
        events.push(event);
        ControlFlow::Continue(())
    };
    let lwf = run(&recipe(), Some(&first.weights), &heads, &mut listen).unwrap();
    assert!(matches!(events[0], Progress::Started { updates: 15, .. }), "{:?}", events[0]);
    assert!(
        matches!(events[1], Progress::Validated { epoch: 0, .. }),
        "the received model comes first"
    );
    assert!(lwf.report.dice_before.is_some() && lwf.report.loss_first_epoch.kdl > 0.0);
    let tl = Recipe { method: Method::Tl, ..recipe() };
    let tl = run(&tl, Some(&first.weights), &heads, &mut quiet).unwrap();
    assert_eq!(tl.report.loss_last_epoch.kdl, 0.0);
    assert_ne!(tl.weights.to_bytes(), lwf.weights.to_bytes());
}

#[test]
fn a_carried_optimizer_goes_on_where_it_stopped() {
    let heads = heads();
    let recipe = Recipe {
        optimizer_on_arrival: OptimizerOnArrival::Carry,
        select: Select::Last,
        method: Method::Tl,
        ..recipe()
    };
    let first = run(&recipe, None, &heads, &mut quiet).unwrap();
    let received = Weights::from_bytes(&first.weights.to_bytes()).unwrap();
    let moments = received.optimizer.as_ref().unwrap();
    assert_eq!((moments.step, moments.learning_rate), (15, 1e-4));
    let second = run(&recipe, Some(&received), &heads, &mut quiet).unwrap();
    let moments = second.weights.optimizer.as_ref().unwrap();
    assert_eq!(moments.step, 30);
    assert!(
        (moments.learning_rate - 1e-5).abs() < 1e-12,
        "the schedule multiplies the carried rate"
    );
}

#[test]
fn a_request_stops_at_the_next_update() {
    let mut updates = 0;
    let mut stop = |event| match event {
        Progress::Update { update, .. } => {
            updates = update;
            if update == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
        _ => ControlFlow::Continue(()),
    };
    assert!(matches!(run(&recipe(), None, &heads(), &mut stop), Err(Error::Stopped)));
    assert_eq!(updates, 4);
}

#[test]
fn bad_cases_are_set_aside_and_bad_numbers_stop_the_visit() {
    let mut heads = heads();
    heads[0] = head(0, 24);
    heads[1] = head(1, 20);
    let mut notices = Vec::new();
    let mut listen = |event| {
        if let Progress::Notice { text } = event {
            notices.push(text);
        }
        ControlFlow::Continue(())
    };
    let cases = views(&heads);
    let recipe = recipe();
    let visit = Visit { recipe: &recipe, seed: 5, received: None, cases: &cases, validation: &[] };
    let device = Device::open(Choice::Cpu).unwrap();
    let done = train(&visit, &device, &mut listen).unwrap();
    assert_eq!((done.report.cases, done.report.set_aside, done.report.dice_after), (1, 2, None));
    assert!(notices[0].contains("`case-0`") && notices[1].contains("`case-1`"), "{notices:?}");

    let none = Visit { cases: &cases[..2], ..visit };
    assert!(matches!(train(&none, &device, &mut quiet), Err(Error::NoCases(2))));
    heads[2].image[[13, 13, 13]] = f32::INFINITY;
    let cases = views(&heads);
    let visit =
        Visit { recipe: &recipe, seed: 5, received: None, cases: &cases[2..], validation: &[] };
    let said = train(&visit, &device, &mut quiet).unwrap_err().to_string();
    assert!(said.contains("`case-2` holds values that are no numbers"), "{said}");
    heads[2].image.fill(1e38);
    let cases = views(&heads);
    let visit =
        Visit { recipe: &recipe, seed: 5, received: None, cases: &cases[2..], validation: &[] };
    match train(&visit, &device, &mut quiet) {
        Err(Error::NotFinite { epoch: 1, update: 1, cases, .. }) => assert_eq!(cases, ["case-2"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_case_is_a_cohort_too() {
    let one = [head(0, 25)];
    let done = run(&recipe(), None, &one, &mut quiet).unwrap();
    assert_eq!((done.report.cases, done.report.validation_cases), (1, 1));
    assert!(
        done.report.dice_after.is_some() && done.weights.parameters.iter().all(|p| p.is_finite())
    );
}

#[test]
fn impossible_visits_are_refused() {
    let heads = heads();
    let other = Weights::initial(Architecture { n1: 3, ..NARROW }, 1);
    assert!(matches!(run(&recipe(), Some(&other), &heads, &mut quiet), Err(Error::Widths { .. })));
    let single = Recipe { method: Method::Single, ..recipe() };
    let weights = Weights::initial(NARROW, 1);
    assert!(matches!(run(&single, Some(&weights), &heads, &mut quiet), Err(Error::Recipe(_))));
    let none = Recipe { epochs: 0, ..recipe() };
    assert!(run(&none, None, &heads, &mut quiet).unwrap_err().to_string().contains("epochs"));
}
