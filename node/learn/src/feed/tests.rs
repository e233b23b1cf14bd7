use super::*;
use crate::segment::{Case, batches, epoch};
use ndarray::Array3;
use rondo::recipe::Preset;
use std::time::{Duration, Instant};

struct Head {
    image: Array3<f32>,
    label: Array3<u8>,
    brain: Array3<u8>,
}

fn heads(n: usize) -> Vec<Head> {
    let head = |n: usize| {
        #[allow(clippy::cast_precision_loss)]
        let image =
            Array3::from_shape_fn([28, 29, 30], |(i, j, k)| (n + i * 900 + j * 30 + k) as f32);
        let mut label = Array3::zeros(image.dim());
        label[[13, 14, 12 + n % 5]] = 1;
        Head { brain: Array3::ones(image.dim()), image, label }
    };
    (0..n).map(head).collect()
}

fn indexed(heads: &[Head]) -> Vec<Indexed<'_>> {
    let case = |h| {
        let Head { image, label, brain }: &Head = h;
        Case { id: "a", image: image.view(), label: label.view(), brain: brain.view() }
    };
    heads.iter().map(|h| Indexed::new(case(h)).unwrap()).collect()
}

fn recipe() -> Recipe {
    let paper = Recipe::preset(Preset::Paper);
    Recipe { epochs: 3, cases_per_pool: 2, mini_batch: 4, augment_flips: true, ..paper }
}

/// Everything from a position on; `slow` visits dawdle over every batch.
fn all(cases: &[Indexed<'_>], from: Position, slow: bool) -> Vec<Prepared> {
    let recipe = recipe();
    std::thread::scope(|scope| {
        let feed = feed(scope, cases, &recipe, 11, from);
        feed.map(|batch| {
            std::thread::sleep(Duration::from_millis(u64::from(slow) * 3));
            batch.unwrap()
        })
        .collect()
    })
}

#[test]
fn batches_come_in_order_whatever_the_pace_and_from_any_position() {
    let heads = heads(5);
    let cases = indexed(&heads);
    let recipe = recipe();
    let whole = all(&cases, Position::default(), false);
    let mut expected = whole.iter();
    for number in 0..3 {
        let epoch = epoch(&cases, &recipe, 11, number);
        for (batch, segments) in epoch.iter().enumerate() {
            let got = expected.next().unwrap();
            assert_eq!((got.epoch, got.batch as usize), (number, batch));
            assert_eq!(&got.segments, segments);
            let augmentation = |i| Augmentation::draw(&recipe, 11, number, (batch * 4 + i) as u64);
            let again = cut(&cases, segments, augmentation).unwrap();
            assert!(again.x1 == got.data.x1 && again.target == got.data.target);
        }
    }
    assert!(expected.next().is_none());
    let per_epoch = batches(&cases, &recipe, 11, 0);
    for (epoch, batch) in [(0, 0), (0, 1), (1, per_epoch - 1), (1, per_epoch), (2, 7), (3, 0)] {
        let rest = all(&cases, Position { epoch, batch }, true);
        let skip = (epoch * per_epoch + batch) as usize;
        assert_eq!(rest.len(), whole.len() - skip);
        for (a, b) in rest.iter().zip(&whole[skip..]) {
            assert_eq!((a.epoch, a.batch, &a.segments), (b.epoch, b.batch, &b.segments));
            assert!(a.data.x1 == b.data.x1 && a.data.x2 == b.data.x2);
        }
    }
}

#[test]
fn an_unfit_case_comes_in_its_place() {
    let mut heads = heads(5);
    heads[3].image.fill(f32::NAN);
    let cases = indexed(&heads);
    let recipe = recipe();
    let epoch = epoch(&cases, &recipe, 11, 0);
    let first = epoch.iter().position(|b| b.iter().any(|s| s.case == 3)).unwrap();
    std::thread::scope(|scope| {
        let mut feed = feed(scope, &cases, &recipe, 11, Position::default());
        for _ in 0..first {
            assert!(feed.next().unwrap().is_ok());
        }
        assert_eq!(feed.next().unwrap().err(), Some(Unfit::NotFinite("a".to_owned())));
    });
}

#[test]
fn little_is_prepared_ahead_and_dropping_ends_the_threads() {
    let heads = heads(3);
    let cases = indexed(&heads);
    let recipe = Recipe { epochs: u32::MAX, ..recipe() };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let mut feed = feed(scope, &cases, &recipe, 11, Position::default());
        assert!(feed.next().unwrap().is_ok());
        let ready = || feed.line.lock().ready.len() as u64;
        while ready() < ahead(threads()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{} are ready", ready());
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(ready(), ahead(threads()), "no more than may be");
    });
}

#[test]
fn a_thread_that_dies_is_an_error_and_not_the_end() {
    let line = Arc::new(Line::default());
    let died = line.clone();
    let thread = std::thread::spawn(move || died.watched(|_| panic!("on purpose")));
    assert!(thread.join().is_err());
    assert_eq!(Feed { line }.next().unwrap().err(), Some(Unfit::Lost));
}
