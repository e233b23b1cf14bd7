//! A visit that is cut off anywhere goes on from what was kept last, to the same bytes.
#![allow(clippy::unwrap_used)]

mod heads;

use heads::{heads, quiet, recipe, views};
use rondo::ids::Digest;
use rondo::recipe::{Method, OptimizerOnArrival, Recipe, Select};
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::{Choice, Device};
use rondo_learn::report::{Listener, Progress};
use rondo_learn::resume::{Saved, identity};
use rondo_learn::train::{Error, Outcome, Visit, go_on, train};
use std::ops::ControlFlow;

/// Keeps the state whenever `when` says so for the number of times it was asked, and pulls the plug
/// after `life` questions: then nothing more is kept, as after `kill -9`.
struct Plug<'p> {
    asked: u32,
    life: u32,
    when: &'p dyn Fn(u32) -> bool,
    kept: Option<Vec<u8>>,
    notices: Vec<String>,
}

impl<'p> Plug<'p> {
    fn new(life: u32, when: &'p dyn Fn(u32) -> bool) -> Self {
        Self { asked: 0, life, when, kept: None, notices: Vec::new() }
    }
}

impl Listener for Plug<'_> {
    fn hear(&mut self, event: Progress) -> ControlFlow<()> {
        if let Progress::Notice { text } = event {
            self.notices.push(text);
        }
        ControlFlow::Continue(())
    }

    fn stops(&mut self) -> bool {
        self.asked += 1;
        self.asked > self.life
    }

    fn wants_state(&mut self) -> bool {
        (self.when)(self.asked)
    }

    fn keep(&mut self, state: &Saved) {
        if self.asked <= self.life {
            self.kept = Some(state.to_bytes());
        }
    }
}

fn with_visit<T>(
    recipe: &Recipe,
    received: Option<&Weights>,
    work: impl FnOnce(&Visit<'_>) -> T,
) -> T {
    let heads = heads();
    let cases = views(&heads);
    work(&Visit { recipe, seed: 9, received, cases: &cases, validation: &cases[1..] })
}

/// What the visit is, by every voxel.
fn id(visit: &Visit<'_>, device: &Device) -> Digest {
    let mut bytes = Vec::new();
    for case in visit.cases.iter().chain(visit.validation) {
        bytes.extend(case.image.iter().flat_map(|v| v.to_le_bytes()));
        bytes.extend(case.label.iter().chain(&case.brain));
    }
    identity(visit, device, Digest::of(&bytes))
}

fn same(a: &Outcome, b: &Outcome) {
    assert_eq!(a.weights.to_bytes(), b.weights.to_bytes());
    let without_clock = |o: &Outcome| {
        let mut report = o.report.clone();
        report.seconds = 0.0;
        report
    };
    assert_eq!(without_clock(a), without_clock(b));
}

/// Cuts the visit off after every number of questions in `lives`, one after the other, each time
/// going on from what was kept last.
fn interrupted(visit: &Visit<'_>, device: &Device, lives: &[u32], every: u32) -> Outcome {
    let mut kept: Option<Vec<u8>> = None;
    for life in lives {
        let when = |asked: u32| asked.is_multiple_of(every);
        let mut plug = Plug::new(*life, &when);
        let saved = kept.as_ref().map(|bytes| Saved::from_bytes(bytes).unwrap());
        let from = saved.as_ref().map(Saved::updates);
        let ended = go_on(visit, device, id(visit, device), saved, &mut plug);
        assert!(matches!(ended, Err(Error::Stopped)), "cut off after {life}");
        if let Some(from) = from {
            assert!(plug.notices.iter().any(|n| n.contains(&format!("after update {from} of"))));
        }
        kept = plug.kept.or(kept);
    }
    let saved = Saved::from_bytes(&kept.unwrap()).unwrap();
    assert!(saved.updates() > 0, "something was gained");
    go_on(visit, device, id(visit, device), Some(saved), &mut Plug::new(u32::MAX, &|_| false))
        .unwrap()
}

#[test]
fn every_method_goes_on_to_the_same_bytes_on_every_device() {
    let first = {
        let recipe = Recipe {
            method: Method::Mas,
            importance_segments: 4,
            optimizer_on_arrival: OptimizerOnArrival::Carry,
            ..recipe()
        };
        let device = Device::open(Choice::Cpu).unwrap();
        with_visit(&recipe, None, |visit| train(visit, &device, &mut quiet).unwrap().weights)
    };
    let carry = OptimizerOnArrival::Carry;
    for (method, select, arrival, choice, received) in [
        (Method::Lwf, Select::BestValidation, OptimizerOnArrival::Reset, Choice::Cpu, true),
        (Method::Lwf, Select::BestValidation, carry, Choice::Flex, true),
        (Method::Mas, Select::Last, carry, Choice::Cpu, true),
        (Method::Ewc, Select::BestValidation, OptimizerOnArrival::Reset, Choice::Flex, true),
        (Method::Single, Select::Last, OptimizerOnArrival::Reset, Choice::Cpu, false),
    ] {
        let device = Device::open(choice).unwrap();
        let recipe = Recipe {
            method,
            select,
            optimizer_on_arrival: arrival,
            validate_every: 1,
            epochs: 2,
            learning_rate_epochs: vec![1],
            augment_flips: true,
            gradient_clip: 2.0,
            importance_segments: 4,
            ..recipe()
        };
        with_visit(&recipe, received.then_some(&first), |visit| {
            let whole = train(visit, &device, &mut quiet).unwrap();
            let cut = interrupted(visit, &device, &[4, 3, 5, 2], 2);
            same(&whole, &cut);
        });
    }
}

/// Within epochs, at their ends, in validations, and while importance is measured.
#[test]
fn a_visit_goes_on_from_wherever_it_was_cut_off() {
    let device = Device::open(Choice::Cpu).unwrap();
    let recipe = Recipe {
        method: Method::Mas,
        select: Select::BestValidation,
        validate_every: 1,
        epochs: 2,
        importance_segments: 3,
        ..recipe()
    };
    with_visit(&recipe, None, |visit| {
        let whole = train(visit, &device, &mut quiet).unwrap();
        let mut cuts = 0;
        for life in 2.. {
            let mut plug = Plug::new(life, &|_| true);
            if go_on(visit, &device, id(visit, &device), None, &mut plug).is_ok() {
                break;
            }
            same(&whole, &interrupted(visit, &device, &[life], 1));
            cuts += 1;
        }
        assert!(cuts > whole.report.updates, "{cuts} cuts");
    });
}

#[test]
fn a_stop_on_request_loses_no_update() {
    let device = Device::open(Choice::Cpu).unwrap();
    struct Stops(Option<Vec<u8>>);
    impl Listener for Stops {
        fn hear(&mut self, event: Progress) -> ControlFlow<()> {
            match event {
                Progress::Update { update: 4, .. } => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
        fn keep(&mut self, state: &Saved) {
            self.0 = Some(state.to_bytes());
        }
    }
    with_visit(&recipe(), None, |visit| {
        let whole = train(visit, &device, &mut quiet).unwrap();
        let mut stops = Stops(None);
        assert!(matches!(
            go_on(visit, &device, id(visit, &device), None, &mut stops),
            Err(Error::Stopped)
        ));
        let saved = Saved::from_bytes(&stops.0.unwrap()).unwrap();
        assert!(saved.updates() >= 4);
        same(
            &whole,
            &go_on(
                visit,
                &device,
                id(visit, &device),
                Some(saved),
                &mut Plug::new(u32::MAX, &|_| false),
            )
            .unwrap(),
        );
    });
}

#[test]
fn the_state_of_another_visit_is_not_used() {
    let device = Device::open(Choice::Cpu).unwrap();
    let recipe = recipe();
    let saved = with_visit(&recipe, None, |visit| {
        let mut plug = Plug::new(5, &|asked| asked == 4);
        assert!(go_on(visit, &device, id(visit, &device), None, &mut plug).is_err());
        Saved::from_bytes(&plug.kept.unwrap()).unwrap()
    });
    let begins_anew = |visit: &Visit<'_>, device: &Device| {
        let mut plug = Plug::new(1, &|_| false);
        assert!(matches!(
            go_on(visit, device, id(visit, device), Some(saved.clone()), &mut plug),
            Err(Error::Stopped)
        ));
        plug.notices.iter().any(|n| n.contains("begins anew"))
    };
    let flex = Device::open(Choice::Flex).unwrap();
    let other = Recipe { kdl_lambda: 0.2, ..recipe.clone() };
    let mut changed = heads();
    changed[2].label.fill(0);
    with_visit(&recipe, None, |visit| {
        assert!(!begins_anew(visit, &device), "its own is used");
        assert!(begins_anew(&Visit { seed: 10, ..*visit }, &device));
        assert!(begins_anew(&Visit { cases: &visit.cases[..2], ..*visit }, &device));
        assert!(begins_anew(visit, &flex));
    });
    let cases = views(&changed);
    let visit =
        Visit { recipe: &recipe, seed: 9, received: None, cases: &cases, validation: &cases[1..] };
    assert!(begins_anew(&visit, &device));
    with_visit(&other, None, |visit| assert!(begins_anew(visit, &device)));
    let received = Weights::initial(recipe.architecture, 9);
    with_visit(&recipe, Some(&received), |visit| assert!(begins_anew(visit, &device)));
}

#[test]
fn what_is_kept_before_bad_numbers_is_good() {
    let device = Device::open(Choice::Cpu).unwrap();
    let recipe =
        Recipe { learning_rate: 1.0, learning_rate_epochs: vec![], epochs: 20, ..recipe() };
    let mut bad = heads();
    for head in &mut bad {
        head.image.mapv_inplace(|v| v * 1e16);
    }
    let cases = views(&bad);
    let visit = Visit { recipe: &recipe, seed: 9, received: None, cases: &cases, validation: &[] };
    let mut plug = Plug::new(u32::MAX, &|_| true);
    match go_on(&visit, &device, id(&visit, &device), None, &mut plug) {
        Err(Error::NotFinite { update, cases, .. }) => {
            assert!(!cases.is_empty());
            let kept = Saved::from_bytes(&plug.kept.unwrap()).unwrap();
            assert!(kept.updates() > 0 && kept.updates() < update);
            assert!(kept.weights().parameters.iter().all(|p| p.is_finite()));
        }
        other => panic!("{:?}", other.map(|o| o.report)),
    }
}
