//! What scenarios run on: tiny synthetic cohorts, plans of narrow networks, checkpoints made by hand.

use rondo::plan::Plan;
use rondo_imaging::phantom::{Centre, SynthOptions, synthesise};
use std::path::{Path, PathBuf};

/// Makes the smallest cohort that trains: two cases, one for validation, one for the test.
#[must_use]
pub fn cohort(folder: &Path, centre: Centre, seed: u64) -> PathBuf {
    let options = SynthOptions {
        train: 2,
        validation: 1,
        test: 1,
        // A whole head on a coarse grid: a smaller head would have no room for metastases.
        shape: [40, 44, 40],
        spacing_mm: [3.5; 3],
        seed,
        ..SynthOptions::small(centre)
    };
    synthesise(folder, &options, &|_| ()).expect("a cohort").cohort
}

/// A plan in TOML.
#[derive(Debug, Clone)]
pub struct PlanText {
    /// Name of the round.
    pub name: &'static str,
    /// `swt` or `cwt`.
    pub topology: &'static str,
    /// Sites in order.
    pub sites: Vec<String>,
    /// Times around.
    pub cycles: u32,
    /// Epochs of a visit.
    pub epochs: u32,
    /// What a visit does with the model it received.
    pub method: &'static str,
    /// Widths of the network.
    pub widths: [u32; 4],
    /// Further tables, such as `[gate]`.
    pub tables: String,
}

impl PlanText {
    /// Once around `sites`, one short epoch each, with the narrowest network.
    #[must_use]
    pub fn swt(sites: &[&str]) -> Self {
        Self {
            name: "scenario",
            topology: "swt",
            sites: sites.iter().map(|s| (*s).to_owned()).collect(),
            cycles: 1,
            method: "lwf",
            epochs: 1,
            widths: [2, 3, 4, 6],
            tables: String::new(),
        }
    }

    /// The file.
    #[must_use]
    pub fn toml(&self) -> String {
        let Self { name, topology, sites, cycles, method, epochs, widths, tables } = self;
        let seed = crate::seed();
        format!(
            "name = \"{name}\"\ntopology = \"{topology}\"\nsites = {sites:?}\ncycles = {cycles}\nseed = {seed}\n\
             [recipe]\npreset = \"paper\"\nmethod = \"{method}\"\nwidths = {widths:?}\nepochs = {epochs}\n\
             segments_per_case = 4\nmini_batch = 4\nvalidate_every = 1000\nimportance_segments = 40\n{tables}"
        )
    }
}

/// Bytes of a checkpoint as `plan` wants it, with every weight `value`.
#[must_use]
pub fn checkpoint(plan: &Plan, value: f32) -> Vec<u8> {
    let layout = plan.layout();
    let mut bytes = layout.header().to_vec();
    let length = usize::try_from(layout.len()).expect("a small network");
    while bytes.len() < length {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}
