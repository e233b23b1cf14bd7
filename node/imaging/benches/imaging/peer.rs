//! The Python beside us: a child process that does the same work when asked and says how long it took.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::turns::Took;

const SCRIPT: &str = include_str!("peer.py");

/// A running peer. Dropping it ends its process.
pub(crate) struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    have: Value,
    /// Most memory it had so far.
    pub(crate) peak_rss_mib: u64,
}

impl Peer {
    /// Starts `python` and waits until it has said which packages it has.
    pub(crate) fn start(python: &Path, threads: usize) -> Result<Self, String> {
        let failed = |e| format!("starting the peer {} failed: {e}", python.display());
        let mut child = Command::new(python)
            .args(["-c", SCRIPT, &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the peer has no input and output".into());
        };
        let stdout = BufReader::new(stdout);
        let mut peer = Self { child, stdin, stdout, have: json!({}), peak_rss_mib: 0 };
        peer.have = peer.answer()?["have"].take();
        Ok(peer)
    }

    /// The peer's name for a package, as `SimpleITK 2.5.7`, where it has the package.
    pub(crate) fn name(&self, package: &str) -> Option<String> {
        self.have[package].as_str().map(str::to_owned)
    }

    /// What the request took, and its result.
    pub(crate) fn ask(&mut self, request: &Value) -> Result<(Took, Value), String> {
        // A peer that ended has perhaps said why; that is better than a broken pipe.
        let _ = writeln!(self.stdin, "{request}").and_then(|()| self.stdin.flush());
        let mut answer = self.answer()?;
        let number = |key| answer[key].as_f64().filter(|n: &f64| *n >= 0.0);
        let (Some(ms), Some(cpu_ms)) = (number("ms"), number("cpu_ms")) else {
            return Err(format!("the peer's answer to {request} holds no time: {answer}"));
        };
        self.peak_rss_mib = answer["peak_rss_mib"].as_u64().unwrap_or(0);
        Ok((Took { ms, cpu_ms: Some(cpu_ms) }, answer["result"].take()))
    }

    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).map_err(|e| format!("reading from the peer: {e}"))?;
        let value: Value = serde_json::from_str(&line)
            .map_err(|_| format!("the peer ended or answered nonsense: `{}`", line.trim()))?;
        match value["error"].as_str() {
            Some(text) => Err(format!("the peer failed: {text}")),
            None => Ok(value),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
