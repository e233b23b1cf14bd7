//! Calling other sites: one TLS connection to the endpoints of a card, and when that last worked.

use crate::connection::Trusted;
use crate::daemon::{Daemon, unix_now};
use crate::identity::Identity;
use crate::ledger::Egress;
use crate::ledger::calls::Calling;
use crate::ledger::meter::{Meter, Metered, Side};
use crate::tls;
use hyper_util::rt::TokioIo;
use rondo::ids::{Digest, SiteId};
use rondo_proto::MESSAGE_MAX_BYTES;
use rondo_proto::peer::peer_client::PeerClient;
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// A connection that is not there after this long is tried again later.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest problem that is kept and shown.
const PROBLEM_MAX: usize = 300;
/// HTTP/2 windows: fast links with latency need tens of MiB in flight.
pub const STREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// As [`STREAM_WINDOW`], for all streams of a connection.
pub const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Largest HTTP/2 frame that is taken: a piece of a checkpoint fits into one.
pub const FRAME_BYTES: u32 = 128 * 1024;
/// Middleboxes drop idle connections after minutes; a ping keeps them, and finds dead ones.
pub const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A ping may wait behind what is on its way over a slow link; without an answer after this long the
/// connection is dead, whatever the sockets say.
pub const KEEP_ALIVE_PATIENCE: Duration = Duration::from_secs(30);

/// Why a call did not reach the other site.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The roster.
    #[error(transparent)]
    Trust(#[from] rondo::trust::Error),
    /// No endpoint in its card.
    #[error("the card of {0} names no endpoint; it must call this site instead")]
    NoEndpoint(SiteId),
    /// This site's own keys.
    #[error("preparing TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// No endpoint answered.
    #[error("connecting to {site} at {endpoint}: {what}")]
    Connect {
        /// The site.
        site: SiteId,
        /// The endpoint that was tried last.
        endpoint: String,
        /// Why it failed.
        what: String,
    },
    /// The site answered, but refused.
    #[error("{site} refused: {}", status.message())]
    Refused {
        /// The site.
        site: SiteId,
        /// Its words.
        status: Box<tonic::Status>,
    },
    /// The site said or sent what this site does not accept.
    #[error("what {site} sent was refused here: {}", status.message())]
    Unacceptable {
        /// The site.
        site: SiteId,
        /// Why.
        status: Box<tonic::Status>,
    },
}

impl Error {
    /// Whether the site was not reached at all.
    fn is_unreached(&self) -> bool {
        use tonic::Code::{DeadlineExceeded, Unavailable, Unknown};
        match self {
            Self::NoEndpoint(_) | Self::Connect { .. } => true,
            // So tonic says that a connection broke.
            Self::Refused { status, .. } => {
                matches!(status.code(), Unavailable | DeadlineExceeded | Unknown)
            }
            Self::Trust(_) | Self::Tls(_) | Self::Unacceptable { .. } => false,
        }
    }
}

/// What is known about reaching a peer.
#[derive(Debug, Clone, Default)]
pub struct Contact {
    /// Unix time of the last call that reached it or came from it; 0 if none since the start.
    pub last: u64,
    /// Why the last call failed; empty if it did not.
    pub problem: String,
    /// Digest of the card by which it knows this site, as far as it said.
    pub held: Option<Digest>,
    /// Whether the last call did not reach it.
    pub unreached: bool,
    /// When a piece of a checkpoint last went to it.
    pub moved: Option<Instant>,
}

/// All peers' contacts.
#[derive(Debug, Clone, Default)]
pub struct Contacts(Arc<Mutex<BTreeMap<SiteId, Contact>>>);

impl Contacts {
    /// What is known about `site`.
    #[must_use]
    pub fn of(&self, site: &SiteId) -> Contact {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(site).cloned().unwrap_or_default()
    }

    /// Notes by which card `site` says that it knows this site.
    pub fn note_held(&self, site: &SiteId, card: Digest) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(site.clone()).or_default().held = Some(card);
    }

    /// Notes that `site` called.
    pub fn heard(&self, site: &SiteId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(site.clone()).or_default().last = unix_now();
    }

    /// Notes that a piece of a checkpoint goes to `site`.
    pub fn moved(&self, site: &SiteId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(site.clone()).or_default().moved = Some(Instant::now());
    }

    /// Notes how a call went; says whether the problem is a new one.
    pub fn note<T>(&self, site: &SiteId, outcome: &Result<T, Error>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let contact = all.entry(site.clone()).or_default();
        let problem = match outcome {
            Ok(_) => {
                contact.last = unix_now();
                String::new()
            }
            // A peer's own words may be in it, and they end in a terminal.
            Err(e) => e.to_string().chars().filter(|c| !c.is_control()).take(PROBLEM_MAX).collect(),
        };
        contact.unreached = outcome.as_ref().is_err_and(Error::is_unreached);
        let new = !problem.is_empty() && contact.problem != problem;
        contact.problem = problem;
        new
    }
}

/// What was negotiated with a peer, in the words of TLS.
#[derive(Debug, Clone, Default)]
pub struct Handshake {
    /// Protocol version.
    pub version: String,
    /// Group of the key exchange.
    pub key_exchange: String,
    /// Cipher suite.
    pub cipher_suite: String,
}

/// A connection to a peer.
pub struct Reached {
    /// For calling it.
    pub client: Client,
    /// The endpoint that answered.
    pub endpoint: String,
    /// How the connection is protected.
    pub handshake: Handshake,
}
/// A client of another site; what it sends is counted.
pub type Client = PeerClient<Calling<Channel>>;

/// Connects to `site`; whoever answers must own the pinned key.
///
/// # Errors
/// Why no endpoint of its card could be used.
pub async fn connect(
    identity: &Identity,
    daemon: &Daemon,
    egress: &Egress,
    site: &SiteId,
) -> Result<Client, Error> {
    reach(identity, daemon, egress, site).await.map(|reached| reached.client)
}

/// As [`connect`], and says what was reached.
///
/// # Errors
/// As [`connect`].
pub async fn reach(
    identity: &Identity,
    daemon: &Daemon,
    egress: &Egress,
    site: &SiteId,
) -> Result<Reached, Error> {
    let endpoints = daemon.state().roster().trusted(site)?.endpoints.clone();
    let config = Arc::new(tls::client(identity, daemon.states(), site.clone())?);
    let mut failed = Error::NoEndpoint(site.clone());
    for endpoint in endpoints {
        let shaken = Arc::new(Mutex::new(Handshake::default()));
        let (target, seen, config) = (endpoint.clone(), shaken.clone(), config.clone());
        let (states, peer) = (daemon.states(), site.clone());
        let meter = Meter::new(egress, site, Side::Client);
        let account = meter.clone();
        let dial = tower::service_fn(move |_: Uri| {
            let (target, seen, config) = (target.clone(), seen.clone(), config.clone());
            let (states, peer, meter) = (states.clone(), peer.clone(), account.clone());
            async move {
                let tcp = TcpStream::connect(&target).await?;
                tcp.set_nodelay(true)?;
                // The name is not looked at: the pinned key is what counts.
                let name = ServerName::try_from("rondo.invalid").map_err(std::io::Error::other)?;
                let tls = TlsConnector::from(config).connect(name, tcp).await?;
                let session = tls.get_ref().1;
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = handshake(session);
                let shown = session.peer_certificates().and_then(|c| c.first()).cloned();
                let trusted = Trusted::new(tls, peer, shown.as_ref(), states)?;
                Ok::<_, std::io::Error>(TokioIo::new(Metered::new(trusted, meter)))
            }
        });
        let channel = Endpoint::from_static("http://rondo.invalid")
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_PATIENCE)
            .keep_alive_while_idle(true)
            .connect_with_connector(dial)
            .await;
        match channel {
            Ok(channel) => {
                let channel = Calling::new(channel, meter);
                let client = PeerClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES);
                let handshake = shaken.lock().unwrap_or_else(PoisonError::into_inner).clone();
                return Ok(Reached { client, endpoint, handshake });
            }
            Err(e) => {
                let what = root_cause(&e);
                failed = Error::Connect { site: site.clone(), endpoint, what };
            }
        }
    }
    Err(failed)
}

fn handshake(session: &rustls::CommonState) -> Handshake {
    let name = |what: Option<String>| what.unwrap_or_default().replace('_', ".");
    Handshake {
        version: name(session.protocol_version().map(|v| format!("{v:?}"))).replace("v1.", " 1."),
        key_exchange: session
            .negotiated_key_exchange_group()
            .map(|group| format!("{:?}", group.name()))
            .unwrap_or_default(),
        cipher_suite: session
            .negotiated_cipher_suite()
            .map(|suite| format!("{:?}", suite.suite()))
            .unwrap_or_default(),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
