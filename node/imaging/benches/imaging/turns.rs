//! Two sides that work alternately, and what their times say.

use std::io::Write;
use std::time::Instant;

use serde_json::{Value, json};

/// Time of one piece of work.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) ms: f64,
    /// Of all threads; `None` where the system does not tell.
    pub(crate) cpu_ms: Option<f64>,
}

/// Does the work and measures it.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (Took, T) {
    let (cpu, begun) = (cpu_ms(), Instant::now());
    let result = work();
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    (Took { ms, cpu_ms: cpu_ms().zip(cpu).map(|(after, before)| after - before) }, result)
}

/// Processor time of the threads alive, which include those of rayon's pool.
fn cpu_ms() -> Option<f64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let mut ns = 0.0;
    for task in tasks.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        ns += text.split_whitespace().next()?.parse::<f64>().ok()?;
    }
    Some(ns / 1e6)
}

/// Most memory this process had since [`forget_peak`].
fn peak_rss_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Linux counts the peak anew after this; elsewhere it is that of the whole run.
fn forget_peak() {
    let file = std::fs::File::options().write(true).open("/proc/self/clear_refs");
    let _ = file.and_then(|mut file| file.write_all(b"5"));
}

/// Times of both sides, in the order they were taken.
#[derive(Default)]
pub(crate) struct Turns {
    pub(crate) ours: Vec<Took>,
    pub(crate) theirs: Vec<Took>,
}

impl Turns {
    /// One piece of work that nobody counts, then `repeats` in turns. A peer that fails ends the bench.
    pub(crate) fn take(
        repeats: usize,
        mut ours: impl FnMut() -> Result<Took, String>,
        mut theirs: Option<impl FnMut() -> Result<Took, String>>,
    ) -> Result<Self, String> {
        let mut turns = Self::default();
        forget_peak();
        for n in 0..=repeats {
            let took = ours()?;
            let other = theirs.as_mut().map(|t| t()).transpose()?;
            if n > 0 {
                turns.ours.push(took);
                turns.theirs.extend(other);
            }
        }
        Ok(turns)
    }

    /// The object that is printed, and the line above it. `bound` is what the ratio shall not exceed.
    pub(crate) fn report(&self, bench: &str, peer: Option<&str>, bound: Option<f64>) -> Value {
        let ms = |side: &[Took]| median(side.iter().map(|t| t.ms));
        let cpu =
            |side: &[Took]| median(side.iter().map(|t| t.cpu_ms).collect::<Option<Vec<_>>>()?);
        let mut report = json!({
            "schema": "rondo.bench-imaging/1", "bench": bench,
            "threads": rayon::current_num_threads(), "repeats": self.ours.len(),
            "median_ms": ms(&self.ours), "cpu_ms": cpu(&self.ours), "peak_rss_mib": peak_rss_mib(),
        });
        let Some(name) = peer.filter(|_| !self.theirs.is_empty()) else {
            return report;
        };
        let ratio = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a / b);
        report["peer"] = json!({
            "name": name, "median_ms": ms(&self.theirs), "cpu_ms": cpu(&self.theirs),
        });
        report["ratio"] = json!(ratio(ms(&self.ours), ms(&self.theirs)));
        report["ratio_of_pairs"] =
            json!(median(self.ours.iter().zip(&self.theirs).map(|(a, b)| a.ms / b.ms)));
        report["ratio_of_cpu"] = json!(ratio(cpu(&self.ours), cpu(&self.theirs)));
        report["ratio_wanted"] = json!(bound);
        report
    }
}

fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let (low, high) =
        (values.get(values.len().wrapping_sub(1) / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}
