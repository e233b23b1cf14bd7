//! The sole owner of a site's state: commits each event to the journal, then adopts it, then tells.

use crate::identity::Own;
use crate::journal::{self, Journal};
use rondo::envelope::{self, Envelope};
use rondo::ids::{RoundId, SiteId};
use rondo::owner::{self, Owner};
use rondo::round::{Event, ReceiptBody, Refusal, SiteState};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// Events that wait for the journal at most; whoever brings more waits.
const QUEUE: usize = 64;

/// Why something could not be made to happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not follow from what happened before.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be written down.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// It could not be signed.
    #[error(transparent)]
    Sign(#[from] envelope::Error),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

impl From<owner::Error<journal::Error>> for Error {
    fn from(e: owner::Error<journal::Error>) -> Self {
        match e {
            owner::Error::Refused(refusal) => Self::Refused(refusal),
            owner::Error::Log(e) => Self::Journal(e),
        }
    }
}

enum Command {
    Adopt(Event, oneshot::Sender<Result<(), Error>>),
    Tell(RoundId, ReceiptBody, oneshot::Sender<Result<Envelope, Error>>),
}

/// Access to the state for everybody else in the process.
#[derive(Clone)]
pub struct Daemon {
    commands: mpsc::Sender<Command>,
    states: watch::Receiver<Arc<SiteState>>,
    site: SiteId,
    records: watch::Receiver<u64>,
}

/// Seconds since 1970 by this machine's clock.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Does `work` to its end even if whoever waits for it goes away: what must follow a commit follows.
///
/// # Errors
/// [`Error::Stopping`].
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work).await.map_err(|e| match e.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::Stopping,
    })
}

impl Daemon {
    /// Takes over journal and state, which already hold the site's own card. The thread ends, and
    /// with it the journal is closed in order, when the last handle is dropped.
    #[must_use]
    pub fn start(journal: Journal, state: SiteState, own: Own) -> (Self, JoinHandle<()>) {
        let site = own.now().own.site.clone();
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (count, records) = watch::channel(journal.len());
        let owner = Owner::new(journal, state);
        let (publish, states) = watch::channel(owner.state().clone());
        let writer = Writer { owner, own, publish, count };
        // SQLite blocks, so the owner has a thread of its own.
        let thread = std::thread::spawn(move || writer.run(inbox));
        (Self { commands, states, site, records }, thread)
    }

    /// This site.
    #[must_use]
    pub fn site(&self) -> &SiteId {
        &self.site
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> Arc<SiteState> {
        self.states.borrow().clone()
    }

    /// The state now and after every change.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<Arc<SiteState>> {
        self.states.clone()
    }

    /// Length of the journal.
    #[must_use]
    pub fn records(&self) -> u64 {
        *self.records.borrow()
    }

    /// Makes `event` happen. What is known already is accepted and not written again.
    ///
    /// # Errors
    /// If it is refused or cannot be written down; nothing changed then.
    pub async fn adopt(&self, event: Event) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Adopt(event, reply)).await.map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)?
    }

    /// Signs and adopts this site's next receipt of `round`.
    ///
    /// # Errors
    /// As [`Daemon::adopt`].
    pub async fn tell(&self, round: RoundId, body: ReceiptBody) -> Result<Envelope, Error> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Tell(round, body, reply);
        self.commands.send(command).await.map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)?
    }
}

struct Writer {
    owner: Owner<Journal>,
    own: Own,
    publish: watch::Sender<Arc<SiteState>>,
    count: watch::Sender<u64>,
}

impl Writer {
    fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        while let Some(command) = inbox.blocking_recv() {
            // A caller that went away does not undo what happened.
            match command {
                Command::Adopt(event, reply) => drop(reply.send(self.adopt(&event))),
                Command::Tell(round, body, reply) => drop(reply.send(self.tell(round, body))),
            }
        }
    }

    fn adopt(&mut self, event: &Event) -> Result<(), Error> {
        if self.owner.adopt(event)? {
            self.publish.send_replace(self.owner.state().clone());
            self.count.send_replace(self.owner.log().len());
        }
        Ok(())
    }

    fn tell(&mut self, round: RoundId, body: ReceiptBody) -> Result<Envelope, Error> {
        let own = self.own.now();
        let receipt = self.owner.receipt(round, &own.own.site, body, unix_now());
        let envelope = receipt.sign(&own.signing)?;
        self.adopt(&Event::Receipt { receipt: envelope.clone() })?;
        Ok(envelope)
    }
}
