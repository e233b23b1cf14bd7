//! The dictionary of a published checkpoint: `{iter, state_dict, optim_dict}`.

use super::array::Array;
use super::gather::{self, Named};
use super::pickle::{Ref, Value, Values};
use super::{Error, Format, Imported, quoted};
use rondo::checkpoint::{Extras, TensorSpec, parameters};
use std::collections::BTreeMap;

/// What the optimizer's groups may say beside the numbers that are read from them.
const GROUP_IGNORED: [&str; 5] = ["foreach", "fused", "capturable", "differentiable", "initial_lr"];
/// What must be off: with it, the moments are not those of this Adam.
const GROUP_OFF: [&str; 2] = ["maximize", "decoupled_weight_decay"];
/// Adam's numbers in the published code; others are told.
const PUBLISHED: [(&str, f64); 2] = [("eps", 1e-8), ("weight_decay", 1e-4)];
const BETAS: [f64; 2] = [0.9, 0.999];

/// Adam's state: per parameter its three vectors, and the two numbers that all share.
struct Adam<'v, 'a> {
    tensors: Vec<(String, &'v Array<'a>)>,
    step: f32,
    learning_rate: f32,
}

/// Reads the values of `data.pkl`.
pub(super) fn read(values: &Values<'_>, file_bytes: usize) -> Result<Imported, Error> {
    let mut root = fields(values, values.root, "the checkpoint")?;
    let mut take = |name: &str| root.remove(name).ok_or_else(|| Error::Missing(name.to_owned()));
    let (iterations, state) = (take("iter")?, take("state_dict")?);
    let optimizer = root.remove("optim_dict");
    if let Some(extra) = root.keys().next() {
        return Err(Error::Extra(quoted(extra)));
    }
    let iterations = number(values, iterations)
        .and_then(gather::whole)
        .ok_or_else(|| entry("iter", "is not a count"))?;

    let mut tensors = Named::new();
    for (name, at) in fields(values, state, "state_dict")? {
        let Value::Tensor(array) = values.get(at) else {
            return Err(entry(&format!("state_dict.{name}"), "is not a tensor"));
        };
        tensors.insert(name.to_owned(), array);
    }
    let architecture = gather::widths(&tensors)?;
    let counted = gather::take_counters(&mut tensors, &architecture, false)?;
    let mut notes: Vec<String> = gather::dropped(counted).into_iter().collect();
    let adam = match optimizer {
        Some(at) => adam(values, at, &parameters(&architecture), &mut notes)?,
        None => None,
    };
    let mut scalars = BTreeMap::new();
    let extras = Extras { optimizer: adam.is_some(), ..Extras::default() };
    if let Some(adam) = adam {
        tensors.extend(adam.tensors);
        scalars.insert("optimizer.step", adam.step);
        scalars.insert("optimizer.learning_rate", adam.learning_rate);
    }
    notes.extend(gather::converted(&tensors));
    let weights = gather::weights(architecture, extras, &tensors, &scalars, file_bytes)?;
    Ok(Imported { weights, iterations, format: Format::Published, notes })
}

fn entry(name: &str, reason: &str) -> Error {
    Error::Entry { name: quoted(name), reason: reason.to_owned() }
}

/// The pairs of a dictionary whose keys are texts, each there once.
fn fields<'a>(values: &Values<'a>, at: Ref, name: &str) -> Result<BTreeMap<&'a str, Ref>, Error> {
    let Value::Dict(pairs) = values.get(at) else {
        return Err(entry(name, "is not a dictionary"));
    };
    let mut all = BTreeMap::new();
    for (key, value) in pairs {
        let Value::Text(key) = values.get(*key) else {
            return Err(entry(name, "has a key that is not a text"));
        };
        if all.insert(*key, *value).is_some() {
            return Err(entry(&format!("{name}.{key}"), "is there twice"));
        }
    }
    Ok(all)
}

/// A number, or a tensor of one.
#[allow(clippy::cast_precision_loss, reason = "counts, far below 2^53")]
fn number(values: &Values<'_>, at: Ref) -> Option<f64> {
    match values.get(at) {
        Value::Int(n) => Some(*n as f64),
        Value::Float(x) => Some(*x),
        Value::Tensor(array) => array.only(),
        _ => None,
    }
}

/// Adam's state; none where the dictionary is `None`, empty, or of an optimizer before its first step.
fn adam<'v, 'a>(
    values: &'v Values<'a>,
    at: Ref,
    parameters: &[TensorSpec],
    notes: &mut Vec<String>,
) -> Result<Option<Adam<'v, 'a>>, Error> {
    if matches!(values.get(at), Value::None) {
        return Ok(None);
    }
    let mut all = fields(values, at, "optim_dict")?;
    if all.is_empty() {
        return Ok(None);
    }
    let mut take =
        |name| all.remove(name).ok_or_else(|| Error::Missing(format!("optim_dict.{name}")));
    let (state, groups) = (take("state")?, take("param_groups")?);
    if let Some(extra) = all.keys().next() {
        return Err(Error::Extra(quoted(&format!("optim_dict.{extra}"))));
    }
    let (learning_rate, amsgrad) = group(values, groups, parameters.len(), notes)?;
    let mut states = by_index(values, state, parameters.len())?;
    if states.is_empty() {
        return Ok(None);
    }
    let mut tensors = Vec::with_capacity(3 * parameters.len());
    let mut steps = None;
    for (i, TensorSpec { name: parameter, shape }) in parameters.iter().enumerate() {
        let here = format!("optim_dict.state.{i}");
        let one =
            states.remove(&i).ok_or_else(|| Error::Missing(format!("{here} ({parameter})")))?;
        let mut one = fields(values, one, &here)?;
        if !amsgrad && !one.contains_key("max_exp_avg_sq") {
            // Without amsgrad there is no maximum yet: the largest that is known is the last.
            one.extend(one.get("exp_avg_sq").map(|last| ("max_exp_avg_sq", *last)));
        }
        let mut take = |name| {
            one.remove(name).ok_or_else(|| Error::Missing(format!("{here}.{name} ({parameter})")))
        };
        let step = number(values, take("step")?);
        if step.is_none() || *steps.get_or_insert(step) != step {
            return Err(entry(&format!("{here}.step"), "is no count, or not that of the others"));
        }
        for (theirs, ours) in [
            ("exp_avg", "first_moment"),
            ("exp_avg_sq", "second_moment"),
            ("max_exp_avg_sq", "maximum"),
        ] {
            let Value::Tensor(array) = values.get(take(theirs)?) else {
                return Err(entry(&format!("{here}.{theirs}"), "is not a tensor"));
            };
            if array.shape() != shape {
                return Err(Error::Shape {
                    name: quoted(&format!("{here}.{theirs}")),
                    found: array.shape().to_vec(),
                    expected: shape.clone(),
                });
            }
            tensors.push((format!("optimizer.{ours}.{parameter}"), array));
        }
        if let Some(extra) = one.keys().next() {
            return Err(Error::Extra(quoted(&format!("{here}.{extra}"))));
        }
    }
    let step = steps.flatten().filter(|step| gather::whole(*step).is_some_and(|s| s <= 1 << 24));
    let step = step.ok_or_else(|| entry("optim_dict.state.0.step", "is not a count up to 2^24"))?;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "steps up to 2^24 are exact; rates are rounded"
    )]
    let (step, learning_rate) = (step as f32, learning_rate as f32);
    Ok(Some(Adam { tensors, step, learning_rate }))
}

/// States by the number of their parameter, each below `count`.
fn by_index(values: &Values<'_>, at: Ref, count: usize) -> Result<BTreeMap<usize, Ref>, Error> {
    let Value::Dict(pairs) = values.get(at) else {
        return Err(entry("optim_dict.state", "is not a dictionary"));
    };
    let mut all = BTreeMap::new();
    for (key, value) in pairs {
        let &Value::Int(number) = values.get(*key) else {
            return Err(entry("optim_dict.state", "has a key that is not a number"));
        };
        let index = usize::try_from(number).ok().filter(|i| *i < count);
        let index =
            index.ok_or_else(|| Error::Extra(quoted(&format!("optim_dict.state.{number}"))))?;
        if all.insert(index, *value).is_some() {
            return Err(entry(&format!("optim_dict.state.{index}"), "is there twice"));
        }
    }
    Ok(all)
}

/// The one group of parameters: gives its learning rate and amsgrad, and tells settings that are not the published.
fn group(
    values: &Values<'_>,
    at: Ref,
    count: usize,
    notes: &mut Vec<String>,
) -> Result<(f64, bool), Error> {
    const NAME: &str = "optim_dict.param_groups";
    let Value::List(groups) = values.get(at) else {
        return Err(entry(NAME, "is not a list"));
    };
    let &[only] = groups.as_slice() else {
        return Err(entry(NAME, "does not hold exactly one group"));
    };
    let here = format!("{NAME}.0");
    let mut all = fields(values, only, &here)?;
    let mut take =
        |name: &str| all.remove(name).ok_or_else(|| Error::Missing(format!("{here}.{name}")));
    let wrong = |name: &str, reason: &str| entry(&format!("{here}.{name}"), reason);

    let rate = number(values, take("lr")?).filter(|rate| rate.is_finite() && *rate >= 0.0);
    let rate = rate.ok_or_else(|| wrong("lr", "is not a learning rate"))?;
    let numbers = |at: Ref| -> Option<Vec<f64>> {
        match values.get(at) {
            Value::Tuple(items) | Value::List(items) => {
                items.iter().map(|item| number(values, *item)).collect()
            }
            _ => None,
        }
    };
    let order = numbers(take("params")?).unwrap_or_default();
    let order: Vec<Option<u64>> = order.into_iter().map(gather::whole).collect();
    if !order.iter().copied().eq((0..count as u64).map(Some)) {
        return Err(wrong("params", "does not number the parameters from 0 on, in their order"));
    }
    let betas = numbers(take("betas")?).filter(|betas| betas.len() == 2);
    let betas = betas.ok_or_else(|| wrong("betas", "is not a pair of numbers"))?;
    let mut other = Vec::new();
    if betas != BETAS {
        other.push(format!("betas {betas:?}"));
    }
    for (name, published) in PUBLISHED {
        let value = number(values, take(name)?).ok_or_else(|| wrong(name, "is not a number"))?;
        if value.to_bits() != published.to_bits() {
            other.push(format!("{name} {value}"));
        }
    }
    let &Value::Bool(amsgrad) = values.get(take("amsgrad")?) else {
        return Err(wrong("amsgrad", "is neither true nor false"));
    };
    if !amsgrad {
        other.push("amsgrad off".to_owned());
    }
    for name in GROUP_OFF {
        let off = all.remove(name).is_none_or(|at| matches!(values.get(at), Value::Bool(false)));
        if !off {
            return Err(wrong(name, "is on, so its moments are not those of this Adam"));
        }
    }
    all.retain(|name, _| !GROUP_IGNORED.contains(name));
    if let Some(extra) = all.keys().next() {
        return Err(Error::Extra(quoted(&format!("{here}.{extra}"))));
    }
    if !other.is_empty() {
        notes.push(format!(
            "the file was trained with {}; training goes on with what the recipe says",
            other.join(", ")
        ));
    }
    Ok((rate, amsgrad))
}
