//! What was measured, as JSON and for people.

use super::{Peer, process};
use crate::{args, output};
use rondo::recipe::Architecture;
use rondo_learn::device::Device;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::ops::Div;
use std::time::Instant;

/// Updates of the paper's schedule at UKER: 300 epochs of 600 cases with 10 segments, 50 to an update.
const PAPER_UPDATES: f64 = 36_000.0;
/// Segments in each of them.
const PAPER_BATCH: u32 = 50;

/// What work took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    pub(super) ms: f64,
    /// Processor time of all threads, spinning included: what another busy process disturbs least.
    pub(super) cpu_ms: f64,
}

impl Div<f64> for Took {
    type Output = Self;
    fn div(self, by: f64) -> Self {
        Self { ms: self.ms / by, cpu_ms: self.cpu_ms / by }
    }
}

/// A stop watch for our side.
pub(super) struct Watch {
    begun: Instant,
    cpu_ms: f64,
}

impl Watch {
    pub(super) fn start() -> Self {
        Self { begun: Instant::now(), cpu_ms: process::cpu_ms() }
    }

    pub(super) fn read(&self) -> Took {
        Took {
            ms: self.begun.elapsed().as_secs_f64() * 1e3,
            cpu_ms: process::cpu_ms() - self.cpu_ms,
        }
    }
}

/// What each stretch took, per update or volume.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) ours: Vec<Took>,
    /// In fp32; parallel to `ours` where updates were measured, one more where volumes were.
    pub(super) peer: Vec<Took>,
    pub(super) peer_bf16: Vec<Took>,
    /// Updates or volumes of ours, all together.
    pub(super) count: u32,
    pub(super) peer_is: Option<PeerIs>,
    /// Tiles of a volume, and how many of them the peer does at a time.
    pub(super) peer_tiles: Option<(u64, u32)>,
}

impl Figures {
    /// Median time of one update or volume of `stretches`, ms.
    pub(super) fn median_ms(stretches: &[Took]) -> f64 {
        medians(stretches).0
    }
}

/// What is to be said about the peer.
pub(super) struct PeerIs {
    name: String,
    threads: u64,
    peak_rss_mib: u64,
}

impl PeerIs {
    pub(super) fn of(peer: &Peer) -> Self {
        Self { name: peer.name.clone(), threads: peer.threads, peak_rss_mib: peer.peak_rss_mib }
    }
}

/// What one figure is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Update,
    Volume,
}

/// Everything that is said at the end.
pub(super) struct Report<'a> {
    pub(super) unit: Unit,
    pub(super) args: &'a args::Bench,
    pub(super) device: &'a Device,
    pub(super) figures: &'a Figures,
}

impl Report<'_> {
    pub(super) fn json(&self) -> Value {
        let (args, figures) = (self.args, self.figures);
        let (ours, cpu) = medians(&figures.ours);
        let mut fields = Map::new();
        let mut put = |key: &str, value: Value| {
            fields.insert(key.to_owned(), value);
        };
        put("schema", json!(output::SCHEMA));
        put("bench", json!(self.name()));
        put("device", json!(self.device.describe()));
        put("threads", json!(self.device.threads()));
        put("precision", json!(args.precision.name()));
        put("widths", json!(args.widths.0));
        put("shape", json!(args.shape.0));
        if self.unit == Unit::Update {
            put("method", json!(args.method.name()));
            put("batch", json!(args.batch));
            put("segments_per_s", json!(round(f64::from(args.batch) * 1e3 / ours)));
        }
        put("repeats", json!(figures.count));
        put("stretches", json!(figures.ours.len()));
        put("median_ms", json!(round(ours)));
        put("cpu_ms", json!(round(cpu)));
        put("peak_rss_mib", json!(process::peak_rss_mib()));
        if let Some(minutes) = self.paper_schedule_minutes() {
            put("paper_schedule_minutes", json!(round(minutes)));
        }
        if let Some(peer) = &figures.peer_is {
            let (theirs, their_cpu) = medians(&figures.peer);
            let mut about = json!({
                "name": format!("{} fp32", peer.name), "threads": peer.threads,
                "median_ms": round(theirs), "cpu_ms": round(their_cpu), "peak_rss_mib": peer.peak_rss_mib,
            });
            if let Some((tiles, batch)) = figures.peer_tiles {
                about["tiles"] = json!(tiles);
                about["tiles_at_a_time"] = json!(batch);
            }
            put("peer", about);
            put("ratio", json!(round(ours / theirs)));
            put("ratio_of_pairs", json!(round(self.of_pairs())));
            put("ratio_of_cpu", json!(round(cpu / their_cpu)));
            if !figures.peer_bf16.is_empty() {
                let (bf16, bf16_cpu) = medians(&figures.peer_bf16);
                let name = format!("{} bf16 autocast", peer.name);
                put(
                    "peer_bf16",
                    json!({
                        "name": name, "median_ms": round(bf16), "cpu_ms": round(bf16_cpu),
                        "ratio": round(ours / bf16),
                    }),
                );
            }
        }
        Value::Object(fields)
    }

    pub(super) fn text(&self) -> String {
        let (args, figures) = (self.args, self.figures);
        let (ours, cpu) = medians(&figures.ours);
        let unit = match self.unit {
            Unit::Update => "update",
            Unit::Volume => "volume",
        };
        let mut text = format!(
            "{} {}: {ours:.1} ms/{unit}, median of {} stretches, {} {unit}s in all; {}, {} MiB at most",
            self.name(),
            args.precision,
            figures.ours.len(),
            figures.count,
            self.device.describe(),
            process::peak_rss_mib().map_or_else(|| "unknown".to_owned(), |mib| mib.to_string()),
        );
        if let Some(minutes) = self.paper_schedule_minutes() {
            let _ = write!(text, "\n  the paper's 36,000 updates: {minutes:.1} minutes");
        }
        if let Some(peer) = &figures.peer_is {
            let (theirs, their_cpu) = medians(&figures.peer);
            let how = figures.peer_tiles.map_or_else(String::new, |(tiles, batch)| {
                format!(", from stretches of its {tiles} tiles, {batch} at a time")
            });
            let _ = write!(
                text,
                "\n  {} fp32: {theirs:.1} ms/{unit}{how}; {} threads, {} MiB at most\
                 \n  ratio of ours to it: {:.3} (median of pairs {:.3}, of processor time {:.3})",
                peer.name,
                peer.threads,
                peer.peak_rss_mib,
                ours / theirs,
                self.of_pairs(),
                cpu / their_cpu,
            );
            if !figures.peer_bf16.is_empty() {
                let (bf16, _) = medians(&figures.peer_bf16);
                let _ = write!(
                    text,
                    "\n  {} bf16 autocast: {bf16:.1} ms/{unit}; ratio of ours to it: {:.3}",
                    peer.name,
                    ours / bf16,
                );
            }
        }
        text
    }

    fn name(&self) -> &'static str {
        match self.unit {
            Unit::Update => "step",
            Unit::Volume => "infer",
        }
    }

    /// Median of the ratios of neighbours in time. A volume's neighbours are the stretches before and after.
    fn of_pairs(&self) -> f64 {
        let (ours, peer) = (&self.figures.ours, &self.figures.peer);
        let beside = |i: usize| match self.unit {
            Unit::Update => peer.get(i).map(|took| took.ms),
            Unit::Volume => {
                peer.get(i..=i + 1).map(|both| both.iter().map(|t| t.ms).sum::<f64>() / 2.0)
            }
        };
        let ratios = ours.iter().enumerate().filter_map(|(i, took)| Some(took.ms / beside(i)?));
        median(&ratios.collect::<Vec<_>>())
    }

    /// Only where what was measured is an update of that schedule.
    fn paper_schedule_minutes(&self) -> Option<f64> {
        let a = Architecture::PAPER;
        let paper = self.args.batch == PAPER_BATCH && self.args.widths.0 == [a.n1, a.n2, a.n3, a.m];
        (self.unit == Unit::Update && paper)
            .then(|| Figures::median_ms(&self.figures.ours) * PAPER_UPDATES / 60_000.0)
    }
}

/// Medians of time and of processor time, ms.
fn medians(stretches: &[Took]) -> (f64, f64) {
    let of = |part: fn(&Took) -> f64| median(&stretches.iter().map(part).collect::<Vec<_>>());
    (of(|took| took.ms), of(|took| took.cpu_ms))
}

/// Mean of the middle two of an even number; NaN of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), middle.checked_sub(1).and_then(|i| sorted.get(i))) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => (upper + lower) / 2.0,
        (Some(only), _) => *only,
        (None, _) => f64::NAN,
    }
}

/// Four digits after the point are more than any measurement has.
pub(super) fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians_are_of_sorted_values() {
        assert!(median(&[]).is_nan());
        assert_eq!(
            [median(&[3.0]), median(&[9.0, 1.0, 2.0]), median(&[4.0, 1.0, 3.0, 2.0])],
            [3.0, 2.0, 2.5]
        );
    }
}
