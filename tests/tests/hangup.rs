//! An operator who hangs up in the middle of a command: what was done is written down all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use rondo::audit::What;
use rondo::envelope::{Envelope, SigningKey};
use rondo::ids::Digest;
use rondo::round::Event;
use rondo::trust::SiteCard;
use rondo_node::audit;
use rondo_node::identity::Identity;
use rondo_proto::control::{AddPeerRequest, RenewSiteRequest, RenewalStep};
use rondo_tests::federation::Federation;
use rondo_tests::history;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Commands that are broken off, each a little later than the one before.
const COMMANDS: u32 = 120;
/// Renewals of the card that are broken off.
const RENEWALS: u32 = 30;
/// From one command to the next.
const STEP: Duration = Duration::from_micros(100);
/// Until what was begun is done.
const SETTLED: Duration = Duration::from_secs(2);

/// A request to trust a site that exists nowhere else.
fn newcomer(own: &SiteCard, n: u32) -> AddPeerRequest {
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let card = SiteCard {
        site: format!("site-{n}").parse().unwrap(),
        endpoints: Vec::new(),
        tls_key: Digest::of(&n.to_be_bytes()),
        signing_key: key.public(),
        next: None,
        former: Vec::new(),
        ..own.clone()
    };
    let fingerprint = card.fingerprint();
    AddPeerRequest { card: card.sign(&key).unwrap().to_json(), fingerprint }
}

#[tokio::test]
async fn what_was_committed_is_in_the_audit_log_though_nobody_waited() {
    let mut all = Federation::without_trainers(&["uker"]).await;
    let own = Identity::load(&all.sites[0].home).unwrap().own;
    let mut control = all.sites[0].control().await;
    let mut answered = 0;
    for n in 0..COMMANDS {
        let adding = control.add_peer(newcomer(&own, n));
        answered += usize::from(timeout(STEP * n, adding).await.is_ok_and(|done| done.is_ok()));
    }
    for n in 0..RENEWALS {
        let step = RenewalStep::CardOnly.into();
        let request = RenewSiteRequest { step, valid_days: 400 + n, force: false };
        let _ = timeout(STEP * n * 5, control.renew_site(request)).await;
    }
    sleep(SETTLED).await;
    let view = all.sites[0].ready().await;
    let in_force = Envelope::from_json(&view.card).unwrap();
    let home = all.sites[0].home.clone();
    let on_disk = Identity::load(&home).unwrap();
    assert_eq!(on_disk.card, in_force, "the card on the disk is the one in force");

    let known = |events: Vec<Event>| -> BTreeSet<String> {
        let sites = events.into_iter().filter_map(|event| match event {
            Event::PeerAdded { card } => SiteCard::open(&card).ok().map(|c| c.site.to_string()),
            _ => None,
        });
        sites.collect()
    };
    let events = history::replay(&home).1;
    let opened = events.iter().filter(|event| matches!(event, Event::SiteOpened { .. })).count();
    let journalled = known(events);
    let (mut written, mut renewals) = (BTreeSet::new(), 0);
    audit::verify(&home, &on_disk.own, None, |_, entry| match &entry.what {
        What::PeerAdded { site, .. } => drop(written.insert(site.to_string())),
        What::SiteRenewed { .. } => renewals += 1,
        _ => {}
    })
    .unwrap();
    assert_eq!(written, journalled, "journal and audit log agree on peers");
    // The first card is no renewal.
    assert_eq!(renewals, opened - 1, "journal and audit log agree on renewals");
    println!(
        "{answered} of {COMMANDS} answered, {} committed; {} of {RENEWALS} renewals",
        journalled.len(),
        renewals
    );
    assert!(journalled.len() > answered, "some were committed though nobody waited");
    all.sites[0].stop();
}
