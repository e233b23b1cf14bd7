//! The other programs of Rondo: `rondo-node` and `rondo-trainer`.

use crate::exit::{Exit, Failure};
use crate::output::note;
use crate::render::span;
use serde_json::Value;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// The daemon.
pub(crate) const NODE: &str = "rondo-node";
/// The trainer.
pub(crate) const TRAINER: &str = "rondo-trainer";
/// The exit code of a program that could not start for want of a library, and said so.
pub(crate) const NOT_STARTED: i32 = 127;
/// The trainer's exit code for work done with some cases set aside.
pub(crate) const TRAINER_SET_ASIDE: i32 = 3;
/// Most bytes of another program's errors that are repeated.
const STDERR_MAX_BYTES: u64 = 16 * 1024;

/// Finds a program: beside this one, else in `PATH`.
pub(crate) fn find(name: &str) -> Result<PathBuf, Failure> {
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            let text = format!(
                "looking for {name}: it is neither beside this program nor in PATH. Build it with `make build`, or install the package that holds it"
            );
            Failure::new(Exit::Program, text)
        })
}

/// A program that could not be started.
pub(crate) fn not_started(program: &Path, source: &std::io::Error) -> Failure {
    Failure::new(Exit::Program, format!("starting {}: {source}", program.display()))
}

/// Runs a program to its end and returns what it printed, or its own words if it failed.
pub(crate) async fn printed(program: &Path, args: &[OsString]) -> Result<String, Failure> {
    let done = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| not_started(program, &e))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let said = said.trim().trim_start_matches("error: ");
    let exit = if done.status.code() == Some(2) { Exit::Usage } else { Exit::Refused };
    Err(Failure::new(exit, format!("{name} {}: {said}", ended(done.status))))
}

/// Runs a program in place of this one: its output is ours.
pub(crate) async fn hand_over(program: &Path, args: &[OsString]) -> Result<ExitStatus, Failure> {
    let mut child = Command::new(program)
        .args(args)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| not_started(program, &e))?;
    child.wait().await.map_err(|e| not_started(program, &e))
}

/// How a program ended, in words.
pub(crate) fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        _ => "ended".to_owned(),
    }
}

/// What the trainer did.
#[derive(Debug, Default)]
pub(crate) struct TrainerOutcome {
    /// Its last word: the fields of the `result` event.
    pub(crate) result: Value,
    /// Its notices.
    pub(crate) notices: Vec<String>,
    /// Whether cases were set aside.
    pub(crate) set_aside: bool,
    /// The most memory it was seen to hold, in bytes.
    pub(crate) peak_bytes: u64,
}

/// Runs `rondo-trainer` with JSON lines; every event is shown to `watch`.
pub(crate) async fn train_or_predict(
    args: &[OsString],
    mut watch: impl FnMut(&Value),
) -> Result<TrainerOutcome, Failure> {
    let program = find(TRAINER)?;
    let mut child = Command::new(&program)
        .args(args)
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| not_started(&program, &e))?;
    let pid = child.id();
    let stderr = child.stderr.take();
    let said = tokio::spawn(async move { tail(stderr).await });
    let mut outcome = TrainerOutcome::default();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            match event.get("event").and_then(Value::as_str) {
                Some("result") => outcome.result = event.clone(),
                Some("notice") => {
                    let text = event.get("text").and_then(Value::as_str).unwrap_or_default();
                    outcome.notices.push(text.to_owned());
                }
                _ => {}
            }
            if let Some(pid) = pid {
                outcome.peak_bytes = outcome.peak_bytes.max(peak_bytes(pid));
            }
            watch(&event);
        }
    }
    let status = wait(&mut child, &program).await?;
    let said = said.await.unwrap_or_default();
    match status.code() {
        Some(0) => Ok(outcome),
        Some(TRAINER_SET_ASIDE) => Ok(TrainerOutcome { set_aside: true, ..outcome }),
        code => {
            let said = said.trim().trim_start_matches("error: ");
            let exit = match code {
                Some(2) => Exit::Usage,
                Some(NOT_STARTED) => Exit::Program,
                _ => Exit::Trainer,
            };
            Err(Failure::new(exit, format!("rondo-trainer {}: {said}", ended(status))))
        }
    }
}

async fn wait(child: &mut Child, program: &Path) -> Result<ExitStatus, Failure> {
    child.wait().await.map_err(|e| not_started(program, &e))
}

/// The first bytes of a program's errors; the rest is read and let go.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut kept = Vec::new();
    let _ = (&mut stream).take(STDERR_MAX_BYTES).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

/// The most memory process `pid` ever held, as the kernel counts; 0 if it is gone.
pub(crate) fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|n| n.trim().parse().ok());
    kib.map_or(0, |kib: u64| kib * 1024)
}

/// Shows the trainer's events as lines on standard error.
pub(crate) fn show_event(event: &Value) {
    let number = |key: &str| event.get(key).and_then(Value::as_f64).unwrap_or_default();
    let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
    match text("event") {
        "notice" => note(&format!("note: {}", text("text"))),
        "device" => note(&format!("device: {}", text("device"))),
        "case" => note(&format!("{}: {:.1} s", text("id"), number("seconds"))),
        "started" => note(&format!("{} cases, {} epochs", number("cases"), number("epochs"))),
        "validated" => {
            let (epoch, dice) = (number("epoch"), number("dice"));
            note(&format!("epoch {epoch}: validation Dice {dice:.3}"));
        }
        "update" if is_milestone(number("update"), number("updates")) => {
            let part = |key: &str| event["loss"][key].as_f64().unwrap_or_default();
            note(&format!(
                "update {}/{}: CE {:.4}, VSS {:.4}, KDL {:.3}, {:.0} segments/s, ETA {}",
                number("update"),
                number("updates"),
                part("ce"),
                part("vss"),
                part("kdl"),
                number("segments_per_s"),
                span(number("eta_s")),
            ));
        }
        _ => {}
    }
}

/// Some twenty lines for a log, whatever the length of the visit.
fn is_milestone(update: f64, updates: f64) -> bool {
    update % (updates / 20.0).floor().max(1.0) == 0.0
}
