//! Recipes for the trainer.

use super::Error;
use crate::trainer as wire;
use rondo::recipe::{
    Architecture, KdlReduction, Method, OptimizerOnArrival, Preset, Recipe, Select, VssNegatives,
};

/// Enum numbers on the wire are the place in `ALL`, from 1; 0 is unspecified.
macro_rules! numbered {
    ($($name:ident),+) => {$(
        #[allow(non_snake_case)]
        mod $name {
            use super::{Error, $name};
            pub(super) fn write(value: $name) -> i32 {
                let at = $name::ALL.iter().position(|v| *v == value).unwrap_or_default();
                i32::try_from(at + 1).unwrap_or_default()
            }
            pub(super) fn read(field: &'static str, number: i32) -> Result<$name, Error> {
                let at = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
                at.and_then(|i| $name::ALL.get(i)).copied().ok_or(Error::Unknown(field))
            }
        }
    )+};
}
numbered!(
    KdlReduction,
    Method,
    OptimizerOnArrival,
    Preset,
    Select,
    VssNegatives
);

impl From<&Recipe> for wire::Recipe {
    fn from(r: &Recipe) -> Self {
        let Architecture { n1, n2, n3, m } = r.architecture;
        Self {
            preset: Preset::write(r.preset),
            method: Method::write(r.method),
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
            vss_negatives: VssNegatives::write(r.vss_negatives),
            vss_epsilon: r.vss_epsilon,
            kdl_lambda: r.kdl_lambda,
            kdl_temperature: r.kdl_temperature,
            kdl_reduction: KdlReduction::write(r.kdl_reduction),
            optimizer_on_arrival: OptimizerOnArrival::write(r.optimizer_on_arrival),
            select: Select::write(r.select),
            validate_every: r.validate_every,
        }
    }
}

impl TryFrom<wire::Recipe> for Recipe {
    type Error = Error;
    fn try_from(w: wire::Recipe) -> Result<Self, Error> {
        let recipe = Self {
            preset: Preset::read("preset", w.preset)?,
            method: Method::read("method", w.method)?,
            architecture: Architecture {
                n1: w.n1,
                n2: w.n2,
                n3: w.n3,
                m: w.m,
            },
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
            vss_negatives: VssNegatives::read("vss_negatives", w.vss_negatives)?,
            vss_epsilon: w.vss_epsilon,
            kdl_lambda: w.kdl_lambda,
            kdl_temperature: w.kdl_temperature,
            kdl_reduction: KdlReduction::read("kdl_reduction", w.kdl_reduction)?,
            optimizer_on_arrival: OptimizerOnArrival::read(
                "optimizer_on_arrival",
                w.optimizer_on_arrival,
            )?,
            select: Select::read("select", w.select)?,
            validate_every: w.validate_every,
        };
        let problems = recipe.problems();
        if problems.is_empty() {
            Ok(recipe)
        } else {
            Err(Error::Recipe(problems))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_survive_the_wire_and_bad_ones_do_not() {
        for preset in [Preset::Paper, Preset::Published] {
            let recipe = Recipe::preset(preset);
            let wire = wire::Recipe::from(&recipe);
            for bad in [
                wire::Recipe {
                    method: 0,
                    ..wire.clone()
                },
                wire::Recipe {
                    select: 9,
                    ..wire.clone()
                },
                wire::Recipe {
                    n1: 0,
                    ..wire.clone()
                },
                wire::Recipe {
                    learning_rate: f64::NAN,
                    ..wire.clone()
                },
            ] {
                assert!(Recipe::try_from(bad).is_err());
            }
            assert_eq!(Recipe::try_from(wire), Ok(recipe));
        }
    }
}
