//! The parts of the loss on given logits, and the gradient of their sum.

use super::directory::{File, SHAPE_LOGITS, section};
use super::{Check, Error, Read, compare, host, magnitude};
use crate::device::Device;
use crate::loss::{Parts, Terms};
use rondo::recipe::{KdlReduction, Preset, Recipe, VssNegatives};
use serde_json::{Map, Value};

/// Relative: to the value itself, or to the largest component of the gradient.
pub(super) const TOLERANCE: f64 = 1e-4;
/// Where a mean over voxels is smaller, the reference's own rounding (1 − (…) in 32 bits) outweighs
/// the tolerance, and the error is taken relative to this.
pub(super) const FLOOR: f64 = 5e-3;
/// Smallest scale of a gradient.
const GRADIENT_FLOOR: f64 = 1e-6;

/// A golden number and the setting in its name, as in `kdl_T2_sum_over_voxels`.
#[derive(Debug, Clone, Copy)]
struct Named {
    setting: f64,
    value: f64,
}

/// The one number of a case whose key is `prefix`, a setting, `suffix`.
fn named(case: &Map<String, Value>, prefix: &str, suffix: &str) -> Result<Named, Error> {
    let wrong = |why: String| Error::json("losses", &why);
    let setting = |key: &str| -> Option<f64> {
        key.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok().filter(|s: &f64| s.is_finite())
    };
    let mut found = case.iter().filter_map(|(key, value)| Some((key, setting(key)?, value)));
    match (found.next(), found.next()) {
        (Some((key, setting, value)), None) => {
            let value = value.as_f64().ok_or_else(|| wrong(format!("`{key}` is not a number")))?;
            Ok(Named { setting, value })
        }
        (None, _) => Err(wrong(format!("a case has no `{prefix}…{suffix}`"))),
        (Some(_), Some(_)) => Err(wrong(format!("a case has `{prefix}…{suffix}` twice"))),
    }
}

/// What `learning.json` says of one case.
struct Case {
    number: u64,
    ce: f64,
    vss_any: Named,
    vss_all: Named,
    kdl: Named,
    total: Named,
    unknown: Vec<String>,
}

impl Case {
    fn of(case: &Map<String, Value>) -> Result<Self, Error> {
        let whole = |key: &str| case.get(key).and_then(Value::as_u64);
        let number = |key: &str| case.get(key).and_then(Value::as_f64);
        let missing = |key: &str| Error::json("losses", &format!("a case has no number `{key}`"));
        let case = Self {
            number: whole("case").ok_or_else(|| missing("case"))?,
            ce: number("ce").ok_or_else(|| missing("ce"))?,
            vss_any: named(case, "vss_any_background_eps", "")?,
            vss_all: named(case, "vss_all_background_eps", "")?,
            kdl: named(case, "kdl_T", "_sum_over_voxels")?,
            total: named(case, "total_lambda", "")?,
            unknown: case
                .keys()
                .filter(|key| {
                    let known = [
                        "vss_any_background_eps",
                        "vss_all_background_eps",
                        "kdl_T",
                        "total_lambda",
                    ];
                    !["case", "ce"].contains(&key.as_str())
                        && !known.iter().any(|k| key.starts_with(k))
                })
                .cloned()
                .collect(),
        };
        let problems = case.recipe().problems();
        match problems.is_empty() {
            true => Ok(case),
            false => {
                Err(Error::json(&format!("losses, case {}", case.number), &problems.join("; ")))
            }
        }
    }

    /// The settings of the case's total.
    fn recipe(&self) -> Recipe {
        Recipe {
            vss_negatives: VssNegatives::AnyBackground,
            vss_epsilon: self.vss_any.setting,
            kdl_temperature: self.kdl.setting,
            kdl_lambda: self.total.setting,
            kdl_reduction: KdlReduction::VoxelSum,
            ..Recipe::preset(Preset::Paper)
        }
    }
}

pub(super) fn check(
    read: &Read<'_>,
    device: &Device,
    tell: &mut dyn FnMut(Check),
) -> Result<(), Error> {
    let cases: Vec<Map<String, Value>> = section(read, "losses")?;
    if cases.is_empty() {
        return Err(Error::json("losses", &"there is no case"));
    }
    let file = File::read(read, "losses.safetensors")?;
    let cases = cases.iter().map(Case::of).collect::<Result<Vec<_>, _>>()?;
    file.tensors()?.only(|name| {
        let number = name.split_once('.').and_then(|(number, _)| number.parse().ok());
        number.is_some_and(|number: u64| cases.iter().any(|case| case.number == number))
    })?;
    for case in &cases {
        if let Err(e) = one(case, &file, device, tell) {
            tell(Check::failed(&format!("losses.{}", case.number), TOLERANCE, e.to_string()));
        }
    }
    Ok(())
}

fn one(
    case: &Case,
    file: &File,
    device: &Device,
    tell: &mut dyn FnMut(Check),
) -> Result<(), Error> {
    let tensors = file.tensors()?;
    let name = |part: &str| format!("{}.{part}", case.number);
    let golden = tensors.get(&name("logits"), SHAPE_LOGITS)?;
    let [_, _, d, h, w] = golden.shape;
    let teacher = tensors.get(&name("teacher"), golden.shape)?;
    let target = tensors.target(&name("target"), [golden.batch(), d, h, w])?;
    let gradient = tensors.get(&name("grad_total"), golden.shape)?;
    #[allow(clippy::cast_precision_loss)]
    let voxels = (d * h * w) as f64;

    let mut recipe = case.recipe();
    let logits = golden.on(device).autodiff().require_grad();
    let terms = Terms::of(logits.clone(), target.rows(device), Some(teacher.on(device)), &recipe);
    let total = terms.total(&recipe);
    let mut grads = total.backward();
    let found = logits.grad_remove(&mut grads);
    let total = host(total)?.first().copied().unwrap_or(f32::NAN);
    let parts = terms.read()?;
    recipe.vss_negatives = VssNegatives::AllBackground;
    recipe.vss_epsilon = case.vss_all.setting;
    recipe.kdl_reduction = KdlReduction::VoxelMean;
    let other =
        Terms::of(golden.on(device), target.rows(device), Some(teacher.on(device)), &recipe)
            .read()?;

    let note = match case.unknown.is_empty() {
        true => String::new(),
        false => format!("not checked: {}", case.unknown.join(", ")),
    };
    let mut number = |part: &str, found: f64, expected: f64, floor: f64| {
        let check = format!("losses.{}.{part}", case.number);
        let note = if part == "ce" { note.as_str() } else { "" };
        tell(Check::relative(&check, found, expected, floor, TOLERANCE).noting(note));
    };
    let Parts { ce, vss, kdl, .. } = parts;
    number("ce", ce.into(), case.ce, FLOOR);
    number("vss_any_background", vss.into(), case.vss_any.value, FLOOR);
    number("vss_all_background", other.vss.into(), case.vss_all.value, FLOOR);
    number("kdl", kdl.into(), case.kdl.value, FLOOR * voxels);
    number("kdl_voxel_mean", f64::from(other.kdl) * voxels, case.kdl.value, FLOOR * voxels);
    number("total", total.into(), case.total.value, FLOOR);
    let check = format!("losses.{}.gradient", case.number);
    let scale = magnitude(&gradient.values, GRADIENT_FLOOR);
    tell(match found {
        Some(found) => compare(&check, &host(found)?, &gradient.values, scale, TOLERANCE),
        None => Check::failed(&check, TOLERANCE, "the loss has no gradient by the logits"),
    });
    Ok(())
}
