//! Recipes for the trainer.

use super::Error;
use crate::trainer as wire;
use rondo::recipe::{
    Architecture, KdlReduction, Method, OptimizerOnArrival, Precision, Preset, Recipe, Select,
    VssNegatives,
};

fn read<T>(field: &'static str, choice: Option<T>) -> Result<T, Error> {
    choice.ok_or(Error::Unknown(field))
}

impl From<&Recipe> for wire::Recipe {
    fn from(r: &Recipe) -> Self {
        let Architecture { n1, n2, n3, m } = r.architecture;
        Self {
            preset: r.preset.number(),
            method: r.method.number(),
            n1,
            n2,
            n3,
            m,
            epochs: r.epochs,
            segments_per_case: r.segments_per_case,
            cases_per_pool: r.cases_per_pool,
            mini_batch: r.mini_batch,
            learning_rate: r.learning_rate,
            learning_rate_epochs: r.learning_rate_epochs.clone(),
            learning_rate_factor: r.learning_rate_factor,
            weight_decay: r.weight_decay,
            adam_epsilon: r.adam_epsilon,
            amsgrad: r.amsgrad,
            vss_alpha: r.vss_alpha,
            vss_negatives: r.vss_negatives.number(),
            vss_epsilon: r.vss_epsilon,
            kdl_lambda: r.kdl_lambda,
            kdl_temperature: r.kdl_temperature,
            kdl_reduction: r.kdl_reduction.number(),
            optimizer_on_arrival: r.optimizer_on_arrival.number(),
            select: r.select.number(),
            validate_every: r.validate_every,
            precision: r.precision.number(),
            augment_flips: r.augment_flips,
            augment_scale: r.augment_scale,
            augment_shift: r.augment_shift,
            gradient_clip: r.gradient_clip,
            anchor_lambda: r.anchor_lambda,
            importance_segments: r.importance_segments,
        }
    }
}

impl TryFrom<wire::Recipe> for Recipe {
    type Error = Error;
    fn try_from(w: wire::Recipe) -> Result<Self, Error> {
        let recipe = Self {
            preset: read("preset", Preset::from_number(w.preset))?,
            method: read("method", Method::from_number(w.method))?,
            architecture: Architecture { n1: w.n1, n2: w.n2, n3: w.n3, m: w.m },
            epochs: w.epochs,
            segments_per_case: w.segments_per_case,
            cases_per_pool: w.cases_per_pool,
            mini_batch: w.mini_batch,
            learning_rate: w.learning_rate,
            learning_rate_epochs: w.learning_rate_epochs,
            learning_rate_factor: w.learning_rate_factor,
            weight_decay: w.weight_decay,
            adam_epsilon: w.adam_epsilon,
            amsgrad: w.amsgrad,
            vss_alpha: w.vss_alpha,
            vss_negatives: read("vss_negatives", VssNegatives::from_number(w.vss_negatives))?,
            vss_epsilon: w.vss_epsilon,
            kdl_lambda: w.kdl_lambda,
            kdl_temperature: w.kdl_temperature,
            kdl_reduction: read("kdl_reduction", KdlReduction::from_number(w.kdl_reduction))?,
            optimizer_on_arrival: read(
                "optimizer_on_arrival",
                OptimizerOnArrival::from_number(w.optimizer_on_arrival),
            )?,
            select: read("select", Select::from_number(w.select))?,
            validate_every: w.validate_every,
            precision: read("precision", Precision::from_number(w.precision))?,
            augment_flips: w.augment_flips,
            augment_scale: w.augment_scale,
            augment_shift: w.augment_shift,
            gradient_clip: w.gradient_clip,
            anchor_lambda: w.anchor_lambda,
            importance_segments: w.importance_segments,
        };
        let problems = recipe.problems();
        if problems.is_empty() { Ok(recipe) } else { Err(Error::Recipe(problems)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_survive_the_wire_and_bad_ones_do_not() {
        for preset in [Preset::Paper, Preset::Published] {
            let recipe = Recipe {
                method: Method::Mas,
                precision: Precision::Bf16,
                augment_flips: true,
                augment_scale: 0.1,
                augment_shift: 0.2,
                gradient_clip: 3.0,
                anchor_lambda: 4.0,
                importance_segments: 5,
                ..Recipe::preset(preset)
            };
            let wire = wire::Recipe::from(&recipe);
            for bad in [
                wire::Recipe { method: 0, ..wire.clone() },
                wire::Recipe { select: 9, ..wire.clone() },
                wire::Recipe { n1: 0, ..wire.clone() },
                wire::Recipe { precision: 0, ..wire.clone() },
                wire::Recipe { anchor_lambda: 0.0, ..wire.clone() },
                wire::Recipe { augment_scale: 1.0, ..wire.clone() },
                wire::Recipe { learning_rate: f64::NAN, ..wire.clone() },
            ] {
                assert!(Recipe::try_from(bad).is_err());
            }
            assert_eq!(Recipe::try_from(wire), Ok(recipe));
        }
    }
}
