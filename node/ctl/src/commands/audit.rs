//! `rondo audit`: what an auditor asks. The answers come from this site's files, through `rondo-node
//! audit`, so they come whether the daemon runs or not.

use crate::args::{Audit, Global};
use crate::exit::{Exit, Failure};
use crate::output::{Output, line};
use crate::programs;
use crate::render::{bytes, moment, short, table};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

pub(crate) async fn run(command: Audit, global: &Global, output: Output) -> Result<(), Failure> {
    let home = global.home()?;
    match command {
        Audit::Verify { mark } => {
            let mut args = question("verify", &home);
            args.extend(option("--mark", mark));
            let (document, said) = ask(&args).await?;
            show(output, &document, &said, verified_text)
        }
        Audit::Export { out } => export(&home, out.as_deref()).await,
        Audit::Egress { round, peer } => {
            let mut args = question("egress", &home);
            args.extend(option("--round", round));
            args.extend(option("--peer", peer.map(|site| site.to_string())));
            let (document, said) = ask(&args).await?;
            show(output, &document, &said, egress_text)
        }
    }
}

fn question(what: &str, home: &Path) -> Vec<OsString> {
    vec!["audit".into(), what.into(), "--home".into(), home.into()]
}

fn option(name: &str, value: Option<impl Into<OsString>>) -> Vec<OsString> {
    value.map(|value| vec![name.into(), value.into()]).unwrap_or_default()
}

/// The answer of `rondo-node`, and its words.
async fn ask(args: &[OsString]) -> Result<(Value, String), Failure> {
    let program = programs::find(programs::NODE)?;
    let said = programs::printed(&program, args).await.map_err(unverified)?;
    let document = serde_json::from_str(&said).map_err(|e| {
        Failure::new(Exit::Internal, format!("reading the answer of rondo-node: {e}"))
    })?;
    Ok((document, said))
}

/// A log that is not as it was written is no refusal but a failed verification, with its reason.
fn unverified(failure: Failure) -> Failure {
    let reason = failure
        .text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(code, _)| code.to_owned())
        .filter(|code| code.starts_with("audit-"));
    match reason {
        Some(reason) => Failure { exit: Exit::Unverified, reason: Some(reason), ..failure },
        None => failure,
    }
}

fn show(
    output: Output,
    document: &Value,
    said: &str,
    text: fn(&Value) -> String,
) -> Result<(), Failure> {
    line(&if output.json { said.trim().to_owned() } else { text(document) });
    Ok(())
}

fn number(document: &Value, key: &str) -> u64 {
    document.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn words<'a>(document: &'a Value, key: &str) -> &'a str {
    document.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn verified_text(report: &Value) -> String {
    let (lines, signed) = (number(report, "lines"), number(report, "signed_lines"));
    let at = moment(number(report, "signed_at"));
    let open = match lines - signed.min(lines) {
        0 => String::new(),
        n => format!("; {n} not signed yet"),
    };
    format!("The audit log is whole: {lines} lines, signed up to line {signed} at {at}{open}.")
}

fn egress_text(report: &Value) -> String {
    let rows = report.get("rows").and_then(Value::as_array).cloned().unwrap_or_default();
    if rows.is_empty() {
        return "Nothing has left this site.".to_owned();
    }
    let row = |row: &Value| {
        vec![
            words(row, "peer").to_owned(),
            short(words(row, "round")).to_owned(),
            words(row, "kind").to_owned(),
            number(row, "bytes").to_string(),
        ]
    };
    let mut rows: Vec<_> = rows.iter().map(row).collect();
    let total = number(report, "bytes");
    rows.push(vec!["all".to_owned(), String::new(), bytes(total), total.to_string()]);
    table(&["peer", "round", "kind", "bytes"], &[3], rows)
}

/// Every line of the log as JSON, to standard output or to a file.
async fn export(home: &Path, out: Option<&Path>) -> Result<(), Failure> {
    let program = programs::find(programs::NODE)?;
    let mut command = Command::new(&program);
    command.args(question("export", home)).kill_on_drop(true).stderr(Stdio::piped());
    match out {
        Some(path) => {
            let attempted = format!("writing the audit log to {}", path.display());
            let file = File::create(path).map_err(|e| Failure::storage(attempted, &e))?;
            command.stdout(file);
        }
        None => drop(command.stdout(Stdio::inherit())),
    }
    let child = command.spawn().map_err(|e| programs::not_started(&program, &e))?;
    let done = child.wait_with_output().await.map_err(|e| programs::not_started(&program, &e))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let said = said.trim().trim_start_matches("error: ").to_owned();
    let failure =
        unverified(Failure::new(Exit::Refused, format!("exporting the audit log: {said}")));
    // What came before the damage was given.
    Err(Failure { after_result: true, ..failure })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_damaged_log_is_a_failed_verification_with_its_reason() {
        let told = "rondo-node ended with exit code 12: a.sqlite: [audit-cut] audit lines 3 to 4";
        let failure = unverified(Failure::new(Exit::Refused, told));
        assert_eq!(
            (failure.exit, failure.reason.as_deref()),
            (Exit::Unverified, Some("audit-cut"))
        );
        let other = unverified(Failure::new(Exit::Refused, "opening the audit log [x]"));
        assert_eq!((other.exit, other.reason), (Exit::Refused, None));
    }

    #[test]
    fn what_is_not_signed_yet_is_said() {
        let report = json!({"lines": 12, "signed_lines": 10, "signed_at": 1});
        assert!(verified_text(&report).contains("2 not signed yet"));
        let rows = json!([{"peer": "usz", "round": null, "kind": "http2", "bytes": 77}]);
        let text = egress_text(&json!({"rows": rows, "bytes": 77}));
        assert!(text.contains("usz") && text.contains("77"), "{text}");
    }
}
