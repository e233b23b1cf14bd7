//! The update that a visit made: the change from one checkpoint to another, read beside each other a
//! block at a time.

use crate::store::{self, Stored};
use rondo::checkpoint::{Extras, Layout};
use rondo::recipe::Architecture;
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of each checkpoint that are looked at together.
const BLOCK_BYTES: usize = 256 * 1024;

/// Two intact checkpoints of one architecture.
#[derive(Debug)]
pub struct Update {
    before: Stored,
    after: Stored,
    /// Places of the weights and batch statistics in both.
    places: Vec<(Range<u64>, Range<u64>)>,
}

impl Update {
    /// The update from `before` to `after`; what either holds beside the weights does not count.
    ///
    /// # Errors
    /// [`store::Error`] if one of them is damaged or of another architecture.
    pub fn between(
        before: Stored,
        after: Stored,
        architecture: &Architecture,
    ) -> Result<Self, store::Error> {
        let [old, new] = [places(&before, architecture)?, places(&after, architecture)?];
        let names = Layout::new(architecture, Extras::NONE);
        let both = names.tensors().iter().filter_map(|tensor| {
            Some((old.get(&tensor.name)?.clone(), new.get(&tensor.name)?.clone()))
        });
        let places = both.collect();
        Ok(Self { before, after, places })
    }

    /// Its L2 norm over all weights and batch statistics.
    ///
    /// # Errors
    /// What the disk said.
    pub fn norm(&self) -> Result<f64, store::Error> {
        let mut sum = 0.0;
        for (old, new) in &self.places {
            for (old, new) in blocks(old).zip(blocks(new)) {
                let (old, new) = (self.before.read(old)?, self.after.read(new)?);
                sum += numbers(&old).zip(numbers(&new)).map(|(a, b)| (b - a).powi(2)).sum::<f64>();
            }
        }
        Ok(sum.sqrt())
    }
}

/// Where the tensors of a checkpoint lie, after its bytes were found to be those of its digest.
fn places(
    stored: &Stored,
    architecture: &Architecture,
) -> Result<BTreeMap<String, Range<u64>>, store::Error> {
    stored.table()?;
    let [.., all] = Extras::EACH;
    let longest = Layout::new(architecture, all).header().len() as u64;
    let head = stored.read(0..longest)?;
    let layout = Layout::of(architecture, &head);
    let header = head.get(..layout.header().len()).unwrap_or(&head);
    layout.check_piece(0, header)?;
    if stored.bytes() != layout.len() {
        let (expected, found) = (layout.len(), stored.bytes());
        return Err(rondo::checkpoint::Error::Length { expected, found }.into());
    }
    Ok(layout.places().map(|(tensor, place)| (tensor.name.clone(), place)).collect())
}

fn blocks(place: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = place.end;
    let block = BLOCK_BYTES as u64;
    place.clone().step_by(BLOCK_BYTES).map(move |start| start..end.min(start + block))
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|word| f64::from(f32::from_le_bytes(*word)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::Store;
    use rondo::checkpoint::Measure;

    /// Its largest tensor takes two blocks.
    const WIDE: Architecture = Architecture { n1: 50, n2: 51, n3: 60, m: 40 };

    fn checkpoint(layout: &Layout, value: impl Fn(&str, u64) -> f32) -> Vec<u8> {
        let mut bytes = layout.header().to_vec();
        for tensor in layout.tensors() {
            for i in 0..tensor.elements() {
                bytes.extend_from_slice(&value(&tensor.name, i).to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn the_norm_is_that_of_the_weights_and_of_nothing_beside_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let plain = Layout::new(&WIDE, Extras::NONE);
        let laden = Extras { optimizer: true, importance: Some(Measure::Ewc) };
        let laden = Layout::new(&WIDE, laden);
        let largest = plain.tensors().iter().map(|t| 4 * t.elements()).max().unwrap();
        assert!(largest > BLOCK_BYTES as u64, "{largest}");
        let put = |bytes: &[u8]| store.find(store.put(bytes).unwrap()).unwrap();
        let before = put(&checkpoint(&laden, |name, _| {
            let beside = name.starts_with("optimizer.") || name.starts_with("importance.");
            if beside { 9.0 } else { 1.0 }
        }));
        let after = put(&checkpoint(&plain, |_, i| if i == 0 { 4.0 } else { 1.0 }));
        let found = Update::between(before, after, &WIDE).unwrap().norm().unwrap();
        #[allow(clippy::cast_precision_loss)]
        let expected = (9.0 * plain.tensors().len() as f64).sqrt();
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");

        let other = Architecture { n1: 51, ..WIDE };
        let foreign = checkpoint(&Layout::new(&other, Extras::NONE), |_, _| 1.0);
        let after = || store.find(store.put(&checkpoint(&plain, |_, _| 1.0)).unwrap()).unwrap();
        let refused = Update::between(put(&foreign), after(), &WIDE).unwrap_err();
        assert!(matches!(refused, store::Error::Checkpoint(_)), "{refused}");
        let digest = store.put(&checkpoint(&plain, |_, _| 2.0)).unwrap();
        let mut damaged = std::fs::read(store.path(digest)).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        crate::durable::write(&store.path(digest), &damaged, crate::durable::Mode::Private)
            .unwrap();
        let refused = Update::between(store.find(digest).unwrap(), after(), &WIDE).unwrap_err();
        assert!(matches!(refused, store::Error::Damaged { .. }), "{refused}");
    }
}
