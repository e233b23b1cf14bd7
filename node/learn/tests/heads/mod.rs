//! Small heads to train on, shared by the tests of visits.
#![allow(dead_code, clippy::unwrap_used)]

use ndarray::Array3;
use rondo::recipe::{Architecture, Preset, Recipe};
use rondo_learn::report::Progress;
use rondo_learn::segment::Case;
use std::ops::ControlFlow;

pub(crate) const NARROW: Architecture = Architecture { n1: 2, n2: 3, n3: 4, m: 6 };

pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) image: Array3<f32>,
    pub(crate) label: Array3<u8>,
    pub(crate) brain: Array3<u8>,
}

/// A bright ball in a smooth head.
pub(crate) fn head(id: usize, edge: usize) -> Head {
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

pub(crate) fn heads() -> Vec<Head> {
    (0..3).map(|id| head(id, 28)).collect()
}

pub(crate) fn views(heads: &[Head]) -> Vec<Case<'_>> {
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

pub(crate) fn recipe() -> Recipe {
    Recipe {
        architecture: NARROW,
        epochs: 3,
        mini_batch: 7,
        learning_rate_epochs: vec![2],
        ..Recipe::preset(Preset::Paper)
    }
}

pub(crate) fn quiet(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
