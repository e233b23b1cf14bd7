//! Sockets: TLS for peers, unix sockets for operators and the trainer.

use crate::connection::{Place, Places, Trusted};
use crate::contacts::{
    CONNECTION_WINDOW, FRAME_BYTES, KEEP_ALIVE, KEEP_ALIVE_PATIENCE, STREAM_WINDOW,
};
use crate::identity::Own;
use crate::intake::Budget;
use crate::ledger::Egress;
use crate::ledger::calls::{Answers, Line};
use crate::ledger::meter::{Meter, Metered, Side};
use crate::pending::{HANDSHAKES_MAX, Pending};
use crate::reason::{Reason, Refusals};
use crate::rpc::control::ControlService;
use crate::rpc::peer::PeerService;
use crate::rpc::trainer::TrainerService;
use crate::tls::{self, Caller, Shown, States, caller};
use rondo_proto::MESSAGE_MAX_BYTES;
use rondo_proto::control::control_server::ControlServer;
use rondo_proto::peer::peer_server::PeerServer;
use rondo_proto::trainer::trainer_link_server::TrainerLinkServer;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::Connected;

/// A connection on which nothing came after this long is dropped; who calls speaks first.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(3);
/// A handshake that is not done after this long is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls at the same time on one connection of a peer.
const STREAMS_MAX: u32 = 8;
/// Longest path of a unix socket on Linux.
const SOCKET_PATH_MAX: usize = 107;
/// Bit of a folder's mode: what is made in it has its group.
const SET_GROUP_ID: u32 = 0o2000;

/// A peer's connection and whose key it was opened with.
pub struct PeerStream {
    tls: Metered<Trusted<TlsStream<TcpStream>>>,
    caller: Caller,
    _place: Place,
}

impl Connected for PeerStream {
    type ConnectInfo = Line;
    fn connect_info(&self) -> Line {
        Line { caller: self.caller.clone(), meter: self.tls.meter().clone() }
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Serves peers on `listener` until dropped.
///
/// # Errors
/// What ended the server.
pub async fn peers(
    listener: TcpListener,
    own: Own,
    states: States,
    service: PeerService,
    refusals: Refusals,
    egress: Egress,
) -> Result<(), tonic::transport::Error> {
    let (ready, connections) = mpsc::channel(HANDSHAKES_MAX);
    let answers =
        Answers { refusals: refusals.clone(), states: states.clone(), budget: Budget::default() };
    let door = Door { own, states, refusals, egress, places: Places::default() };
    let accepting = accept(listener, door, ready);
    let service = PeerServer::new(service).max_decoding_message_size(MESSAGE_MAX_BYTES);
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(Some(FRAME_BYTES))
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_PATIENCE))
        .max_concurrent_streams(Some(STREAMS_MAX))
        .concurrency_limit_per_connection(STREAMS_MAX as usize)
        .layer(answers)
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::select! {
        () = accepting => Ok(()),
        ended = serving => ended,
    }
}

/// What a connection needs before it may call.
#[derive(Clone)]
struct Door {
    own: Own,
    states: States,
    refusals: Refusals,
    egress: Egress,
    places: Places,
}

impl Door {
    /// The connection, if a trusted site shakes hands over it in time.
    async fn enter(&self, tcp: TcpStream, shown: &Shown) -> Result<PeerStream, (Reason, String)> {
        let _ = tcp.set_nodelay(true);
        let slow = |what: &str| (Reason::HandshakeTimeout, what.to_owned());
        tokio::time::timeout(FIRST_BYTES_TIMEOUT, tcp.peek(&mut [0]))
            .await
            .map_err(|_| slow("nothing came after connecting"))?
            .map_err(|e| (Reason::HandshakeFailed, e.to_string()))?;
        let tls = tls::server(&self.own, self.states.clone(), shown.clone())
            .map_err(|e| (Reason::Internal, e.to_string()))?;
        let accepted = TlsAcceptor::from(Arc::new(tls)).accept(tcp);
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepted)
            .await
            .map_err(|_| slow("the handshake took too long"))?
            .map_err(|e| (Reason::of_handshake(&e), e.to_string()))?;
        let lost = || (Reason::UnknownKey, "its key is no longer trusted".to_owned());
        let shown = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
        let shown = shown.map(|c| c.clone().into_owned()).ok_or_else(lost)?;
        let caller = caller(&shown, &self.states.borrow()).ok_or_else(lost)?;
        let many = || (Reason::TooMany, "too many connections of this peer, or of all".to_owned());
        let place = self.places.take(&caller.0).ok_or_else(many)?;
        let meter = Meter::new(&self.egress, &caller.0, Side::Server);
        let trusted = Trusted::new(tls, caller.0.clone(), Some(&shown), self.states.clone())
            .map_err(|e| (Reason::UnknownKey, e.to_string()))?;
        Ok(PeerStream { tls: Metered::new(trusted, meter), caller, _place: place })
    }
}

/// Shakes hands beside the accepting loop: a slow or hostile caller holds nobody up.
async fn accept(listener: TcpListener, door: Door, ready: mpsc::Sender<io::Result<PeerStream>>) {
    let mut pending = Pending::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = pending.done() => continue,
        };
        let (tcp, address) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("accepting a connection: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let refusals = door.refusals.clone();
        let (door, ready) = (door.clone(), ready.clone());
        let dropped = pending.begin(address.ip(), async move {
            let shown = Shown::default();
            match door.enter(tcp, &shown).await {
                Ok(stream) => drop(ready.send(Ok(stream)).await),
                Err((reason, why)) => {
                    let site = shown.get().filter(|_| reason.names_its_site());
                    door.refusals.note(site, "connection", reason, &format!("{why} ({address})"));
                }
            }
        });
        if let Some(crowded) = dropped {
            let why = format!("too many unfinished handshakes ({crowded})");
            refusals.note(None, "connection", Reason::TooMany, &why);
        }
    }
}

/// Serves the operator on `listener` until dropped.
///
/// # Errors
/// What ended the server.
pub async fn control(
    listener: UnixListener,
    service: ControlService,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(ControlServer::new(service).max_decoding_message_size(MESSAGE_MAX_BYTES))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
}

/// Serves the trainer on `listener` until dropped.
///
/// # Errors
/// What ended the server.
pub async fn trainer(
    listener: UnixListener,
    service: TrainerService,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(TrainerLinkServer::new(service))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
}

/// Opens a unix socket that only this user can reach; and, in a folder with the set-group-ID bit, the
/// group of that folder. The caller holds the lock of the site's home, so a socket that lies there
/// already belongs to nobody.
///
/// # Errors
/// A sentence with the path.
pub fn bind_unix(path: &Path) -> anyhow::Result<StdUnixListener> {
    use anyhow::Context as _;
    let shown = path.display();
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        anyhow::bail!(
            "the socket path {shown} is longer than {SOCKET_PATH_MAX} bytes; choose a shorter one in node.toml"
        );
    }
    if let Some(folder) = path.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| {
            format!(
                "creating the socket folder {}; make it writable for this user",
                folder.display()
            )
        })?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            anyhow::bail!(
                "{shown} is not a socket but another file; choose another socket in node.toml"
            );
        }
        Ok(_) => std::fs::remove_file(path)
            .with_context(|| format!("removing the old socket {shown}"))?,
        Err(_) => {}
    }
    let listener = StdUnixListener::bind(path).with_context(|| {
        format!("opening the socket {shown}; its folder must be writable for this user")
    })?;
    // In such a folder the system gives the socket the folder's group.
    let shared = path.parent().and_then(|folder| std::fs::metadata(folder).ok());
    let shared = shared.is_some_and(|folder| folder.permissions().mode() & SET_GROUP_ID != 0);
    let mode = if shared { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("restricting the socket {shown}"))?;
    listener.set_nonblocking(true).with_context(|| format!("preparing the socket {shown}"))?;
    Ok(listener)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_shared_only_where_its_folder_is() {
        let folder = tempfile::tempdir().unwrap();
        for (name, folder_mode, socket_mode) in
            [("own", 0o700, 0o600), ("open", 0o755, 0o600), ("shared", 0o2750, 0o660)]
        {
            let inside = folder.path().join(name);
            std::fs::create_dir(&inside).unwrap();
            let mode = std::fs::Permissions::from_mode(folder_mode);
            std::fs::set_permissions(&inside, mode).unwrap();
            let path = inside.join("x.sock");
            let _socket = bind_unix(&path).unwrap();
            let made = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(made & 0o7777, socket_mode, "{name}");
        }
    }
}
