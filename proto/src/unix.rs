//! Clients of services on a unix socket.

use crate::MESSAGE_MAX_BYTES;
use crate::control::control_client::ControlClient;
use crate::trainer::trainer_link_client::TrainerLinkClient;
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The socket could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("connecting to {}: {source}", path.display())]
pub struct Error {
    /// The socket.
    pub path: PathBuf,
    /// Why.
    pub source: tonic::transport::Error,
}

/// Connects to a daemon's control socket.
///
/// # Errors
/// If nobody listens there, or the caller may not.
pub async fn control(socket: &Path) -> Result<ControlClient<Channel>, Error> {
    Ok(ControlClient::new(channel(socket).await?).max_decoding_message_size(MESSAGE_MAX_BYTES))
}

/// Connects to a daemon's trainer socket.
///
/// # Errors
/// If nobody listens there, or the caller may not.
pub async fn trainer(socket: &Path) -> Result<TrainerLinkClient<Channel>, Error> {
    Ok(TrainerLinkClient::new(channel(socket).await?).max_decoding_message_size(MESSAGE_MAX_BYTES))
}

async fn channel(socket: &Path) -> Result<Channel, Error> {
    let path = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The URI names the authority of the requests only; the connector decides where they go.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
        .map_err(|source| Error { path: socket.to_owned(), source })
}
