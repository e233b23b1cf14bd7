//! Sites and peers.

use super::{day, moment, table};
use rondo_proto::control::{PeerView, PingView, RefusalView, RenewalView, SiteView, TrainerView};
use serde_json::{Value, json};

/// Clocks that differ by more make receipts hard to read, and in the end cards invalid.
const CLOCK_SKEW_MAX_S: u64 = 60;
/// The group of two sites of this software: X25519 together with ML-KEM.
const POST_QUANTUM: &str = "MLKEM";

/// Card bytes are JSON already; `null` if they are not.
fn card_json(card: &[u8]) -> Value {
    serde_json::from_slice(card).unwrap_or_default()
}

pub(crate) fn site_json(site: &SiteView) -> Value {
    let trainer = site.trainer.clone().unwrap_or_default();
    json!({
        "site": site.site,
        "name": site.name,
        "fingerprint": site.fingerprint,
        "endpoints": site.endpoints,
        "valid_until": site.valid_until,
        "version": site.version,
        "peers": site.peers,
        "open_rounds": site.open_rounds,
        "journal_records": site.journal_records,
        "file_access": site.file_access,
        "refusals": site.refusals.iter().map(refusal_json).collect::<Vec<_>>(),
        "trainer": trainer_json(&trainer),
        "card": card_json(&site.card),
        "warnings": site.warnings,
    })
}

pub(crate) fn trainer_json(trainer: &TrainerView) -> Value {
    json!({
        "connected": trainer.connected,
        "device": trainer.device,
        "training_cases": trainer.training_cases,
        "validation_cases": trainer.validation_cases,
        "test_cases": trainer.test_cases,
        "quarantined_cases": trainer.quarantined_cases,
        "problem": trainer.problem,
    })
}

pub(crate) fn site_text(site: &SiteView) -> String {
    let endpoints = if site.endpoints.is_empty() {
        "none, dials out only".to_owned()
    } else {
        site.endpoints.join(", ")
    };
    let trainer = site.trainer.as_ref().map_or_else(|| "unknown".to_owned(), trainer_text);
    let lines = [
        ("site", format!("{} ({})", site.site, site.name)),
        ("fingerprint", site.fingerprint.clone()),
        ("endpoints", endpoints),
        ("card valid until", day(site.valid_until)),
        ("software", site.version.clone()),
        ("peers", site.peers.to_string()),
        ("open rounds", site.open_rounds.to_string()),
        ("journal", format!("{} records", site.journal_records)),
        ("file access", site.file_access.clone()),
        ("strangers refused", refusals_text(&site.refusals)),
        ("trainer", trainer),
    ];
    let mut text = lines.map(|(what, text)| format!("{what:<18}{text}")).to_vec();
    text.extend(site.warnings.iter().map(|w| format!("warning: {w}")));
    text.join("\n")
}

/// One line about a trainer.
pub(crate) fn trainer_text(t: &TrainerView) -> String {
    if !t.connected {
        let why = if t.problem.is_empty() { "no reason is known" } else { &t.problem };
        return format!("not connected: {why}");
    }
    let aside = match t.quarantined_cases {
        0 => String::new(),
        n => format!(", {n} set aside"),
    };
    format!(
        "{}, cases: {} training, {} validation, {} test{aside}",
        t.device, t.training_cases, t.validation_cases, t.test_cases
    )
}

pub(crate) fn peer_json(peer: &PeerView) -> Value {
    json!({
        "site": peer.site,
        "name": peer.name,
        "fingerprint": peer.fingerprint,
        "endpoints": peer.endpoints,
        "valid_until": peer.valid_until,
        "revoked": peer.revoked,
        "last_contact": (peer.last_contact > 0).then_some(peer.last_contact),
        "problem": peer.problem,
        "waiting": peer.waiting,
        "refusals": peer.refusals.iter().map(refusal_json).collect::<Vec<_>>(),
        "card": card_json(&peer.card),
        "warnings": peer.warnings,
    })
}

pub(crate) fn renewal_json(renewed: &RenewalView) -> Value {
    json!({
        "site": renewed.site,
        "fingerprint": renewed.fingerprint,
        "next_fingerprint":
            (!renewed.next_fingerprint.is_empty()).then_some(&renewed.next_fingerprint),
        "valid_until": renewed.valid_until,
        "waiting_for": renewed.waiting_for,
        "card": card_json(&renewed.card),
    })
}

fn refusal_json(refusal: &RefusalView) -> Value {
    json!({"reason": refusal.reason, "count": refusal.count, "last": refusal.last})
}

/// What was refused, as `not-approved ×3`.
fn refusals_text(refusals: &[RefusalView]) -> String {
    let all = refusals.iter().map(|r| format!("{} ×{}", r.reason, r.count));
    let all: Vec<String> = all.collect();
    if all.is_empty() { "–".to_owned() } else { all.join(", ") }
}

pub(crate) fn peers_text(peers: &[PeerView]) -> String {
    if peers.is_empty() {
        return "No peers. Exchange cards with another site and run `rondo peer add CARD`."
            .to_owned();
    }
    let head = [
        "site",
        "name",
        "fingerprint",
        "endpoints",
        "valid until",
        "last contact",
        "refused",
        "state",
    ];
    let row = |p: &PeerView| {
        let state = match (p.revoked, p.problem.as_str(), p.waiting.as_str()) {
            (true, ..) => "revoked",
            (_, "", "") => "trusted",
            (_, "", waiting) => waiting,
            (_, problem, _) => problem,
        };
        vec![
            p.site.clone(),
            p.name.clone(),
            p.fingerprint.clone(),
            p.endpoints.join(" "),
            day(p.valid_until),
            moment(p.last_contact),
            refusals_text(&p.refusals),
            state.to_owned(),
        ]
    };
    let mut text = vec![table(&head, &[], peers.iter().map(row).collect())];
    text.extend(peers.iter().flat_map(|p| &p.warnings).map(|w| format!("warning: {w}")));
    text.join("\n")
}

/// What is not as it should be between two sites.
fn ping_warnings(ping: &PingView) -> Vec<String> {
    let mut warnings = Vec::new();
    if !ping.key_exchange.contains(POST_QUANTUM) {
        warnings.push(format!(
            "the key exchange {} is not post-quantum: what is recorded today may be read one day",
            ping.key_exchange
        ));
    }
    if ping.clock_skew_s.unsigned_abs() > CLOCK_SKEW_MAX_S {
        warnings.push(format!(
            "the clocks differ by {} s; set both by a time server",
            ping.clock_skew_s.unsigned_abs()
        ));
    }
    warnings
}

pub(crate) fn ping_json(ping: &PingView) -> Value {
    json!({
        "site": ping.site,
        "endpoint": ping.endpoint,
        "tls_version": ping.tls_version,
        "key_exchange": ping.key_exchange,
        "cipher_suite": ping.cipher_suite,
        "round_trip_ms": ping.round_trip_ms,
        "version": ping.version,
        "clock_skew_s": ping.clock_skew_s,
        "reaches_you": ping.reaches_you,
        "warnings": ping_warnings(ping),
    })
}

pub(crate) fn ping_text(ping: &PingView) -> String {
    let reaches = if ping.reaches_you { "yes" } else { "not since its start, as it says" };
    let lines = [
        ("site", format!("{} (rondo {})", ping.site, ping.version)),
        ("endpoint", ping.endpoint.clone()),
        (
            "protection",
            format!("{}, {}, {}", ping.tls_version, ping.key_exchange, ping.cipher_suite),
        ),
        ("round trip", format!("{:.1} ms", ping.round_trip_ms)),
        ("clock", format!("{:+} s", ping.clock_skew_s)),
        ("reaches you", reaches.to_owned()),
    ];
    let mut text: Vec<String> =
        lines.iter().map(|(what, text)| format!("{what:<18}{text}")).collect();
    text.extend(ping_warnings(ping).iter().map(|w| format!("warning: {w}")));
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_to_a_peer_is_shown() {
        let refusal = RefusalView { reason: "not-approved".into(), count: 3, last: 7 };
        let peer = PeerView { site: "usz".into(), refusals: vec![refusal], ..Default::default() };
        assert!(peers_text(std::slice::from_ref(&peer)).contains("not-approved ×3"));
        assert_eq!(peer_json(&peer)["refusals"][0]["count"], 3);
        let refusal = RefusalView { reason: "unknown-key".into(), count: 2, last: 7 };
        let site = SiteView { refusals: vec![refusal], ..Default::default() };
        assert!(site_text(&site).contains("strangers refused unknown-key ×2"));
        assert_eq!(site_json(&site)["refusals"][0]["reason"], "unknown-key");
    }

    #[test]
    fn a_missing_trainer_is_said_with_its_reason() {
        let mut trainer =
            TrainerView { problem: "libtorch is missing".into(), ..Default::default() };
        assert!(trainer_text(&trainer).contains("libtorch is missing"));
        (trainer.connected, trainer.quarantined_cases) = (true, 2);
        assert!(trainer_text(&trainer).contains("2 set aside"));
        let site = SiteView { site: "uker".into(), trainer: Some(trainer), ..Default::default() };
        assert_eq!(site_json(&site)["trainer"]["quarantined_cases"], 2);
        assert!(site_text(&site).contains("dials out only"));
        let warnings = vec!["the card of uker expires in 7 days".to_owned()];
        let site = SiteView { warnings: warnings.clone(), ..site };
        assert!(site_text(&site).ends_with("warning: the card of uker expires in 7 days"));
        assert_eq!(site_json(&site)["warnings"][0], warnings[0]);
        let peers = [PeerView { site: "uker".into(), warnings, ..Default::default() }];
        assert!(peers_text(&peers).ends_with("expires in 7 days"));
    }

    #[test]
    fn a_weak_key_exchange_and_a_wrong_clock_are_warned_of() {
        let weak =
            PingView { key_exchange: "X25519".into(), clock_skew_s: -61, ..Default::default() };
        let text = ping_text(&weak);
        assert!(text.contains("not post-quantum") && text.contains("differ by 61 s"), "{text}");
        let good = PingView { key_exchange: "X25519MLKEM768".into(), clock_skew_s: 60, ..weak };
        assert_eq!(ping_json(&good)["warnings"], json!([]));
    }
}
