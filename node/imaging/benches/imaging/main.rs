//! How fast images are read, corrected and judged here, in turns with SimpleITK and
//! surface-distance on the same input. What is measured: `README.md` beside this folder.
//!
//! `cargo bench --profile dev -p rondo-imaging --bench imaging -- [WHAT..] [--peer PYTHON]
//! [--repeats N] [--dicom FOLDER] [--head FILE] [--json]`
#![allow(clippy::print_stdout)]

mod evaluation;
mod pair;
mod peer;
mod turns;

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;

use peer::Peer;

const ALL: [&str; 1] = ["evaluate"];

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
    let mut failed = None;
    for what in &args.what {
        let reports = match what.as_str() {
            "evaluate" => evaluation::run(args.repeats.unwrap_or(7), peer.as_mut(), &folder),
            _ => Ok(Vec::new()),
        };
        match reports {
            Ok(reports) => reports.iter().for_each(|r| print(r, args.json)),
            Err(e) => failed = Some(format!("{what}: {e}")),
        }
        if failed.is_some() {
            break;
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
    failed.map_or(Ok(()), Err)
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
