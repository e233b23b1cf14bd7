//! Checkpoints on the way between two daemons, a piece at a time.
//!
//! Either side may be the one that dials: [`send`] makes a stream of chunks and [`receive`] takes one.
//! Neither holds more of a checkpoint than a few chunks, and neither reads, hashes or writes on the
//! threads that serve connections.

mod incoming;
mod landing;
mod outgoing;

pub use incoming::{Incoming, Spent};
pub(crate) use incoming::{transfer_name, transfer_object};
pub(crate) use landing::{Aligned, Landing};
pub use outgoing::{Outgoing, send};

use crate::pace::Patience;
use crate::reason::Reason;
use crate::store::Error;
use rondo_proto::peer::{Chunk, Wanted};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

/// Bytes of a checkpoint in one message: what is under way when a connection breaks is lost, so
/// messages are small; each one costs some microseconds, so they are not smaller.
pub const PIECE_BYTES: usize = 64 * 1024;
/// Pieces between a connection and the disk, on each side.
const PIECES_AHEAD: usize = 32;

/// Takes `chunks` in until they end. What was verified stays, whatever happens.
///
/// # Errors
/// A refused chunk, what the disk said, or how the stream broke.
pub async fn receive(
    incoming: Incoming,
    chunks: impl Stream<Item = Result<Chunk, Status>>,
) -> Result<Incoming, Status> {
    let (pieces, inbox) = mpsc::channel(PIECES_AHEAD);
    let work = tokio::task::spawn_blocking(move || write_all(incoming, inbox));
    let ended = forward(chunks, pieces).await;
    // Why the pieces were no longer wanted says more than that they were not.
    let incoming = work.await.map_err(|e| Reason::Internal.because(e))??;
    ended.map(|()| incoming)
}

async fn forward(
    chunks: impl Stream<Item = Result<Chunk, Status>>,
    pieces: mpsc::Sender<Chunk>,
) -> Result<(), Status> {
    let mut chunks = std::pin::pin!(chunks);
    let mut patience = Patience::default();
    loop {
        let Some(chunk) = next(&mut patience, &mut chunks).await? else { return Ok(()) };
        if pieces.send(chunk).await.is_err() {
            return Ok(());
        }
    }
}

/// The next of `chunks`, unless the flow is dead: a drip is no flow.
///
/// # Errors
/// That nothing came in time, or how the stream broke.
pub async fn next(
    patience: &mut Patience,
    chunks: &mut (impl Stream<Item = Result<Chunk, Status>> + Unpin),
) -> Result<Option<Chunk>, Status> {
    let came = patience.wait(chunks.next()).await.map_err(|limit| {
        Reason::StalledStream.because(format!(
            "no chunk came within {} s: the transfer is cut, and what arrived is kept",
            limit.as_secs()
        ))
    })?;
    let chunk = came.transpose()?;
    patience.moved(chunk.as_ref().map_or(0, |chunk| chunk.data.len()));
    Ok(chunk)
}

fn write_all(mut incoming: Incoming, mut inbox: mpsc::Receiver<Chunk>) -> Result<Incoming, Error> {
    let mut outcome = Ok(());
    while let Some(chunk) = inbox.blocking_recv() {
        outcome = incoming.take(chunk.index, chunk.offset, &chunk.data);
        // Larger writes where the disk is slower than the line, and at once where it is not.
        if outcome.is_ok() && inbox.is_empty() {
            outcome = incoming.write();
        }
        if outcome.is_err() {
            break;
        }
    }
    let settled = incoming.settle();
    outcome.and(settled).map(|()| incoming)
}

/// What is still to be sent, as the wire says it.
#[must_use]
pub fn wanted(incoming: &Incoming) -> Wanted {
    Wanted { chunks: incoming.missing(), offset: incoming.offset() }
}
