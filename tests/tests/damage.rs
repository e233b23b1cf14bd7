//! Damage is refused by name, wherever it is: in the store, on the wire, in a passport, in the journal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and damages files on purpose"
)]

use rondo::envelope::Envelope;
use rondo::ids::{RoundId, VisitNo};
use rondo::manifest::Manifest;
use rondo::plan::Plan;
use rondo::round::{Receipt, ReceiptBody};
use rondo_proto::peer::offer_answer::Answer;
use rondo_proto::peer::{Held, Wanted};
use rondo_tests::federation::{Federation, propose};
use rondo_tests::hand::{Hand, chunk, digest};
use rondo_tests::history;
use rondo_tests::material::{PlanText, checkpoint};
use rondo_tests::site::Site;
use std::fs;
use std::os::unix::fs::FileExt as _;
use tonic::{Code, Status};

/// A daemon that is about to receive the first checkpoint of a round from a site made by hand.
struct Scene {
    all: Federation,
    hand: Hand,
    plan: Plan,
    round: RoundId,
}

impl Scene {
    async fn set() -> Self {
        let all = Federation::without_trainers(&["usz"]).await;
        let hand = Hand::init(all.folder(), "uker");
        hand.trusted_by(&all.sites[0]).await;
        // Wide enough for several chunks.
        let text = PlanText { widths: [18, 24, 30, 60], ..PlanText::swt(&["uker", "usz"]) };
        let (plan, round) = agree(&all.sites[0], &hand, &text).await;
        all.sites[0].begin(&round.to_string()).await.unwrap();
        Self { all, hand, plan, round }
    }

    fn usz(&self) -> &Site {
        &self.all.sites[0]
    }

    fn passport(&self, manifest: &Manifest) -> Vec<u8> {
        self.hand.passport(self.usz(), manifest).to_json()
    }

    async fn offer(&self, manifest: &Manifest) -> Result<Answer, Status> {
        self.hand.offer(self.usz(), self.round, 1, self.passport(manifest)).await
    }

    /// Names in a folder of the store.
    fn in_store(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.usz().home.join("store").join(folder)).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

/// A round that the daemon proposed and both sites approved.
async fn agree(site: &Site, hand: &Hand, text: &PlanText) -> (Plan, RoundId) {
    let view = propose(site, &text.toml()).await.unwrap();
    let round = digest(&view.round);
    let approval = hand.receipt(round, 1, ReceiptBody::Approved);
    assert_eq!(hand.deliver(site, round, &[approval]).await.unwrap(), 1);
    (Plan::from_canonical(view.plan_json.as_bytes()).unwrap(), round)
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, parts: &[&str]) {
    let status = outcome.expect_err("it must be refused");
    assert_eq!(status.code(), code, "{status:?}");
    for part in parts {
        assert!(status.message().contains(part), "`{part}` is not in: {}", status.message());
    }
}

fn flip(path: &std::path::Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[tokio::test]
async fn a_flipped_byte_is_refused_on_the_wire_and_in_the_store() {
    let scene = Scene::set().await;
    let (hand, usz, round) = (&scene.hand, scene.usz(), scene.round);
    let bytes = checkpoint(&scene.plan, 0.25);
    let manifest = hand.manifest(&scene.plan, &bytes);
    let table = &manifest.weights;
    let weights = table.object.to_string();
    let last = u32::try_from(table.chunks.len() - 1).unwrap();
    assert!(last >= 2, "the scenario needs several chunks");

    let early = hand.send(usz, round, vec![chunk(table, &bytes, 0)]).await;
    refused(early, Code::FailedPrecondition, &["offer the checkpoint first"]);
    let everything = Answer::Wanted(Wanted { chunks: (0..=last).collect(), offset: 0 });
    assert_eq!(scene.offer(&manifest).await.unwrap(), everything);

    let mut bad = chunk(table, &bytes, 1);
    bad.1[100_000] ^= 1;
    let sent = hand.send(usz, round, vec![chunk(table, &bytes, 0), bad]).await;
    refused(sent, Code::InvalidArgument, &[&format!("chunk 1 of checkpoint {weights}")]);
    let outside = vec![(last + 1, vec![0])];
    refused(hand.send(usz, round, outside).await, Code::InvalidArgument, &["does not exist"]);
    assert!(scene.in_store("checkpoints").is_empty(), "nothing half-received is stored");
    refused(usz.verify(&weights).await, Code::NotFound, &["no model"]);

    // What was verified is not asked for again; the right bytes are accepted in any order.
    let rest = Answer::Wanted(Wanted { chunks: (1..=last).collect(), offset: 0 });
    assert_eq!(scene.offer(&manifest).await.unwrap(), rest);
    let right = (1..=last).rev().map(|index| chunk(table, &bytes, index)).collect();
    let held = hand.send(usz, round, right).await.unwrap();
    let Answer::Held(Held { receipt }) = &held else { panic!("{held:?}") };
    let card = rondo::trust::SiteCard::open(
        &Envelope::from_json(&fs::read(usz.home.join("card.json")).unwrap()).unwrap(),
    );
    let receipt = Envelope::from_json(receipt).unwrap();
    let receipt = Receipt::open(&receipt, &card.unwrap().signing_key).unwrap();
    let received = ReceiptBody::Received { visit: VisitNo::FIRST, weights: table.object };
    assert_eq!(receipt.body, received);
    assert_eq!(scene.offer(&manifest).await.unwrap(), held, "the same acknowledgement again");
    assert_eq!(scene.in_store("checkpoints"), [weights.as_str()]);
    assert!(scene.in_store("incoming").is_empty());
    assert_eq!(fs::read(usz.stored(&weights)).unwrap(), bytes);
    assert_eq!(usz.verify(&weights[..12]).await.unwrap().hops.len(), 1);

    let damaged = u64::from(last) * table.chunk_bytes + 5;
    flip(&usz.stored(&weights), damaged);
    let parts = [weights.as_str(), &format!("chunk {last} ")];
    refused(usz.verify(&weights).await, Code::DataLoss, &parts);
    let request = rondo_proto::control::ModelRequest { weights: weights.clone() };
    let export = usz.control().await.export_model(request).await;
    refused(export.map(|_| ()), Code::DataLoss, &parts);
    flip(&usz.stored(&weights), damaged);
    usz.verify(&weights).await.unwrap();
    let whole = fs::File::options().write(true).open(usz.stored(&weights)).unwrap();
    whole.set_len(bytes.len() as u64 - 1).unwrap();
    refused(usz.verify(&weights).await, Code::DataLoss, &parts);
}

#[tokio::test]
async fn a_peer_that_lies_is_refused_and_leaves_no_trace() {
    let mut scene = Scene::set().await;
    let third = Hand::init(scene.all.folder(), "stanford");
    third.trusted_by(scene.usz()).await;
    let before = scene.all.sites[0].ready().await.journal_records;
    let (hand, usz, round) = (&scene.hand, scene.usz(), scene.round);
    let bytes = checkpoint(&scene.plan, 0.25);
    let manifest = hand.manifest(&scene.plan, &bytes);
    let good = hand.passport(usz, &manifest);
    let json = good.to_json();
    let offered = async |passport: Vec<u8>| hand.offer(usz, round, 1, passport).await;
    let invalid = Code::InvalidArgument;

    // Passports.
    refused(offered(b"garbage".to_vec()).await, invalid, &["[passport-malformed]"]);
    refused(offered(json[..json.len() / 2].to_vec()).await, invalid, &["[passport-malformed]"]);
    refused(offered(Vec::new()).await, invalid, &["[passport-malformed]"]);
    let mut unapproved = good.clone();
    unapproved.approvals.pop();
    refused(offered(unapproved.to_json()).await, invalid, &["[passport-approval]"]);
    let mut foreign = good.clone();
    foreign.manifests = vec![manifest.sign(&third.identity.signing).unwrap()];
    refused(offered(foreign.to_json()).await, invalid, &["[passport-signature]", "hop 1"]);
    let mut changed = good.clone();
    changed.plan = changed.plan.replace("\"cycles\":1", "\"cycles\":2").replace("swt", "cwt");
    refused(offered(changed.to_json()).await, invalid, &["[passport-approval]"]);
    let mut empty = good.clone();
    empty.manifests.clear();
    refused(offered(empty.to_json()).await, invalid, &["[passport-hops]"]);
    for (what, lie) in [
        ("another visit", Manifest { visit: VisitNo(2), ..manifest.clone() }),
        ("another cycle", Manifest { cycle: 2, ..manifest.clone() }),
        ("its parent", Manifest { parent: Some(manifest.weights.object), ..manifest.clone() }),
        ("its recipe", Manifest { recipe: manifest.weights.object, ..manifest.clone() }),
        ("another round", Manifest { round: manifest.weights.object, ..manifest.clone() }),
        ("its length", hand.manifest(&scene.plan, &bytes[1..])),
    ] {
        let mut passport = good.clone();
        passport.manifests = vec![lie.sign(&hand.identity.signing).unwrap()];
        refused(offered(passport.to_json()).await, invalid, &["[passport-chain]", what]);
    }

    // Whose turn it is, and who asks.
    let denied = Code::PermissionDenied;
    refused(hand.offer(usz, round, 2, json.clone()).await, denied, &["not handed from there"]);
    refused(hand.offer(usz, round, 9, json.clone()).await, denied, &["not handed from there"]);
    refused(hand.offer(usz, round, 0, json.clone()).await, invalid, &["`visit` is missing"]);
    refused(third.offer(usz, round, 1, json.clone()).await, denied, &["not handed from there"]);
    let unknown = manifest.weights.object;
    refused(hand.offer(usz, unknown, 1, json.clone()).await, Code::NotFound, &["not known here"]);
    let chunks = vec![chunk(&manifest.weights, &bytes, 0)];
    refused(third.send(usz, round, chunks).await, denied, &["not handed from there"]);

    // Statements.
    let own = |number, body| hand.receipt(round, number, body);
    let of_third = third.receipt(round, 1, ReceiptBody::Approved);
    refused(
        hand.deliver(usz, round, std::slice::from_ref(&of_third)).await,
        denied,
        &["its own receipts"],
    );
    refused(third.deliver(usz, round, &[of_third]).await, denied, &["takes no part"]);
    let mut forged = Receipt::unverified(&own(2, ReceiptBody::Started)).unwrap();
    let forgery = forged.sign(&third.identity.signing).unwrap();
    refused(hand.deliver(usz, round, &[forgery]).await, invalid, &["signature does not match"]);
    forged.round = unknown;
    let other_round = forged.sign(&hand.identity.signing).unwrap();
    refused(hand.deliver(usz, round, &[other_round]).await, denied, &["of one round"]);
    let second = own(2, ReceiptBody::Training { visit: VisitNo(2) });
    let failed = Code::FailedPrecondition;
    refused(hand.deliver(usz, round, &[second]).await, failed, &["not this site's turn"]);
    let other_first = own(1, ReceiptBody::Started);
    refused(hand.deliver(usz, round, &[other_first]).await, failed, &["something else before"]);
    let gap = own(3, ReceiptBody::Started);
    assert_eq!(hand.deliver(usz, round, &[gap]).await.unwrap(), 1, "receipts come in order");

    assert!(scene.in_store("checkpoints").is_empty() && scene.in_store("incoming").is_empty());
    assert_eq!(scene.all.sites[0].ready().await.journal_records, before, "lies are not recorded");
    // After all of it the truth is still welcome.
    assert!(matches!(scene.offer(&manifest).await.unwrap(), Answer::Wanted(_)));
}

#[tokio::test]
async fn a_passport_of_another_round_is_refused() {
    let scene = Scene::set().await;
    let text = PlanText { name: "another", ..PlanText::swt(&["uker", "usz"]) };
    let (other, _) = agree(scene.usz(), &scene.hand, &text).await;
    let genuine = scene.hand.manifest(&other, &checkpoint(&other, 0.5));
    let passport = scene.passport(&genuine);
    let offered = scene.hand.offer(scene.usz(), scene.round, 1, passport).await;
    refused(offered, Code::InvalidArgument, &["belongs to another visit"]);
    assert!(scene.in_store("incoming").is_empty());
}

#[tokio::test]
async fn weights_that_are_signed_but_no_model_are_not_kept() {
    let scene = Scene::set().await;
    let mut bytes = checkpoint(&scene.plan, 0.25);
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let manifest = scene.hand.manifest(&scene.plan, &bytes);
    let Answer::Wanted(Wanted { chunks, .. }) = scene.offer(&manifest).await.unwrap() else {
        panic!("nothing is held yet")
    };
    let all = chunks.iter().map(|index| chunk(&manifest.weights, &bytes, *index)).collect();
    let sent = scene.hand.send(scene.usz(), scene.round, all).await;
    refused(sent, Code::InvalidArgument, &["[weights-not-finite]", "`fc.2."]);
    assert!(scene.in_store("checkpoints").is_empty() && scene.in_store("incoming").is_empty());
}

#[tokio::test]
async fn a_full_disk_is_named_and_the_transfer_goes_on_after_it() {
    let scene = Scene::set().await;
    let (hand, usz, round) = (&scene.hand, scene.usz(), scene.round);
    let bytes = checkpoint(&scene.plan, 0.25);
    let manifest = hand.manifest(&scene.plan, &bytes);
    let table = &manifest.weights;
    // Writing to /dev/full fails as on a full disk.
    scene.offer(&manifest).await.unwrap();
    let incoming = usz.incoming(&table.object.to_string()).unwrap();
    fs::remove_file(&incoming).unwrap();
    std::os::unix::fs::symlink("/dev/full", &incoming).unwrap();
    let all = |n: usize| (0..).take(n).map(|index| chunk(table, &bytes, index)).collect();
    let n = table.chunks.len();
    let sent = hand.send(usz, round, all(n)).await;
    // The site's own log says what happened and where; the peer is told neither.
    refused(sent, Code::ResourceExhausted, &["[storage]", "its log says how"]);
    let log = usz.log_text();
    assert!(log.contains("No space left on device") && log.contains("Free space"), "{log}");
    assert!(scene.in_store("checkpoints").is_empty());
    fs::remove_file(&incoming).unwrap();
    let sent = hand.send(usz, round, all(n)).await.unwrap();
    assert!(matches!(sent, Answer::Held(_)), "{sent:?}");
    usz.verify(&table.object.to_string()).await.unwrap();
}

#[tokio::test]
async fn a_transfer_that_a_crash_broke_off_goes_on_where_it_stopped() {
    let mut scene = Scene::set().await;
    let bytes = checkpoint(&scene.plan, 0.25);
    let manifest = scene.hand.manifest(&scene.plan, &bytes);
    let table = &manifest.weights;
    let n = u32::try_from(table.chunks.len()).unwrap();
    scene.offer(&manifest).await.unwrap();
    let sent = scene.hand.send(scene.usz(), scene.round, vec![chunk(table, &bytes, 0)]).await;
    let rest = Answer::Wanted(Wanted { chunks: (1..n).collect(), offset: 0 });
    assert_eq!(sent.unwrap(), rest);

    scene.all.sites[0].kill();
    scene.all.sites[0].start();
    scene.all.sites[0].ready().await;
    assert_eq!(scene.offer(&manifest).await.unwrap(), rest, "verified on disk is not sent again");
    // What lies there is verified anew: a byte that changed meanwhile is asked for once more.
    let incoming = scene.usz().incoming(&table.object.to_string()).unwrap();
    flip(&incoming, 77);
    let everything = Answer::Wanted(Wanted { chunks: (0..n).collect(), offset: 0 });
    assert_eq!(scene.offer(&manifest).await.unwrap(), everything);
    let all = (0..n).map(|index| chunk(table, &bytes, index)).collect();
    let sent = scene.hand.send(scene.usz(), scene.round, all).await.unwrap();
    assert!(matches!(sent, Answer::Held(_)), "{sent:?}");
    assert_eq!(fs::read(scene.usz().stored(&table.object.to_string())).unwrap(), bytes);
}

#[tokio::test]
async fn a_damaged_journal_stops_the_daemon_and_is_named() {
    const JOURNAL: i32 = 12;
    let mut scene = Scene::set().await;
    let usz = &mut scene.all.sites[0];
    usz.stop();
    let good = history::backup(&usz.home);
    let n = history::records(&usz.home).len();
    assert!(n >= 4, "{n} records");
    for (sql, parts) in [
        (
            "UPDATE record SET payload = CAST(replace(CAST(payload AS TEXT), 'a', 'b') AS BLOB) WHERE number = 3",
            ["journal record 3 was changed or moved", "Restore the journal from a backup"],
        ),
        ("DELETE FROM record WHERE number = 2", ["journal record 2 is missing", "record 3 stands"]),
        (
            "UPDATE record SET version = 9 WHERE number = 1",
            ["journal record 1 was changed or moved", "Restore"],
        ),
    ] {
        history::tamper(&usz.home, sql);
        usz.start_refused().says(JOURNAL, &parts);
        history::restore(&usz.home, &good);
    }
    let mut foreign = good.clone();
    foreign[..16].fill(b'x');
    history::restore(&usz.home, &foreign);
    usz.start_refused().says(JOURNAL, &["journal.sqlite", "Restore the journal from a backup"]);
    history::restore(&usz.home, &good[..good.len() / 2]);
    usz.start_refused().says(JOURNAL, &["journal.sqlite"]);
    history::restore(&usz.home, &good);
    usz.start();
    assert_eq!(usz.ready().await.journal_records, n as u64, "the backup serves");
}
