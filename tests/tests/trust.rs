//! Who may connect, and for how long: revoking, pinging, renewing keys, all while the daemons run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and changes files on purpose"
)]

use rondo::plan::Plan;
use rondo::round::ReceiptBody;
use rondo_proto::control::PeerRequest;
use rondo_proto::peer::peer_client::PeerClient;
use rondo_proto::peer::{Chunk, GreetRequest};
use rondo_tests::federation::{Federation, propose};
use rondo_tests::hand::{Hand, chunk, digest};
use rondo_tests::material::{PlanText, checkpoint};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::transport::Channel;

/// How soon a revoked peer's connections must be closed.
const CLOSED: Duration = Duration::from_secs(5);

fn named(site: &str) -> PeerRequest {
    PeerRequest { site: site.to_owned() }
}

async fn greets(peer: &mut PeerClient<Channel>) -> bool {
    peer.greet(GreetRequest::default()).await.is_ok()
}

#[tokio::test]
async fn a_peer_that_is_revoked_in_mid_transfer_is_cut_off_and_others_are_not() {
    let all = Federation::without_trainers(&["usz"]).await;
    let usz = &all.sites[0];
    let (hand, friend) = (Hand::init(all.folder(), "uker"), Hand::init(all.folder(), "stanford"));
    hand.trusted_by(usz).await;
    friend.trusted_by(usz).await;
    let text = PlanText { widths: [18, 24, 30, 60], ..PlanText::swt(&["uker", "usz"]) };
    let view = propose(usz, &text.toml()).await.unwrap();
    let round = digest(&view.round);
    let approval = hand.receipt(round, 1, ReceiptBody::Approved);
    hand.deliver(usz, round, &[approval]).await.unwrap();
    usz.begin(&view.round).await.unwrap();
    let plan = Plan::from_canonical(view.plan_json.as_bytes()).unwrap();
    let bytes = checkpoint(&plan, 0.25);
    let manifest = hand.manifest(&plan, &bytes);
    let passport = hand.passport(usz, &manifest).to_json();
    hand.offer(usz, round, 1, passport).await.unwrap();

    // A transfer that is under way, an idle connection, and one of somebody else.
    let (mut transfer, mut idle) = (hand.call(usz).await, hand.call(usz).await);
    let mut other = friend.call(usz).await;
    assert!(greets(&mut idle).await && greets(&mut other).await);
    let (chunks, sent) = tokio::sync::mpsc::channel(1);
    let sending = tokio::spawn(async move {
        let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
        transfer.send_chunks(stream).await
    });
    let (index, data) = chunk(&manifest.weights, &bytes, 0);
    let chunk = Chunk { round: round.as_bytes().to_vec(), visit: 1, index, data };
    chunks.send(chunk).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!sending.is_finished());

    let mut control = usz.control().await;
    let unknown = control.revoke_peer(named("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound, "{unknown:?}");
    let own = control.revoke_peer(named("usz")).await.unwrap_err();
    assert_eq!(own.code(), Code::FailedPrecondition, "{own:?}");
    let begun = Instant::now();
    assert!(control.revoke_peer(named("uker")).await.unwrap().into_inner().revoked);
    let outcome = tokio::time::timeout(CLOSED, sending).await.expect("closed in time");
    assert!(outcome.unwrap().is_err());
    while greets(&mut idle).await {
        assert!(begun.elapsed() < CLOSED, "the idle connection is still served");
    }
    println!("closed {} ms after the order", begun.elapsed().as_millis());
    assert!(usz.log_text().contains("connection closed"));
    assert!(greets(&mut other).await, "others are not affected");
    assert!(control.revoke_peer(named("uker")).await.unwrap().into_inner().revoked, "again");
}

#[tokio::test]
async fn a_ping_shows_how_a_connection_is_protected() {
    let mut all = Federation::without_trainers(&["uker", "usz"]).await;
    let away = Hand::init(all.folder(), "stanford");
    away.trusted_by(&all.sites[0]).await;
    let mut control = all.sites[0].control().await;
    assert_eq!(control.ping_peer(named("nobody")).await.unwrap_err().code(), Code::NotFound);
    let silent = control.ping_peer(named("stanford")).await.unwrap_err();
    assert!(silent.message().contains("connecting to stanford at"), "{silent:?}");

    let ping = control.ping_peer(named("usz")).await.unwrap().into_inner();
    println!("{ping:?}");
    assert_eq!(ping.key_exchange, "X25519MLKEM768");
    assert_eq!(ping.tls_version, "TLS 1.3");
    assert_eq!(ping.cipher_suite, "TLS13_AES_256_GCM_SHA384");
    assert_eq!(ping.endpoint, all.sites[1].listen.to_string());
    assert!(ping.round_trip_ms > 0.0 && ping.clock_skew_s.abs() <= 1);
    let back = all.sites[1].control().await.ping_peer(named("uker")).await.unwrap();
    assert!(back.into_inner().reaches_you, "uker has just reached usz");

    control.revoke_peer(named("usz")).await.unwrap();
    let revoked = control.ping_peer(named("usz")).await.unwrap_err();
    assert_eq!(revoked.code(), Code::PermissionDenied, "{revoked:?}");
    all.sites[1].stop();
}
