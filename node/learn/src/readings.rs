//! Losses of recent updates, which stay on the device until somebody looks: reading each would make
//! the device wait for the host after every update.

use crate::loss::Parts;
use burn::tensor::{Tensor, TensorReadError};
use std::time::{Duration, Instant};

/// Time between two readings.
const PACE: Duration = Duration::from_millis(250);
/// Most updates that wait to be read.
const MOST: usize = 256;

/// What is known of an update without asking the device.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Update {
    /// Epoch, from 1.
    pub(crate) epoch: u32,
    /// Update, from 1.
    pub(crate) update: u32,
    /// Learning rate.
    pub(crate) rate: f64,
    /// Segments.
    pub(crate) n: usize,
    /// Cases they come from, by their place among those trained on.
    pub(crate) cases: Vec<usize>,
}

/// Updates whose losses were not read yet, and how fast updates come.
pub(crate) struct Readings {
    waiting: Vec<(Update, Tensor<1>)>,
    /// The last update whose loss was read.
    pub(crate) last: Update,
    begun: Instant,
    read: Instant,
    updates: u64,
    segments: u64,
}

impl Readings {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let (waiting, last) = (Vec::new(), Update::default());
        Self { waiting, last, begun: now, read: now, updates: 0, segments: 0 }
    }

    /// Adds an update and its loss parts `[4]`.
    pub(crate) fn push(&mut self, update: Update, parts: Tensor<1>) {
        self.updates += 1;
        self.segments += update.n as u64;
        self.waiting.push((update, parts));
    }

    /// Whether it is time to read.
    pub(crate) fn due(&self) -> bool {
        self.read.elapsed() >= PACE || self.waiting.len() >= MOST
    }

    /// All that waits, in one transfer.
    pub(crate) fn read(&mut self) -> Result<Vec<(Update, Parts)>, TensorReadError> {
        let (updates, parts): (Vec<_>, Vec<_>) = self.waiting.drain(..).unzip();
        let Some(last) = updates.last() else {
            return Ok(Vec::new());
        };
        self.last = last.clone();
        let values: Vec<f32> = Tensor::cat(parts, 0).try_into_vec_as()?;
        self.read = Instant::now();
        let parts = values.as_chunks::<4>().0.iter().map(|row| Parts::from(*row));
        Ok(updates.into_iter().zip(parts).collect())
    }

    /// Segments a second since the first update, as of the last reading.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn segments_per_s(&self) -> f64 {
        self.segments as f64 / self.seconds()
    }

    /// Seconds an update takes, validation included.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn seconds_per_update(&self) -> f64 {
        self.seconds() / self.updates.max(1) as f64
    }

    /// Never 0, so that rates are numbers.
    fn seconds(&self) -> f64 {
        self.read.duration_since(self.begun).max(Duration::from_micros(1)).as_secs_f64()
    }
}
