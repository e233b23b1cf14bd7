//! Recipes on disk and on screen.

use crate::{DONE, args, output};
use anyhow::{Context, Result};
use rondo::recipe::{
    KdlReduction, Method, OptimizerOnArrival, Precision, Preset, Recipe, Select, VssNegatives,
};
use rondo::settings;
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

/// The recipe an operator named, resolved.
///
/// # Errors
/// A file that cannot be read, or all problems in it, with their lines.
pub fn resolve(args: &args::Recipe) -> Result<Recipe> {
    match (&args.recipe, args.preset) {
        (Some(path), _) => load(path),
        (None, preset) => Ok(Recipe::preset(preset.unwrap_or(Preset::Paper))),
    }
}

fn load(path: &Path) -> Result<Recipe> {
    let mut text = String::new();
    let limit = settings::SETTINGS_MAX_BYTES as u64 + 1;
    std::fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_string(&mut text))
        .with_context(|| format!("reading the recipe {}", path.display()))?;
    settings::parse("recipe", &text, Recipe::from_table)
        .with_context(|| format!("reading the recipe {}", path.display()))
}

pub(crate) fn show(args: &args::Recipe) -> Result<u8> {
    output::line(to_toml(&resolve(args)?).trim_end())?;
    Ok(DONE)
}

/// A recipe file that says every value, each with what it means; reading it gives the same recipe.
#[must_use]
pub fn to_toml(r: &Recipe) -> String {
    let a = r.architecture;
    let widths = format!("[{}, {}, {}, {}]", a.n1, a.n2, a.n3, a.m);
    let steps = format!("{:?}", r.learning_rate_epochs);
    let mut text = String::new();
    let mut line = |key: &str, value: String, note: &str| {
        let _ = writeln!(text, "{:<40} # {note}", format!("{key} = {value}"));
    };
    macro_rules! choice {
        ($key:ident: $of:ident) => {{
            let all: Vec<&str> = $of::ALL.iter().map(|choice| choice.name()).collect();
            line(stringify!($key), format!("\"{}\"", r.$key), &all.join(", "));
        }};
    }
    macro_rules! value {
        // Whole numbers and truth values as they are; floats in the shortest text that reads back.
        ($key:ident, $note:literal) => {
            line(stringify!($key), format!("{:?}", r.$key), $note)
        };
    }
    choice!(preset: Preset);
    choice!(method: Method);
    line("widths", widths, "of DeepMedic: first, middle and last layers of a branch, head");
    value!(epochs, "passes over the training cases in one visit");
    value!(segments_per_case, "drawn in each pass, half of them centred on tumour");
    value!(cases_per_pool, "cases whose segments are pooled and shuffled");
    value!(mini_batch, "segments per update");
    value!(learning_rate, "Adam's step");
    line("learning_rate_epochs", steps, "epochs after which the step is multiplied");
    value!(learning_rate_factor, "by this");
    value!(weight_decay, "coupled L2 on every tensor");
    value!(adam_epsilon, "ε of Adam");
    value!(amsgrad, "running maximum of the second moment");
    value!(vss_alpha, "weight of sensitivity against specificity");
    choice!(vss_negatives: VssNegatives);
    value!(vss_epsilon, "ε of VSS");
    value!(kdl_lambda, "weight of the distillation loss (lwf)");
    value!(kdl_temperature, "its temperature");
    choice!(kdl_reduction: KdlReduction);
    choice!(optimizer_on_arrival: OptimizerOnArrival);
    choice!(select: Select);
    value!(validate_every, "epochs between two validations");
    choice!(precision: Precision);
    value!(augment_flips, "mirror segments along each axis, at random");
    value!(augment_scale, "s: intensities times U(1 - s, 1 + s); 0 = off");
    value!(augment_shift, "s: intensities plus U(-s, s), in z-score units; 0 = off");
    value!(gradient_clip, "largest L2 norm of the gradient; 0 = off");
    // Left out, it suits whichever method is chosen.
    let unused = !r.method.anchors() && r.anchor_lambda == Recipe::preset(r.preset).anchor_lambda;
    let key = if unused { "# anchor_lambda" } else { "anchor_lambda" };
    let note = "weight of the penalty (left out: ewc 100, mas 0.1)";
    line(key, format!("{:?}", r.anchor_lambda), note);
    value!(importance_segments, "on which importance is measured (ewc, mas)");
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo::recipe::Architecture;

    #[test]
    fn shown_recipes_read_back_the_same() {
        for preset in [Preset::Paper, Preset::Published] {
            let recipe = Recipe {
                architecture: Architecture { n1: 8, n2: 12, n3: 16, m: 32 },
                learning_rate_epochs: Vec::new(),
                weight_decay: 0.0,
                vss_epsilon: 0.25,
                method: Method::Ewc,
                precision: Precision::Bf16,
                augment_flips: true,
                augment_scale: 0.1,
                augment_shift: 0.25,
                gradient_clip: 1.5,
                anchor_lambda: 7.0,
                importance_segments: 12,
                ..Recipe::preset(preset)
            };
            let text = to_toml(&recipe);
            assert_eq!(
                settings::parse("recipe", &text, Recipe::from_table).unwrap(),
                recipe,
                "{text}"
            );
        }
    }
    #[test]
    fn the_example_says_every_switch_of_the_paper() {
        let text = to_toml(&Recipe::preset(Preset::Paper));
        assert_eq!(include_str!("../../../deploy/examples/recipe.toml"), text);
        assert!(text.lines().all(|line| line.len() <= 110), "{text}");
    }
}
