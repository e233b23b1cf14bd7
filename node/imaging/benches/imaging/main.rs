//! How fast images are read, corrected and judged here, in turns with SimpleITK and
//! surface-distance on the same input. What is measured: `README.md` beside this folder.
//!
//! `cargo bench --profile dev -p rondo-imaging --bench imaging -- [WHAT..] [--peer PYTHON]
//! [--repeats N] [--dicom FOLDER] [--head FILE] [--json]`
#![allow(clippy::print_stdout)]

mod conversion;
mod correction;
mod evaluation;
mod head;
mod pair;
mod peer;
mod preparation;
mod turns;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use peer::Peer;

const ALL: [&str; 4] = ["n4", "evaluate", "dicom", "preprocess"];

#[derive(Default)]
struct Args {
    what: Vec<String>,
    peer: Option<PathBuf>,
    repeats: Option<usize>,
    dicom: Option<PathBuf>,
    head: Option<PathBuf>,
    json: bool,
}

fn args() -> Result<Args, String> {
    let mut args = Args::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--peer" => args.peer = Some(value()?.into()),
            "--repeats" => {
                let n = value()?.parse().ok().filter(|n| *n > 0);
                args.repeats = Some(n.ok_or("--repeats needs a number above 0")?);
            }
            "--dicom" => args.dicom = Some(value()?.into()),
            "--head" => args.head = Some(value()?.into()),
            "--json" => args.json = true,
            "--bench" => {} // cargo adds it
            what if ALL.contains(&what) => args.what.push(word),
            _ => return Err(format!("`{word}` is none of {}", ALL.join(", "))),
        }
    }
    if args.what.is_empty() {
        args.what = ALL.map(str::to_owned).to_vec();
    }
    Ok(args)
}

fn run() -> Result<(), String> {
    let args = args()?;
    let mut peer = match &args.peer {
        Some(python) => Some(Peer::start(python, rayon::current_num_threads())?),
        None => None,
    };
    let folder = std::env::temp_dir().join(format!("rondo-bench-imaging-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| format!("making {}: {e}", folder.display()))?;
    let outcome = args.what.iter().try_for_each(|what| {
        let repeats = |usual| args.repeats.unwrap_or(usual);
        let head = || args.head.as_deref().map_or_else(head::made, head::given);
        let peer = peer.as_mut();
        let reports = match what.as_str() {
            "n4" => head().and_then(|h| correction::run(repeats(5), peer, &folder, &h)),
            "evaluate" => evaluation::run(repeats(7), peer, &folder),
            "preprocess" => head().and_then(|h| preparation::run(repeats(3), &folder, &h)),
            _ => {
                let series = args.dicom.as_deref();
                conversion::run(repeats(5), peer, &folder, series, || Ok(head()?.image))
            }
        };
        reports.map_err(|e| format!("{what}: {e}"))?.iter().for_each(|r| print(r, args.json));
        Ok(())
    });
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

fn print(report: &Value, json: bool) {
    if json {
        println!("{report}");
        return;
    }
    let number = |v: &Value| v.as_f64().map_or("?".to_owned(), |n| format!("{n:.1}"));
    let bench = report["bench"].as_str().unwrap_or("?");
    let mut line = format!("{bench}: {} ms", number(&report["median_ms"]));
    if let (Some(name), Some(ratio)) = (report["peer"]["name"].as_str(), report["ratio"].as_f64()) {
        line += &format!(", {name} {} ms: ratio {ratio:.3}", number(&report["peer"]["median_ms"]));
        if let Some(cpu) = report["ratio_of_cpu"].as_f64() {
            line += &format!(" ({cpu:.3} of processor time)");
        }
        if let Some(wanted) = report["ratio_wanted"].as_f64() {
            let verdict = if ratio <= wanted { "holds" } else { "DOES NOT HOLD" };
            line += &format!(", at most {wanted} {verdict}");
        }
    } else if let Some(wanted) = report["ms_wanted"].as_f64() {
        let (mib, most) = (&report["peak_rss_mib"], &report["mib_wanted"]);
        let holds = report["median_ms"].as_f64().is_some_and(|ms| ms <= wanted)
            && mib.as_u64().zip(most.as_u64()).is_some_and(|(mib, most)| mib <= most);
        let verdict = if holds { "holds" } else { "DOES NOT HOLD" };
        line += &format!(" and {mib} MiB, at most {wanted:.0} ms and {most} MiB {verdict}");
    } else {
        line += ", nothing to compare with";
    }
    println!("{line}");
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}
