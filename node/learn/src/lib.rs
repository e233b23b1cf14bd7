//! Learning as in Huang et al. 2024 (Radiotherapy & Oncology): DeepMedic, its segments, losses and
//! optimizer, one site's visit of a round, and inference over a whole volume.
//!
//! Burn appears in no public signature but that of [`device::Device`]'s insides: models go in and out
//! as [`checkpoint::Weights`], volumes as `ndarray` views. Files and sockets are not touched here.

pub mod checkpoint;
pub mod device;
pub mod infer;
mod layers;
pub mod loss;
pub mod memory;
pub mod network;
pub mod optimizer;
mod random;
pub mod report;
pub mod segment;
pub mod train;

#[cfg(test)]
mod golden;
