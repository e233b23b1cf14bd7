//! The update that a visit made: the change from one checkpoint to another, read beside each other a
//! block at a time.

use crate::store::{self, Store, Stored};
use rand::TryRng;
use rand_distr::{Distribution as _, StandardNormal};
use rondo::checkpoint::{Extras, Layout};
use rondo::ids::Digest;
use rondo::recipe::Architecture;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

/// Bytes of each checkpoint that are looked at together.
const BLOCK_BYTES: usize = 256 * 1024;

/// Bytes of randomness that are asked for at a time.
const RANDOM_BYTES: usize = 4096;

/// Why an update could not be filtered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A checkpoint or the disk.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The operating system gave no randomness.
    #[error("drawing noise: the operating system gave no random numbers ({0})")]
    Random(getrandom::Error),
}

/// Two intact checkpoints of one architecture.
#[derive(Debug)]
pub struct Update {
    layout: Layout,
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
        let layout = Layout::new(architecture, Extras::NONE);
        let both = layout.tensors().iter().filter_map(|tensor| {
            Some((old.get(&tensor.name)?.clone(), new.get(&tensor.name)?.clone()))
        });
        let places = both.collect();
        Ok(Self { layout, before, after, places })
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

    /// Stores the weights alone with the update times `scale`, and `noise` on every number. Variances
    /// that noise made negative become 0, which costs no privacy: nothing new is looked at for it.
    ///
    /// # Errors
    /// What the disk or the source of randomness said; then nothing is stored.
    pub fn filtered(
        &self,
        store: &Store,
        scale: f64,
        mut noise: Option<Noise>,
    ) -> Result<Digest, Error> {
        let mut upload = store.begin()?;
        upload.write(self.layout.header())?;
        for (tensor, (old, new)) in self.layout.tensors().iter().zip(&self.places) {
            let least = if tensor.name.ends_with(".running_var") { 0.0 } else { f32::MIN };
            for (old, new) in blocks(old).zip(blocks(new)) {
                let (old, new) = (self.before.read(old)?, self.after.read(new)?);
                let mut block = Vec::with_capacity(old.len());
                for (before, after) in numbers(&old).zip(numbers(&new)) {
                    let drawn = noise.as_mut().map_or(0.0, Noise::draw);
                    #[allow(clippy::cast_possible_truncation, reason = "weights are float32")]
                    let number = (before + scale * (after - before) + drawn) as f32;
                    block.extend_from_slice(&number.clamp(least, f32::MAX).to_le_bytes());
                }
                upload.write(&block)?;
            }
        }
        if let Some(failed) = noise.and_then(|noise| noise.source.failed) {
            return Err(Error::Random(failed));
        }
        Ok(upload.finish()?)
    }
}

/// Gaussian noise from the operating system's generator; nothing seeds it and nothing repeats it.
#[derive(Debug)]
pub struct Noise {
    deviation: f64,
    source: SystemSource,
}

impl Noise {
    /// Noise of standard deviation `deviation`.
    #[must_use]
    pub fn new(deviation: f64) -> Self {
        Self { deviation, source: SystemSource::default() }
    }

    fn draw(&mut self) -> f64 {
        let drawn: f64 = StandardNormal.sample(&mut self.source);
        self.deviation * drawn
    }
}

/// Random numbers of the operating system, some at a time. After a failure they are worthless, and the
/// failure is kept for whoever has to throw away what was made of them.
#[derive(Debug, Default)]
struct SystemSource {
    block: Vec<u8>,
    at: usize,
    failed: Option<getrandom::Error>,
}

impl SystemSource {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.block.len() < self.at + N {
            self.block.resize(RANDOM_BYTES, 0);
            self.at = 0;
            self.failed = self.failed.or(getrandom::fill(&mut self.block).err());
        }
        let taken = self.block.get(self.at..).and_then(|rest| rest.first_chunk().copied());
        self.at += N;
        taken.unwrap_or([0; N])
    }
}

impl TryRng for SystemSource {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(self.take()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_le_bytes(self.take()))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        self.failed = self.failed.or(getrandom::fill(out).err());
        Ok(())
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

    #[test]
    fn a_clipped_update_has_the_norm_and_noise_has_its_deviation() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let layout = Layout::new(&WIDE, Extras::NONE);
        let put = |value: f32| store.put(&checkpoint(&layout, |_, _| value)).unwrap();
        let find = |digest| store.find(digest).unwrap();
        let (before, after) = (put(1.0), put(1.5));
        let update = Update::between(find(before), find(after), &WIDE).unwrap();
        assert_eq!(update.filtered(&store, 1.0, None).unwrap(), after, "nothing to do");
        let norm = update.norm().unwrap();
        let clipped = update.filtered(&store, 0.25, None).unwrap();
        let clipped = Update::between(find(before), find(clipped), &WIDE).unwrap();
        assert!((clipped.norm().unwrap() - norm / 4.0).abs() < 1e-3 * norm);

        let noised = [0, 1].map(|_| update.filtered(&store, 1.0, Some(Noise::new(0.125))).unwrap());
        assert_ne!(noised[0], noised[1], "noise is never repeated");
        let of = |digest, suffix: &str| -> Vec<f64> {
            let bytes = store.get(digest).unwrap();
            layout.check(&bytes).unwrap();
            let places = layout.places().filter(|(tensor, _)| tensor.name.ends_with(suffix));
            let range = |at: Range<u64>| {
                usize::try_from(at.start).unwrap()..usize::try_from(at.end).unwrap()
            };
            places.flat_map(|(_, at)| numbers(&bytes[range(at)]).collect::<Vec<_>>()).collect()
        };
        let numbers = of(noised[0], ".weight");
        #[allow(clippy::cast_precision_loss)]
        let count = numbers.len() as f64;
        assert!(count > 500_000.0, "{count}");
        let mean = numbers.iter().sum::<f64>() / count;
        let variance = numbers.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / count;
        // Seven deviations of either estimate.
        assert!((mean - 1.5).abs() < 7.0 * 0.125 / count.sqrt(), "{mean}");
        assert!((variance.sqrt() / 0.125 - 1.0).abs() < 7.0 / (2.0 * count).sqrt(), "{variance}");
        let beyond = numbers.iter().filter(|n| (*n - 1.5).abs() > 0.25).count();
        #[allow(clippy::cast_precision_loss)]
        let share = beyond as f64 / count;
        assert!((share - 0.0455).abs() < 0.002, "{share} lie beyond two deviations");

        let wild = update.filtered(&store, 1.0, Some(Noise::new(1e3))).unwrap();
        assert!(of(wild, ".running_mean").iter().any(|n| *n < 0.0));
        assert!(of(wild, ".running_var").iter().all(|n| *n >= 0.0));
    }
}
