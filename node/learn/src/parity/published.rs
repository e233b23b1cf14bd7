//! The checkpoint in the published layout: its weights are those after the updates.

use super::directory::{File, bytes, section};
use super::{Check, Error, Read, updates};
use crate::checkpoint::Weights;
use crate::import;
use serde::Deserialize;

/// On weights: they are the same numbers in another file.
const TOLERANCE: f64 = 0.0;
/// On the learning rate, relative: it is held in 32 bits.
const TOLERANCE_RATE: f64 = 1e-6;
/// Smallest scale of a learning rate.
const RATE_FLOOR: f64 = 1e-12;

/// What `learning.json` says of the optimizer.
#[derive(Deserialize)]
struct Golden {
    lr: f64,
}

pub(super) fn read(read: &Read<'_>) -> Result<Weights, Error> {
    let bytes = bytes(read, "published_layout_narrow.tar")?;
    Ok(import::published(&bytes)?.weights)
}

pub(super) fn check(
    read: &Read<'_>,
    published: &Weights,
    tell: &mut dyn FnMut(Check),
) -> Result<(), Error> {
    let file = File::read(read, updates::FILE)?;
    let end = file.tensors()?.model("end.")?;
    updates::weights("published", published, &end, TOLERANCE, "", tell);
    let golden: Golden = section(read, "lwf_five_updates")?;
    let adam = published.optimizer.as_ref().ok_or(Error::NoState)?;
    let (name, rate) = ("published.learning_rate", adam.learning_rate);
    tell(Check::relative(name, rate, golden.lr, RATE_FLOOR, TOLERANCE_RATE));
    Ok(())
}
