//! Learning as in Huang et al. 2024 (Radiotherapy & Oncology): DeepMedic, its segments, losses and
//! optimizer, one site's visit of a round, and inference over a whole volume.
//!
//! Models go in and out as [`checkpoint::Weights`], volumes as `ndarray` views; of Burn, only the error
//! of a failed transfer shows. Files of the user and sockets are not touched here.

mod augment;
pub mod checkpoint;
mod clip;
pub mod device;
mod feed;
pub mod forgetting;
pub mod import;
pub mod infer;
mod layers;
mod libtorch;
pub mod loss;
pub mod memory;
mod native;
pub mod network;
pub mod optimizer;
pub mod parity;
mod random;
mod readings;
pub mod report;
pub mod resume;
pub mod segment;
pub mod train;
mod update;
mod validation;

#[cfg(test)]
mod golden;
