//! What leaves a site is what the egress ledger says, byte for byte, and nothing of an image is in it.
//! Between two sites stands a proxy with the genuine keys of both, which records every plaintext byte.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use flate2::read::GzDecoder;
use rondo_node::ledger::{Book, FILE, HTTP2};
use rondo_tests::caller::Shows;
use rondo_tests::federation::Federation;
use rondo_tests::hand::digest;
use rondo_tests::material::PlanText;
use rondo_tests::site::{Site, free_address};
use rondo_tests::{eventually, programs};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const ROUND: Duration = Duration::from_secs(240);
const WINDOW: usize = 32;
/// Windows with fewer different bytes than this say nothing about an image.
const DISTINCT: usize = 8;

/// The plaintext of one connection.
#[derive(Default)]
struct Connection {
    requests: Mutex<Vec<u8>>,
    answers: Mutex<Vec<u8>>,
}

/// Stands at the address in a site's card, in front of its daemon.
#[derive(Default)]
struct Proxy {
    connections: Mutex<Vec<Arc<Connection>>>,
    open: AtomicUsize,
}

impl Proxy {
    async fn stand(at: SocketAddr, to: SocketAddr, callee: &Path, caller: &Path) -> Arc<Self> {
        let this = Arc::new(Self::default());
        let listener = TcpListener::bind(at).await.unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(Shows::keys_of(callee).server()));
        let (shows, proxy) = (Shows::keys_of(caller), this.clone());
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let connection = Arc::new(Connection::default());
                proxy.connections.lock().unwrap().push(connection.clone());
                proxy.open.fetch_add(1, Ordering::SeqCst);
                let (acceptor, shows, proxy) = (acceptor.clone(), shows.clone(), proxy.clone());
                tokio::spawn(async move {
                    if let Ok(near) = acceptor.accept(tcp).await {
                        let (near_read, near_write) = tokio::io::split(near);
                        if let Ok(far) = shows.connect(to).await {
                            let (far_read, far_write) = tokio::io::split(far);
                            tokio::join!(
                                pass(near_read, far_write, &connection.requests),
                                pass(far_read, near_write, &connection.answers),
                            );
                        } else {
                            drop(near_write);
                            pass(near_read, tokio::io::sink(), &connection.requests).await;
                        }
                    }
                    proxy.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        this
    }
}

/// Passes bytes on and records them; what was sent counts even if nobody takes it any more.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    record: &Mutex<Vec<u8>>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 {
            break;
        }
        record.lock().unwrap().extend(&buffer[..n]);
        let _ = to.write_all(&buffer[..n]).await;
        let _ = to.flush().await;
    }
    let _ = to.shutdown().await;
}

/// Start of every connection of a client (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

/// Frames as type, flags, stream and all their bytes.
fn frames(bytes: &[u8]) -> Vec<(u8, u8, u32, &[u8])> {
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut all = Vec::new();
    while let [a, b, c, kind, flags, d, e, f, g, ..] = rest {
        let length = 9 + u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (frame, next) = rest.split_at(length.min(rest.len()));
        all.push((*kind, *flags, u32::from_be_bytes([*d, *e, *f, *g]), frame));
        rest = next;
    }
    assert!(rest.is_empty(), "half a frame header");
    all
}

/// Payload of DATA frames by stream.
fn data(bytes: &[u8]) -> BTreeMap<u32, Vec<u8>> {
    let mut all: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    for (kind, _, stream, frame) in frames(bytes) {
        if kind == DATA {
            all.entry(stream).or_default().extend(&frame[9..]);
        }
    }
    all
}

/// Which call each stream was, as a server of the h2 crate reads the heads of the recorded requests.
async fn calls(requests: &[u8]) -> BTreeMap<u32, String> {
    let mut heads = PREFACE.to_vec();
    let mut streams = HashSet::new();
    for (kind, flags, stream, frame) in frames(requests) {
        if kind == HEADERS {
            streams.insert(stream);
        }
        // Acknowledged settings would be those of the real server.
        if matches!(kind, HEADERS | CONTINUATION) || (kind == SETTINGS && flags == 0) {
            heads.extend(frame);
        }
    }
    let (mut client, server) = tokio::io::duplex(heads.len() + (1 << 20));
    client.write_all(&heads).await.unwrap();
    let mut server = h2::server::handshake(server).await.unwrap();
    let (mut all, mut kept) = (BTreeMap::new(), Vec::new());
    while all.len() < streams.len() {
        let (request, respond) = server.accept().await.expect("a request").unwrap();
        let name = request.uri().path().rsplit('/').next().unwrap().to_owned();
        all.insert(respond.stream_id().as_u32(), name);
        kept.push((request, respond));
    }
    all
}

/// What the proxy saw leave `site` as a caller (`to` its peer), and as the one that was called.
async fn seen(as_caller: &Proxy, as_callee: &Proxy) -> BTreeMap<String, u64> {
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for (proxy, caller) in [(as_caller, true), (as_callee, false)] {
        let connections = proxy.connections.lock().unwrap().clone();
        for connection in connections {
            let requests = connection.requests.lock().unwrap().clone();
            let answers = connection.answers.lock().unwrap().clone();
            let names = calls(&requests).await;
            let (sent, end) = if caller { (&requests, "request") } else { (&answers, "answer") };
            let mut of_messages = 0;
            for (stream, payload) in data(sent) {
                let kind = format!("{}.{end}", names[&stream]);
                *kinds.entry(kind).or_default() += payload.len() as u64;
                of_messages += payload.len() as u64;
            }
            *kinds.entry(HTTP2.to_owned()).or_default() += sent.len() as u64 - of_messages;
        }
    }
    kinds
}

/// Every window of 32 bytes in what was sent, as it lay on the wire and as messages hold it.
fn windows_sent(proxies: &[&Proxy]) -> HashSet<[u8; WINDOW]> {
    let mut all = HashSet::new();
    for proxy in proxies {
        for connection in proxy.connections.lock().unwrap().iter() {
            for record in [&connection.requests, &connection.answers] {
                let record = record.lock().unwrap();
                let messages = data(&record).into_values();
                for bytes in std::iter::once(record.clone()).chain(messages) {
                    all.extend(bytes.windows(WINDOW).map(|w| <[u8; WINDOW]>::try_from(w).unwrap()));
                }
            }
        }
    }
    all
}

fn telling(window: &[u8]) -> bool {
    window.iter().collect::<HashSet<_>>().len() >= DISTINCT
}

/// Images and labels below a folder.
fn images(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            images(&path, found);
        } else if path.to_string_lossy().contains(".nii") {
            found.push(path);
        }
    }
}

fn audit(question: &str, home: &Path) -> Output {
    let mut command = Command::new(programs::node());
    command.args(["audit", question, "--home"]).arg(home).output().unwrap()
}

fn listens_elsewhere(site: &mut Site) -> SocketAddr {
    let (own, other) = (site.listen.to_string(), free_address());
    site.stop();
    site.configure(|text| text.replace(&own, &other.to_string()));
    other
}

#[tokio::test]
async fn the_ledger_is_what_left_and_nothing_of_an_image_is_in_it() {
    let mut all = Federation::with_trainers(&["uker", "usz"]).await;
    let behind: Vec<_> = all.sites.iter_mut().map(listens_elsewhere).collect();
    let (uker, usz) = (all.sites[0].home.clone(), all.sites[1].home.clone());
    // What left while the cards were exchanged passed no proxy.
    let [before_uker, before_usz] = [&uker, &usz].map(|home| Book::read(&home.join(FILE)).unwrap());
    let at_uker = Proxy::stand(all.sites[0].listen, behind[0], &uker, &usz).await;
    let at_usz = Proxy::stand(all.sites[1].listen, behind[1], &usz, &uker).await;
    for site in &mut all.sites {
        site.start();
        site.ready_to_train().await;
    }
    let plan = PlanText { topology: "cwt", cycles: 1, ..PlanText::swt(&["uker", "usz"]) };
    let round = all.agree(&plan).await;
    all.sites[0].begin(&round).await.unwrap();
    let view = all.finished(&round, ROUND).await;
    // The ledger of a running daemon lags by a second at most; an auditor may read it then, too.
    let weights = view.visits[0].weights.clone();
    let checkpoint = fs::read(all.sites[0].stored(&weights)).unwrap();
    let home = uker.clone();
    eventually("the checkpoint is in the ledger", Duration::from_secs(10), async || {
        let rows = Book::read(&home.join(FILE)).unwrap();
        let sent = rows.iter().find(|(key, _)| &*key.kind == "SendChunks.request");
        sent.filter(|(_, n)| **n >= checkpoint.len() as u64).map(|_| ())
    })
    .await;
    for site in &mut all.sites {
        site.stop();
    }
    let idle = || at_uker.open.load(Ordering::SeqCst) + at_usz.open.load(Ordering::SeqCst) == 0;
    eventually("every connection ends", Duration::from_secs(10), async || idle().then_some(()))
        .await;

    for (home, before, peer, as_caller, as_callee) in [
        (&uker, before_uker, "usz", &at_usz, &at_uker),
        (&usz, before_usz, "uker", &at_uker, &at_usz),
    ] {
        let mut ledger: BTreeMap<String, u64> = BTreeMap::new();
        for (key, bytes) in Book::read(&home.join(FILE)).unwrap() {
            assert_eq!(key.peer.as_str(), peer);
            let call = key.kind.split('.').next().unwrap();
            let of_a_round = ![HTTP2, "Greet", "Collect"].contains(&call);
            let named = of_a_round.then(|| digest(&round));
            assert_eq!(key.round, named, "{}", key.kind);
            let bytes = bytes - before.get(&key).copied().unwrap_or(0);
            if bytes > 0 {
                *ledger.entry(key.kind.to_string()).or_default() += bytes;
            }
        }
        let seen = seen(as_caller, as_callee).await;
        assert_eq!(
            ledger,
            seen,
            "left {} as the ledger has it, and as the proxy saw it",
            home.display()
        );
        let total: u64 = seen.values().sum();
        println!("{} sent {total} bytes: {seen:?}", home.display());
        for kind in ["DeliverReceipts.request", "DeliverReceipts.answer"] {
            assert!(seen.contains_key(kind), "{kind} in {seen:?}");
        }
    }

    let sent = windows_sent(&[&at_uker, &at_usz]);
    let control = checkpoint.windows(WINDOW).filter(|w| telling(w));
    assert!(control.clone().count() > 1000, "the checkpoint says enough to be found");
    assert!(control.clone().all(|w| sent.contains(w)), "the checkpoint itself was sent");
    let mut files = Vec::new();
    images(all.folder(), &mut files);
    assert!(files.len() >= 16, "images and labels of both sites, not {files:?}");
    let mut looked = 0_u64;
    for path in files {
        let raw = fs::read(&path).unwrap();
        let mut voxels = Vec::new();
        let _ = GzDecoder::new(raw.as_slice()).read_to_end(&mut voxels);
        for window in raw.windows(WINDOW).chain(voxels.windows(WINDOW)).filter(|w| telling(w)) {
            assert!(!sent.contains(window), "a piece of {} was sent", path.display());
            looked += 1;
        }
    }
    println!(
        "{looked} windows of images and labels looked for among {} that were sent",
        sent.len()
    );
    assert!(looked > 100_000, "{looked}");

    who_did_what(&uker, &round);
}

/// The audit log of the first site: its operator and every deed; and a removed line is named.
fn who_did_what(home: &Path, round: &str) {
    let told = audit("export", home);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let text = String::from_utf8(told.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for event in ["round-proposed", "round-approved", "round-started"] {
        let Some(line) = lines.iter().find(|line| line["what"]["event"] == event) else {
            // Who proposes has approved.
            assert_eq!(event, "round-approved");
            continue;
        };
        assert_eq!(line["what"]["round"], round);
        assert_eq!(line["who"]["uid"], rustix::process::getuid().as_raw(), "{line}");
        assert_eq!(line["who"]["pid"], std::process::id(), "{line}");
    }
    let events: Vec<_> = lines.iter().map(|l| l["what"]["event"].as_str().unwrap()).collect();
    assert_eq!(events.first(), Some(&"started"));
    assert_eq!(events.get(events.len() - 2..), Some(&["egress", "stopped"][..]), "{events:?}");
    let report = audit("verify", home);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(
        (&report["lines"], &report["signed_lines"]),
        (&lines.len().into(), &lines.len().into())
    );

    let log = rusqlite::Connection::open(home.join("audit.sqlite")).unwrap();
    assert!(log.execute("DELETE FROM line WHERE number = 2", []).is_err(), "append-only");
    log.execute_batch("DROP TRIGGER line_is_kept; DELETE FROM line WHERE number = 2").unwrap();
    drop(log);
    let refused = audit("verify", home);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(12), "{why}");
    assert!(why.contains("[audit-missing] audit line 2 is missing"), "{why}");
}

async fn scraped(monitor: SocketAddr) -> String {
    let mut tcp = TcpStream::connect(monitor).await.unwrap();
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

#[tokio::test]
async fn refusals_carry_their_reason_everywhere() {
    use rondo_tests::hand::Hand;
    use tonic::Code;
    let mut all = Federation::without_trainers(&["usz"]).await;
    let hand = Hand::init(all.folder(), "uker");
    assert!(
        Shows::own_make("nobody").peer(all.sites[0].listen).await.is_err() || {
            let mut peer = Shows::own_make("nobody").peer(all.sites[0].listen).await.unwrap();
            peer.greet(rondo_proto::peer::GreetRequest::default()).await.is_err()
        }
    );
    let monitor = free_address();
    all.sites[0].stop();
    all.sites[0].configure(|text| format!("{text}\n[metrics]\nlisten = \"{monitor}\"\n"));
    all.sites[0].start();
    all.sites[0].ready().await;
    hand.trusted_by(&all.sites[0]).await;
    let unknown = rondo::ids::Digest::of(b"no plan");
    for _ in 0..3 {
        let status = hand.send(&all.sites[0], unknown, vec![(0, vec![1; 9])]).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.metadata().get("rondo-reason").unwrap(), "round-unknown");
        assert!(status.message().starts_with("[round-unknown] "), "{status:?}");
    }
    // Refused by tonic before any handler of ours sees it.
    let huge = vec![(0, vec![0; 20 * 1024 * 1024])];
    let status = hand.send(&all.sites[0], unknown, huge).await.unwrap_err();
    assert_eq!(status.metadata().get("rondo-reason").unwrap(), "oversize-message", "{status:?}");
    let request = rondo_proto::control::ListPeersRequest {};
    let peers = all.sites[0].control().await.list_peers(request).await.unwrap().into_inner().peers;
    let refused: BTreeMap<_, _> =
        peers[0].refusals.iter().map(|r| (r.reason.as_str(), r.count)).collect();
    assert_eq!(refused, BTreeMap::from([("oversize-message", 1), ("round-unknown", 3)]));
    let figures = scraped(monitor).await;
    for line in [
        "rondo_refusals_total{peer=\"uker\",reason=\"round-unknown\"} 3",
        "rondo_refusals_total{peer=\"uker\",reason=\"oversize-message\"} 1",
        "rondo_egress_bytes_total{peer=\"uker\",kind=\"http2\"} ",
        "rondo_journal_records ",
        "rondo_card_expiry_seconds{site=\"uker\"} ",
        "# TYPE rondo_card_expiry_warning_days gauge",
        "rondo_store_bytes 0",
    ] {
        assert!(figures.contains(line), "{line} is not in:\n{figures}");
    }
    let log = all.sites[0].log_text();
    assert_eq!(log.matches("round-unknown").count(), 6, "a line each, with code and words: {log}");
    assert!(log.contains("unknown-key"), "{log}");
    let home = all.sites[0].home.clone();
    all.sites[0].stop();
    let text = String::from_utf8(audit("export", &home).stdout).unwrap();
    let line = text.lines().find(|line| line.contains("round-unknown")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["what"]["count"], &line["who"]["site"]), (&3.into(), &"uker".into()));
}
