//! Peers that lie, flood and dawdle: each is refused with its own reason, nothing of it stays, and
//! others are served meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo::ids::{RoundId, VisitNo};
use rondo::manifest::Manifest;
use rondo::passport::Passport;
use rondo::plan::Plan;
use rondo::round::ReceiptBody;
use rondo_node::reason::Reason;
use rondo_proto::peer::offer_answer::Answer;
use rondo_proto::peer::peer_client::PeerClient;
use rondo_proto::peer::{
    Chunk, CollectRequest, FetchChunksRequest, GreetRequest, Having, Offer, ReceiptBatch,
};
use rondo_tests::caller::Shows;
use rondo_tests::federation::{Federation, propose};
use rondo_tests::hand::{Hand, chunk, digest};
use rondo_tests::material::{PlanText, checkpoint};
use rondo_tests::{eventually, site::Site};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Attempts in all.
const ATTEMPTS: u32 = 10_000;
/// Of these before memory and handles are looked at the first time.
const WARM_UP: u32 = 2_000;
/// Every so many attempts one costs a connection of its own.
const DEAR_EVERY: u32 = 20;
/// How much more memory the daemon may hold after them than after the warm-up.
const GROWTH_MAX_KIB: u64 = 16 * 1024;
/// How many more handles: what of the last connections is not closed yet.
const HANDLES_MORE: usize = 4;
/// An honest peer is answered within this, on a machine that does other things too.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// The most that a peer may dawdle over a chunk, and what a busy machine adds.
const DAWDLE_MAX: Duration = Duration::from_secs(90);

/// What a lie is refused with: how it is seen from outside, in one place.
const REASONS: [(&str, Reason, &str); 14] = [
    ("wrong chunk", Reason::ChunkDigest, "chunk 1 of checkpoint"),
    ("wrong length", Reason::ChunkLength, "chunk 1"),
    ("unfinished chunk", Reason::ChunkUnasked, "does not follow"),
    ("no such chunk", Reason::ChunkUnasked, "does not exist"),
    ("endless stream", Reason::ChunkUnasked, "was not asked for"),
    ("slow drip", Reason::StalledStream, "no chunk came"),
    ("replayed by another", Reason::NotItsTurn, "not handed from there to here"),
    ("swapped parent", Reason::PassportChain, "hop 1: its parent"),
    ("foreign signature", Reason::PassportSignature, "hop 1"),
    ("reordered passport", Reason::PassportSignature, "hop 1"),
    ("oversize message", Reason::OversizeMessage, "too large"),
    ("extra tensor", Reason::PassportChain, "hop 1: its length"),
    ("renamed tensor", Reason::WeightsLayout, ""),
    ("NaN tensor", Reason::WeightsNotFinite, "not finite"),
];

fn refused<T: std::fmt::Debug>(what: &str, outcome: Result<T, Status>) {
    let (_, reason, part) = REASONS.iter().find(|(name, ..)| *name == what).expect("a reason");
    let status = outcome.expect_err(what);
    assert_eq!(Reason::of(&status), Some(*reason), "{what}: {status:?}");
    assert!(status.message().contains(part), "{what}: {part} is not in {}", status.message());
}

/// A round that the daemon and the hands approved, and that runs.
async fn agree(site: &Site, hands: &[&Hand], text: &PlanText) -> (Plan, RoundId) {
    let view = propose(site, &text.toml()).await.unwrap();
    let round = digest(&view.round);
    for hand in hands {
        let approval = hand.receipt(round, 1, ReceiptBody::Approved);
        hand.deliver(site, round, &[approval]).await.unwrap();
    }
    site.approve(&view.round).await.unwrap();
    site.begin(&view.round).await.unwrap();
    (Plan::from_canonical(view.plan_json.as_bytes()).unwrap(), round)
}

/// Wide enough for several chunks.
fn plan(name: &'static str) -> PlanText {
    let widths = [18, 24, 30, 60];
    PlanText { name, widths, ..PlanText::swt(&["uker", "usz", "stanford"]) }
}

/// Memory in KiB and number of open handles of a daemon.
fn held_by(site: &Site) -> (u64, usize) {
    (memory(site, "VmRSS:"), fs::read_dir(format!("/proc/{}/fd", daemon(site))).unwrap().count())
}

fn daemon(site: &Site) -> u32 {
    site.processes().into_iter().find(|p| p.command.contains(" run ")).unwrap().pid
}

/// Memory of a daemon in KiB, now or at its highest.
fn memory(site: &Site, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon(site))).unwrap();
    let memory = status.lines().find_map(|l| l.strip_prefix(which)).unwrap();
    memory.split_whitespace().next().unwrap().parse().unwrap()
}

fn offer(round: RoundId, passport: Vec<u8>) -> Offer {
    Offer { round: round.as_bytes().to_vec(), visit: 1, passport }
}

#[tokio::test]
async fn each_lie_is_refused_with_its_own_reason() {
    let mut all = Federation::without_trainers(&["usz"]).await;
    let [hand, third] = ["uker", "stanford"].map(|name| Hand::init(all.folder(), name));
    hand.trusted_by(&all.sites[0]).await;
    third.trusted_by(&all.sites[0]).await;
    let usz = &all.sites[0];
    let (plan_a, round) = agree(usz, &[&hand, &third], &plan("lies")).await;
    let bytes = checkpoint(&plan_a, 0.25);
    let manifest = hand.manifest(&plan_a, &bytes);
    let table = &manifest.weights;
    let genuine = hand.passport(usz, &manifest);
    let offered = async |passport: &Passport| hand.offer(usz, round, 1, passport.to_json()).await;

    // Passports. None of them is begun with.
    let with = |lies: &[Manifest]| {
        let mut passport = genuine.clone();
        let sign = |lie: &Manifest| lie.sign(&hand.identity.signing).unwrap();
        passport.manifests = lies.iter().map(sign).collect();
        passport
    };
    let swapped = Manifest { parent: Some(table.object), ..manifest.clone() };
    refused("swapped parent", offered(&with(&[swapped])).await);
    let mut foreign = genuine.clone();
    foreign.manifests = vec![manifest.sign(&third.identity.signing).unwrap()];
    refused("foreign signature", offered(&foreign).await);
    let mut later = third.manifest(&plan_a, &bytes);
    later.visit = VisitNo(2);
    let mut reordered = genuine.clone();
    reordered.manifests.insert(0, later.sign(&third.identity.signing).unwrap());
    refused("reordered passport", offered(&reordered).await);
    refused("extra tensor", offered(&with(&[hand.manifest(&plan_a, &extra_tensor(&bytes))])).await);
    let longer = [&bytes[..], b"after the end"].concat();
    refused("extra tensor", offered(&with(&[hand.manifest(&plan_a, &longer)])).await);
    let huge = vec![b' '; rondo_proto::MESSAGE_MAX_BYTES + 1];
    refused("oversize message", hand.offer(usz, round, 1, huge).await);
    assert_eq!(in_store(usz), 0, "no lie has left a trace");

    // Weights that are as signed, but no model. Their rounds are begun anew, for a site signs a visit once.
    for (what, lie) in
        [("renamed tensor", renamed_tensor(&bytes)), ("NaN tensor", not_finite(&bytes))]
    {
        let name = if what == "NaN tensor" { "nan" } else { "renamed" };
        let (plan, round) = agree(usz, &[&hand, &third], &plan(name)).await;
        let manifest = hand.manifest(&plan, &lie);
        let passport = hand.passport(usz, &manifest).to_json();
        hand.offer(usz, round, 1, passport).await.unwrap();
        let n = u32::try_from(manifest.weights.chunks.len()).unwrap();
        let chunks = (0..n).map(|i| chunk(&manifest.weights, &lie, i)).collect();
        refused(what, hand.send(usz, round, chunks).await);
        assert_eq!(in_store(usz), 0, "{what}: nothing of it is kept");
    }

    // Chunks of an offer that is genuine.
    assert!(matches!(offered(&genuine).await.unwrap(), Answer::Wanted(_)));
    let replayed = third.offer(usz, round, 1, genuine.to_json()).await;
    refused("replayed by another", replayed);
    let good = chunk(table, &bytes, 1);
    let mut bad = good.clone();
    bad.1[77] ^= 4;
    refused("wrong chunk", hand.send(usz, round, vec![bad]).await);
    let mut long = good.clone();
    long.1.push(0);
    refused("wrong length", hand.send(usz, round, vec![long]).await);
    let mut short = good.clone();
    short.1.pop();
    let next = chunk(table, &bytes, 2);
    refused("unfinished chunk", hand.send(usz, round, vec![short, next]).await);
    let outside = u32::try_from(table.chunks.len()).unwrap();
    refused("no such chunk", hand.send(usz, round, vec![(outside, vec![0])]).await);
    let (index, data) = good;
    let same =
        Chunk { round: round.as_bytes().to_vec(), visit: 1, index, data: data.into(), offset: 0 };
    let mut peer = hand.call(usz).await;
    let endless = tokio_stream::iter(std::iter::repeat(same.clone()));
    refused("endless stream", peer.send_chunks(endless).await);

    // One that dawdles loses its claim, and what it brought is kept.
    let (dawdle, stream) = tokio::sync::mpsc::channel(1);
    let begun = Instant::now();
    dawdle.send(Chunk { index: 0, data: chunk(table, &bytes, 0).1.into(), ..same }).await.unwrap();
    let drip = tokio_stream::wrappers::ReceiverStream::new(stream);
    refused("slow drip", peer.send_chunks(drip).await);
    assert!(begun.elapsed() < DAWDLE_MAX, "{:?}", begun.elapsed());
    drop(dawdle);

    // After all of it the truth is welcome, and a replay gets the same acknowledgement.
    let chunks = (2..outside).map(|i| chunk(table, &bytes, i)).collect();
    let held = hand.send(usz, round, chunks).await.unwrap();
    assert!(matches!(held, Answer::Held(_)), "{held:?}");
    let records = all.sites[0].ready().await.journal_records;
    let replay = hand.offer(&all.sites[0], round, 1, genuine.to_json()).await.unwrap();
    assert_eq!(replay, held);
    assert_eq!(all.sites[0].ready().await.journal_records, records, "a replay is not recorded");
}

#[tokio::test]
async fn what_would_grow_in_memory_is_refused_before_it_does() {
    /// Entries of 2 bytes on the wire, and 24 or more in memory.
    const ENTRIES: usize = 2_000_000;
    /// What 4 MiB that are refused by their first bytes may cost, on a connection's windows too.
    const PEAK_MAX_KIB: u64 = 24 * 1024;
    let all = Federation::without_trainers(&["usz"]).await;
    let usz = &all.sites[0];
    let hand = Hand::init(all.folder(), "uker");
    hand.trusted_by(usz).await;
    let mut peer = hand.call(usz).await;
    peer.greet(GreetRequest::default()).await.unwrap();
    let before = memory(usz, "VmHWM:");
    let round = vec![7; 32];
    for _ in 0..3 {
        let having = vec![Having::default(); ENTRIES];
        refused("oversize message", peer.collect(CollectRequest { having }).await);
        let batch = ReceiptBatch { round: round.clone(), receipts: vec![Vec::new(); ENTRIES] };
        refused("oversize message", peer.deliver_receipts(batch).await);
        let chunks = vec![1; 2 * ENTRIES];
        let fetch = FetchChunksRequest { round: round.clone(), visit: 1, chunks, offset: 0 };
        refused("oversize message", peer.fetch_chunks(fetch).await);
        let card = GreetRequest { card: vec![b'{'; 2 * ENTRIES], ..GreetRequest::default() };
        refused("oversize message", peer.greet(card).await);
    }
    let more = memory(usz, "VmHWM:") - before;
    println!("{before} KiB before, {more} KiB more at the highest");
    assert!(more <= PEAK_MAX_KIB, "{more} KiB");
}

/// Files of checkpoints and of transfers.
fn in_store(site: &Site) -> usize {
    let count = |folder| fs::read_dir(site.home.join("store").join(folder)).unwrap().count();
    count("checkpoints") + count("incoming")
}

/// The header of a checkpoint, and what comes after it.
fn parts(bytes: &[u8]) -> (String, &[u8]) {
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (json, weights) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).unwrap());
    (String::from_utf8(json.to_vec()).unwrap(), weights)
}

fn whole(json: &str, weights: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), weights].concat()
}

fn extra_tensor(bytes: &[u8]) -> Vec<u8> {
    let (json, weights) = parts(bytes);
    let (begin, end) = (weights.len(), weights.len() + 4);
    let entry = format!(
        ",\"image\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{begin},{end}]}}}}"
    );
    let json = json.trim_end().strip_suffix('}').unwrap().to_owned() + &entry;
    whole(&json, &[weights, &[0; 4]].concat())
}

fn renamed_tensor(bytes: &[u8]) -> Vec<u8> {
    let (json, weights) = parts(bytes);
    assert!(json.contains("\"fc.2.bias\""));
    whole(&json.replace("\"fc.2.bias\"", "\"fc.2.face\""), weights)
}

fn not_finite(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.len() - 4;
    [&bytes[..end], &f32::NAN.to_le_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_attempts_leave_the_daemon_as_it_was() {
    let all = Federation::without_trainers(&["usz"]).await;
    let [hand, third, friend] =
        ["uker", "stanford", "insel"].map(|name| Hand::init(all.folder(), name));
    for hand in [&hand, &third, &friend] {
        hand.trusted_by(&all.sites[0]).await;
    }
    let usz = &all.sites[0];
    let (plan, round) = agree(usz, &[&hand, &third], &plan("flood")).await;
    let bytes = checkpoint(&plan, 0.25);
    let manifest = hand.manifest(&plan, &bytes);
    let genuine = hand.passport(usz, &manifest);
    hand.offer(usz, round, 1, genuine.to_json()).await.unwrap();

    let over = Arc::new(AtomicBool::new(false));
    let meanwhile = tokio::spawn(honest(friend.call(usz).await, over.clone()));
    let outsider = &friend;
    let flood = Flood { hand: &hand, outsider, site: usz, round, genuine, manifest, bytes };
    flood.attempts(0..WARM_UP).await;
    let (memory, handles) = held_by(usz);
    flood.attempts(WARM_UP..ATTEMPTS).await;
    over.store(true, Ordering::Relaxed);
    let (answers, slowest) = meanwhile.await.unwrap();
    assert!(slowest < ANSWER_MAX, "an honest peer waited {slowest:?}");
    assert!(answers > 10, "{answers} answers");
    let level = async || {
        let (memory_now, handles_now) = held_by(usz);
        let level = memory_now <= memory + GROWTH_MAX_KIB && handles_now <= handles + HANDLES_MORE;
        level.then_some((memory_now, handles_now))
    };
    let limit = Duration::from_secs(30);
    let (memory_now, handles_now) = eventually("memory and handles level", limit, level).await;
    println!(
        "{ATTEMPTS} attempts: {memory} to {memory_now} KiB, {handles} to {handles_now} handles; {answers} answers for an honest peer meanwhile, the slowest after {slowest:?}"
    );
}

/// Greets until it is over; how often it was answered, and the longest wait.
async fn honest(mut peer: PeerClient<Channel>, over: Arc<AtomicBool>) -> (u32, Duration) {
    let (mut answers, mut slowest) = (0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        peer.greet(GreetRequest::default()).await.expect("an honest peer is answered");
        slowest = slowest.max(begun.elapsed());
        answers += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (answers, slowest)
}

struct Flood<'a> {
    hand: &'a Hand,
    /// Trusted, but not in the round.
    outsider: &'a Hand,
    site: &'a Site,
    round: RoundId,
    genuine: Passport,
    manifest: Manifest,
    bytes: Vec<u8>,
}

impl Flood<'_> {
    async fn attempts(&self, numbers: std::ops::Range<u32>) {
        let mut peer = self.hand.call(self.site).await;
        let mut outsider = self.outsider.call(self.site).await;
        let round = || self.round.as_bytes().to_vec();
        let mut foreign = self.genuine.clone();
        let lie = Manifest { cycle: 7, ..self.manifest.clone() };
        foreign.manifests = vec![lie.sign(&self.hand.identity.signing).unwrap()];
        let foreign = foreign.to_json();
        for n in numbers {
            if n % DEAR_EVERY == 0 {
                self.connect(n / DEAR_EVERY).await;
                continue;
            }
            let (lied, expected) = match n % 9 {
                0 => {
                    let garbage = vec![b'{'; usize::try_from(n).unwrap()];
                    let lied = peer.offer_checkpoint(offer(self.round, garbage)).await;
                    (lied.map(drop), Code::InvalidArgument)
                }
                1 => {
                    let lied = peer.offer_checkpoint(offer(self.round, foreign.clone())).await;
                    (lied.map(drop), Code::InvalidArgument)
                }
                // A chunk that is too long, or whole and wrong.
                lie @ (2 | 3) => {
                    let (index, mut data) = chunk(&self.manifest.weights, &self.bytes, 0);
                    if lie == 2 {
                        data.push(0);
                    } else {
                        data[500] ^= 1;
                    }
                    let lie =
                        Chunk { round: round(), visit: 1, index, data: data.into(), offset: 0 };
                    let lied = peer.send_chunks(tokio_stream::iter([lie])).await;
                    (lied.map(drop), Code::InvalidArgument)
                }
                4 => {
                    let having = vec![Having::default(); 40_000];
                    let lied = peer.collect(CollectRequest { having }).await;
                    (lied.map(drop), Code::OutOfRange)
                }
                5 => {
                    let having = vec![Having { round: round(), number: n }];
                    let lied = outsider.collect(CollectRequest { having }).await;
                    (lied.map(drop), Code::PermissionDenied)
                }
                6 => {
                    let fetch =
                        FetchChunksRequest { round: round(), visit: 1, ..Default::default() };
                    (outsider.fetch_chunks(fetch).await.map(drop), Code::PermissionDenied)
                }
                7 => {
                    // Whoever greets is answered; what he says of himself is not believed.
                    let card = GreetRequest { card: vec![b'{'; 900], holds: vec![1; 32] };
                    peer.greet(card).await.unwrap();
                    continue;
                }
                _ => {
                    let round = self.manifest.weights.object;
                    let lied = peer.offer_checkpoint(offer(round, Vec::new())).await;
                    (lied.map(drop), Code::NotFound)
                }
            };
            let code = lied.expect_err("every attempt is refused").code();
            assert_eq!(code, expected, "{n}");
        }
    }

    /// An attempt with a connection of its own.
    async fn connect(&self, n: u32) {
        match n % 3 {
            0 => {
                let stranger = Shows::own_make("stranger").peer(self.site.listen).await;
                if let Ok(mut peer) = stranger {
                    peer.greet(GreetRequest::default()).await.expect_err("a stranger is refused");
                }
            }
            1 => {
                let mut tcp = TcpStream::connect(self.site.listen).await.unwrap();
                // The daemon may close before all of it is out.
                let _ = tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
            }
            // Gone in the middle of a call.
            _ => {
                let mut peer = self.hand.call(self.site).await;
                let open = tokio_stream::pending::<Chunk>();
                let call = peer.send_chunks(open);
                let _ = tokio::time::timeout(Duration::from_millis(5), call).await;
            }
        }
    }
}
