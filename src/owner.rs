//! The one owner of a site's state: commits each event, then adopts it, and only then may anybody act.

use crate::ids::{RoundId, SiteId};
use crate::round::{Event, Receipt, ReceiptBody, Refusal, SiteState, step};
use std::sync::Arc;

/// Where events become durable.
pub trait Log {
    /// Why an event could not be written.
    type Error;

    /// Appends `event` durably. When this returns, the event has happened.
    ///
    /// # Errors
    /// If it could not be written; then it has not.
    fn append(&mut self, event: &Event) -> Result<(), Self::Error>;
}

/// Why an event did not happen.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error<E> {
    /// It does not follow from what happened before.
    #[error(transparent)]
    Refused(Refusal),
    /// It could not be written down.
    #[error("{0}")]
    Log(E),
}

/// A state and the log that it is the replay of.
#[derive(Debug)]
pub struct Owner<L> {
    log: L,
    state: Arc<SiteState>,
}

impl<L: Log> Owner<L> {
    /// Takes over `log` and the state that was replayed from it.
    pub fn new(log: L, state: SiteState) -> Self {
        Self { log, state: Arc::new(state) }
    }

    /// The state now.
    pub fn state(&self) -> &Arc<SiteState> {
        &self.state
    }

    /// The log.
    pub fn log(&self) -> &L {
        &self.log
    }

    /// Makes `event` happen; says whether that changed anything. What is known already is accepted
    /// and not written again.
    ///
    /// # Errors
    /// If it is refused or cannot be written down; nothing changed then.
    pub fn adopt(&mut self, event: &Event) -> Result<bool, Error<L::Error>> {
        let next = step(&self.state, event).map_err(Error::Refused)?;
        if next == *self.state {
            return Ok(false);
        }
        self.log.append(event).map_err(Error::Log)?;
        self.state = Arc::new(next);
        Ok(true)
    }

    /// What `site`, whose state this is, says next in `round`: the receipt, to be signed and adopted.
    pub fn receipt(&self, round: RoundId, site: &SiteId, body: ReceiptBody, at: u64) -> Receipt {
        let told = self.state.rounds().get(&round).and_then(|r| r.receipts.get(site));
        let told = u32::try_from(told.map_or(0, Vec::len)).unwrap_or(u32::MAX);
        Receipt { round, site: site.clone(), number: told.saturating_add(1), at, body }
    }
}
