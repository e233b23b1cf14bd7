//! `parity`: whether this build computes on this device what the published code computes; a JSON line a
//! check. `self-test numbers` does the same with the small directory inside the program.

use crate::{DONE, FAILED, args, output};
use anyhow::{Context, Result};
use rondo_imaging::repeats::{TTest, student, welch};
use rondo_learn::device::{Choice, Device};
use rondo_learn::parity::{self, Check, Read};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// Largest file of golden numbers that is read.
const FILE_MAX_BYTES: u64 = 1 << 30;
/// On t, p and degrees of freedom, relative: two implementations of the same functions in 64 bits.
const T_TEST_TOLERANCE: f64 = 1e-8;
/// Smallest scale of these errors: what a probability below it is exactly is of no use to anyone.
const T_TEST_FLOOR: f64 = 1e-3;

pub(crate) fn run(args: &args::Parity) -> Result<u8> {
    let folder = &args.dir;
    std::fs::read_dir(folder)
        .with_context(|| format!("opening the folder of golden numbers {}", folder.display()))?;
    report(&|name| bounded(&folder.join(name)), args.device)
}

/// The same with the numbers inside the program.
pub(crate) fn self_test(device: Choice) -> Result<u8> {
    report(&parity::built_in, device)
}

fn report(read: &Read<'_>, device: Choice) -> Result<u8> {
    let device = Device::open(device)?;
    let note = |text: String| writeln!(io::stderr().lock(), "{text}");
    // Standard output is the checks and nothing else.
    note(format!("device: {}", device.describe()))?;
    let (mut passed, mut failed) = (0_u32, 0_u32);
    let mut printed = Ok(());
    let mut tell = |check: Check| {
        let count = if check.pass { &mut passed } else { &mut failed };
        *count += 1;
        let line = serde_json::to_string(&check).context("writing a check as JSON");
        let done = line.and_then(|line| output::line(&line));
        if printed.is_ok() {
            printed = done;
        }
    };
    parity::check(read, &device, &mut tell);
    t_tests(read, &mut tell);
    printed?;
    note(format!("{passed} checks passed, {failed} failed"))?;
    Ok(if failed == 0 && passed > 0 { DONE } else { FAILED })
}

/// Reads a file of at most [`FILE_MAX_BYTES`].
fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    // What is no file is refused before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        let text = format!("it is larger than the {FILE_MAX_BYTES} bytes that are read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Picks one number of a test's result.
type Part = fn(TTest) -> f64;

/// The t-tests of `learning.json`, with which repeated trainings are compared.
fn t_tests(read: &Read<'_>, tell: &mut dyn FnMut(Check)) {
    let golden = match golden(read) {
        Ok(golden) => golden,
        Err(e) => return tell(Check::failed("t_test", T_TEST_TOLERANCE, format!("{e:#}"))),
    };
    let list = |name: &str| -> Option<Vec<f64>> {
        golden.get(name)?.as_array()?.iter().map(Value::as_f64).collect()
    };
    let (Some(a), Some(b)) = (list("a"), list("b")) else {
        let why = "`t_test` of learning.json needs two lists of numbers, `a` and `b`";
        return tell(Check::failed("t_test", T_TEST_TOLERANCE, why));
    };
    let (t, p, df): (Part, Part, Part) = (|r| r.t, |r| r.p, |r| r.df);
    let tests = [
        ("student", student(&a, &b), vec![("t", t), ("p", p)]),
        ("welch", welch(&a, &b), vec![("t", t), ("p", p), ("df", df)]),
    ];
    for (test, found, parts) in tests {
        for (part, value) in parts {
            let check = format!("t_test.{test}.{part}");
            let expected = golden.pointer(&format!("/{test}/{part}")).and_then(Value::as_f64);
            tell(match (found.map(value), expected) {
                (Some(found), Some(expected)) => {
                    Check::relative(&check, found, expected, T_TEST_FLOOR, T_TEST_TOLERANCE)
                }
                (None, _) => {
                    let why = "the two lists have no t-test: too few numbers, or no variance";
                    Check::failed(&check, T_TEST_TOLERANCE, why)
                }
                (_, None) => {
                    let why = format!("learning.json has no number `t_test.{test}.{part}`");
                    Check::failed(&check, T_TEST_TOLERANCE, why)
                }
            });
        }
    }
}

fn golden(read: &Read<'_>) -> Result<Value> {
    let bytes = read("learning.json").context("reading learning.json of the golden numbers")?;
    let mut json: Value = serde_json::from_slice(&bytes).context("reading learning.json")?;
    json.get_mut("t_test").map(Value::take).context("learning.json has no section `t_test`")
}
