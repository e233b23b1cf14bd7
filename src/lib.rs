//! The core of Rondo: what a round of model transfer among hospitals *is*, without doing any of it.
//!
//! Everything here is pure: no clock, file, socket, randomness or tensor. The daemon feeds events in and
//! carries effects out, so the same code runs in a hospital, in a test and in a simulator.
//!
//! Read in this order: [`ids`] → [`plan`] → [`recipe`] → [`round`] (state, event, effect, step) →
//! [`journal`] → [`owner`]; and for what crosses the wire: [`envelope`] → [`manifest`] → [`passport`] →
//! [`papers`] → [`checkpoint`] → [`transfer`] → [`gate`] → [`trust`]; [`audit`] is what an auditor reads, and
//! [`privacy`] what noise on an update is worth.

pub mod audit;
pub mod checkpoint;
pub mod envelope;
#[cfg(test)]
mod flips;
pub mod gate;
pub mod ids;
pub mod journal;
pub mod manifest;
pub mod owner;
pub mod papers;
pub mod passport;
pub mod plan;
pub mod privacy;
pub mod recipe;
pub mod round;
pub mod settings;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod simulator;
pub mod transfer;
pub mod trust;
