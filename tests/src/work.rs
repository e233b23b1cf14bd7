//! A trainer's place at a daemon that a test takes itself: it hands over whatever weights it likes.

use crate::site::Site;
use rondo::ids::Digest;
use rondo_proto::trainer::trainer_link_client::TrainerLinkClient;
use rondo_proto::trainer::{
    CheckpointPart, DeviceKind, FailureReason, FetchCheckpointRequest, Task, TrainFailure,
    TrainResult, TrainTask, TrainerHello, TrainerReport, task, trainer_report::Report,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// A trainer by hand, attached to one daemon.
pub struct Work {
    link: TrainerLinkClient<Channel>,
    reports: mpsc::Sender<TrainerReport>,
    tasks: tonic::Streaming<Task>,
}

impl Work {
    /// Attaches to the daemon of `site`, which must have no other trainer.
    pub async fn attach(site: &Site) -> Self {
        let socket = site.socket.with_file_name("trainer.sock");
        let mut link = rondo_proto::unix::trainer(&socket).await.expect("the trainer's socket");
        let (reports, stream) = mpsc::channel(4);
        let hello = TrainerHello {
            device: DeviceKind::Flex.into(),
            training_cases: 1,
            validation_cases: 1,
            ..TrainerHello::default()
        };
        reports.send(report(Report::Hello(hello))).await.expect("room");
        let tasks = link.attach(ReceiverStream::new(stream)).await.expect("a free place");
        Self { link, reports, tasks: tasks.into_inner() }
    }

    /// The next task to train.
    pub async fn task(&mut self) -> TrainTask {
        loop {
            let task = self.tasks.message().await.expect("a daemon").expect("a task").task;
            if let Some(task::Task::Train(task)) = task {
                return task;
            }
        }
    }

    /// Bytes of the checkpoint that a task starts from.
    pub async fn received(&mut self, task: &TrainTask) -> Vec<u8> {
        let request = FetchCheckpointRequest { digest: task.received.clone() };
        let mut parts = self.link.fetch_checkpoint(request).await.expect("given").into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = parts.next().await {
            bytes.extend(part.expect("the whole of it").data);
        }
        bytes
    }

    /// Hands over `bytes` as the result of a task; their digest.
    pub async fn finish(&mut self, task: &TrainTask, bytes: &[u8]) -> String {
        let parts = bytes.chunks(99_999).map(|part| CheckpointPart { data: part.to_vec() });
        let parts: Vec<_> = parts.collect();
        let stored = self.link.store_checkpoint(tokio_stream::iter(parts)).await.expect("stored");
        let result = TrainResult {
            round: task.round.clone(),
            visit: task.visit,
            weights: stored.into_inner().digest,
            training_cases: 1,
            validation_cases: 1,
            epochs: 1,
            updates: 1,
            chosen_epoch: 1,
            received_dice: (!task.received.is_empty()).then_some(0.5),
            trained_dice: Some(0.75),
        };
        self.reports.send(report(Report::Result(result))).await.expect("a daemon");
        Digest::of(bytes).to_string()
    }

    /// Reports that a task failed.
    pub async fn fail(&mut self, task: &TrainTask, reason: FailureReason) {
        let (round, visit) = (task.round.clone(), task.visit);
        let failure = TrainFailure { round, visit, reason: reason.into() };
        self.reports.send(report(Report::Failure(failure))).await.expect("a daemon");
    }
}

fn report(report: Report) -> TrainerReport {
    TrainerReport { report: Some(report) }
}
