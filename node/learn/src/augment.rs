//! Augmentation of single segments, off unless the recipe asks for it.

use crate::random::{self, Purpose};
use rondo::recipe::Recipe;

/// What is done to one segment: to both of its inputs alike, and its target where that has meaning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Augmentation {
    /// Axes `[i, j, k]` mirrored about the centre. Both inputs and the target lie symmetrically
    /// about it, so a flipped segment equals the segment of a flipped volume.
    pub(crate) flips: [bool; 3],
    /// Intensity becomes `v · scale + shift`, in z-score units.
    pub(crate) scale: f32,
    pub(crate) shift: f32,
}

impl Augmentation {
    pub(crate) const NONE: Self = Self { flips: [false; 3], scale: 1.0, shift: 0.0 };

    /// The augmentation of segment `number` of an epoch. Every kind takes its draws whether or not
    /// it is on, so that turning one on leaves the others as they were.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn draw(recipe: &Recipe, seed: u64, epoch: u32, number: u64) -> Self {
        let (by_scale, by_shift) = (recipe.augment_scale, recipe.augment_shift);
        if !recipe.augment_flips && by_scale == 0.0 && by_shift == 0.0 {
            return Self::NONE;
        }
        let mut rng = random::stream(seed, Purpose::Augmentation, u64::from(epoch), number);
        let flips = [(); 3].map(|()| random::unit(&mut rng) < 0.5);
        let mut around = |middle: f64, reach: f64| {
            (middle + reach * (2.0 * random::unit(&mut rng) - 1.0)) as f32
        };
        let (scale, shift) = (around(1.0, by_scale), around(0.0, by_shift));
        Self { flips: flips.map(|flip| flip && recipe.augment_flips), scale, shift }
    }

    /// Scales and shifts intensities in place.
    pub(crate) fn intensities(self, values: &mut [f32]) {
        if (self.scale, self.shift) != (1.0, 0.0) {
            values.iter_mut().for_each(|v| *v = *v * self.scale + self.shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rondo::recipe::Preset;

    #[test]
    fn draws_stay_in_their_ranges_and_do_not_disturb_each_other() {
        let off = Recipe::preset(Preset::Paper);
        assert_eq!(Augmentation::draw(&off, 1, 0, 0), Augmentation::NONE);
        let all = Recipe { augment_flips: true, augment_scale: 0.2, augment_shift: 0.5, ..off };
        let draws: Vec<_> = (0..4000).map(|n| Augmentation::draw(&all, 1, 3, n)).collect();
        for axis in 0..3 {
            let flipped = draws.iter().filter(|d| d.flips[axis]).count();
            assert!((1850..2150).contains(&flipped), "axis {axis}: {flipped}");
        }
        let range = |of: fn(&Augmentation) -> f32| {
            let values = draws.iter().map(of);
            values.fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)))
        };
        let near = |a: (f32, f32), b: (f32, f32)| {
            (a.0 - b.0).abs() < 0.01 && (a.1 - b.1).abs() < 0.01 && a.0 >= b.0 && a.1 <= b.1
        };
        assert!(near(range(|d| d.scale), (0.8, 1.2)), "{:?}", range(|d| d.scale));
        assert!(near(range(|d| d.shift), (-0.5, 0.5)), "{:?}", range(|d| d.shift));

        let shift = Recipe { augment_flips: false, augment_scale: 0.0, ..all.clone() };
        let alone = Augmentation::draw(&shift, 1, 3, 7);
        assert_eq!(alone, Augmentation { shift: draws[7].shift, ..Augmentation::NONE });
        assert_ne!(Augmentation::draw(&all, 1, 4, 7), draws[7]);
        assert_ne!(Augmentation::draw(&all, 2, 3, 7), draws[7]);
    }
}
