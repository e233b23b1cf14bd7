//! One daemon of the bench, its operator and its trainer.

use super::link::Place;
use anyhow::{Context as _, bail};
use rondo::checkpoint::Layout;
use rondo_proto::control::control_client::ControlClient;
use rondo_proto::control::{
    AddPeerRequest, GetSiteRequest, ProposeRoundRequest, RoundPhase, RoundRequest,
};
use rondo_proto::trainer::trainer_link_client::TrainerLinkClient;
use rondo_proto::trainer::{
    CheckpointPart, DeviceKind, Task, TrainResult, TrainTask, TrainerHello, TrainerReport, task,
    trainer_report::Report,
};
use rondo_proto::unix;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// How long anything may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the bench looks.
const POLL: Duration = Duration::from_millis(10);
/// Bytes of a checkpoint in one message to the daemon.
const PART_BYTES: u64 = 256 * 1024;

/// A daemon that runs; it is killed when this is dropped.
pub(super) struct Site {
    pub(super) home: PathBuf,
    log: PathBuf,
    trainer: PathBuf,
    control: ControlClient<Channel>,
    child: Running,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// When the trainer of the bench worked on a visit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// The task came.
    pub(super) asked: Instant,
    /// Its result was reported.
    pub(super) reported: Instant,
}

/// When each visit was worked on, by round and number; the clock is the same for all sites.
pub(super) type Visits = Arc<Mutex<BTreeMap<(Vec<u8>, u32), Work>>>;

/// A line of a daemon's log.
pub(super) struct Line(String);

impl Line {
    /// The number in `name=number`.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.0
            .split_whitespace()
            .find_map(|w| w.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    }
}

impl Site {
    /// Makes a site with keys of its own and starts its daemon.
    pub(super) async fn start(folder: &Path, name: &str, place: &Place) -> anyhow::Result<Self> {
        let (home, run) = (folder.join(name), folder.join("run").join(name));
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let port = SocketAddr::new(place.address, port).to_string();
        let program = std::env::current_exe()?;
        let mut init = Command::new(&program);
        init.args(["init", "--site", name, "--name", name, "--home"]).arg(&home);
        init.args(["--listen", &port, "--endpoint", &port, "--runtime-dir"]).arg(&run);
        let made = init.env_remove("RONDO_HOME").output()?;
        if !made.status.success() {
            bail!("making site {name}: {}", String::from_utf8_lossy(&made.stderr).trim());
        }
        let log = folder.join(format!("{name}.log"));
        let child = place
            .command(&program)
            .args(["run", "--until-stdin-closes", "--home"])
            .arg(&home)
            .env_remove("RONDO_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting the daemon of {name}"))?;
        let child = Running(child);
        let begun = Instant::now();
        let control = loop {
            match unix::control(&run.join("control.sock")).await {
                Ok(control) => break control,
                Err(e) if begun.elapsed() > PATIENCE => return Err(e.into()),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        };
        Ok(Self { home, log, trainer: run.join("trainer.sock"), control, child })
    }

    pub(super) async fn trust(&self, other: &Self) -> anyhow::Result<()> {
        let view = other.control.clone().get_site(GetSiteRequest {}).await?.into_inner();
        let request = AddPeerRequest { card: view.card, fingerprint: view.fingerprint };
        self.control.clone().add_peer(request).await?;
        Ok(())
    }

    /// Answers every task with a checkpoint of `layout`, other numbers each time; notes in `visits`
    /// when each task came and when its result was reported.
    pub(super) async fn attach_trainer(
        &self,
        layout: Layout,
        visits: Visits,
    ) -> anyhow::Result<()> {
        let mut link = unix::trainer(&self.trainer).await?;
        let (reports, stream) = mpsc::channel(4);
        let hello = TrainerHello {
            device: DeviceKind::Flex.into(),
            training_cases: 1,
            ..TrainerHello::default()
        };
        reports.send(TrainerReport { report: Some(Report::Hello(hello)) }).await?;
        let mut tasks = link.attach(ReceiverStream::new(stream)).await?.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(Task { task })) = tasks.message().await {
                let Some(task::Task::Train(task)) = task else { continue };
                let (key, asked) = ((task.round.clone(), task.visit), Instant::now());
                let Ok(result) = train(&mut link, task, layout.clone()).await else { break };
                let report = TrainerReport { report: Some(Report::Result(result)) };
                let visit = Work { asked, reported: Instant::now() };
                visits.lock().unwrap_or_else(PoisonError::into_inner).insert(key, visit);
                if reports.send(report).await.is_err() {
                    break;
                }
            }
        });
        Ok(())
    }

    /// Proposes a plan; the round.
    pub(super) async fn propose(&self, plan: &str) -> anyhow::Result<String> {
        let request = ProposeRoundRequest { plan_toml: plan.to_owned() };
        Ok(self.control.clone().propose_round(request).await?.into_inner().round)
    }

    /// Approves a round as soon as it arrives.
    pub(super) async fn approve(&self, round: &str) -> anyhow::Result<()> {
        let request = RoundRequest { round: round.to_owned() };
        let begun = Instant::now();
        while let Err(e) = self.control.clone().approve_round(request.clone()).await {
            if begun.elapsed() > PATIENCE {
                return Err(e.into());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until the round stands as wanted here.
    pub(super) async fn until(&self, round: &str, phase: RoundPhase) -> anyhow::Result<()> {
        let request = RoundRequest { round: round.to_owned() };
        let begun = Instant::now();
        while self.control.clone().get_round(request.clone()).await?.get_ref().phase() != phase {
            if begun.elapsed() > PATIENCE {
                bail!("the round does not come to {}", phase.as_str_name());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Starts a round that all have approved.
    pub(super) async fn begin(&self, round: &str) -> anyhow::Result<()> {
        let request = RoundRequest { round: round.to_owned() };
        self.control.clone().start_round(request).await?;
        Ok(())
    }

    /// Waits for the line of the daemon's log that tells `what` of `round`.
    pub(super) async fn logged(&self, round: &str, what: &str) -> anyhow::Result<Line> {
        let short = round.get(..12).unwrap_or(round);
        let begun = Instant::now();
        loop {
            let text = fs::read_to_string(&self.log)?;
            // A line is whole once its end is there.
            let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = lines.find(|line| line.contains(what) && line.contains(short)) {
                return Ok(Line(line.to_owned()));
            }
            if begun.elapsed() > PATIENCE {
                bail!("no hand-over came about; the daemon's log says:\n{text}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether the daemon ended by itself.
    pub(super) fn failed(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.0.try_wait()?.is_some())
    }

    /// Most memory that the daemon ever had, in MiB.
    pub(super) fn peak_mib(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        Ok(kib.context("reading the daemon's peak memory")? / 1024.0)
    }
}

/// Hands the daemon a checkpoint of any numbers.
async fn train(
    link: &mut TrainerLinkClient<Channel>,
    task: TrainTask,
    layout: Layout,
) -> anyhow::Result<TrainResult> {
    let (out, parts) = mpsc::channel(8);
    let mut seed = task.seed | 1;
    tokio::task::spawn_blocking(move || {
        let header = layout.header().to_vec();
        let mut at = header.len() as u64;
        let mut open = out.blocking_send(CheckpointPart { data: header }).is_ok();
        while open && at < layout.len() {
            let length = PART_BYTES.min(layout.len() - at);
            let mut data = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
            while (data.len() as u64) < length {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                // Sign and mantissa at will, an exponent that is never that of infinity.
                let bits = (seed as u32) & 0xbfff_ffff;
                data.extend_from_slice(&bits.to_le_bytes());
            }
            at += length;
            open = out.blocking_send(CheckpointPart { data }).is_ok();
        }
    });
    let stored = link.store_checkpoint(ReceiverStream::new(parts)).await?.into_inner();
    Ok(TrainResult {
        round: task.round,
        visit: task.visit,
        weights: stored.digest,
        training_cases: 1,
        epochs: 1,
        updates: 1,
        chosen_epoch: 1,
        ..TrainResult::default()
    })
}
