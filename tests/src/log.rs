//! What the processes under test wrote, and what they must not have written.

use std::path::Path;

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 40;

/// The whole log; empty if there is none yet.
#[must_use]
pub fn text(log: &Path) -> String {
    std::fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}

/// Lines that no scenario should cause: errors and panics, except those that contain an expected text.
#[must_use]
pub fn unexpected(log: &Path, expected: &[String]) -> Vec<String> {
    let bad = |line: &&str| {
        let level = line.split_whitespace().nth(1);
        level == Some("ERROR") || line.contains("panicked at") || line.starts_with("error:")
    };
    let lines = text(log);
    let bad = lines.lines().filter(bad).map(str::to_owned);
    bad.filter(|line| !expected.iter().any(|e| line.contains(e))).collect()
}

/// The last lines of a log under its name.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = text(log);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    format!("--- {}\n{}\n", log.display(), lines.get(from..).unwrap_or_default().join("\n"))
}
