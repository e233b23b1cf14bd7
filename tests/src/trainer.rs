//! A trainer that trains nothing: it hands back what it received with one number changed, so that the
//! same visit always gives the same model, whatever broke off in between.

use crate::site::Site;
use rondo::checkpoint::Layout;
use rondo::recipe::Recipe;
use rondo_proto::trainer::trainer_link_client::TrainerLinkClient;
use rondo_proto::trainer::{
    CheckpointPart, DeviceKind, FetchCheckpointRequest, Task, TrainProgress, TrainResult,
    TrainTask, TrainerHello, TrainerReport, task, trainer_report::Report,
};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Pause before it tries to attach again.
const AGAIN: Duration = Duration::from_millis(100);
/// Reports of progress in a visit.
const REPORTS: u32 = 10;
/// Bytes of a checkpoint in one message.
const PART_BYTES: usize = 256 * 1024;

/// A visit that it was given, and when it worked on it.
#[derive(Debug, Clone)]
pub struct Worked {
    /// Which site's trainer.
    pub site: String,
    /// The round.
    pub round: Vec<u8>,
    /// The visit.
    pub visit: u32,
    /// When the task came.
    pub from: Instant,
    /// When the result was reported; none if it broke off.
    pub to: Option<Instant>,
}

/// What several trainers did, in the order in which they began.
pub type Log = Arc<Mutex<Vec<Worked>>>;

/// Attaches to its site's daemon, again and again, until dropped: then it is gone as if killed.
#[derive(Debug)]
pub struct NoOp(JoinHandle<()>);

impl Drop for NoOp {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl NoOp {
    /// The trainer of `site`; a visit takes it so long.
    #[must_use]
    pub fn of(site: &Site, takes: Duration, log: &Log) -> Self {
        let socket = site.socket.with_file_name("trainer.sock");
        let (name, log) = (site.name.clone(), log.clone());
        Self(tokio::spawn(async move {
            loop {
                // However it ends: a trainer that lost its daemon comes back.
                let _ = serve(&socket, &name, takes, &log).await;
                tokio::time::sleep(AGAIN).await;
            }
        }))
    }
}

async fn serve(
    socket: &Path,
    name: &str,
    takes: Duration,
    log: &Log,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut link: TrainerLinkClient<Channel> = rondo_proto::unix::trainer(socket).await?;
    let (reports, stream) = mpsc::channel(4);
    let hello = TrainerHello {
        device: DeviceKind::Flex.into(),
        training_cases: 1,
        ..TrainerHello::default()
    };
    reports.send(TrainerReport { report: Some(Report::Hello(hello)) }).await?;
    let mut tasks = link.attach(ReceiverStream::new(stream)).await?.into_inner();
    while let Some(Task { task }) = tasks.message().await? {
        let Some(task::Task::Train(task)) = task else { continue };
        let (site, round, visit) = (name.to_owned(), task.round.clone(), task.visit);
        let entry = Worked { site, round, visit, from: Instant::now(), to: None };
        let at = {
            let mut log = log.lock().unwrap();
            log.push(entry);
            log.len() - 1
        };
        for update in 1..=REPORTS {
            tokio::time::sleep(takes / REPORTS).await;
            let progress = TrainProgress {
                round: task.round.clone(),
                visit,
                update: u64::from(update),
                updates: u64::from(REPORTS),
                ..TrainProgress::default()
            };
            reports.send(TrainerReport { report: Some(Report::Progress(progress)) }).await?;
        }
        let result = work(&mut link, task).await?;
        log.lock().unwrap()[at].to = Some(Instant::now());
        reports.send(TrainerReport { report: Some(Report::Result(result)) }).await?;
    }
    Ok(())
}

async fn work(
    link: &mut TrainerLinkClient<Channel>,
    task: TrainTask,
) -> Result<TrainResult, Box<dyn std::error::Error + Send + Sync>> {
    let recipe: Recipe = task.recipe.ok_or("no recipe")?.try_into()?;
    let layout = Layout::new(&recipe.architecture, recipe.extras());
    let length = usize::try_from(layout.len())?;
    let mut bytes = Vec::with_capacity(length);
    if task.received.is_empty() {
        bytes.extend_from_slice(layout.header());
        while bytes.len() < length {
            bytes.extend_from_slice(&0.01_f32.to_le_bytes());
        }
    } else {
        let request = FetchCheckpointRequest { digest: task.received };
        let mut parts = link.fetch_checkpoint(request).await?.into_inner();
        while let Some(part) = parts.next().await {
            bytes.extend(part?.data);
        }
    }
    let end = bytes.len() - 4;
    bytes[end..].copy_from_slice(&(task.visit as f32 / 1000.0).to_le_bytes());
    let parts: Vec<_> =
        bytes.chunks(PART_BYTES).map(|part| CheckpointPart { data: part.to_vec() }).collect();
    let stored = link.store_checkpoint(tokio_stream::iter(parts)).await?.into_inner();
    Ok(TrainResult {
        round: task.round,
        visit: task.visit,
        weights: stored.digest,
        training_cases: 1,
        epochs: 1,
        updates: u64::from(REPORTS),
        chosen_epoch: 1,
        ..TrainResult::default()
    })
}
