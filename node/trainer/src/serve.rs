//! `serve`: a visit after another for the daemon of this site, over its unix socket.
//!
//! What goes back are numbers, codes and weights; sentences that may name a case stay in the log.

mod learn;

use crate::cases::Cases;
use crate::config::Config;
use crate::unfinished::{self, Unfinished};
use crate::{DONE, args, fault, kept};
use anyhow::{Context, Result, bail};
use rondo::checkpoint::{Extras, Layout, VerifiedCheckpoint};
use rondo::ids::Digest;
use rondo::recipe::Recipe;
use rondo_imaging::cohort::{Cohort, Split};
use rondo_imaging::prepared::Store;
use rondo_learn::device::{Choice, Device};
use rondo_proto::convert::{digest_bytes, optional_digest};
use rondo_proto::trainer::trainer_link_client::TrainerLinkClient;
use rondo_proto::trainer::{
    CheckpointPart, DeviceKind, FailureReason, FetchCheckpointRequest, Task, TrainFailure,
    TrainResult, TrainTask, TrainerHello, TrainerReport, task, trainer_report::Report,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Bytes of a checkpoint in one message.
const PART_BYTES: usize = 256 * 1024;
/// A daemon that does not answer after this long is given up.
const ATTACH_PATIENCE: Duration = Duration::from_secs(60);
/// Progress is reported at most this often.
const REPORT_PACE: Duration = Duration::from_millis(200);
/// A visit that was told to stop has this long to end its update.
const LAST_UPDATE: Duration = Duration::from_secs(5);
/// Reports that wait for the daemon; progress beyond that is dropped.
const REPORTS: usize = 64;

/// What a visit needs and what outlives it.
struct Site {
    config: Config,
    device: Device,
    training: Cases,
    validation: Cases,
}

/// Why a visit gave no model, as the daemon is told.
struct Failed(FailureReason, anyhow::Error);

pub(crate) fn run(args: &args::Serve) -> Result<u8> {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false);
    log.with_ansi(false).init();
    let config = Config::load(&args.config)?;
    let device = Device::open(config.device)?;
    tracing::info!("device: {}", device.describe());
    let cohort = crate::cases::cohort(&config.cohort)?;
    let store = crate::cases::store(&config.work)?;
    let training = load(&cohort, Split::Train, &store)?;
    let validation = load(&cohort, Split::Validation, &store)?;
    crate::cases::prune(&store, &[&training, &validation])?;
    let quarantined = training.set_aside.len() + validation.set_aside.len();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut version = env!("CARGO_PKG_VERSION").split('.').map(|p| p.parse().unwrap_or(0));
    let mut number = || version.next().unwrap_or(0);
    let hello = TrainerHello {
        version_major: number(),
        version_minor: number(),
        version_patch: number(),
        device: match device.choice() {
            Choice::Cuda(_) => DeviceKind::LibtorchCuda,
            Choice::Flex => DeviceKind::Flex,
            Choice::Auto | Choice::Cpu => DeviceKind::LibtorchCpu,
        }
        .into(),
        training_cases: count(training.ready.len()),
        validation_cases: count(validation.ready.len()),
        test_cases: count(cohort.split(Split::Test).count()),
        quarantined_cases: count(quarantined),
    };
    let site = Arc::new(Site { config, device, training, validation });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(attend(&args.socket, hello, site));
    // A visit that nobody waits for any more must not hold this process up.
    runtime.shutdown_timeout(LAST_UPDATE);
    ended
}

fn load(cohort: &Cohort, split: Split, store: &Store) -> Result<Cases> {
    let cases = Cases::load(cohort, split, store, |_, _| ())?;
    tracing::info!("{}: {} cases ready", split.name(), cases.ready.len());
    for text in cases.set_aside.iter().chain(&cases.notices) {
        tracing::warn!("{text}");
    }
    Ok(cases)
}

/// Tells a visit to stop when dropped, whichever way the daemon went.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes tasks until the daemon goes away; then this process ends, and whoever supervises it decides.
async fn attend(socket: &Path, hello: TrainerHello, site: Arc<Site>) -> Result<u8> {
    let begun = Instant::now();
    let mut client = loop {
        match rondo_proto::unix::trainer(socket).await {
            Ok(client) => break client,
            Err(e) if begun.elapsed() > ATTACH_PATIENCE => return Err(e.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    };
    let (reports, outbox) = mpsc::channel(REPORTS);
    reports.send(report(Report::Hello(hello))).await.context("saying hello")?;
    let attached = client.attach(ReceiverStream::new(outbox)).await;
    let mut tasks = attached.context("attaching to the daemon")?.into_inner();
    tracing::info!("attached to the daemon");
    let mut current: Option<(Stop, tokio::task::JoinHandle<()>)> = None;
    while let Some(Task { task }) =
        tasks.message().await.context("the daemon is gone, and so the trainer ends")?
    {
        if let Some((stop, visit)) = current.take() {
            drop(stop);
            let _ = visit.await;
        }
        if let Some(task::Task::Train(task)) = task {
            let stop = Arc::new(AtomicBool::new(false));
            let visit = visit(client.clone(), site.clone(), task, stop.clone(), reports.clone());
            current = Some((Stop(stop), tokio::spawn(visit)));
        }
    }
    tracing::info!("the daemon went away");
    Ok(DONE)
}

fn report(report: Report) -> TrainerReport {
    TrainerReport { report: Some(report) }
}

/// One visit, from its task to the report of its end. A stopped visit reports nothing.
async fn visit(
    client: TrainerLinkClient<Channel>,
    site: Arc<Site>,
    task: TrainTask,
    stop: Arc<AtomicBool>,
    reports: mpsc::Sender<TrainerReport>,
) {
    let (round, visit) = (task.round.clone(), task.visit);
    tracing::info!(visit, "training begins");
    let end = match perform(client, site, task, stop.clone(), reports.clone()).await {
        Ok(result) => {
            tracing::info!(visit, updates = result.updates, "training ended");
            Report::Result(result)
        }
        Err(_) if stop.load(Ordering::Relaxed) => return,
        Err(Failed(reason, e)) => {
            // What another site made is no failure of this one.
            if reason == FailureReason::Floor {
                tracing::warn!(visit, "{e:#}");
            } else {
                tracing::error!(visit, "training failed: {e:#}");
            }
            Report::Failure(TrainFailure { round, visit, reason: reason.into() })
        }
    };
    let _ = reports.send(report(end)).await;
}

async fn perform(
    mut client: TrainerLinkClient<Channel>,
    site: Arc<Site>,
    task: TrainTask,
    stop: Arc<AtomicBool>,
    reports: mpsc::Sender<TrainerReport>,
) -> Result<TrainResult, Failed> {
    let broken = |e: anyhow::Error| Failed(FailureReason::Trainer, e);
    let storage = |e: anyhow::Error| Failed(FailureReason::Storage, e);
    let wire = task.recipe.clone().context("the task has no recipe").map_err(broken)?;
    let recipe = Recipe::try_from(wire).map_err(|e| broken(e.into()))?;
    let layout = Layout::new(&recipe.architecture, recipe.extras());
    let received = optional_digest("received", &task.received).map_err(|e| broken(e.into()))?;
    let received = match received {
        Some(digest) => Some(fetch(&mut client, digest, &recipe).await.map_err(storage)?),
        None => None,
    };
    let task = Arc::new(task);
    let kept = kept::Kept::of(&site.config.work, &task);
    let state = site.config.work.join("progress").join(kept.name());
    let unfinished =
        Unfinished::at(state.clone(), Duration::from_secs(site.config.save_every_s.into()));
    let (bytes, result) = match kept.read(&layout) {
        Some(done) => {
            tracing::info!(visit = task.visit, "this visit was trained before; its result is used");
            done
        }
        None => {
            let (site, task) = (site.clone(), task.clone());
            let work = move || {
                let received = received.as_ref();
                let learn =
                    || learn::learn(&site, &task, &recipe, received, unfinished, stop, reports);
                fault::caught(learn)
            };
            let done = tokio::task::spawn_blocking(work).await.map_err(|e| broken(e.into()))?;
            let (bytes, result) = done.map_err(broken)??;
            layout.check(&bytes).map_err(|e| Failed(FailureReason::Diverged, e.into()))?;
            kept.write(&bytes, &result).map_err(storage)?;
            (bytes, result)
        }
    };
    let parts: Vec<_> =
        bytes.chunks(PART_BYTES).map(|c| CheckpointPart { data: c.to_vec() }).collect();
    let stored = client.store_checkpoint(tokio_stream::iter(parts)).await;
    let stored = stored.context("handing the weights to the daemon").map_err(storage)?.into_inner();
    if stored.digest != result.weights {
        return Err(storage(anyhow::anyhow!("the daemon stored other bytes than were sent")));
    }
    let forgotten = kept.forget_others().and_then(|()| unfinished::forget(&state));
    if let Err(e) = forgotten {
        tracing::warn!("old results stay: {e:#}");
    }
    Ok(result)
}

async fn fetch(
    client: &mut TrainerLinkClient<Channel>,
    digest: Digest,
    recipe: &Recipe,
) -> Result<VerifiedCheckpoint> {
    let [.., all] = Extras::EACH;
    let limit = Layout::new(&recipe.architecture, all).len();
    let request = FetchCheckpointRequest { digest: digest_bytes(digest) };
    let answer = client.fetch_checkpoint(request).await.context("fetching the received model")?;
    let mut parts = answer.into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.context("fetching the received model")? {
        bytes.extend_from_slice(&part.data);
        if bytes.len() as u64 > limit {
            bail!("the received model is too long for its architecture");
        }
    }
    // The daemon holds every hop of a round to the recipe's layout. What a round starts from may hold
    // more or less beside the weights.
    let layout = Layout::of(&recipe.architecture, &bytes);
    Ok(VerifiedCheckpoint::verify(bytes, digest, &layout)?)
}
