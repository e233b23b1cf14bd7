//! One visit from outside: same bytes twice, the received model judged first, stops and bad numbers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ndarray::Array3;
use rondo::checkpoint::{Extras, Layout};
use rondo::recipe::{Architecture, Method, OptimizerOnArrival, Preset, Recipe, Select};
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::{Choice, Device};
use rondo_learn::report::Progress;
use rondo_learn::segment::Case;
use rondo_learn::train::{Error, Outcome, Visit, train};
use std::ops::ControlFlow;

const NARROW: Architecture = Architecture { n1: 2, n2: 3, n3: 4, m: 6 };

struct Head {
    id: String,
    image: Array3<f32>,
    label: Array3<u8>,
    brain: Array3<u8>,
}

/// A bright ball in a smooth head.
fn head(id: usize, edge: usize) -> Head {
    let shape = [edge, edge + 1, edge + 2];
    let centre = [13 + id % 3, 14, 13 + id % 2];
    let label = Array3::from_shape_fn(shape, |(i, j, k)| {
        let near = |a: usize, b: usize| a.abs_diff(b).pow(2);
        u8::from(near(i, centre[0]) + near(j, centre[1]) + near(k, centre[2]) < 9)
    });
    #[allow(clippy::cast_precision_loss)]
    let image = Array3::from_shape_fn(shape, |(i, j, k)| {
        ((i * 7 + j * 3 + k * 5 + id) % 11) as f32 / 11.0 + 2.0 * f32::from(label[[i, j, k]])
    });
    Head { id: format!("case-{id}"), image, label, brain: Array3::ones(shape) }
}

fn heads() -> Vec<Head> {
    (0..3).map(|id| head(id, 28)).collect()
}

fn views(heads: &[Head]) -> Vec<Case<'_>> {
    heads
        .iter()
        .map(|h| Case {
            id: &h.id,
            image: h.image.view(),
            label: h.label.view(),
            brain: h.brain.view(),
        })
        .collect()
}

fn recipe() -> Recipe {
    Recipe {
        architecture: NARROW,
        epochs: 3,
        mini_batch: 7,
        learning_rate_epochs: vec![2],
        ..Recipe::preset(Preset::Paper)
    }
}

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

fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
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
    heads[0].image[[5, 5, 5]] = f32::INFINITY;
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
    heads[2].image.fill(1e38);
    let cases = views(&heads);
    let visit =
        Visit { recipe: &recipe, seed: 5, received: None, cases: &cases[2..], validation: &[] };
    match train(&visit, &device, &mut quiet) {
        Err(Error::NotFinite { epoch: 1, update: 1, cases }) => assert_eq!(cases, ["case-2"]),
        other => panic!("{other:?}"),
    }
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
