//! The trainer's side door: tasks out, reports and weights in.

use crate::store::{self, Store};
use crate::trainer::{Failure, Trained, TrainerHub};
use rondo::checkpoint::{self, Layout};
use rondo::ids::Hasher;
use rondo::manifest::{Counts, Validation};
use rondo::round::StallReason;
use rondo_proto::convert::{digest, visit};
use rondo_proto::trainer::trainer_link_server::TrainerLink;
use rondo_proto::trainer::{
    CheckpointPart, FailureReason, FetchCheckpointRequest, StoreCheckpointReply, Task, TrainResult,
    TrainerReport, trainer_report::Report,
};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of a checkpoint in one message.
const PART_BYTES: usize = 256 * 1024;
/// Messages between the disk and the trainer.
const PARTS_AHEAD: usize = 8;

/// The trainer service of a site.
#[derive(Clone)]
pub struct TrainerService {
    hub: TrainerHub,
    store: Store,
}

impl TrainerService {
    /// Serves `hub` and `store`.
    #[must_use]
    pub fn new(hub: TrainerHub, store: Store) -> Self {
        Self { hub, store }
    }

    fn take(&self, report: TrainerReport) -> Result<(), Status> {
        match report.report {
            Some(Report::Progress(progress)) => self.hub.report(progress),
            Some(Report::Result(result)) => {
                let of = (digest("round", &result.round)?, visit(result.visit)?);
                self.hub.finish(Some(of), self.trained(&result).map_err(Failure::Stalled));
            }
            Some(Report::Failure(failure)) => {
                let of = (digest("round", &failure.round)?, visit(failure.visit)?);
                let reason = match failure.reason() {
                    FailureReason::Cohort => StallReason::Cohort.into(),
                    FailureReason::Diverged => StallReason::Diverged.into(),
                    FailureReason::Storage => StallReason::Storage.into(),
                    FailureReason::Floor => Failure::Floor,
                    FailureReason::Trainer | FailureReason::Unspecified => {
                        StallReason::TrainerFailed.into()
                    }
                };
                self.hub.finish(Some(of), Err(reason));
            }
            Some(Report::Hello(_)) | None => {
                return Err(Status::invalid_argument("one hello, then reports"));
            }
        }
        Ok(())
    }

    fn trained(&self, r: &TrainResult) -> Result<Trained, StallReason> {
        let weights = digest("weights", &r.weights).map_err(|_| StallReason::TrainerFailed)?;
        if !self.store.has(weights) {
            return Err(StallReason::Storage);
        }
        let counts = Counts {
            training_cases: r.training_cases,
            validation_cases: r.validation_cases,
            epochs: r.epochs,
            updates: r.updates,
            chosen_epoch: r.chosen_epoch,
        };
        let validation =
            Validation { received_dice: r.received_dice, trained_dice: r.trained_dice };
        Ok(Trained { weights, counts, validation })
    }
}

#[tonic::async_trait]
impl TrainerLink for TrainerService {
    type AttachStream = ReceiverStream<Result<Task, Status>>;
    type FetchCheckpointStream = ReceiverStream<Result<CheckpointPart, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<TrainerReport>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut reports = request.into_inner();
        let Some(Report::Hello(hello)) = reports.message().await?.and_then(|r| r.report) else {
            return Err(Status::invalid_argument("a trainer says hello first"));
        };
        let cases = hello.training_cases;
        let mut tasks = self
            .hub
            .attach(hello)
            .ok_or_else(|| Status::already_exists("another trainer is attached to this daemon"))?;
        tracing::info!(training_cases = cases, "trainer attached");
        let (out, answer) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    task = tasks.recv() => match task {
                        Some(task) => if out.send(Ok(task)).await.is_err() { break },
                        None => break,
                    },
                    report = reports.next() => match report {
                        Some(Ok(report)) => if let Err(e) = service.take(report) {
                            tracing::warn!("trainer report refused: {}", e.message());
                            break;
                        },
                        Some(Err(_)) | None => break,
                    },
                }
            }
            service.hub.detach();
            tracing::warn!("trainer detached");
        });
        Ok(Response::new(ReceiverStream::new(answer)))
    }

    async fn fetch_checkpoint(
        &self,
        request: Request<FetchCheckpointRequest>,
    ) -> Result<Response<Self::FetchCheckpointStream>, Status> {
        let wanted = digest("digest", &request.into_inner().digest)?;
        let assigned = self.hub.assignment().and_then(|a| a.received);
        if assigned != Some(wanted) {
            return Err(Status::permission_denied(
                "only the checkpoint of the task may be fetched",
            ));
        }
        let stored = self.store.find(wanted)?;
        let (out, parts) = mpsc::channel(PARTS_AHEAD);
        spawn_blocking(move || {
            let mut hasher = Hasher::default();
            for start in (0..stored.bytes()).step_by(PART_BYTES) {
                let part = stored.read(start..start + PART_BYTES as u64);
                let part = part.map_err(Status::from).inspect(|data| hasher.update(data));
                let failed = part.is_err();
                let part = part.map(|data| CheckpointPart { data });
                if out.blocking_send(part).is_err() || failed {
                    return;
                }
            }
            let found = hasher.finish();
            if found != wanted {
                let damaged = store::Error::Damaged { expected: wanted, found };
                let _ = out.blocking_send(Err(damaged.into()));
            }
        });
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    async fn store_checkpoint(
        &self,
        request: Request<Streaming<CheckpointPart>>,
    ) -> Result<Response<StoreCheckpointReply>, Status> {
        let task = self
            .hub
            .assignment()
            .ok_or_else(|| Status::failed_precondition("no task is under way"))?;
        let layout = Layout::new(&task.recipe.architecture, task.recipe.extras());
        let mut parts = request.into_inner();
        let (pieces, mut inbox) = mpsc::channel::<Vec<u8>>(PARTS_AHEAD);
        let store = self.store.clone();
        let work = spawn_blocking(move || {
            let mut upload = store.begin()?;
            let (mut at, mut rest) = (0, Vec::new());
            while let Some(piece) = inbox.blocking_recv() {
                rest.extend_from_slice(&piece);
                // Whole numbers are checked; a part of one waits for the rest of it.
                let tail = rest.split_off(rest.len() / 4 * 4);
                layout.check_piece(at, &rest)?;
                upload.write(&rest)?;
                at += rest.len() as u64;
                rest = tail;
            }
            let (expected, found) = (layout.len(), at + rest.len() as u64);
            if found != expected {
                return Err(checkpoint::Error::Length { expected, found }.into());
            }
            Ok::<_, store::Error>(upload)
        });
        let ended = async {
            while let Some(part) = parts.message().await? {
                if pieces.send(part.data).await.is_err() {
                    break;
                }
            }
            Ok::<_, Status>(())
        };
        let ended = ended.await;
        drop(pieces);
        let upload = work.await.map_err(|e| Status::internal(e.to_string()))?;
        // An upload that broke off is short; how it broke says more.
        ended?;
        let upload = upload?;
        let stored = spawn_blocking(move || upload.finish())
            .await
            .map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(StoreCheckpointReply { digest: stored.as_bytes().to_vec() }))
    }
}
