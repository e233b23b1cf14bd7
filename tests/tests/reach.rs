//! How a peer is reached: behind a firewall, over a bad line, within a cap and within its hours.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo::ids::{RoundId, VisitNo};
use rondo::manifest::{Counts, Manifest, Validation};
use rondo::plan::Plan;
use rondo::round::{Event, Receipt, ReceiptBody};
use rondo::transfer::ChunkTable;
use rondo_imaging::phantom::Centre;
use rondo_node::identity::Identity;
use rondo_node::store::Store;
use rondo_proto::control::{ListPeersRequest, PeerView, RoundPhase, VisitPhase};
use rondo_proto::peer::{
    Chunk, CollectRequest, FetchChunksRequest, GreetRequest, Having, Offer, offer_answer::Answer,
};
use rondo_tests::federation::{Federation, short_folder};
use rondo_tests::hand::{Hand, chunk, digest};
use rondo_tests::material::{PlanText, checkpoint, cohort};
use rondo_tests::proxy::{Line, Proxy};
use rondo_tests::site::{Site, free_address};
use rondo_tests::{eventually, history, seed};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

/// How long a hand-over may take that has to be asked for first.
const HAND_OVER: Duration = Duration::from_secs(60);

/// `uker`, which has made the first model, and `usz`, which is to get it, as `reached` says.
async fn pair(reached: impl FnOnce(SocketAddr) -> Vec<SocketAddr>) -> (Federation, String, String) {
    let folder = short_folder();
    let listen = free_address();
    let uker = Site::init(folder.path(), "uker", None);
    let usz = Site::init_at(folder.path(), "usz", None, listen, &reached(listen));
    let mut all = Federation::of(folder, vec![uker, usz]).await;
    // Wide enough for several chunks.
    let plan = PlanText { widths: [18, 24, 30, 60], ..PlanText::swt(&["uker", "usz"]) };
    let round = all.agree(&plan).await;
    all.sites[0].begin(&round).await.unwrap();
    let running = |v: &rondo_proto::control::RoundView| v.phase() == RoundPhase::Running;
    all.sites[1].round_when(&round, "the start", HAND_OVER, running).await;
    all.sites[0].stop();
    let weights = contribute(&all.sites[0], digest(&round));
    (all, round, weights)
}

/// Writes what the trainer and the daemon of a stopped site would have: a model and its receipt.
fn contribute(site: &Site, id: RoundId) -> String {
    let own = Identity::load(&site.home).unwrap();
    let state = history::replay(&site.home).0;
    let round = &state.rounds()[&id];
    let bytes = checkpoint(&round.plan, 0.25);
    Store::open(&site.home.join("store")).unwrap().put(&bytes).unwrap();
    let manifest = manifest(&own, &round.plan, &bytes).sign(&own.signing).unwrap();
    let number = u32::try_from(round.receipts[&own.own.site].len()).unwrap() + 1;
    let body = ReceiptBody::Contributed { manifest };
    let receipt = Receipt { round: id, site: own.own.site.clone(), number, at: 1, body };
    let receipt = receipt.sign(&own.signing).unwrap();
    history::append(&site.home, &Event::Receipt { receipt });
    ChunkTable::of(&bytes).object.to_string()
}

fn manifest(own: &Identity, plan: &Plan, bytes: &[u8]) -> Manifest {
    Manifest {
        round: plan.round(),
        cycle: 1,
        visit: VisitNo::FIRST,
        site: own.own.site.clone(),
        parent: None,
        weights: ChunkTable::of(bytes),
        architecture: plan.recipe.architecture,
        recipe: plan.recipe_digest(),
        software: "rondo 0.1.0".to_owned(),
        counts: Counts::default(),
        validation: Validation::default(),
        filters: Vec::new(),
        signed_at: 1,
    }
}

async fn handed_over(all: &Federation, round: &str, limit: Duration) {
    for site in &all.sites {
        let done = |v: &rondo_proto::control::RoundView| {
            v.visits[0].phase() == VisitPhase::HandedOver && v.visits[0].held_by == ["usz"]
        };
        site.round_when(round, "the hand-over", limit, done).await;
    }
}

async fn peer_of(site: &Site) -> PeerView {
    let peers = site.control().await.list_peers(ListPeersRequest {}).await.unwrap().into_inner();
    peers.peers.into_iter().next().unwrap()
}

fn rule(site: &Site, text: &str) {
    site.configure(|old| {
        let head = old.split("[[peers]]").next().unwrap_or_default().to_owned();
        format!("{head}\n[[peers]]\nsite = \"usz\"\n{text}\n")
    });
}

#[tokio::test]
async fn a_site_that_only_dials_out_takes_part_in_a_whole_round() {
    let folder = short_folder();
    let at = |name: &str| folder.path().join(format!("{name}-cohort"));
    let cases =
        [cohort(&at("uker"), Centre::Uker, seed()), cohort(&at("usz"), Centre::Usz, seed())];
    let uker = Site::init(folder.path(), "uker", Some(&cases[0]));
    let usz = Site::init_at(folder.path(), "usz", Some(&cases[1]), free_address(), &[]);
    let mut all = Federation::of(folder, vec![uker, usz]).await;
    for site in &mut all.sites {
        site.ready_to_train().await;
    }
    // There and back: each site hands a model to the other.
    let round = all
        .agree(&PlanText { topology: "cwt", cycles: 2, ..PlanText::swt(&["uker", "usz"]) })
        .await;
    all.sites[0].begin(&round).await.unwrap();
    let view = all.finished(&round, Duration::from_secs(240)).await;
    assert_eq!(view.visits.len(), 4);
    for site in &all.sites {
        site.verify(&view.visits[3].weights).await.unwrap();
    }
    let peer = peer_of(&all.sites[0]).await;
    assert!(peer.problem.is_empty() && peer.last_contact > 0, "{peer:?}");
    eventually("nothing waits", HAND_OVER, async || {
        peer_of(&all.sites[0]).await.waiting.is_empty().then_some(())
    })
    .await;
    assert!(!all.sites[0].log_text().contains("names no endpoint"), "no call is tried in vain");
}

#[tokio::test]
async fn a_site_whose_port_cannot_be_reached_fetches_by_itself() {
    // The card names an address where nobody listens.
    let (mut all, round, weights) = pair(|_| vec![free_address()]).await;
    all.sites[1].stop();
    rule_of(&all.sites[1], "uker", "direction = \"push\"");
    for site in &mut all.sites {
        site.start();
        site.ready().await;
    }
    eventually("the operator sees why", HAND_OVER, async || {
        peer_of(&all.sites[0]).await.problem.contains("connecting to usz").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(17)).await;
    let held = all.sites[1].round(&round).await.unwrap().visits[0].held_by.len();
    assert_eq!(held, 0, "who is told not to fetch does not");
    all.sites[1].stop();
    rule_of(&all.sites[1], "uker", "direction = \"automatic\"");
    all.sites[1].start();
    all.sites[1].ready().await;
    handed_over(&all, &round, HAND_OVER).await;
    let bytes = std::fs::read(all.sites[1].stored(&weights)).unwrap();
    assert_eq!(rondo::ids::Digest::of(&bytes).to_string(), weights);
}

fn rule_of(site: &Site, peer: &str, text: &str) {
    rule(site, text);
    site.configure(|old| old.replace("site = \"usz\"", &format!("site = {peer:?}")));
}

#[tokio::test]
async fn only_what_is_for_the_caller_can_be_fetched() {
    let all = Federation::without_trainers(&["uker"]).await;
    let (usz, third) = (Hand::init(all.folder(), "usz"), Hand::init(all.folder(), "stanford"));
    usz.trusted_by(&all.sites[0]).await;
    third.trusted_by(&all.sites[0]).await;
    let plan = PlanText::swt(&["uker", "usz"]);
    let view = rondo_tests::federation::propose(&all.sites[0], &plan.toml()).await.unwrap();
    let id = digest(&view.round);
    let round = id.as_bytes().to_vec();
    let having = |number| CollectRequest { having: vec![Having { round: round.clone(), number }] };
    let fetch =
        |visit| FetchChunksRequest { round: round.clone(), visit, chunks: vec![0], offset: 0 };

    let mut outsider = third.call(&all.sites[0]).await;
    let refusal = outsider.collect(having(0)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied, "{refusal}");
    assert_eq!(outsider.fetch_chunks(fetch(1)).await.unwrap_err().code(), Code::PermissionDenied);
    let many = vec![Having { round: round.clone(), number: 0 }; 1025];
    let refusal = outsider.collect(CollectRequest { having: many }).await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    let odd = CollectRequest { having: vec![Having { round: vec![1], number: 0 }] };
    assert_eq!(outsider.collect(odd).await.unwrap_err().code(), Code::InvalidArgument);
    // Nothing is for it: the call stays open, and others' rounds are not in the answer.
    let silent = outsider.collect(CollectRequest::default());
    assert!(tokio::time::timeout(Duration::from_secs(2), silent).await.is_err());

    let mut peer = usz.call(&all.sites[0]).await;
    // Before it is acknowledged, the same is told again and again.
    for _ in 0..2 {
        let told = peer.collect(CollectRequest::default()).await.unwrap().into_inner();
        assert_eq!((told.batches.len(), told.offers.len()), (1, 0));
        assert_eq!((&told.batches[0].round, told.batches[0].receipts.len()), (&round, 2));
    }
    let told = peer.collect(having(1)).await.unwrap().into_inner();
    assert_eq!(told.batches[0].receipts.len(), 1);
    let silent = peer.collect(having(99));
    assert!(tokio::time::timeout(Duration::from_secs(2), silent).await.is_err());
    let refusal = peer.fetch_chunks(fetch(1)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied, "no model is there, and nobody approved");
    assert!(peer.greet(GreetRequest::default()).await.is_ok());
}

#[tokio::test]
async fn weights_wait_for_their_hours_and_keep_to_their_cap() {
    let (mut all, round, weights) = pair(|listen| vec![listen]).await;
    let minutes = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60 + 6 * 60;
    let time = |m: u64| format!("{:02}:{:02}", m / 60 % 24, m % 60);
    rule(&all.sites[0], &format!("hours = \"{}-{}\"", time(minutes), time(minutes + 60)));
    all.sites[0].start();
    all.sites[0].ready().await;
    let here = |v: &rondo_proto::control::RoundView| !v.visits[0].weights.is_empty();
    all.sites[1].round_when(&round, "receipts always pass", HAND_OVER, here).await;
    let waiting = peer_of(&all.sites[0]).await.waiting;
    assert!(waiting.contains(&time(minutes)) && waiting.contains("wait"), "{waiting}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(all.sites[1].round(&round).await.unwrap().visits[0].held_by.is_empty());
    assert!(!all.sites[1].stored(&weights).exists());

    all.sites[0].stop();
    rule(&all.sites[0], "limit_mbit_s = 2");
    let bytes = std::fs::metadata(all.sites[0].stored(&weights)).unwrap().len();
    all.sites[0].start();
    let begun = Instant::now();
    all.sites[0].ready().await;
    handed_over(&all, &round, HAND_OVER).await;
    #[allow(clippy::cast_precision_loss)]
    let least = bytes as f64 * 8.0 / 2e6;
    let took = begun.elapsed().as_secs_f64();
    println!("{bytes} bytes under 2 Mbit/s took {took:.2} s; the cap leaves {least:.2} s");
    assert!(took >= least * 0.98 && took < least + 10.0, "{took} s, and the cap leaves {least} s");
    assert!(peer_of(&all.sites[0]).await.waiting.is_empty());
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_and_the_transfer_goes_on() {
    let listen = free_address();
    let proxy = Proxy::before(listen).await;
    let folder = short_folder();
    let uker = Site::init(folder.path(), "uker", None);
    let usz = Site::init_at(folder.path(), "usz", None, listen, &[proxy.address]);
    // The proxy is the only way, so the other site does not fetch.
    rule_of(&usz, "uker", "direction = \"push\"");
    let mut all = Federation::of(folder, vec![uker, usz]).await;
    let plan = PlanText { widths: [18, 24, 30, 60], ..PlanText::swt(&["uker", "usz"]) };
    let round = all.agree(&plan).await;
    all.sites[0].begin(&round).await.unwrap();
    let running = |v: &rondo_proto::control::RoundView| v.phase() == RoundPhase::Running;
    all.sites[1].round_when(&round, "the start", HAND_OVER, running).await;
    all.sites[0].stop();
    let weights = contribute(&all.sites[0], digest(&round));
    rule(&all.sites[0], "limit_mbit_s = 1");
    all.sites[0].start();
    all.sites[0].ready().await;
    let incoming = || all.sites[1].incoming(&weights);
    let some = async || std::fs::metadata(incoming()?).ok().filter(|m| m.len() > 0);
    eventually("the first chunk", HAND_OVER, some).await;
    proxy.turn(Line::Swallow);
    let cut = Instant::now();
    let noticed = async || {
        let problem = peer_of(&all.sites[0]).await.problem;
        (problem.contains("refused") || problem.contains("connecting")).then_some(problem)
    };
    let problem = eventually("the dead connection", Duration::from_secs(120), noticed).await;
    println!("noticed after {:.0} s: {problem}", cut.elapsed().as_secs_f64());
    proxy.turn(Line::Forward);
    handed_over(&all, &round, Duration::from_secs(120)).await;
}

#[tokio::test]
async fn a_drip_is_cut_and_others_are_served() {
    let all = Federation::without_trainers(&["usz"]).await;
    let usz = &all.sites[0];
    let (hand, other) = (Hand::init(all.folder(), "uker"), Hand::init(all.folder(), "stanford"));
    hand.trusted_by(usz).await;
    other.trusted_by(usz).await;
    let text = PlanText { widths: [18, 24, 30, 60], ..PlanText::swt(&["uker", "usz"]) };
    let view = rondo_tests::federation::propose(usz, &text.toml()).await.unwrap();
    let id = digest(&view.round);
    hand.deliver(usz, id, &[hand.receipt(id, 1, ReceiptBody::Approved)]).await.unwrap();
    usz.begin(&view.round).await.unwrap();
    let plan = Plan::from_canonical(view.plan_json.as_bytes()).unwrap();
    let bytes = checkpoint(&plan, 0.25);
    let manifest = hand.manifest(&plan, &bytes);
    let passport = hand.passport(usz, &manifest).to_json();

    let proxy = Proxy::before(usz.listen).await;
    let mut slow = hand.call_at(proxy.address).await;
    let round = id.as_bytes().to_vec();
    let offer = Offer { round: round.clone(), visit: 1, passport };
    let answer = slow.offer_checkpoint(offer).await.unwrap().into_inner().answer;
    assert!(matches!(answer, Some(Answer::Wanted(_))), "{answer:?}");
    let part = |i| {
        let (index, data) = chunk(&manifest.weights, &bytes, i);
        Chunk { round: round.clone(), visit: 1, index, data: data.into(), offset: 0 }
    };
    let (next, chunks) = mpsc::channel(1);
    let sent = tokio::spawn(async move { slow.send_chunks(ReceiverStream::new(chunks)).await });
    next.send(part(0)).await.unwrap();
    let incoming = || usz.incoming(&manifest.weights.object.to_string());
    let some = async || std::fs::metadata(incoming()?).ok().filter(|m| m.len() > 0);
    eventually("the first chunk", HAND_OVER, some).await;
    proxy.turn(Line::Drip);
    let begun = Instant::now();
    next.send(part(1)).await.unwrap();
    while !sent.is_finished() {
        let asked = Instant::now();
        other.call(usz).await.greet(GreetRequest::default()).await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(5), "others wait for the drip");
        assert!(begun.elapsed() < Duration::from_secs(90), "the drip is never cut");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let refusal = sent.await.unwrap().unwrap_err();
    println!("cut after {:.0} s: {}", begun.elapsed().as_secs_f64(), refusal.message());
    assert_eq!(refusal.code(), Code::DeadlineExceeded);
    eventually("the reason in the log", HAND_OVER, async || {
        usz.log_text()
            .contains("transfer broken off: [stalled-stream] no chunk came within")
            .then_some(())
    })
    .await;
    // Over a good line it is still welcome.
    let n = u32::try_from(manifest.weights.chunks.len()).unwrap();
    let rest = (1..n).map(|i| chunk(&manifest.weights, &bytes, i)).collect();
    let held = hand.send(usz, id, rest).await.unwrap();
    assert!(matches!(held, Answer::Held(_)), "{held:?}");
}
