//! Nobody unauthorised takes part: who has no pinned key cannot finish the handshake, let alone ask.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo::round::Event;
use rondo_proto::control::ListPeersRequest;
use rondo_proto::peer::GreetRequest;
use rondo_tests::caller::Shows;
use rondo_tests::federation::{Federation, SPREAD, propose};
use rondo_tests::hand::Hand;
use rondo_tests::material::PlanText;
use rondo_tests::{eventually, history};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

/// The start of every HTTP/2 connection, with empty settings.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PATIENCE: Duration = Duration::from_secs(10);
/// A peer is served at once, however many strangers stand at the door: before any of them times out.
const SERVED: Duration = Duration::from_secs(2);

/// Why the server turned `who` away: its TLS alert, and nothing else came before.
async fn refusal(who: &Shows, server: SocketAddr) -> rustls::AlertDescription {
    let attempt = async {
        let mut tls = who.connect(server).await?;
        // The server may close before this is out; the alert is what counts.
        let _ = tls.write_all(HTTP2).await;
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).await?;
        panic!("the server answered {answer:?}");
    };
    let outcome: std::io::Result<()> = tokio::time::timeout(PATIENCE, attempt).await.unwrap();
    let error = outcome.unwrap_err();
    let alert = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::AlertReceived(alert)) = alert else { panic!("no alert: {error:?}") };
    assert!(who.peer(server).await.is_err() || greet(who, server).await.is_err());
    *alert
}

async fn greet(who: &Shows, server: SocketAddr) -> Result<String, tonic::Status> {
    let mut peer = who.peer(server).await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    peer.greet(GreetRequest::default()).await.map(|answer| answer.into_inner().site)
}

#[tokio::test]
async fn only_pinned_keys_finish_the_handshake() {
    use rustls::AlertDescription::{
        CertificateRequired, CertificateRevoked, DecryptError, UnknownCA,
    };
    let mut all = Federation::without_trainers(&["uker"]).await;
    let friend = Hand::init(all.folder(), "usz");
    let home = all.folder().join("usz");
    let server = all.sites[0].listen;

    // A complete identity with a genuine card, but nobody added it.
    assert_eq!(refusal(&Shows::keys_of(&home), server).await, UnknownCA);
    friend.trusted_by(&all.sites[0]).await;
    let records = all.sites[0].ready().await.journal_records;
    assert_eq!(refusal(&Shows::Nothing, server).await, CertificateRequired);
    assert_eq!(refusal(&Shows::own_make("usz"), server).await, UnknownCA);
    assert_eq!(refusal(&Shows::stolen_certificate_of(&home), server).await, DecryptError);
    assert_eq!(refusal(&Shows::keys_of(&all.sites[0].home), server).await, UnknownCA);
    assert_eq!(greet(&Shows::keys_of(&home), server).await.unwrap(), "uker");
    assert_eq!(all.sites[0].ready().await.journal_records, records, "strangers leave no trace");
    let refusals = all.sites[0].log_text().matches("connection refused").count();
    assert!(refusals >= 5, "every refusal is in the log, not {refusals}");

    // Revoked: the key that was good a moment ago is told so.
    all.sites[0].stop();
    let site = friend.identity.own.site.clone();
    history::append(&all.sites[0].home, &Event::PeerRevoked { site });
    all.sites[0].start();
    all.sites[0].ready().await;
    assert_eq!(refusal(&Shows::keys_of(&home), server).await, CertificateRevoked);
    let log = all.sites[0].log_text();
    assert!(log.contains("reason=revoked") || log.contains("reason=\"revoked\""), "{log}");
}

/// A connection from another address of this machine, on which nothing is said.
async fn silent(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn a_crowd_of_silent_strangers_keeps_no_peer_out() {
    /// Far above what the door holds at the same time.
    const CROWD: usize = 150;
    let all = Federation::without_trainers(&["uker"]).await;
    let friend = Hand::init(all.folder(), "usz");
    friend.trusted_by(&all.sites[0]).await;
    let (server, keys) = (all.sites[0].listen, Shows::keys_of(&all.folder().join("usz")));
    greet(&keys, server).await.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        crowd.push(silent(server).await);
    }
    let begun = Instant::now();
    assert_eq!(greet(&keys, server).await.unwrap(), "uker");
    println!("greeted after {} ms", begun.elapsed().as_millis());
    assert!(begun.elapsed() < SERVED, "{:?}", begun.elapsed());
    // The crowd is gone soon, without a word.
    for mut stranger in crowd {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stranger.read_to_end(&mut answer)).await;
        assert!(read.expect("dropped in time").is_err() || answer.is_empty(), "{answer:?}");
    }
    let log = all.sites[0].log_text();
    assert!(log.contains("too many unfinished handshakes (127.0.0.2)"), "{log}");
    assert!(!log.contains("too many unfinished handshakes (127.0.0.1)"), "{log}");
}

#[tokio::test]
async fn there_is_no_plaintext_and_no_older_tls() {
    let all = Federation::without_trainers(&["uker"]).await;
    let answer_to = async |bytes: &[u8]| {
        let mut tcp = TcpStream::connect(all.sites[0].listen).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await;
        let _ = read.expect("the server closes the connection");
        answer
    };
    // A TLS record of type 21 is an alert; anything else would be an answer.
    let plain = answer_to(HTTP2).await;
    assert!(plain.is_empty() || plain[0] == 21, "{plain:?}");

    // A client of TLS 1.2, which does not name the versions that it knows.
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 4, 3],
        &[0, 23, 0, 0],
    ]
    .concat();
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let length = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let mut record = vec![22, 3, 1];
    record.extend(length(hello.len() + 4));
    record.extend([1, 0]);
    record.extend(length(hello.len()));
    record.extend(hello);
    let answer = answer_to(&record).await;
    assert_eq!(answer.get(5..), Some(&[2, 70][..]), "fatal alert protocol_version: {answer:?}");
}

/// Stands at `address` in the place of a site; gives what came of each connection there.
async fn impostor(address: SocketAddr, who: Shows) -> mpsc::UnboundedReceiver<io::Result<usize>> {
    let listener = TcpListener::bind(address).await.unwrap();
    let (told, outcomes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(who.server()));
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let outcome = async { acceptor.accept(tcp).await?.read_to_end(&mut Vec::new()).await };
            if told.send(outcome.await).is_err() {
                break;
            }
        }
    });
    outcomes
}

#[tokio::test]
async fn a_node_tells_nothing_to_a_server_with_another_key() {
    let all = Federation::without_trainers(&["uker"]).await;
    let mut seen = Vec::new();
    for name in ["stanford", "usz"] {
        let away = Hand::init(all.folder(), name);
        away.trusted_by(&all.sites[0]).await;
        // At Stanford's address stands a stranger, at Zurich's another site of the roster.
        let who = match name {
            "stanford" => Shows::own_make(name),
            _ => Shows::keys_of(&all.folder().join("stanford")),
        };
        seen.push(impostor(away.identity.own.endpoints[0].parse().unwrap(), who).await);
    }
    let plan = PlanText::swt(&["uker", "stanford", "usz"]).toml();
    propose(&all.sites[0], &plan).await.unwrap();
    for outcomes in &mut seen {
        let outcome = tokio::time::timeout(SPREAD, outcomes.recv()).await.unwrap().unwrap();
        let refusal = outcome.expect_err("the node refuses before it says a word").to_string();
        assert!(refusal.contains("alert"), "{refusal}");
    }
    eventually("both refusals are shown to the operator", SPREAD, async || {
        let peers = all.sites[0].control().await.list_peers(ListPeersRequest {}).await.unwrap();
        let peers = peers.into_inner().peers;
        peers.iter().all(|p| p.problem.contains("certificate") && p.last_contact == 0).then_some(())
    })
    .await;
}
