#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use super::*;
use crate::augment::Augmentation;
use ndarray::{Array3, s};
use rondo::recipe::Preset;

pub(crate) struct Owned {
    pub(crate) image: Array3<f32>,
    pub(crate) label: Array3<u8>,
    pub(crate) brain: Array3<u8>,
}

impl Owned {
    pub(crate) fn new(shape: [usize; 3], tumour: &[[usize; 3]]) -> Self {
        let image = Array3::from_shape_fn(shape, |(i, j, k)| (i * 10_000 + j * 100 + k) as f32);
        let mut label = Array3::zeros(shape);
        tumour.iter().for_each(|at| label[*at] = 1);
        Self { image, label, brain: Array3::ones(shape) }
    }

    pub(crate) fn case(&self) -> Case<'_> {
        Case {
            id: "a",
            image: self.image.view(),
            label: self.label.view(),
            brain: self.brain.view(),
        }
    }
}

fn plain(cases: &[Indexed<'_>], segments: &[Segment]) -> Batch {
    cut(cases, segments, |_| Augmentation::NONE).unwrap()
}

#[test]
fn unfit_cases_are_refused_with_a_sentence() {
    let refuse = |owned: &Owned| Indexed::new(owned.case()).err().unwrap().to_string();
    assert!(refuse(&Owned::new([24, 30, 30], &[])).contains("24"));
    let mut owned = Owned::new([30; 3], &[]);
    owned.brain.fill(0);
    assert!(refuse(&owned).contains("neither"));
    owned.label = Array3::zeros([30, 30, 31]);
    assert!(refuse(&owned).contains("shapes"));
    let owned = Owned::new([30; 3], &[]);
    let turned = Case { image: owned.image.view().reversed_axes(), ..owned.case() };
    assert!(Indexed::new(turned).err().unwrap().to_string().contains("C order"));
}

#[test]
fn a_value_that_is_no_number_is_found_where_it_is_cut() {
    let mut owned = Owned::new([64; 3], &[]);
    owned.image[[40, 40, 40]] = f32::NAN;
    let cases = [Indexed::new(owned.case()).unwrap()];
    let at = |centre| cut(&cases, &[Segment { case: 0, centre }], |_| Augmentation::NONE);
    assert!(at([12; 3]).is_ok(), "neither window reaches it");
    assert_eq!(at([32; 3]).err(), Some(Unfit::NotFinite("a".to_owned())), "at full resolution");
    assert_eq!(at([13; 3]).err(), Some(Unfit::NotFinite("a".to_owned())), "at one third");
}

#[test]
fn a_draw_is_half_tumour_without_repeats_and_fills_what_is_short() {
    let tumour: Vec<_> = (13..17).map(|k| [14, 15, k]).chain([[2, 2, 2]]).collect();
    let owned = Owned::new([30, 31, 32], &tumour);
    let indexed = Indexed::new(owned.case()).unwrap();
    assert!(indexed.shortage(8).is_none());
    assert!(indexed.shortage(10).unwrap().contains("4 tumour voxels"));
    for epoch in 0..50 {
        let centres = indexed.draw(10, 5, epoch, 0);
        let on_tumour = centres.iter().filter(|at| owned.label[**at] != 0).count();
        assert_eq!(
            (centres.len(), on_tumour),
            (10, 4),
            "the voxel near the border is inadmissible"
        );
        let mut unique = centres.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), 10);
        let inside =
            |at: &[usize; 3]| (0..3).all(|d| (12..owned.image.shape()[d] - 12).contains(&at[d]));
        assert!(centres.iter().all(inside));
        assert_eq!(centres, indexed.draw(10, 5, epoch, 0));
    }
    assert_ne!(indexed.draw(10, 5, 0, 0), indexed.draw(10, 6, 0, 0));
}

#[test]
fn too_few_centres_of_either_kind_are_said_and_used_up() {
    let none = Owned::new([30; 3], &[[2, 2, 2]]);
    let indexed = Indexed::new(none.case()).unwrap();
    assert!(indexed.shortage(10).unwrap().contains("no tumour"));
    assert_eq!((indexed.draw(10, 5, 0, 0).len(), indexed.segments(10)), (10, 10));
    assert!(indexed.shortage(1).is_none(), "a single segment is background anyway");

    let tiny = Owned::new([25; 3], &[]);
    let indexed = Indexed::new(tiny.case()).unwrap();
    assert_eq!((indexed.draw(10, 5, 0, 0), indexed.segments(10)), (vec![[12; 3]], 1));
    assert!(indexed.shortage(10).unwrap().contains("only 1 centres"));

    let all = Owned { label: Array3::ones([30; 3]), ..Owned::new([30; 3], &[]) };
    let indexed = Indexed::new(all.case()).unwrap();
    assert!(indexed.shortage(10).unwrap().contains("0 background voxels"));
    assert_eq!(indexed.draw(10, 5, 0, 0).len(), 10);
}

/// Ranks count voxels in C order: the same centres as from a list of all voxels of a kind.
#[test]
fn centres_are_those_of_a_list_of_voxels() {
    let shape = [29, 33, 31];
    let tumour: Vec<_> = (0..60).map(|n| [12 + n % 5, 12 + n % 9, 12 + n % 7]).collect();
    let mut owned = Owned::new(shape, &tumour);
    owned.brain = Array3::from_shape_fn(shape, |(i, j, k)| u8::from((i * 7 + j * 3 + k) % 4 > 0));
    let indexed = Indexed::new(owned.case()).unwrap();
    let listed = |tumour: bool| -> Vec<[usize; 3]> {
        let all = owned.label.indexed_iter().map(|((i, j, k), label)| ([i, j, k], *label != 0));
        all.filter(|(at, is_tumour)| {
            let inside = (0..3).all(|d| (12..shape[d] - 12).contains(&at[d]));
            inside && *is_tumour == tumour && (tumour || owned.brain[*at] != 0)
        })
        .map(|(at, _)| at)
        .collect()
    };
    let (tumours, others) = (listed(true), listed(false));
    for epoch in 0..40 {
        let mut rng = random::stream(9, Purpose::Centres, epoch, 3);
        let mut expected = Vec::new();
        for list in [&tumours, &others] {
            let ranks = random::distinct(&mut rng, 5, list.len() as u64);
            expected.extend(ranks.into_iter().map(|r| list[r as usize]));
        }
        assert_eq!(indexed.draw(10, 9, epoch as u32, 3), expected);
    }
}

#[test]
fn all_background_voxels_are_drawn_alike() {
    let mut owned = Owned::new([27; 3], &[[13; 3]]);
    owned.brain[[12, 12, 12]] = 0;
    let indexed = Indexed::new(owned.case()).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for epoch in 0..2500 {
        for at in indexed.draw(10, 1, epoch, 0) {
            *counts.entry(at).or_insert(0) += 1;
        }
    }
    assert_eq!(counts.remove(&[13; 3]), Some(2500), "one tumour voxel, in every draw");
    assert_eq!(counts.len(), 25);
    assert!(counts.values().all(|c| (800..1000).contains(c)), "{counts:?}");
}

#[test]
fn crops_follow_the_published_rule() {
    let owned = Owned::new([40, 41, 42], &[[15, 20, 25]]);
    let cases = [Indexed::new(owned.case()).unwrap()];
    let batch = plain(&cases, &[Segment { case: 0, centre: [15, 20, 25] }]);
    assert_eq!((batch.x1.len(), batch.x2.len(), batch.target.len()), (15_625, 6_859, 729));
    let at = |i: usize, j: usize, k: usize| (i * 10_000 + j * 100 + k) as f32;
    assert_eq!(batch.x1[0], at(3, 8, 13));
    assert_eq!(batch.x1[15_624], at(27, 32, 37));
    assert_eq!(batch.x2[0], at(0, 0, 0), "−12, −7 and −2 are clamped");
    assert_eq!(batch.x2[9 * 361 + 9 * 19 + 9], at(15, 20, 25));
    assert_eq!(batch.x2[6_858], at(39, 40, 41), "42, 47 and 52 are clamped");
    assert_eq!(batch.target.iter().position(|t| *t == 1.0), Some(4 * 81 + 4 * 9 + 4));
    // Voxel by voxel, also where every axis is clamped on both sides.
    let small = Owned::new([25, 26, 30], &[[12, 13, 14]]);
    let cases = [Indexed::new(small.case()).unwrap()];
    let batch = plain(&cases, &[Segment { case: 0, centre: [12, 13, 14] }]);
    let place = |edge: usize, stride: usize, n: usize| {
        let at = |d: usize, i: usize| {
            let p = [12, 13, 14][d] + i as i64 * stride as i64 - (edge / 2 * stride) as i64;
            p.clamp(0, [24, 25, 29][d]) as usize
        };
        small.image[[at(0, n / edge / edge), at(1, n / edge % edge), at(2, n % edge)]]
    };
    assert!(batch.x1.iter().enumerate().all(|(n, v)| *v == place(25, 1, n)));
    assert!(batch.x2.iter().enumerate().all(|(n, v)| *v == place(19, 3, n)));
}

#[test]
fn a_flipped_segment_is_the_segment_of_a_flipped_volume() {
    let shape = [40, 37, 45];
    let tumour: Vec<_> = (0..40).map(|n| [13 + n % 7, 14 + n % 5, 15 + n % 11]).collect();
    let owned = Owned::new(shape, &tumour);
    let cases = [Indexed::new(owned.case()).unwrap()];
    for flips in (0..8).map(|n| [n & 1 == 1, n & 2 == 2, n & 4 == 4]) {
        let step = flips.map(|flip| if flip { -1 } else { 1 });
        let turn = s![..;step[0], ..;step[1], ..;step[2]];
        let mirrored = Owned {
            image: owned.image.slice(turn).as_standard_layout().into_owned(),
            label: owned.label.slice(turn).as_standard_layout().into_owned(),
            brain: owned.brain.clone(),
        };
        let others = [Indexed::new(mirrored.case()).unwrap()];
        for centre in [[12, 12, 12], [16, 17, 18], [27, 24, 32]] {
            let augmentation = Augmentation { flips, ..Augmentation::NONE };
            let flipped = cut(&cases, &[Segment { case: 0, centre }], |_| augmentation).unwrap();
            let d: [usize; 3] = [0, 1, 2];
            let centre = d.map(|d| if flips[d] { shape[d] - 1 - centre[d] } else { centre[d] });
            let expected = plain(&others, &[Segment { case: 0, centre }]);
            assert!(flipped.x1 == expected.x1, "{flips:?}");
            assert!(flipped.x2 == expected.x2, "{flips:?}");
            assert!(flipped.target == expected.target, "{flips:?}");
        }
    }
}

#[test]
fn intensities_of_both_inputs_change_alike_and_the_target_does_not() {
    let owned = Owned::new([40; 3], &[[20; 3]]);
    let cases = [Indexed::new(owned.case()).unwrap()];
    let segments = [Segment { case: 0, centre: [20; 3] }];
    let batch = plain(&cases, &segments);
    let augmentation = Augmentation { scale: 1.1, shift: -0.3, ..Augmentation::NONE };
    let changed = cut(&cases, &segments, |_| augmentation).unwrap();
    for (before, after) in [(&batch.x1, &changed.x1), (&batch.x2, &changed.x2)] {
        assert!(before.iter().zip(after).all(|(b, a)| b * 1.1 - 0.3 == *a));
    }
    assert!(batch.target == changed.target);
}

#[test]
fn an_epoch_visits_every_case_once() {
    let owned: Vec<Owned> = (0..7).map(|i| Owned::new([30; 3], &[[13, 13, 12 + i]])).collect();
    let cases: Vec<_> = owned.iter().map(Owned::case).collect();
    let cases: Vec<_> = index(&cases).into_iter().map(Result::unwrap).collect();
    assert_eq!(cases[5].draw(2, 0, 0, 0)[0], [13, 13, 17], "in the order of the cohort");
    let recipe = Recipe { cases_per_pool: 3, mini_batch: 8, ..Recipe::preset(Preset::Paper) };
    let all = epoch(&cases, &recipe, 3, 0);
    let sizes: Vec<_> = all.iter().map(Vec::len).collect();
    assert_eq!(sizes, [8, 8, 8, 6, 8, 8, 8, 6, 8, 2]);
    assert_eq!(batches(&cases, &recipe, 3, 0), 10, "known without drawing");
    for case in 0..7 {
        assert_eq!(all.iter().flatten().filter(|s| s.case == case).count(), 10);
    }
    assert_eq!(all, epoch(&cases, &recipe, 3, 0));
    assert_ne!(all, epoch(&cases, &recipe, 3, 1));
    assert_eq!(epoch(&cases[..1], &recipe, 3, 0).len(), 2, "a cohort of one case");
    assert!(epoch(&[], &recipe, 3, 0).is_empty());
}

#[test]
fn the_rate_is_measured_through_the_feed() {
    let owned = Owned::new([30; 3], &[[13; 3]]);
    let recipe = Recipe::preset(Preset::Paper);
    let measured = rate(&[owned.case()], &recipe, 1, 0.05).unwrap();
    assert!(measured.segments_per_s > 10.0 && measured.threads > 0, "{measured:?}");
    let small = Owned::new([20; 3], &[]);
    assert!(matches!(rate(&[small.case()], &recipe, 1, 0.05), Err(Unfit::Small { .. })));
}
