//! A trainer that a test holds in its hand: it trains nothing, ends a visit when it is let, and reports
//! the figures it was given.

use crate::site::Site;
use rondo::checkpoint::Layout;
use rondo::recipe::Recipe;
use rondo_proto::trainer::trainer_link_client::TrainerLinkClient;
use rondo_proto::trainer::{
    CheckpointPart, DeviceKind, TrainProgress, TrainResult, TrainTask, TrainerHello, TrainerReport,
    task, trainer_report::Report,
};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Pause before it attaches again, and between two words of progress.
const BEAT: Duration = Duration::from_millis(100);

/// Validation Dice of a visit: of the model it received, and of the one it made.
pub type Figures = fn(visit: u32) -> (Option<f64>, Option<f64>);

/// What happened to a visit at a stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// The task came.
    Began(u32),
    /// The daemon called it off.
    Stopped(u32),
    /// The result was reported.
    Ended(u32),
}

/// Attaches to its site's daemon, again and again, until dropped: then it is gone as if killed.
#[derive(Debug)]
pub struct StandIn {
    may_end: watch::Sender<bool>,
    did: Arc<Mutex<Vec<Did>>>,
    work: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl StandIn {
    /// The trainer of `site`; it ends its visits at once.
    #[must_use]
    pub fn of(site: &Site, figures: Figures) -> Self {
        let socket = site.socket.with_file_name("trainer.sock");
        let (may_end, ends) = watch::channel(true);
        let did = Arc::<Mutex<Vec<Did>>>::default();
        let log = did.clone();
        // Two sites never make the same weights.
        let mark = site.name.bytes().fold(0_u32, |sum, b| sum * 31 % 9973 + u32::from(b));
        let work = tokio::spawn(async move {
            loop {
                // However it ends: a trainer that lost its daemon comes back.
                let _ = serve(&socket, figures, mark, ends.clone(), &log).await;
                tokio::time::sleep(BEAT).await;
            }
        });
        Self { may_end, did, work }
    }

    /// Lets visits end, or keeps them going.
    pub fn may_end(&self, may: bool) {
        self.may_end.send_replace(may);
    }

    /// What it did so far.
    #[must_use]
    pub fn did(&self) -> Vec<Did> {
        self.did.lock().unwrap().clone()
    }
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn serve(
    socket: &Path,
    figures: Figures,
    mark: u32,
    mut ends: watch::Receiver<bool>,
    did: &Mutex<Vec<Did>>,
) -> Result<(), Broken> {
    let mut link: TrainerLinkClient<Channel> = rondo_proto::unix::trainer(socket).await?;
    let (reports, stream) = mpsc::channel(4);
    let hello = TrainerHello {
        device: DeviceKind::Flex.into(),
        training_cases: 1,
        ..TrainerHello::default()
    };
    reports.send(TrainerReport { report: Some(Report::Hello(hello)) }).await?;
    let mut tasks = link.attach(ReceiverStream::new(stream)).await?.into_inner();
    while let Some(task) = tasks.next().await {
        let Some(task::Task::Train(task)) = task?.task else { continue };
        let visit = task.visit;
        did.lock().unwrap().push(Did::Began(visit));
        let mut update = 0;
        let stopped = loop {
            if *ends.borrow_and_update() {
                break false;
            }
            update += 1;
            let round = task.round.clone();
            let progress = TrainProgress { round, visit, update, ..TrainProgress::default() };
            reports.send(TrainerReport { report: Some(Report::Progress(progress)) }).await?;
            tokio::select! {
                _ = ends.changed() => {}
                () = tokio::time::sleep(BEAT) => {}
                stop = tasks.next() => {
                    stop.ok_or("the daemon is gone")??;
                    break true;
                }
            }
        };
        if stopped {
            did.lock().unwrap().push(Did::Stopped(visit));
            continue;
        }
        let result = result(&mut link, task, figures(visit), mark).await?;
        did.lock().unwrap().push(Did::Ended(visit));
        reports.send(TrainerReport { report: Some(Report::Result(result)) }).await?;
    }
    Ok(())
}

async fn result(
    link: &mut TrainerLinkClient<Channel>,
    task: TrainTask,
    (received_dice, trained_dice): (Option<f64>, Option<f64>),
    mark: u32,
) -> Result<TrainResult, Broken> {
    let recipe: Recipe = task.recipe.ok_or("no recipe")?.try_into()?;
    let layout = Layout::new(&recipe.architecture, recipe.extras());
    let length = usize::try_from(layout.len())?;
    let mut bytes = layout.header().to_vec();
    while bytes.len() < length {
        bytes.extend_from_slice(&((task.visit * 10_000 + mark) as f32 / 1e6).to_le_bytes());
    }
    let part = CheckpointPart { data: bytes };
    let stored = link.store_checkpoint(tokio_stream::once(part)).await?.into_inner();
    Ok(TrainResult {
        round: task.round,
        visit: task.visit,
        weights: stored.digest,
        training_cases: 1,
        epochs: 1,
        updates: 1,
        chosen_epoch: 1,
        received_dice,
        trained_dice,
        ..TrainResult::default()
    })
}
