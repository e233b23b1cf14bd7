//! A large checkpoint, and daemons that are killed all the time while it is handed over.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo::ids::Digest;
use rondo_proto::control::{RoundPhase, RoundView};
use rondo_proto::trainer::trainer_link_client::TrainerLinkClient;
use rondo_proto::trainer::{
    CheckpointPart, DeviceKind, TrainResult, TrainerHello, TrainerReport, task,
    trainer_report::Report,
};
use rondo_tests::federation::{SPREAD, propose, short_folder, trust};
use rondo_tests::material::{PlanText, checkpoint};
use rondo_tests::site::{Site, free_address, incoming};
use rondo_tests::{eventually, log};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tonic::transport::Channel;

/// How often a daemon is killed in one transfer.
const KILLS: u64 = 100;
/// Widths of a network of 40 MB, and bytes a second that the link carries.
const SMALL: ([u32; 4], u64) = ([120, 160, 200, 300], 12_000_000);
/// The same of the widest one without its optimizer, where `RONDO_TEST_TRANSFER=large` asks for it.
const LARGE: ([u32; 4], u64) = ([512, 512, 512, 512], 25_000_000);

/// A slow link to a daemon that counts what it carries.
async fn link(
    listen: SocketAddr,
    inner: SocketAddr,
    rate: u64,
    carried: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
    cut: Arc<Notify>,
) {
    let listener = TcpListener::bind(listen).await.unwrap();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        let (carried, calls, cut) = (carried.clone(), calls.clone(), cut.clone());
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(inner).await else { return };
            calls.fetch_add(1, Ordering::Relaxed);
            let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                (near.split(), far.split());
            let forth = async {
                let mut block = vec![0; 16 * 1024];
                while let Ok(n @ 1..) = near_in.read(&mut block).await {
                    if far_out.write_all(&block[..n]).await.is_err() {
                        break;
                    }
                    carried.fetch_add(n as u64, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_nanos(n as u64 * 1_000_000_000 / rate)).await;
                }
            };
            let back = tokio::io::copy(&mut far_in, &mut near_out);
            tokio::select! { () = forth => {}, _ = back => {}, () = cut.notified() => {} }
        });
    }
}

/// Speaks for the trainer of `site`: hands over `bytes` as the result of its first visit.
async fn train(site: &Site, bytes: &[u8]) {
    let socket = site.socket.with_file_name("trainer.sock");
    let mut trainer: TrainerLinkClient<Channel> =
        rondo_proto::unix::trainer(&socket).await.unwrap();
    let (reports, stream) = tokio::sync::mpsc::channel(2);
    let hello = TrainerHello {
        device: DeviceKind::Flex.into(),
        training_cases: 1,
        ..TrainerHello::default()
    };
    reports.send(TrainerReport { report: Some(Report::Hello(hello)) }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut tasks = trainer.attach(stream).await.unwrap().into_inner();
    let task = tasks.message().await.unwrap().unwrap().task.unwrap();
    let task::Task::Train(task) = task else { panic!("{task:?}") };
    // Parts that cut numbers in two.
    let parts: Vec<_> =
        bytes.chunks(99_999).map(|part| CheckpointPart { data: part.to_vec() }).collect();
    let parts = tokio_stream::iter(parts);
    let stored = trainer.store_checkpoint(parts).await.unwrap().into_inner();
    assert_eq!(stored.digest, Digest::of(bytes).as_bytes());
    let result = TrainResult {
        round: task.round.clone(),
        visit: task.visit,
        weights: stored.digest,
        training_cases: 1,
        epochs: 1,
        updates: 1,
        chosen_epoch: 1,
        ..TrainResult::default()
    };
    reports.send(TrainerReport { report: Some(Report::Result(result)) }).await.unwrap();
    // The daemon is told before this trainer goes away.
    let round = Digest::from_bytes(task.round.try_into().unwrap()).to_string();
    let told = |view: &RoundView| !view.visits.is_empty() && !view.visits[0].weights.is_empty();
    site.round_when(&round, "its contribution", SPREAD, told).await;
}

/// What the last word of the daemon about a transfer that goes on says it has.
fn told(log: &Path, from: usize) -> Option<u64> {
    let text = log::text(log);
    let line = text.get(from..)?.lines().find(|line| line.contains("goes on where it stopped"))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("here=")?.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_kills_in_one_transfer_send_nothing_twice_that_was_on_disk() {
    let large = std::env::var("RONDO_TEST_TRANSFER").is_ok_and(|size| size == "large");
    let (widths, rate) = if large { LARGE } else { SMALL };
    let folder = short_folder();
    let mut draw = rondo_tests::seed() | 1;
    println!("seed {}", rondo_tests::seed());
    let mut below = |limit: u64| {
        draw ^= draw << 13;
        draw ^= draw >> 7;
        draw ^= draw << 17;
        draw % limit
    };
    let mut sender = Site::init(folder.path(), "uker", None);
    let mut receiver = Site::init(folder.path(), "usz", None);
    // Its card names the link, behind which it listens.
    let inner = free_address();
    let outer = receiver.listen.to_string();
    receiver.configure(|text| text.replace(&outer, &inner.to_string()));
    // The link is the only way, so the receiver does not fetch.
    receiver
        .configure(|text| format!("{text}\n[[peers]]\nsite = \"uker\"\ndirection = \"push\"\n"));
    let (carried, calls) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let cut = Arc::new(Notify::new());
    let through = link(receiver.listen, inner, rate, carried.clone(), calls.clone(), cut.clone());
    let proxy = tokio::spawn(through);
    sender.start();
    receiver.start();
    let (a, b) = (sender.ready().await, receiver.ready().await);
    trust(&sender, &b.card, &b.fingerprint).await;
    trust(&receiver, &a.card, &a.fingerprint).await;
    let plan = PlanText { widths, method: "tl", ..PlanText::swt(&["uker", "usz"]) };
    let view = propose(&sender, &plan.toml()).await.unwrap();
    let round = view.round;
    receiver.round_when(&round, "the plan", SPREAD, |_| true).await;
    receiver.approve(&round).await.unwrap();
    let approved = |view: &RoundView| view.phase() == RoundPhase::Approved;
    sender.round_when(&round, "every approval", SPREAD, approved).await;
    sender.begin(&round).await.unwrap();
    let plan = rondo::plan::Plan::from_canonical(view.plan_json.as_bytes()).unwrap();
    let mut bytes = checkpoint(&plan, 0.25);
    let header = plan.layout().header().len();
    for (i, number) in bytes[header..].chunks_exact_mut(4).enumerate() {
        number.copy_from_slice(&(i as f32).to_le_bytes());
    }
    let digest = Digest::of(&bytes).to_string();
    let receiving = receiver.home.clone();
    let receiver_log = folder.path().join("usz-node.log");
    train(&sender, &bytes).await;

    let on_disk = || {
        let file = incoming(&receiving, &digest).and_then(|path| std::fs::metadata(path).ok());
        file.map_or(0, |file| file.len())
    };
    let share = bytes.len() as u64 / KILLS;
    let (mut kills, mut lost) = (0, 0);
    let begun = Instant::now();
    while kills < KILLS && !receiver.stored(&digest).exists() {
        // A kill for each hundredth of the file on average, wherever in a chunk that is.
        let until = on_disk() + 1 + below(5 * share / 4);
        let waiting = Instant::now();
        while on_disk() < until && !receiver.stored(&digest).exists() {
            assert!(waiting.elapsed() < Duration::from_secs(60), "no progress after {kills} kills");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        kills += 1;
        let from = log::text(&receiver_log).len();
        let killed = if below(2) == 0 { &mut sender } else { &mut receiver };
        killed.kill();
        // What the system still holds of the dead one's words is lost with its machine.
        cut.notify_waiters();
        let before = on_disk();
        killed.start();
        if receiver.stored(&digest).exists() {
            break;
        }
        // Between the words of both nothing is lost that was on disk.
        let waiting = Instant::now();
        let here = loop {
            if let Some(here) = told(&receiver_log, from) {
                break here;
            }
            if receiver.stored(&digest).exists() {
                break before;
            }
            assert!(waiting.elapsed() < Duration::from_secs(60), "it does not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        lost += before.saturating_sub(here);
    }
    let whole = bytes.len() as u64;
    eventually("the end of the transfer", 2 * SPREAD, async || {
        receiver.stored(&digest).exists().then_some(())
    })
    .await;
    let wire = carried.load(Ordering::Relaxed);
    println!(
        "{kills} kills in {:.0} s: {whole} bytes, of those on disk {lost} came again, {wire} over the link, {:.2} % more, in {} calls",
        begun.elapsed().as_secs_f64(),
        100.0 * (wire as f64 / whole as f64 - 1.0),
        calls.load(Ordering::Relaxed)
    );
    assert_eq!(kills, KILLS, "the transfer was over too soon");
    assert!(lost <= whole / 100, "{lost} bytes that were on disk came again");
    // What was under way at a kill, handshakes and passports.
    assert!(wire < whole + kills * 256 * 1024, "{wire} bytes for {whole}");
    assert_eq!(Digest::of(&std::fs::read(receiver.stored(&digest)).unwrap()).to_string(), digest);
    receiver.ready().await;
    receiver.verify(&digest).await.unwrap();
    proxy.abort();
}
