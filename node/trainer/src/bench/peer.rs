//! PyTorch beside us: a child process that does the same work when asked and says how long it took.

use super::figures::Took;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// What the child runs.
const SCRIPT: &str = include_str!("../../benches/peer.py");
/// Longest answer.
const LINE_MAX: u64 = 4096;
/// Longest wait for an answer; a cold start reads gigabytes of libraries.
const PATIENCE: Duration = Duration::from_secs(600);
/// Names the settings that the trainer was started with and its user did not make.
const MADE_FOR_US: &str = "RONDO_TRAINER_SETTINGS";
/// Set to `ours`, the child keeps the settings of threads and heap that the trainer gave itself.
const SETTINGS: &str = "RONDO_BENCH_PEER_SETTINGS";

/// Why there is no figure of the peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No such program.
    #[error("starting the peer {} failed: {source}; --peer needs a Python that has PyTorch", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It failed and said why.
    #[error("the peer failed: {0}")]
    Peer(String),
    /// It ended.
    #[error("the peer ended without an answer to `{0}`; what it said stands above")]
    Ended(String),
    /// It answered something else.
    #[error("the peer's answer to `{asked}` is none that bench knows: `{answer}`; is it a Python?")]
    Nonsense {
        /// The request.
        asked: String,
        /// The first part of the answer.
        answer: String,
    },
    /// It is silent.
    #[error("the peer did not answer `{0}` within {secs} seconds", secs = PATIENCE.as_secs())]
    Silent(String),
}

/// What the peer is to build.
pub(super) struct Setup<'a> {
    pub(super) device: String,
    pub(super) threads: usize,
    pub(super) batch: u32,
    pub(super) widths: [u32; 4],
    pub(super) teacher: bool,
    pub(super) network: Option<&'a Path>,
}

/// A running peer. Dropping it ends its process, and whatever that started.
pub(super) struct Peer {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    /// As `PyTorch 2.9.0 eager`.
    pub(super) name: String,
    /// Threads of one operation.
    pub(super) threads: u64,
    /// Most memory it had so far, MiB.
    pub(super) peak_rss_mib: u64,
}

impl Peer {
    /// Starts `program`, a Python with PyTorch, and waits until it is ready.
    pub(super) fn start(program: &Path, setup: &Setup<'_>) -> Result<Self, Error> {
        let words = json!({
            "device": setup.device, "threads": setup.threads, "batch": setup.batch,
            "widths": setup.widths, "teacher": setup.teacher, "network": setup.network,
        });
        let mut command = Command::new(program);
        command.args(["-c", SCRIPT, &words.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        if std::env::var_os(SETTINGS).is_none_or(|value| value != "ours") {
            for name in std::env::var(MADE_FOR_US).unwrap_or_default().split_whitespace() {
                command.env_remove(name);
            }
        }
        let failed = |source| Error::Start { program: program.to_owned(), source };
        let mut child = command.spawn().map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::Error::other("its input and output are missing")));
        };
        let (sender, lines) = sync_channel(1);
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                match (&mut stdout).take(LINE_MAX).read_until(b'\n', &mut line) {
                    Ok(1..) if sender.send(String::from_utf8_lossy(&line).into_owned()).is_ok() => {
                    }
                    _ => break,
                }
            }
        });
        let (name, threads, peak_rss_mib) = (String::new(), 0, 0);
        let mut peer = Self { child, stdin, lines, name, threads, peak_rss_mib };
        let asked = "hello";
        let hello = peer.answer(asked)?;
        match (hello["name"].as_str(), hello["threads"].as_u64()) {
            (Some(name), Some(threads)) => (peer.name, peer.threads) = (name.to_owned(), threads),
            _ => return Err(nonsense(asked, &hello.to_string())),
        }
        Ok(peer)
    }

    /// What `count` updates take, all together.
    pub(super) fn step(&mut self, precision: &str, count: u32) -> Result<Took, Error> {
        self.ask(&format!("step {precision} {count}"))
    }

    /// What `count` segments take in evaluation, `batch` at a time.
    pub(super) fn tiles(&mut self, precision: &str, count: u32, batch: u32) -> Result<Took, Error> {
        self.ask(&format!("tiles {precision} {count} {batch}"))
    }

    fn ask(&mut self, request: &str) -> Result<Took, Error> {
        // A peer that ended has perhaps said why; that is better than a broken pipe.
        let _ = writeln!(self.stdin, "{request}").and_then(|()| self.stdin.flush());
        let answer = self.answer(request)?;
        let number = |key| answer[key].as_f64().filter(|n: &f64| *n >= 0.0);
        match (number("ms"), number("cpu_ms"), answer["peak_rss_mib"].as_u64()) {
            (Some(ms), Some(cpu_ms), Some(peak)) if ms > 0.0 => {
                self.peak_rss_mib = peak;
                Ok(Took { ms, cpu_ms })
            }
            _ => Err(nonsense(request, &answer.to_string())),
        }
    }

    fn answer(&mut self, asked: &str) -> Result<Value, Error> {
        let line = self.lines.recv_timeout(PATIENCE).map_err(|e| match e {
            RecvTimeoutError::Timeout => Error::Silent(asked.to_owned()),
            RecvTimeoutError::Disconnected => Error::Ended(asked.to_owned()),
        })?;
        let value: Value = serde_json::from_str(&line).map_err(|_| nonsense(asked, &line))?;
        match value["error"].as_str() {
            Some(text) => Err(Error::Peer(text.to_owned())),
            None => Ok(value),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its own group, so that nothing it started stays.
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

fn nonsense(asked: &str, answer: &str) -> Error {
    let answer = answer.trim().chars().take(80).collect();
    Error::Nonsense { asked: asked.to_owned(), answer }
}
