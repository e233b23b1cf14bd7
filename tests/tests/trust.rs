//! Who may connect, and for how long: revoking, pinging, renewing keys, all while the daemons run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and changes files on purpose"
)]

use rcgen::{CertificateParams, Issuer, KeyPair};
use rondo::envelope::{Envelope, SigningKey};
use rondo::plan::Plan;
use rondo::round::{Event, ReceiptBody};
use rondo::trust::SiteCard;
use rondo_node::identity::Identity;
use rondo_proto::control::{
    AddPeerRequest, ListPeersRequest, PeerRequest, PeerView, RenewSiteRequest, RenewalStep,
    RenewalView, RoundPhase, RoundView,
};
use rondo_proto::peer::peer_client::PeerClient;
use rondo_proto::peer::{Chunk, GreetRequest};
use rondo_tests::caller::Shows;
use rondo_tests::federation::{Federation, SPREAD, propose, trust};
use rondo_tests::hand::{Hand, chunk, digest};
use rondo_tests::material::{PlanText, checkpoint};
use rondo_tests::site::Site;
use rondo_tests::{eventually, history, programs};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
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
    let chunk =
        Chunk { round: round.as_bytes().to_vec(), visit: 1, index, data: data.into(), offset: 0 };
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

async fn renew(site: &Site, step: RenewalStep, force: bool) -> Result<RenewalView, tonic::Status> {
    let request = RenewSiteRequest { step: step.into(), valid_days: 400, force };
    site.control().await.renew_site(request).await.map(tonic::Response::into_inner)
}

async fn known_at(site: &Site, peer: &str) -> PeerView {
    let peers = site.control().await.list_peers(ListPeersRequest {}).await.unwrap().into_inner();
    peers.peers.into_iter().find(|p| p.site == peer).expect("a peer")
}

/// What lies in a folder now, kept for somebody who has an old copy of it.
fn copied(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to.join("keys")).unwrap();
    for name in ["card.json", "keys/signing.pk8", "keys/tls.pk8", "keys/tls.pem"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    to.to_owned()
}

#[tokio::test]
async fn keys_are_renewed_with_overlap_while_a_round_is_open() {
    let mut all = Federation::without_trainers(&["usz", "uker"]).await;
    let (usz, uker) = (&all.sites[0], &all.sites[1]);
    // A site that neither answers nor calls.
    let away = Hand::init(all.folder(), "stanford");
    away.trusted_by(usz).await;
    let before = known_at(uker, "usz").await;
    let old_keys = copied(&usz.home, &all.folder().join("usz-before"));
    let round = all.agree(&PlanText::swt(&["usz", "uker"])).await;

    let none = renew(usz, RenewalStep::Activate, false).await.unwrap_err();
    assert!(none.message().contains("no next keys are announced"), "{none:?}");
    let prepared = renew(usz, RenewalStep::Prepare, false).await.unwrap();
    assert_eq!(prepared.fingerprint, before.fingerprint, "the keys in force are the same");
    assert!(!prepared.next_fingerprint.is_empty());
    for name in ["signing.pk8", "tls.pk8"] {
        let mode = fs::metadata(usz.home.join("keys/next").join(name)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }
    let again = renew(usz, RenewalStep::Prepare, false).await.unwrap_err();
    assert!(again.message().contains(&prepared.next_fingerprint), "{again:?}");
    eventually("the announcement reaches the peer", SPREAD, async || {
        (known_at(uker, "usz").await.card == prepared.card).then_some(())
    })
    .await;
    let waiting = renew(usz, RenewalStep::Activate, false).await.unwrap_err();
    assert_eq!(waiting.code(), Code::FailedPrecondition);
    assert!(waiting.message().starts_with("stanford has not adopted"), "{waiting:?}");

    let renewed = renew(usz, RenewalStep::Activate, true).await.unwrap();
    assert_eq!(renewed.fingerprint, prepared.next_fingerprint);
    assert!(renewed.next_fingerprint.is_empty() && !usz.home.join("keys/next").exists());
    // At once in both directions, before anybody was told: the next keys are pinned already.
    uker.control().await.ping_peer(named("usz")).await.unwrap();
    usz.control().await.ping_peer(named("uker")).await.unwrap();
    eventually("the new keys are in force at the peer", SPREAD, async || {
        (known_at(uker, "usz").await.fingerprint == renewed.fingerprint).then_some(())
    })
    .await;
    let thief = Shows::keys_of(&old_keys).peer(uker.listen).await;
    let let_in = match thief {
        Ok(mut peer) => greets(&mut peer).await,
        Err(_) => false,
    };
    assert!(!let_in, "the old TLS key opens nothing");

    // The round that was approved with the old keys goes on with the new ones.
    usz.begin(&round).await.unwrap();
    let running = |view: &RoundView| view.phase() == RoundPhase::Running;
    uker.round_when(&round, "the start", SPREAD, running).await;
    let card = SiteCard::open(&Envelope::from_json(&renewed.card).unwrap()).unwrap();
    assert_eq!(card.former.len(), 1);
    for site in &mut all.sites {
        site.stop();
        let mut log = Command::new(programs::node());
        let log = log.args(["audit", "export", "--home"]).arg(&site.home).output().unwrap();
        let noted = String::from_utf8(log.stdout).unwrap().matches("\"site-renewed\"").count();
        assert_eq!(noted, if site.name == "usz" { 2 } else { 0 }, "announced and changed over");
        let (state, ..) = history::replay(&site.home);
        assert_eq!(state.roster().trusted(&card.site), Ok(&card), "{}", site.name);
        site.start();
        site.ready().await;
    }
    all.sites[1].control().await.ping_peer(named("usz")).await.unwrap();
    let view = all.sites[0].ready().await;
    assert_eq!(view.fingerprint, renewed.fingerprint);
}

#[tokio::test]
async fn a_card_with_surprising_keys_is_not_adopted_from_a_greeting() {
    let all = Federation::without_trainers(&["usz"]).await;
    let usz = &all.sites[0];
    let hand = Hand::init(all.folder(), "uker");
    hand.trusted_by(usz).await;
    let mut peer = hand.call(usz).await;
    let known = known_at(usz, "uker").await.card;
    let later =
        SiteCard { valid_from: hand.identity.own.valid_from + 1, ..hand.identity.own.clone() };
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let stolen = SiteCard { signing_key: key.public(), ..later.clone() };
    for card in [stolen.sign(&key).unwrap().to_json(), b"no card".to_vec()] {
        let greeting = peer.greet(GreetRequest { card, holds: vec![1] }).await.unwrap();
        assert_eq!(known_at(usz, "uker").await.card, known);
        assert_eq!(greeting.into_inner().holds.len(), 32);
    }
    assert_eq!(usz.log_text().matches("its card is not adopted").count(), 2);
    // Newer, by the known key.
    let card = later.sign(&hand.identity.signing).unwrap().to_json();
    peer.greet(GreetRequest { card: card.clone(), holds: Vec::new() }).await.unwrap();
    assert_eq!(known_at(usz, "uker").await.card, card);
    // Nobody goes back to an older one, not even by hand.
    let older = hand.identity.card.to_json();
    peer.greet(GreetRequest { card: older.clone(), holds: Vec::new() }).await.unwrap();
    assert_eq!(known_at(usz, "uker").await.card, card);
    let request = AddPeerRequest { card: older, fingerprint: later.fingerprint() };
    let refused = usz.control().await.add_peer(request).await.unwrap_err();
    assert!(refused.message().contains("a newer card"), "{refused:?}");
    // However many cards a peer makes, few of them become records.
    for n in 2..40 {
        let card = SiteCard { valid_from: later.valid_from + n, ..later.clone() };
        let card = card.sign(&hand.identity.signing).unwrap().to_json();
        peer.greet(GreetRequest { card, holds: Vec::new() }).await.unwrap();
    }
    let added = history::replay(&usz.home).1.into_iter();
    assert!(added.filter(|e| matches!(e, Event::PeerAdded { .. })).count() <= 9);
}

#[tokio::test]
async fn a_card_that_runs_out_is_warned_of_and_ends_its_connections() {
    let all = Federation::without_trainers(&["usz"]).await;
    let usz = &all.sites[0];
    let hand = Hand::init(all.folder(), "uker");
    let own = hand.identity.own.clone();
    let card = SiteCard { valid_until: rondo_node::daemon::unix_now() + 4, ..own };
    let signed = card.sign(&hand.identity.signing).unwrap();
    trust(usz, &signed.to_json(), &card.fingerprint()).await;
    let mut peer = hand.call(usz).await;
    assert!(greets(&mut peer).await);
    let warnings = known_at(usz, "uker").await.warnings;
    assert!(warnings[0].contains("the card of uker expires within a day"), "{warnings:?}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let begun = Instant::now();
    while greets(&mut peer).await {
        assert!(begun.elapsed() < CLOSED, "the connection outlives the card");
    }
    assert!(known_at(usz, "uker").await.warnings[0].contains("has expired"));
    let log = usz.log_text();
    assert_eq!(log.matches("WARN the card of uker expires").count(), 1, "{log}");
}

#[tokio::test]
async fn an_expired_card_is_renewed_without_the_daemon() {
    let mut all = Federation::without_trainers(&["uker", "usz"]).await;
    all.sites[0].stop();
    let home = all.sites[0].home.clone();
    let identity = Identity::load(&home).unwrap();
    let expired = SiteCard { valid_until: identity.own.valid_from + 1, ..identity.own.clone() };
    fs::write(home.join("card.json"), expired.sign(&identity.signing).unwrap().to_json()).unwrap();
    all.sites[0].start_refused().says(1, &["this site's own card", "valid from"]);
    let mut command = Command::new(programs::node());
    let done = command.args(["renew-card", "--home"]).arg(&home).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    all.sites[0].start();
    let view = all.sites[0].ready().await;
    assert!(view.valid_until > identity.own.valid_until - 10 && view.warnings.is_empty());
    let second = Command::new(programs::node()).args(["renew-card", "--home"]).arg(&home).output();
    assert!(!second.unwrap().status.success(), "a daemon runs there");
    eventually("the peer has the new card", SPREAD, async || {
        (known_at(&all.sites[1], "uker").await.card == view.card).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_certificate_of_the_hospitals_own_authority_serves_as_well() {
    let mut all = Federation::without_trainers(&["uker", "usz"]).await;
    all.sites[0].stop();
    let keys = all.sites[0].home.join("keys");
    let own = KeyPair::try_from(fs::read(keys.join("tls.pk8")).unwrap()).unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().unwrap();
    let root = authority.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(authority, root_key);
    let names = vec!["rondo.hospital.example".to_owned()];
    let certificate = |key: &KeyPair| {
        let leaf = CertificateParams::new(names.clone()).unwrap();
        leaf.signed_by(key, &issuer).unwrap().pem() + &root.pem()
    };

    // Of the same authority, but for another key: the authority counts for nothing.
    fs::write(keys.join("tls.pem"), certificate(&KeyPair::generate().unwrap())).unwrap();
    all.sites[0].start_refused().says(10, &["tls.pk8", "not the key of tls.pem"]);
    fs::write(keys.join("tls.pem"), certificate(&own)).unwrap();
    all.sites[0].start();
    all.sites[0].ready().await;
    for (site, peer) in [(0, "usz"), (1, "uker")] {
        let ping = all.sites[site].control().await.ping_peer(named(peer)).await.unwrap();
        assert_eq!(ping.into_inner().tls_version, "TLS 1.3");
    }
}
