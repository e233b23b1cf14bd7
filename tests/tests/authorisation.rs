//! Who may call what: every call of peer.v1 by every kind of caller. A new call without a row fails here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo::envelope::Envelope;
use rondo::ids::RoundId;
use rondo::plan::Plan;
use rondo::round::{Event, ReceiptBody};
use rondo::trust::SiteCard;
use rondo_node::daemon::unix_now;
use rondo_proto::control::{GetSiteRequest, ListPeersRequest, RefusalView};
use rondo_proto::peer::peer_client::PeerClient;
use rondo_proto::peer::{
    Chunk, CollectRequest, Collected, FetchChunksRequest, GreetRequest, Offer, ReceiptBatch,
};
use rondo_tests::caller::Shows;
use rondo_tests::federation::{Federation, propose};
use rondo_tests::hand::{Hand, chunk, digest};
use rondo_tests::history;
use rondo_tests::material::{PlanText, checkpoint};
use rondo_tests::site::Site;
use std::collections::BTreeSet;
use std::error::Error as _;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// A refusal comes at once; a poll may wait for news much longer.
const POLL_PATIENCE: Duration = Duration::from_secs(2);
const PROTO: &str = include_str!("../../proto/rondo/v1/peer.proto");

/// What comes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The handshake fails; no call is read.
    Shut,
    /// The call is refused.
    Refused(Code),
    /// The call is answered.
    Answered,
}

use Outcome::{Answered, Refused, Shut};
const DENIED: Outcome = Refused(Code::PermissionDenied);

/// Kinds of callers, in the order of the columns below.
const CALLERS: [&str; 8] = [
    "no certificate",
    "a complete site that nobody added",
    "revoked",
    "its card has run out",
    "trusted, in no round",
    "in a round that is not approved here",
    "in the round, but at another visit",
    "at its visit",
];

/// Every call and what each caller gets.
const TABLE: [(&str, [Outcome; 8]); 6] = [
    ("Greet", [Shut, Shut, Shut, Shut, Answered, Answered, Answered, Answered]),
    // Statements about a round that was proposed are welcome, or nobody could agree on it.
    ("DeliverReceipts", [Shut, Shut, Shut, Shut, DENIED, Answered, Answered, Answered]),
    ("OfferCheckpoint", [Shut, Shut, Shut, Shut, DENIED, DENIED, DENIED, Answered]),
    ("SendChunks", [Shut, Shut, Shut, Shut, DENIED, DENIED, DENIED, Answered]),
    // What is told is the caller's own: receipts and offers that would be pushed to it.
    ("Collect", [Shut, Shut, Shut, Shut, Answered, Answered, Answered, Answered]),
    // This site made no checkpoint, so nobody may fetch one; who may is in `reach.rs`.
    ("FetchChunks", [Shut, Shut, Shut, Shut, DENIED, DENIED, DENIED, DENIED]),
];

#[test]
fn the_table_has_every_call() {
    let calls = PROTO.lines().filter_map(|l| l.trim().strip_prefix("rpc ")?.split('(').next());
    let calls: BTreeSet<&str> = calls.collect();
    let rows: BTreeSet<&str> = TABLE.iter().map(|(call, _)| *call).collect();
    assert_eq!(calls, rows, "each call of peer.proto has a row");
    assert!(calls.len() >= 6, "peer.proto is read");
}

/// What a caller says, if it is let speak.
struct Words {
    round: RoundId,
    receipt: Envelope,
    passport: Vec<u8>,
    chunk: (u32, Vec<u8>),
}

impl Words {
    async fn say(&self, call: &str, peer: &mut PeerClient<Channel>) -> Result<(), Status> {
        let round = self.round.as_bytes().to_vec();
        match call {
            "Greet" => peer.greet(GreetRequest::default()).await.map(|_| ()),
            "DeliverReceipts" => {
                let receipts = vec![self.receipt.to_json()];
                peer.deliver_receipts(ReceiptBatch { round, receipts }).await.map(|_| ())
            }
            "OfferCheckpoint" => {
                let passport = self.passport.clone();
                peer.offer_checkpoint(Offer { round, visit: 1, passport }).await.map(|_| ())
            }
            "SendChunks" => {
                let (index, data) = self.chunk.clone();
                let chunks = tokio_stream::iter([Chunk {
                    round,
                    visit: 1,
                    index,
                    data: data.into(),
                    offset: 0,
                }]);
                peer.send_chunks(chunks).await.map(|_| ())
            }
            "Collect" => {
                let poll = peer.collect(CollectRequest { having: Vec::new() });
                // Who is kept waiting for news was let in.
                let answer = tokio::time::timeout(POLL_PATIENCE, poll).await;
                answer.unwrap_or_else(|_| Ok(Response::new(Collected::default()))).map(|_| ())
            }
            "FetchChunks" => {
                let request = FetchChunksRequest { round, visit: 1, chunks: vec![0], offset: 0 };
                peer.fetch_chunks(request).await.map(|_| ())
            }
            other => panic!("say here what {other} is called with"),
        }
    }
}

async fn outcome(who: &Shows, site: &Site, call: &str, words: &Words) -> (Outcome, String) {
    let Ok(mut peer) = who.peer(site.listen).await else { return (Shut, String::new()) };
    match words.say(call, &mut peer).await {
        Ok(()) => (Answered, String::new()),
        // A status that the server sent has no cause here; one that the connection broke with has.
        Err(status) if status.source().is_some() => (Shut, status.to_string()),
        Err(status) => (Refused(status.code()), status.to_string()),
    }
}

/// A round that the daemon proposed.
async fn proposed(site: &Site, text: &PlanText) -> (Plan, RoundId) {
    let view = propose(site, &text.toml()).await.unwrap();
    (Plan::from_canonical(view.plan_json.as_bytes()).unwrap(), digest(&view.round))
}

#[tokio::test]
async fn every_call_by_every_caller() {
    let mut all = Federation::without_trainers(&["usz"]).await;
    let names = ["unknown", "revoked", "expired", "outside", "early", "later", "right"];
    let hands = names.map(|name| Hand::init(all.folder(), name));
    let [unknown, revoked, expired, outside, early, later, right] = &hands;
    for hand in [revoked, outside, early, later, right] {
        hand.trusted_by(&all.sites[0]).await;
    }
    all.sites[0].stop();
    let home = all.sites[0].home.clone();
    let run_out = SiteCard { valid_until: unix_now() - 1, ..expired.identity.own.clone() };
    let card = run_out.sign(&expired.identity.signing).unwrap();
    history::append(&home, &Event::PeerAdded { card });
    history::append(&home, &Event::PeerRevoked { site: revoked.identity.own.site.clone() });
    all.sites[0].start();
    all.sites[0].ready().await;
    let usz = &all.sites[0];

    // Wide enough for several chunks.
    let widths = [18, 24, 30, 60];
    let text = PlanText { widths, ..PlanText::swt(&["right", "usz", "later"]) };
    let (plan, round) = proposed(usz, &text).await;
    let approval = |hand: &Hand, round| hand.receipt(round, 1, ReceiptBody::Approved);
    let approvals = [right, later].map(|hand| approval(hand, round));
    for (hand, approval) in [right, later].into_iter().zip(&approvals) {
        hand.deliver(usz, round, std::slice::from_ref(approval)).await.unwrap();
    }
    usz.approve(&round.to_string()).await.unwrap();
    usz.begin(&round.to_string()).await.unwrap();
    // Who proposes a round has approved it, so this one is proposed from outside.
    let text = PlanText { name: "proposed", ..PlanText::swt(&["early", "usz"]) };
    let other_plan = Plan::from_toml(&text.toml(), unix_now()).unwrap();
    let other_round = other_plan.round();
    let canonical = String::from_utf8(other_plan.canonical()).unwrap();
    let proposal = early.receipt(other_round, 1, ReceiptBody::Proposed { plan: canonical });
    assert_eq!(early.deliver(usz, other_round, &[proposal]).await.unwrap(), 1);

    let words = |hand: &Hand, plan: &Plan, round: RoundId| {
        let bytes = checkpoint(plan, 0.25);
        let manifest = hand.manifest(plan, &bytes);
        Words {
            round,
            receipt: approval(hand, round),
            passport: hand.passport(usz, &manifest).to_json(),
            chunk: chunk(&manifest.weights, &bytes, 0),
        }
    };
    // Those in the running round say again what they said.
    let again = |hand: &Hand, n: usize| Words {
        receipt: approvals[n].clone(),
        ..words(hand, &plan, round)
    };
    let early_words = Words {
        receipt: early.receipt(other_round, 2, ReceiptBody::Approved),
        ..words(early, &other_plan, other_round)
    };
    let keys = |name: &str| Shows::keys_of(&all.folder().join(name));
    let callers = [
        (Shows::Nothing, words(right, &plan, round)),
        (keys("unknown"), words(unknown, &plan, round)),
        (keys("revoked"), words(revoked, &plan, round)),
        (keys("expired"), words(expired, &plan, round)),
        (keys("outside"), words(outside, &plan, round)),
        (keys("early"), early_words),
        (keys("later"), again(later, 1)),
        (keys("right"), again(right, 0)),
    ];
    let mut wrong = Vec::new();
    for (call, expected) in TABLE {
        for ((name, (who, words)), expected) in CALLERS.iter().zip(&callers).zip(expected) {
            let (found, said) = outcome(who, usz, call, words).await;
            if found != expected {
                wrong.push(format!("{call}, {name}: {found:?} instead of {expected:?} {said}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    // The operator sees why, and of whom where it is known.
    let codes = |all: &[RefusalView]| all.iter().map(|r| r.reason.clone()).collect::<Vec<_>>();
    let mut control = usz.control().await;
    let site = control.get_site(GetSiteRequest {}).await.unwrap().into_inner();
    let strangers = codes(&site.refusals);
    assert!(strangers.contains(&"unknown-key".to_owned()), "{strangers:?}");
    assert!(!strangers.iter().any(|r| r == "revoked" || r == "expired-card"), "{strangers:?}");
    let peers = control.list_peers(ListPeersRequest {}).await.unwrap().into_inner().peers;
    let of = |name: &str| codes(&peers.iter().find(|p| p.site == name).unwrap().refusals);
    assert_eq!(
        (of("revoked"), of("expired")),
        (vec!["revoked".into()], vec!["expired-card".into()])
    );
}
