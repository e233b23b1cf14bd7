//! Updates as a visit makes them, in stretches; between two stretches the peer makes as many.

use super::figures::{Figures, PeerIs, Watch};
use super::{Peer, pattern};
use crate::args;
use anyhow::{Context, Result, anyhow};
use ndarray::Array3;
use rondo::recipe::{Architecture, Method, Preset, Recipe, Select};
use rondo_learn::checkpoint::Weights;
use rondo_learn::device::Device;
use rondo_learn::report::Progress;
use rondo_learn::segment::Case;
use rondo_learn::train::{self, Visit};
use std::ops::ControlFlow;

/// Updates before the clock counts: libtorch chooses its kernels in them.
const WARM_UP: u32 = 5;
/// Shortest stretch, ms. Progress comes at readings of the device, some four times a second.
const STRETCH_MS: f64 = 1000.0;
/// Fewest stretches a median is taken of.
const STRETCHES: usize = 5;
/// Updates to measure at least.
const REPEATS: u32 = 30;
/// Cases of the visit; they share one volume.
const CASES: usize = 16;
/// Segments per case and epoch: epochs as long as a real cohort's.
const SEGMENTS: u32 = 1000;
/// A peer's bf16 that is this much slower than its fp32 runs without support of the processor.
const HOPELESS: f64 = 3.0;

/// What the visit is told to do; its end is never reached.
pub(super) fn recipe(args: &args::Bench, architecture: Architecture) -> Recipe {
    Recipe {
        method: args.method,
        architecture,
        precision: args.precision,
        epochs: 100_000,
        segments_per_case: SEGMENTS,
        mini_batch: args.batch,
        select: Select::Last,
        ..Recipe::preset(Preset::Paper)
    }
}

/// Measures updates, in turns with `peer` if there is one.
pub(super) fn run(
    args: &args::Bench,
    architecture: Architecture,
    device: &Device,
    peer: Option<Peer>,
) -> Result<Figures> {
    let recipe = recipe(args, architecture);
    let image = pattern(args.shape.0);
    let label = image.mapv(|v| u8::from(v > 0.9));
    let brain = Array3::ones(image.dim());
    let case =
        Case { id: "pattern", image: image.view(), label: label.view(), brain: brain.view() };
    let received = (args.method == Method::Lwf).then(|| Weights::initial(architecture, 1));
    let visit = Visit {
        recipe: &recipe,
        seed: 1,
        received: received.as_ref(),
        cases: &[case; CASES],
        validation: &[],
    };
    let mut turns = Turns {
        device,
        peer,
        bf16: true,
        wanted: args.repeats.unwrap_or(REPEATS),
        warm: false,
        done: 0,
        watch: Watch::start(),
        figures: Figures::default(),
    };
    let mut failed = None;
    let ended = train::train(&visit, device, &mut |event| {
        let Progress::Update { update, .. } = event else { return ControlFlow::Continue(()) };
        match turns.heard(update) {
            Ok(flow) => flow,
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    });
    match (failed, ended) {
        (Some(e), _) => Err(e),
        (None, Err(train::Error::Stopped)) => Ok(turns.finish()),
        (None, Err(e)) => Err(e).context("measuring updates"),
        (None, Ok(_)) => Err(anyhow!("the visit ended before enough was measured")),
    }
}

/// Who is at work, and what came of it.
struct Turns<'a> {
    device: &'a Device,
    peer: Option<Peer>,
    /// Whether the peer does bf16 as well.
    bf16: bool,
    wanted: u32,
    warm: bool,
    /// Updates before this stretch.
    done: u32,
    watch: Watch,
    figures: Figures,
}

impl Turns<'_> {
    /// Called on the training thread, which stands still meanwhile.
    fn heard(&mut self, update: u32) -> Result<ControlFlow<()>> {
        let count = update - self.done;
        let enough = if self.warm { self.watch.read().ms >= STRETCH_MS } else { count >= WARM_UP };
        if !enough {
            return Ok(ControlFlow::Continue(()));
        }
        // What is still under way belongs to this stretch.
        self.device.wait().map_err(|e| anyhow!("waiting for the device failed: {e}"))?;
        let took = self.watch.read();
        if self.warm {
            self.figures.count += count;
            self.figures.ours.push(took / f64::from(count));
            self.peers_turn(count)?;
        } else {
            self.warm = true;
            self.peers_warm_up()?;
        }
        let stretches = self.figures.ours.len();
        if self.figures.count >= self.wanted && stretches >= STRETCHES {
            return Ok(ControlFlow::Break(()));
        }
        (self.done, self.watch) = (update, Watch::start());
        Ok(ControlFlow::Continue(()))
    }

    fn peers_warm_up(&mut self) -> Result<()> {
        let Some(peer) = &mut self.peer else { return Ok(()) };
        peer.step("fp32", WARM_UP)?;
        let fp32 = peer.step("fp32", 1)?.ms;
        peer.step("bf16", 1)?;
        self.bf16 = peer.step("bf16", 1)?.ms < HOPELESS * fp32;
        Ok(())
    }

    fn peers_turn(&mut self, count: u32) -> Result<()> {
        let Some(peer) = &mut self.peer else { return Ok(()) };
        self.figures.peer.push(peer.step("fp32", count)? / f64::from(count));
        if self.bf16 {
            self.figures.peer_bf16.push(peer.step("bf16", count)? / f64::from(count));
        }
        Ok(())
    }

    fn finish(self) -> Figures {
        Figures { peer_is: self.peer.as_ref().map(PeerIs::of), ..self.figures }
    }
}
