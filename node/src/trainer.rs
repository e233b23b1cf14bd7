//! The link to the site's one trainer, and when it is started where the daemon has it started.

use crate::config::Config;
use crate::starter::{self, Starter};
use rondo::ids::{Digest, RoundId, VisitNo};
use rondo::manifest::{Counts, Validation};
use rondo::recipe::Recipe;
use rondo::round::StallReason;
use rondo_proto::control::{ProgressView, TrainerView};
use rondo_proto::trainer::{
    DeviceKind, StopTask, Task, TrainProgress, TrainTask, TrainerHello, task,
};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// First pause before an ended trainer is started again; it doubles up to [`RESTART_MAX`].
const RESTART_MIN: Duration = Duration::from_secs(1);
/// Longest pause before an ended trainer is started again.
const RESTART_MAX: Duration = Duration::from_secs(60);

/// A visit waits this long for a trainer before it counts as a failed attempt.
const ATTACH_PATIENCE: Duration = Duration::from_secs(60);

/// One visit's work.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// The round.
    pub round: RoundId,
    /// The visit.
    pub visit: VisitNo,
    /// Seed of every random draw of the visit.
    pub seed: u64,
    /// How to train.
    pub recipe: Recipe,
    /// What to start from; none for a fresh model.
    pub received: Option<Digest>,
    /// Least validation Dice of what was received.
    pub least_dice: Option<f64>,
}

/// Why an assignment gave no model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It cannot be finished for now.
    Stalled(StallReason),
    /// What was received validates below the assignment's `least_dice`.
    Floor,
}

impl From<StallReason> for Failure {
    fn from(reason: StallReason) -> Self {
        Self::Stalled(reason)
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// The weights, stored and verified already.
    pub weights: Digest,
    /// How much it trained on.
    pub counts: Counts,
    /// Validation before and after.
    pub validation: Validation,
}

/// A trainer that is attached.
#[derive(Debug, Clone)]
pub struct Attached {
    hello: TrainerHello,
    tasks: mpsc::Sender<Task>,
}

#[derive(Debug, Default)]
struct Current {
    assignment: Option<Assignment>,
    outcome: Option<Result<Trained, Failure>>,
    progress: Option<TrainProgress>,
}

/// The place where the daemon and its trainer meet.
#[derive(Clone)]
pub struct TrainerHub {
    attached: Arc<watch::Sender<Option<Attached>>>,
    current: Arc<watch::Sender<Current>>,
    problem: Arc<Mutex<String>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Default for TrainerHub {
    fn default() -> Self {
        Self {
            attached: Arc::new(watch::Sender::new(None)),
            current: Arc::new(watch::Sender::new(Current::default())),
            problem: Arc::default(),
            turn: Arc::default(),
        }
    }
}

impl TrainerHub {
    /// Takes a trainer in, if none is attached.
    #[must_use]
    pub fn attach(&self, hello: TrainerHello) -> Option<mpsc::Receiver<Task>> {
        let (tasks, inbox) = mpsc::channel(4);
        let fresh = self.attached.send_if_modified(|attached| {
            let free = attached.is_none();
            if free {
                *attached = Some(Attached { hello, tasks });
            }
            free
        });
        fresh.then_some(inbox)
    }

    /// The trainer went away; what it worked on has not happened.
    pub fn detach(&self) {
        self.attached.send_replace(None);
        self.finish(None, Err(StallReason::TrainerFailed.into()));
    }

    /// Notes what the trainer reports on its assignment; reports on anything else are dropped.
    pub fn report(&self, progress: TrainProgress) {
        self.current.send_if_modified(|current| {
            let fits = current.assignment.as_ref().is_some_and(|a| {
                a.round.as_bytes()[..] == progress.round && a.visit.0 == progress.visit
            });
            if fits {
                current.progress = Some(progress);
            }
            fits
        });
    }

    /// Notes how the assignment ended, if it is the one that is being worked on.
    pub fn finish(&self, of: Option<(RoundId, VisitNo)>, outcome: Result<Trained, Failure>) {
        self.current.send_if_modified(|current| {
            let fits = current
                .assignment
                .as_ref()
                .is_some_and(|a| of.is_none_or(|of| of == (a.round, a.visit)));
            if fits && current.outcome.is_none() {
                current.outcome = Some(outcome);
            }
            fits
        });
    }

    /// The recipe that is being trained; what the trainer stores must have its layout.
    #[must_use]
    pub fn assignment(&self) -> Option<Assignment> {
        self.current.borrow().assignment.clone()
    }

    /// Hands `assignment` to the trainer, once it is free and attached, and waits for the outcome.
    /// `begin` runs when the trainer is about to start.
    ///
    /// Dropping the future stops the trainer's work.
    ///
    /// # Errors
    /// Why it gave no model.
    pub async fn train<B>(&self, assignment: Assignment, begin: B) -> Result<Trained, Failure>
    where
        B: AsyncFnOnce() -> bool,
    {
        let _turn = self.turn.lock().await;
        let mut attached = self.attached.subscribe();
        let waited = tokio::time::timeout(ATTACH_PATIENCE, attached.wait_for(Option::is_some));
        let trainer = match waited.await {
            Ok(Ok(trainer)) => trainer.clone(),
            _ => None,
        }
        .ok_or(StallReason::TrainerAbsent)?;
        if !begin().await {
            return Err(StallReason::Storage.into());
        }
        let task = TrainTask {
            round: assignment.round.as_bytes().to_vec(),
            visit: assignment.visit.0,
            seed: assignment.seed,
            recipe: Some((&assignment.recipe).into()),
            received: assignment.received.map(|d| d.as_bytes().to_vec()).unwrap_or_default(),
            least_dice: assignment.least_dice,
        };
        let mut watched = self.current.subscribe();
        self.current.send_replace(Current {
            assignment: Some(assignment),
            outcome: None,
            progress: None,
        });
        let mut stop = StopOnDrop { hub: self.clone(), tasks: trainer.tasks.clone(), armed: true };
        let task = Task { task: Some(task::Task::Train(task)) };
        if trainer.tasks.send(task).await.is_err() || self.attached.borrow().is_none() {
            stop.armed = false;
            return Err(StallReason::TrainerFailed.into());
        }
        let outcome = match watched.wait_for(|c| c.outcome.is_some()).await {
            Ok(current) => current.outcome.clone(),
            Err(_) => None,
        };
        stop.armed = false;
        outcome.unwrap_or(Err(StallReason::TrainerFailed.into()))
    }

    /// What the trainer is doing in `round`.
    #[must_use]
    pub fn progress(&self, round: RoundId) -> Option<ProgressView> {
        let current = self.current.borrow();
        current.assignment.as_ref().filter(|a| a.round == round)?;
        let p = current.progress.as_ref()?;
        Some(ProgressView {
            visit: p.visit,
            epoch: p.epoch,
            epochs: p.epochs,
            update: p.update,
            updates: p.updates,
            cross_entropy: p.cross_entropy,
            vss: p.vss,
            kdl: p.kdl,
            learning_rate: p.learning_rate,
            segments_per_second: p.segments_per_second,
            validation_dice: p.validation_dice,
            eta_seconds: p.eta_seconds,
            penalty: p.penalty,
            memory_mib: p.memory_mib,
        })
    }

    /// Changes whenever progress or attachment changes.
    pub fn changes(&self) -> impl Future<Output = ()> + use<> {
        let mut current = self.current.subscribe();
        let mut attached = self.attached.subscribe();
        async move {
            tokio::select! {
                _ = current.changed() => {}
                _ = attached.changed() => {}
            }
        }
    }

    /// The trainer as an operator sees it.
    #[must_use]
    pub fn view(&self) -> TrainerView {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match &*self.attached.borrow() {
            None => TrainerView { problem, ..TrainerView::default() },
            Some(Attached { hello, .. }) => TrainerView {
                connected: true,
                device: match hello.device() {
                    DeviceKind::LibtorchCpu => "libtorch-cpu",
                    DeviceKind::LibtorchCuda => "libtorch-cuda",
                    DeviceKind::Flex => "flex",
                    DeviceKind::Unspecified => "",
                }
                .to_owned(),
                training_cases: hello.training_cases,
                validation_cases: hello.validation_cases,
                test_cases: hello.test_cases,
                quarantined_cases: hello.quarantined_cases,
                problem: String::new(),
            },
        }
    }

    fn set_problem(&self, text: String) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Lets the configured trainer be started, and again whenever it ends, until dropped.
    ///
    /// # Errors
    /// Outside a runtime.
    pub async fn supervise(self, config: &Config, starter: Option<Starter>) -> io::Result<()> {
        let Some(starter) = starter else {
            let socket = config.trainer_socket.display();
            self.set_problem(format!("none is attached; start `rondo-trainer serve --socket {socket} --config trainer.toml`, or let `[trainer] command` in node.toml start it"));
            return Ok(());
        };
        let mut link = starter.connect()?;
        let mut pause = RESTART_MIN;
        self.set_problem(format!(
            "it was started and has not reported yet; its log is {}",
            starter::log(&config.home).display()
        ));
        loop {
            let begun = Instant::now();
            let ended = match link.run_trainer().await {
                Ok(ended) => ended,
                Err(e) => {
                    let text = format!(
                        "the process that starts the trainer is gone ({e}); restart the daemon"
                    );
                    tracing::warn!("{text}");
                    self.set_problem(text);
                    return Ok(());
                }
            };
            if begun.elapsed() > RESTART_MAX {
                pause = RESTART_MIN;
            }
            tracing::warn!(pause_s = pause.as_secs(), "{ended}");
            self.set_problem(ended);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RESTART_MAX);
        }
    }
}

/// Tells the trainer to stop if its assignment is given up.
struct StopOnDrop {
    hub: TrainerHub,
    tasks: mpsc::Sender<Task>,
    armed: bool,
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if self.armed {
            let _ = self.tasks.try_send(Task { task: Some(task::Task::Stop(StopTask {})) });
        }
        self.hub.current.send_replace(Current::default());
    }
}
