//! Recipes on disk and on screen.

use crate::{DONE, args, output};
use anyhow::{Context, Result};
use rondo::recipe::Recipe;
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
        (None, preset) => Ok(Recipe::preset(preset.unwrap_or(rondo::recipe::Preset::Paper))),
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

/// A recipe file that says every value; reading it gives the same recipe.
#[must_use]
pub fn to_toml(r: &Recipe) -> String {
    let a = r.architecture;
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key} = {value}");
    };
    let quoted = |word: &str| format!("\"{word}\"");
    line("preset", quoted(r.preset.name()));
    line("method", quoted(r.method.name()));
    line("widths", format!("[{}, {}, {}, {}]", a.n1, a.n2, a.n3, a.m));
    line("epochs", r.epochs.to_string());
    line("segments_per_case", r.segments_per_case.to_string());
    line("cases_per_pool", r.cases_per_pool.to_string());
    line("mini_batch", r.mini_batch.to_string());
    line("learning_rate", number(r.learning_rate));
    line("learning_rate_epochs", format!("{:?}", r.learning_rate_epochs));
    line("learning_rate_factor", number(r.learning_rate_factor));
    line("weight_decay", number(r.weight_decay));
    line("adam_epsilon", number(r.adam_epsilon));
    line("amsgrad", r.amsgrad.to_string());
    line("vss_alpha", number(r.vss_alpha));
    line("vss_negatives", quoted(r.vss_negatives.name()));
    line("vss_epsilon", number(r.vss_epsilon));
    line("kdl_lambda", number(r.kdl_lambda));
    line("kdl_temperature", number(r.kdl_temperature));
    line("kdl_reduction", quoted(r.kdl_reduction.name()));
    line("optimizer_on_arrival", quoted(r.optimizer_on_arrival.name()));
    line("select", quoted(r.select.name()));
    line("validate_every", r.validate_every.to_string());
    line("precision", quoted(r.precision.name()));
    line("augment_flips", r.augment_flips.to_string());
    line("augment_scale", number(r.augment_scale));
    line("augment_shift", number(r.augment_shift));
    line("gradient_clip", number(r.gradient_clip));
    line("anchor_lambda", number(r.anchor_lambda));
    line("importance_segments", r.importance_segments.to_string());
    text
}

/// Shortest text that TOML reads back as the same float.
fn number(value: f64) -> String {
    format!("{value:?}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rondo::recipe::{Architecture, Method, Precision, Preset};

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
}
