//! The daemon of one site: the core of Rondo with disk, network and a trainer.
//!
//! It links no image and no tensor code. Start reading at [`daemon`] (who owns the state) and
//! [`effects`] (what the state makes happen); [`rpc`] and [`listen`] are how others get in. Weights
//! leave, as the site's [`policy`] and its operator let them ([`outbound`]), through [`release`] at the
//! [`pace`] of their peer; [`pull`] fetches from who cannot call.
//! What arrives passes the [`gate`] before the trainer works on it.

pub mod audit;
pub mod auditor;
mod bench;
pub mod boundary;
pub mod claim;
pub mod cli;
pub mod config;
pub mod connection;
pub mod contacts;
pub mod daemon;
pub mod durable;
pub mod effects;
pub mod expiry;
pub mod gate;
pub mod greeting;
pub mod identity;
pub mod intake;
pub mod journal;
pub mod ledger;
pub mod listen;
pub mod metrics;
pub mod outbound;
pub mod pace;
pub mod pending;
pub mod policy;
pub mod pull;
pub mod reason;
pub mod release;
pub mod renewal;
pub mod retention;
pub mod rpc;
mod start;
pub mod starter;
pub mod store;
pub mod tls;
pub mod trainer;
pub mod transfer;
pub mod update;

use clap::Parser as _;
use std::process::ExitCode;

/// The program: parses the command line and runs. Used by the packaged binary and by tests.
#[must_use]
pub fn main() -> ExitCode {
    start::run(cli::Arguments::parse())
}

/// Version of this software as numbers.
#[must_use]
pub fn version() -> [u32; 3] {
    let mut parts = env!("CARGO_PKG_VERSION").split('.').map(|p| p.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}
