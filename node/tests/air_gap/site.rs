//! A site without endpoints: its daemon runs, and nobody can call it.

use rondo::plan::Plan;
use rondo_proto::control::{ListRoundsRequest, RoundView};
use rondo_proto::trainer::{
    CheckpointPart, DeviceKind, FetchCheckpointRequest, TrainResult, TrainTask, TrainerHello,
    TrainerReport, task, trainer_report::Report,
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_stream::wrappers::ReceiverStream;

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    daemon: Option<Child>,
    received: Arc<Mutex<Vec<String>>>,
}

impl Site {
    pub(crate) fn start(folder: &Path, name: &str) -> Self {
        let home = folder.join(name);
        let made = Command::new(env!("CARGO_BIN_EXE_rondo-node"))
            .args(["init", "--site", name, "--name", name, "--listen", "127.0.0.1:0", "--home"])
            .arg(&home)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut site = Self { name: name.to_owned(), home, daemon: None, received: Arc::default() };
        site.run_daemon();
        site
    }

    fn run_daemon(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.home.join("node.log"))
            .unwrap();
        let daemon = Command::new(env!("CARGO_BIN_EXE_rondo-node"))
            .args(["run", "--until-stdin-closes", "--home"])
            .arg(&self.home)
            .stdin(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        let begun = Instant::now();
        while self.run(&["site", "status"]).0 != 0 {
            assert!(begun.elapsed() < PATIENCE, "{} does not answer", self.name);
            std::thread::sleep(POLL);
        }
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.stdin.take());
            let _ = daemon.wait();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        self.run_daemon();
    }

    /// Runs `rondo` for this site: exit code and what it printed.
    pub(crate) fn run(&self, args: &[&str]) -> (i32, String) {
        let rondo = Path::new(env!("CARGO_BIN_EXE_rondo-node")).with_file_name("rondo");
        assert!(rondo.is_file(), "rondo is not built yet: run `make test`, which builds it first");
        let done =
            Command::new(rondo).arg("--json").arg("--home").arg(&self.home).args(args).output();
        let done = done.unwrap();
        (done.status.code().unwrap(), String::from_utf8_lossy(&done.stdout).into_owned())
    }

    pub(crate) fn ok(&self, args: &[&str]) -> Value {
        let (code, text) = self.run(args);
        assert_eq!(code, 0, "{} {args:?}: {text}", self.name);
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn refuses(&self, args: &[&str], exit: i32) -> Value {
        let (code, text) = self.run(args);
        assert_eq!(code, exit, "{} {args:?}: {text}", self.name);
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn trust(&self, other: &Self) {
        let card = other.home.join("card.json");
        let fingerprint = other.ok(&["site", "card"])["fingerprint"].as_str().unwrap().to_owned();
        self.ok(&["peer", "add", card.to_str().unwrap(), "--fingerprint", &fingerprint]);
    }

    pub(crate) fn export_round(&self, round: &str, out: &Path) {
        self.ok(&["round", "export", round, "--out", out.to_str().unwrap()]);
    }

    pub(crate) fn import_round(&self, file: &Path) {
        self.ok(&["round", "import", file.to_str().unwrap()]);
    }

    pub(crate) fn export_model(&self, weights: &str, out: &Path) {
        self.ok(&["model", "export", weights, "--out", out.to_str().unwrap()]);
    }

    pub(crate) fn import_model(&self, file: &Path) {
        self.ok(&["model", "import", file.to_str().unwrap()]);
    }

    /// Waits for the result of a visit at this site, and gives its digest.
    pub(crate) async fn contributed(&self, round: &str, visit: usize) -> String {
        let begun = Instant::now();
        loop {
            let view = self.ok(&["round", "show", round]);
            if let Some(weights) = view["visits"][visit - 1]["weights"].as_str() {
                return weights.to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "{}: visit {visit} has no result", self.name);
            tokio::time::sleep(POLL).await;
        }
    }

    /// What this site's trainer was given to start from, visit by visit.
    pub(crate) fn started_from(&self) -> Vec<String> {
        self.received.lock().unwrap().clone()
    }

    /// Is this site's trainer from now on: every visit ends with a model whose weights are `value`.
    pub(crate) async fn play_trainer(&self, value: f32) {
        let sockets = self.home.join("run");
        let mut link = rondo_proto::unix::trainer(&sockets.join("trainer.sock")).await.unwrap();
        let mut control = rondo_proto::unix::control(&sockets.join("control.sock")).await.unwrap();
        let (reports, stream) = tokio::sync::mpsc::channel(4);
        let report = |report| TrainerReport { report: Some(report) };
        let hello = TrainerHello {
            device: DeviceKind::Flex.into(),
            training_cases: 2,
            ..TrainerHello::default()
        };
        reports.send(report(Report::Hello(hello))).await.unwrap();
        let mut tasks = link.attach(ReceiverStream::new(stream)).await.unwrap().into_inner();
        let received = self.received.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = tasks.message().await {
                let Some(task::Task::Train(task)) = message.task else { continue };
                if !task.received.is_empty() {
                    let request = FetchCheckpointRequest { digest: task.received.clone() };
                    let mut parts = link.fetch_checkpoint(request).await.unwrap().into_inner();
                    let mut bytes = Vec::new();
                    while let Some(part) = parts.message().await.unwrap() {
                        bytes.extend(part.data);
                    }
                    let digest = rondo::ids::Digest::of(&bytes);
                    assert_eq!(task.received, digest.as_bytes());
                    received.lock().unwrap().push(digest.to_string());
                }
                let rounds = control.list_rounds(ListRoundsRequest {}).await.unwrap();
                let part =
                    CheckpointPart { data: weights(&rounds.into_inner().rounds, &task, value) };
                let stored = link.store_checkpoint(tokio_stream::iter([part])).await.unwrap();
                let result = TrainResult {
                    round: task.round,
                    visit: task.visit,
                    weights: stored.into_inner().digest,
                    training_cases: 2,
                    epochs: 1,
                    updates: 1,
                    chosen_epoch: 1,
                    ..TrainResult::default()
                };
                let _ = reports.send(report(Report::Result(result))).await;
            }
        });
    }
}

/// A checkpoint as the task's plan wants it, every weight `value`.
fn weights(rounds: &[RoundView], task: &TrainTask, value: f32) -> Vec<u8> {
    let id = rondo_proto::convert::digest("round", &task.round).unwrap().to_string();
    let plan = &rounds.iter().find(|r| r.round == id).unwrap().plan_json;
    let layout = Plan::from_canonical(plan.as_bytes()).unwrap().layout();
    let mut bytes = layout.header().to_vec();
    while (bytes.len() as u64) < layout.len() {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.home.join("node.log")).unwrap_or_default();
            eprintln!("=== {}\n{log}", self.name);
        }
    }
}
