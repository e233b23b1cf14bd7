//! How fast a checkpoint goes from one daemon to another, in turns with the same bytes over bare TLS;
//! and in [`mod@round`] what a whole round costs beside its training.
//!
//! The daemons are real: child processes of this program with homes, keys, cards, a plan and a round.
//! The bench is their operator and their trainer.

mod bare;
mod link;
mod round;
mod site;

pub(crate) use bare::bare;
pub(crate) use round::round;

use crate::cli::BenchTransfer;
use crate::transfer::{Aligned, Landing};
use anyhow::{Context as _, bail};
use link::{Link, Place};
use rondo::checkpoint::{Extras, Layout};
use rondo::recipe::Architecture;
use rondo_proto::control::RoundPhase;
use serde_json::json;
use site::{Site, Visits};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

const MIB: f64 = 1024.0 * 1024.0;
const SCHEMA: &str = "rondo.bench-transfer/1";

/// Reads a size such as `1GiB`, `64MiB` or a number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let units = [("GiB", 30), ("MiB", 20), ("", 0)];
    let read = |(unit, shift): &(&str, u32)| {
        text.strip_suffix(unit)?.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
    };
    units.iter().find_map(read).ok_or_else(|| format!("`{text}` is no size, such as 1GiB"))
}

/// A network whose checkpoint is about as large as wanted.
struct Model {
    width: u32,
    carry: bool,
    layout: Layout,
}

impl Model {
    fn near(size: u64) -> Option<Self> {
        let width = (1..=Architecture::WIDTH_MAX).rev();
        let all = width.flat_map(|w| [(w, false), (w, true)]).map(|(width, carry)| {
            let architecture = Architecture { n1: width, n2: width, n3: width, m: width };
            let extras = Extras { optimizer: carry, importance: None };
            Self { width, carry, layout: Layout::new(&architecture, extras) }
        });
        all.min_by_key(|model| model.layout.len().abs_diff(size))
    }

    fn plan(&self, number: u32, sites: &[&str], cycles: u32) -> String {
        let (w, carry) = (self.width, if self.carry { "carry" } else { "reset" });
        let topology = if cycles == 1 { "swt" } else { "cwt" };
        format!(
            "name = \"bench {number}\"\ntopology = \"{topology}\"\nsites = {sites:?}\n\
             cycles = {cycles}\nseed = {number}\n[recipe]\nmethod = \"tl\"\nwidths = [{w}, {w}, {w}, {w}]\n\
             optimizer_on_arrival = \"{carry}\"\n"
        )
    }
}

/// A folder that goes when the bench ends.
struct Workdir(PathBuf);

impl Workdir {
    fn make(parent: &Path) -> anyhow::Result<Self> {
        let path = parent.join(format!("rondo-bench-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One hand-over, as both daemons' logs tell it.
struct HandOver {
    seconds: f64,
    write: f64,
    verify: f64,
    whole: f64,
    sync: f64,
}

pub(crate) fn transfer(options: &BenchTransfer) -> anyhow::Result<()> {
    let link = match options.link_mbit_s.map(|mbit_s| Link::make(mbit_s, options.rtt_ms)) {
        None => None,
        Some(Ok(link)) => Some(link),
        Some(Err(e)) => {
            let text =
                format!("SKIPPED the shaped link, which this machine does not permit: {e:#}");
            answer(&if options.json {
                json!({ "schema": SCHEMA, "skipped": text }).to_string()
            } else {
                text
            });
            return Ok(());
        }
    };
    let places = link.as_ref().map(Link::places).unwrap_or_default();
    let model = Model::near(options.size).context("choosing a network of that size")?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = Workdir::make(&parent)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (homes, measured) =
        runtime.block_on(measure(&folder.0, &model, options.repeats, places))?;
    let bytes = model.layout.len();
    let mib = bytes as f64 / MIB;
    let of = |part: fn(&HandOver) -> f64| median(measured.iter().map(|m| part(&m.1)));
    let bare = median(measured.iter().map(|m| m.0));
    let disk = median(measured.iter().map(|m| m.2));
    let ratio = median(measured.iter().map(|(bare, rondo, _)| bare / rondo.seconds));
    let to_slower =
        median(measured.iter().map(|(bare, rondo, disk)| bare.max(*disk) / rondo.seconds));
    let seconds = of(|m| m.seconds);
    let of_link =
        options.link_mbit_s.map(|mbit_s| bytes as f64 * 8e-6 / f64::from(mbit_s) / seconds);
    let share = |part: fn(&HandOver) -> f64| of(part) / seconds;
    let limits = [
        ("verify", share(|m| m.verify)),
        ("whole_digest", share(|m| m.whole)),
        ("write", share(|m| m.write)),
        ("sync", share(|m| m.sync)),
    ];
    let [sender, receiver] = homes;
    let shares: serde_json::Map<String, serde_json::Value> =
        limits.iter().map(|(name, share)| ((*name).to_owned(), json!(share))).collect();
    let text = if options.json {
        json!({
            "schema": SCHEMA,
            "bytes": bytes,
            "width": model.width,
            "repeats": options.repeats,
            "seconds": seconds,
            "mib_per_second": mib / seconds,
            "bare_tls_seconds": bare,
            "bare_tls_mib_per_second": mib / bare,
            "ratio_to_bare_tls": ratio,
            "disk_mib_per_second": mib / disk,
            "ratio_to_slower_of_bare_tls_and_disk": to_slower,
            "link_mbit_s": options.link_mbit_s,
            "rtt_ms": options.rtt_ms,
            "share_of_link": of_link,
            "peak_rss_mib": { "sender": sender, "receiver": receiver },
            "cores": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            "receiver_busy_share": shares,
        })
        .to_string()
    } else {
        let busy: Vec<String> =
            limits.iter().map(|(name, share)| format!("{name} {:.0} %", 100.0 * share)).collect();
        format!(
            "{mib:.0} MiB from daemon to daemon in {seconds:.2} s, {:.0} MiB/s; bare TLS {bare:.2} s, {:.0} MiB/s; ratio {ratio:.2}\n\
             the disk alone {:.0} MiB/s; ratio to the slower of bare TLS and disk {to_slower:.2}; peak memory: sender {sender:.0} MiB, receiver {receiver:.0} MiB\n\
             the receiver's threads were busy, beside each other: {}{}",
            mib / seconds,
            mib / bare,
            mib / disk,
            busy.join(", "),
            of_link.map_or_else(String::new, |share| format!(
                "\n{share:.3} of a link of {} Mbit/s with a round trip of {} ms",
                options.link_mbit_s.unwrap_or_default(),
                options.rtt_ms
            ))
        )
    };
    answer(&text);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the answer of a command")]
fn answer(text: &str) {
    println!("{text}");
}

type Measured = Vec<(f64, HandOver, f64)>;

/// Peak memory of both daemons in MiB; and of each repeat the seconds over bare TLS, the hand-over,
/// and the seconds that the disk takes for the same bytes.
async fn measure(
    folder: &Path,
    model: &Model,
    repeats: u32,
    places: [Place; 2],
) -> anyhow::Result<([f64; 2], Measured)> {
    let mut a = Site::start(folder, "a", &places[0]).await?;
    let mut b = Site::start(folder, "b", &places[1]).await?;
    a.trust(&b).await?;
    b.trust(&a).await?;
    a.attach_trainer(model.layout.clone(), Visits::default()).await?;
    let mut measured = Vec::new();
    for number in 1..=repeats {
        let bare = bare::pump(&a.home, &b.home, model.layout.len(), &places)?;
        let disk = write_plainly(&folder.join("plain"), model.layout.len())?;
        let round = a.propose(&model.plan(number, &["a", "b"], 1)).await?;
        b.approve(&round).await?;
        a.until(&round, RoundPhase::Approved).await?;
        a.begin(&round).await?;
        let sent = a.logged(&round, "checkpoint handed over").await?;
        let stored = b.logged(&round, "checkpoint received and stored").await?;
        let of = |name| stored.number(name).unwrap_or(f64::NAN);
        let hand_over = HandOver {
            seconds: sent.number("seconds").context("the daemon's log tells no seconds")?,
            write: of("write_s"),
            verify: of("verify_s"),
            whole: of("whole_s"),
            sync: of("sync_s"),
        };
        measured.push((bare, hand_over, disk));
    }
    let peaks = [a.peak_mib()?, b.peak_mib()?];
    if a.failed()? || b.failed()? {
        bail!("a daemon ended before the bench did");
    }
    Ok((peaks, measured))
}

/// Seconds that this disk takes for so many bytes, durably, written as a daemon writes.
fn write_plainly(path: &Path, bytes: u64) -> anyhow::Result<f64> {
    let mut block = Aligned::with_capacity(1 << 20);
    block.push(&vec![0x5a; 1 << 20]);
    let begun = Instant::now();
    let file = Landing::open(path).with_context(|| format!("creating {}", path.display()))?;
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(block.len() as u64);
        file.write_at(block.get().get(..usize::try_from(length)?).unwrap_or_default(), at)?;
        at += length;
    }
    file.file().sync_all()?;
    let seconds = begun.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(seconds)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_met() {
        for bad in ["", "GiB", "1 TiB", "-1", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(size("2MiB").unwrap(), 2 << 20);
        assert_eq!(size("77").unwrap(), 77);
        for wanted in [8 << 20, 64 << 20, 1 << 30] {
            let found = Model::near(wanted).unwrap().layout.len();
            assert!(found.abs_diff(wanted) < wanted / 20, "{found} for {wanted}");
        }
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert!((median([4.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0].into_iter()) - 2.5).abs() < 1e-9);
        assert!(median(std::iter::empty()).is_nan());
    }
}
