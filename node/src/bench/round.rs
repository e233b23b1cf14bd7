//! What a round costs beside its training: a model goes round three sites whose trainers answer at once.

use super::link::Place;
use super::site::{Site, Visits};
use super::{Model, Workdir, answer, median};
use crate::cli::BenchRound;
use anyhow::{Context as _, bail};
use rondo::ids::Digest;
use rondo_proto::control::RoundPhase;
use serde_json::json;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Instant;

const SITES: [&str; 3] = ["a", "b", "c"];
const CYCLES: u32 = 4;
/// Bound on the median from the end of one site's training to the start of the next site's.
const GAP_BOUND_MS: f64 = 100.0;
/// Bound on a whole round without training.
const ROUND_BOUND_S: f64 = 3.0;
/// NVIDIA FLARE 2.9 with mutual TLS on such a machine, as published, not measured here: gap and round
/// in seconds as shipped, and with its polling tuned.
const PEER: [[f64; 2]; 2] = [[1.3, 24.4], [0.18, 11.0]];

pub(crate) fn round(options: &BenchRound) -> anyhow::Result<()> {
    let model = Model::near(options.size).context("choosing a network of that size")?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = Workdir::make(&parent)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Measured { mut gaps, rounds } =
        runtime.block_on(measure(&folder.0, &model, options.repeats))?;
    gaps.sort_by(f64::total_cmp);
    let (gap, whole) = (median(gaps.iter().copied()), median(rounds.iter().copied()));
    let share = |part: usize| gaps.get(gaps.len() * part / 100).copied().unwrap_or(f64::NAN);
    let (p10, p90) = (share(10), share(90));
    let worst = gaps.last().copied().unwrap_or(f64::NAN);
    let longest = rounds.iter().copied().fold(f64::NAN, f64::max);
    let verdict = |holds: bool| if holds { "HOLDS" } else { "DOES NOT HOLD" };
    let (gap_holds, round_holds) = (gap <= GAP_BOUND_MS, whole <= ROUND_BOUND_S);
    let [shipped, tuned] = PEER;
    if options.json {
        let text = json!({
            "schema": "rondo.bench-round/1",
            "bytes": model.layout.len(),
            "sites": SITES.len(),
            "cycles": CYCLES,
            "repeats": options.repeats,
            "gaps": gaps.len(),
            "gap_ms": { "median": gap, "p10": p10, "p90": p90, "max": worst, "bound": GAP_BOUND_MS, "holds": gap_holds },
            "round_s": { "median": whole, "max": longest, "bound": ROUND_BOUND_S, "holds": round_holds },
            "nvflare_2_9_published": {
                "gap_s": { "shipped": shipped[0], "tuned": tuned[0] },
                "round_s": { "shipped": shipped[1], "tuned": tuned[1] },
            },
            "cores": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        });
        answer(&text.to_string());
        return Ok(());
    }
    answer(&format!(
        "{:.1} MB from the end of one site's training to the start of the next: median {gap:.0} ms, p10 {p10:.0}, p90 {p90:.0}, max {worst:.0} of {} hand-overs; at most {GAP_BOUND_MS} ms {}\n\
         3 sites x {CYCLES} cycles without training, from start to completed: median {whole:.2} s, max {longest:.2} s of {} rounds; at most {ROUND_BOUND_S} s {}\n\
         NVIDIA FLARE 2.9 with mutual TLS, published and not measured here: {} s and {} s as shipped, {} s and {} s tuned",
        model.layout.len() as f64 / 1e6,
        gaps.len(),
        verdict(gap_holds),
        rounds.len(),
        verdict(round_holds),
        shipped[0],
        shipped[1],
        tuned[0],
        tuned[1],
    ));
    Ok(())
}

struct Measured {
    /// Milliseconds from each result to the task that follows on it.
    gaps: Vec<f64>,
    /// Seconds of each round.
    rounds: Vec<f64>,
}

async fn measure(folder: &Path, model: &Model, repeats: u32) -> anyhow::Result<Measured> {
    let visits = Visits::default();
    let mut sites = Vec::new();
    for name in SITES {
        let site = Site::start(folder, name, &Place::default()).await?;
        site.attach_trainer(model.layout.clone(), visits.clone()).await?;
        sites.push(site);
    }
    for site in &sites {
        for other in sites.iter().filter(|other| other.home != site.home) {
            site.trust(other).await?;
        }
    }
    let mut measured = Measured { gaps: Vec::new(), rounds: Vec::new() };
    let first = sites.first().context("three sites")?;
    for number in 1..=repeats {
        let round = first.propose(&model.plan(number, &SITES, CYCLES)).await?;
        for site in sites.iter().skip(1) {
            site.approve(&round).await?;
        }
        for site in &sites {
            site.until(&round, RoundPhase::Approved).await?;
        }
        let begun = Instant::now();
        first.begin(&round).await?;
        for site in &sites {
            site.until(&round, RoundPhase::Finished).await?;
        }
        measured.rounds.push(begun.elapsed().as_secs_f64());
        let id: Digest = round.parse().ok().context("a round's digest")?;
        let visits = visits.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |visit| visits.get(&(id.as_bytes().to_vec(), visit));
        for visit in 1..CYCLES * SITES.len() as u32 {
            let (Some(before), Some(after)) = (of(visit), of(visit + 1)) else {
                bail!("the round finished without its visits");
            };
            let gap = after.asked.saturating_duration_since(before.reported);
            measured.gaps.push(1e3 * gap.as_secs_f64());
        }
    }
    for site in &mut sites {
        if site.failed()? {
            bail!("a daemon ended before the bench did");
        }
    }
    Ok(measured)
}
